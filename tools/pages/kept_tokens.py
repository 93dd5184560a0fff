"""Draws which tokens an MSViT attends to: a column per image, a row per stage with attention.

A cross on the attending token, a ring on every token of its window, filled from yellow to red by the share of heads
that keep it. ``python -m tools.pictures --only tokens`` is the command.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image
from torch import Tensor, nn

from model.backbones.msvit import WindowAttention
from model.layers.sparse_attention import attention_weights


class WatchedAttention:
    """Records the input of a stage's last attention. Remove ``hook`` to stop."""

    def __init__(self, module: WindowAttention):
        self.module = module
        self.maps: tuple[Tensor, ...] = ()
        self.hook = module.register_forward_pre_hook(self.keep)

    def keep(self, module: nn.Module, maps: tuple[Tensor, ...]) -> None:
        """Keeps queries and keys of the last forward pass."""
        self.maps = maps[:2]

    def kept_for(self, position: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the token at ``position``, the tokens of its window, and the share of heads that keep each of them.

        position: in shares of height and width. Returns (2,) and (N, 2) rows and columns as shares of the image, and
        (B, N) shares of the heads.
        """
        q, k = self.maps
        (rows, columns), (height, width) = self.module.attention.split, q.shape[2:]
        down, across = height // rows, width // columns
        row, column = int(position[0] * height), int(position[1] * width)
        window, token = (row % down) * across + column % across, (row // down) * columns + column // across
        weights = attention_weights(q, k, self.module.logit_scale, (rows, columns), self.module.attention.ratio)
        grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
        tokens = (grid * (down, across) + (row % down, column % across) + 0.5) / (height, width)
        return tokens[token], tokens, (weights[:, window, :, token] > 0).float().mean(1).cpu().numpy()


def last_attentions(model: nn.Module) -> dict[str, WindowAttention]:
    """Returns the last attention of each stage by the stage's name."""
    modules = {}
    for name, module in model.named_modules():
        if isinstance(module, WindowAttention):
            modules[next(word for word in name.split(".") if word.startswith("layer"))] = module
    return modules


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, WatchedAttention]]:
    """Records the input of each stage's last attention, by the stage's name, inside the context."""
    stages = {name: WatchedAttention(module) for name, module in last_attentions(model).items()}
    try:
        yield stages
    finally:
        for stage in stages.values():
            stage.hook.remove()


def draw_tokens(images: np.ndarray, rows: dict[str, tuple]) -> Image.Image:
    """Returns the picture. images: (B, H, W, 3) in 0..1. rows: stage -> what ``WatchedAttention.kept_for`` returns."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count, height, width = images.shape[:3]
    figure = Figure(figsize=(1.4 * count, 1.3 * len(rows) * height / width), dpi=80, layout="constrained")
    for i, (stage, (attending, tokens, shares)) in enumerate(rows.items()):
        for j, image in enumerate(images):
            axes = figure.add_subplot(len(rows), count, i * count + j + 1)
            axes.imshow(image)
            (y, x), share = (tokens * (height, width) - 0.5).T, shares[j]
            colours = np.stack([np.ones_like(share), 1 - share, 0 * share, 1.0 * (share > 0)], 1)
            axes.scatter(x, y, s=22, c=colours, edgecolors="white", linewidths=0.5)
            axes.plot(attending[1] * width - 0.5, attending[0] * height - 0.5, "x", color="cyan", markersize=7)
            axes.set_xticks([])
            axes.set_yticks([])
            if j == 0:
                axes.set_ylabel(stage)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba()))
