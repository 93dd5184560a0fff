"""Swin transformer for ReID (Liu et al., ICCV 2021, arXiv:2103.14030), as TransReID-SSL has it. Blocks are timm's."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from timm.layers.weight_init import trunc_normal_
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import Tensor, nn

from model.backbones.vit import run_block
from model.base import Backbone
from utils.errors import UserError
from utils.layered import Layers


@dataclass(frozen=True)
class SwinSpec:
    """The shape of one TRANSFORMER_TYPE: width of the first stage, blocks and heads of each."""

    width: int
    heads: tuple[int, ...]
    depths: tuple[int, ...] = (2, 2, 18, 2)
    patch: int = 4


SWIN_TYPES = {
    "swin_tiny_patch4_window7_224": SwinSpec(96, (3, 6, 12, 24), (2, 2, 6, 2)),  # SOLIDER's alone
    "swin_base_patch4_window7_224": SwinSpec(128, (4, 8, 16, 32)),
    "swin_small_patch4_window7_224": SwinSpec(96, (3, 6, 12, 24)),
    "swin_micro_patch4": SwinSpec(16, (1, 2), (2, 2)),  # for tests
}

SOLIDER_TYPES = ("swin_tiny_patch4_window7_224",)
"""Types that TransReID-SSL does not have."""

WINDOWS = {
    (256, 128): 8, (256, 256): 8, (384, 128): 8, (224, 224): 7, (224, 112): 7, (384, 384): 12, (384, 192): 12,
    (192, 192): 6,
}  # fmt: skip
"""Image size -> side of an attention window, as published; other sizes take 7, which the blocks pad to."""

TABLE = ".attn.relative_position_bias_table"


def block_layers(stages: str, depths: tuple[int, ...]) -> Layers:
    """Returns the layers of a Swin: the patch embedding, then every block; merging goes with the block before it.

    stages: the name of its list of stages.
    """
    layers: Layers = [("patch_embed.",)]
    for i, depth in enumerate(depths):
        layers += [(f"{stages}.{i}.blocks.{j}.",) for j in range(depth)]
        layers[-1] += (f"{stages}.{i}.downsample.",)
    return layers


class SwinEmbed(nn.Module):
    """Patches side by side, normalised. (B, 3, H, W) -> (B, H / patch, W / patch, D)."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class SwinStage(nn.Module):
    """Blocks on one grid, every other one with shifted windows, then merging of four neighbours into one.

    A grid whose smaller side is no larger than the window takes windows of that side and shifts nothing.
    """

    def __init__(self, width: int, grid: tuple[int, int], heads: int, window: int, rates: list[float], merge: bool):
        super().__init__()
        shift = 0 if min(grid) <= window else window // 2
        window = min(window, *grid)
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(
                width, grid, heads, window_size=window, shift_size=shift if i % 2 else 0, drop_path=rate
            )
            for i, rate in enumerate(rates)
        )  # fmt: skip
        self.downsample = PatchMerging(width) if merge else nn.Identity()


class Swin(Backbone):
    """TransReID-SSL's Swin. (B, 3, H, W) -> mean over the last grid, (B, width).

    image_size: (H, W), for which windows and their bias tables are made. drop_path grows linearly over all blocks.
    """

    channels_last = True

    def __init__(
        self, spec: SwinSpec, image_size: tuple[int, int], drop_path: float = 0.1, grad_checkpoint: bool = False
    ):
        super().__init__()
        self.image_size, self.grad_checkpoint, self.block_counts = tuple(image_size), grad_checkpoint, spec.depths
        smallest = spec.patch * 2 ** (len(spec.depths) - 1)
        if any(side % smallest for side in image_size):
            raise UserError(
                f"INPUT.SIZE_TRAIN: {tuple(image_size)} does not suit Swin, whose last grid has cells of {smallest} "
                f"pixels; both sides must be multiples of {smallest}"
            )
        window = WINDOWS.get((image_size[0], image_size[1]), 7)
        rates = torch.linspace(0, drop_path, sum(spec.depths)).tolist()
        self.patch_embed = SwinEmbed(spec.width, spec.patch)
        self.layers = nn.ModuleList()
        for i, (depth, heads) in enumerate(zip(spec.depths, spec.heads, strict=True)):
            grid = image_size[0] // spec.patch // 2**i, image_size[1] // spec.patch // 2**i
            merge = i + 1 < len(spec.depths)
            self.layers.append(SwinStage(spec.width * 2**i, grid, heads, window, rates[:depth], merge))
            rates = rates[depth:]
        self.width = spec.width * 2 ** (len(spec.depths) - 1)
        self.norm = nn.LayerNorm(self.width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        if tuple(images.shape[2:]) != self.image_size:
            raise UserError(
                f"images of {tuple(images.shape[2:])} for a Swin that was built for {self.image_size}: set "
                "INPUT.SIZE_TRAIN and INPUT.SIZE_TEST to the same size"
            )
        x = self.patch_embed(images)
        checkpointed = self.grad_checkpoint and self.training
        for stage in self.layers:
            assert isinstance(stage, SwinStage)
            for block in stage.blocks:
                x = run_block(block, x, checkpointed)
            x = stage.downsample(x)
        return self.norm(x).mean((1, 2))

    def rate_layers(self) -> Layers:
        return block_layers("layers", self.block_counts)

    def pretrained_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns an ImageNet file's state under our names, bias tables resized; timm merges one stage later."""
        last = len(self.layers) - 1
        if any(key.startswith(f"layers.{last}.downsample.") for key in state):
            state = {
                re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key): value
                for key, value in state.items()
            }
        shapes = {key: value.shape for key, value in self.state_dict().items() if key.endswith(TABLE)}
        return {
            key: resized_table(value, shapes[key]) if key in shapes and value.shape != shapes[key] else value
            for key, value in state.items()
        }


def resized_table(table: Tensor, shape: torch.Size) -> Tensor:
    """Returns a relative position bias table for square windows of another size. shape: (rows, heads)."""
    window = round((shape[0] ** 0.5 + 1) / 2)
    return resize_rel_pos_bias_table(table, (window, window), tuple(shape))
