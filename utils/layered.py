"""The layers of a network by the names of their parameters, from the image to the feature."""

from __future__ import annotations

from torch import nn

Layers = list[tuple[str, ...]]
"""For each layer, the beginnings of its parameters' names."""


class Layered:
    """A module that may say which of its parameters belong to which layer, for rates that decay with depth."""

    def rate_layers(self) -> Layers:
        """Returns the layers from the image on; what stands behind the last one is in none. Empty if unknown."""
        return []


def layers_of(module: nn.Module) -> Layers:
    """Returns the layers of the first module inside ``module`` that knows its own, by the names in ``module``."""
    for path, inner in module.named_modules():
        if isinstance(inner, Layered) and (layers := inner.rate_layers()):
            prefix = f"{path}." if path else ""
            return [tuple(prefix + name for name in names) for names in layers]
    return []
