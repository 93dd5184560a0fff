"""Any image model of timm as a backbone: ``MODEL.NAME: timm:convnext_tiny``."""

from __future__ import annotations

import logging
from typing import Any, cast

import timm
from timm.models import group_parameters
from torch import Tensor, nn

from model.base import Backbone, TokenLayout
from utils.errors import UserError, conflict, nearest
from utils.layered import Layers

log = logging.getLogger("lineup")


# timm's models share no base class: the next four functions alone ask one what it has.


def feature_width(network: Any) -> int:
    """Returns the width of a timm model's pooled feature; some have a hidden layer between the map and the head."""
    return getattr(network, "head_hidden_size", None) or network.num_features


def set_image_size(network: Any, image_size: tuple[int, int]) -> None:
    """Resizes what a timm model makes for one size of images, such as position embeddings, if it has any."""
    if hasattr(network, "set_input_size"):
        network.set_input_size(img_size=tuple(image_size))


def patch_grid(network: nn.Module) -> tuple[int, int] | None:
    """Returns a timm model's patches (down, across); None for a model without a patch embedding."""
    grid = getattr(dict(network.named_children()).get("patch_embed"), "grid_size", None)
    return None if grid is None else (grid[0], grid[1])


def refuse_untiled(network: nn.Module, size: tuple[int, int]) -> None:
    """Raises ``UserError`` if a timm model's patches do not tile an image (height, width): pixels would be lost."""
    patch = getattr(dict(network.named_children()).get("patch_embed"), "patch_size", None)
    if patch is None or not any(side % step for side, step in zip(size, patch, strict=True)):
        return
    near = [max(round(side / step), 1) * step for side, step in zip(size, patch, strict=True)]
    raise UserError(
        f"INPUT.SIZE_TRAIN: {size[0]} x {size[1]} cannot be tiled by the model's patches of {patch[0]} x {patch[1]}; "
        f"the nearest size that can is {near[0]} x {near[1]}; set INPUT.SIZE_TRAIN and INPUT.SIZE_TEST to it"
    )


def layers_of_timm(network: Any) -> Layers:
    """Returns the layers by which timm itself would let rates decay, but for the last norm and head."""
    matcher = network.group_matcher(coarse=False)
    numbers = cast("dict[str, int]", group_parameters(network, matcher, reverse=True))
    layers: Layers = [()] * (max(numbers.values()) + 1)
    for name, number in numbers.items():
        if not name.startswith(("norm.", "fc_norm.", "head")):
            layers[number] += (name,)
    return [names for names in layers if names]


def layout_of(network: nn.Module) -> TokenLayout | None:
    """Returns the order of a timm transformer's tokens; None for a model without a plain grid of them."""
    grid, prefix = patch_grid(network), getattr(network, "num_prefix_tokens", None)
    if grid is None or prefix is None:
        return None
    return TokenLayout(grid, prefix, getattr(network, "global_pool", "") == "token")


def position_grids_of(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Returns the patch grids of a timm model's position embeddings, by the embeddings' names."""
    return {
        f"{path}.pos_embed".removeprefix("."): grid
        for path, module in network.named_modules()
        if (grid := patch_grid(module)) and "pos_embed" in dict(module.named_parameters(recurse=False))
    }


class TimmBackbone(Backbone):
    """A model of timm without its classifier. (B, 3, H, W) -> pooled feature (B, width). Keys are timm's own.

    image_size: (H, W), for models that need it (transformers). drop_path: for models that have stochastic depth, and
    a line in the log for the others. grad_checkpoint: as timm does it; ``UserError`` if the model does not support it.
    """

    net: Any
    """timm's model; these share no base class."""

    def __init__(self, name: str, image_size: tuple[int, int], drop_path: float = 0.0, grad_checkpoint: bool = False):
        super().__init__()
        if not timm.is_model(name):
            raise UserError(f"MODEL.NAME: timm has no model {name!r}{nearest(name, timm.list_models())}")
        self.net, accepted = create(name, {"img_size": tuple(image_size)}, {"drop_path_rate": drop_path})
        refuse_untiled(self.net, (image_size[0], image_size[1]))
        if drop_path and "drop_path_rate" not in accepted:
            log.info("MODEL.DROP_PATH does nothing here: timm:%s has no stochastic depth", name)
        if grad_checkpoint:
            try:
                self.net.set_grad_checkpointing(True)
            except (AttributeError, AssertionError):
                raise conflict(
                    "MODEL.GRAD_CHECKPOINT", f"MODEL.NAME 'timm:{name}'", "timm does not support it for this model"
                ) from None
        self.width = feature_width(self.net)
        self.channels_last = getattr(self.net, "output_fmt", "") == "NHWC"

    def forward(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        return self.net(images)

    def pretrained_part(self) -> nn.Module:
        return self.net

    def pretrained_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the state under timm's names; files of ours have ``net.`` before them."""
        return {key.removeprefix("net."): value for key, value in state.items()}

    def position_grids(self) -> dict[str, tuple[int, int]]:
        return {f"net.{name}": grid for name, grid in position_grids_of(self.net).items()}

    def rate_layers(self) -> Layers:
        return [tuple(f"net.{name}" for name in names) for names in layers_of_timm(self.net)]

    def token_layout(self) -> TokenLayout | None:
        return layout_of(self.net)


def create(name: str, size: dict[str, Any], path: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Returns timm's model without a classifier, and the options that it accepted.

    size, path: options of which a model may refuse either: transformers need the size, convolutions refuse it.
    """
    for options in (size | path, path, size):
        try:
            return timm.create_model(name, num_classes=0, **options), options
        except TypeError:
            continue
    return timm.create_model(name, num_classes=0), {}
