"""Vision transformer for ReID: overlapping patches, side information, convolutional (ICS) stem.

TransReID (He et al., ICCV 2021, arXiv:2102.04378) and TransReID-SSL (Luo et al., arXiv:2111.12084). The blocks are
timm's, so attention runs through ``scaled_dot_product_attention``; parameter names are those of the published files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.weight_init import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.base import Backbone, TokenLayout
from model.layers.norms import IBN
from model.layers.pooling import GROUP, pool_tokens
from utils.errors import UserError
from utils.layered import Layers


@dataclass(frozen=True)
class ViTSpec:
    """The shape of one TRANSFORMER_TYPE."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    attention_scale: float | None = None  # None: head width ** -0.5
    patch: int = 16
    stem_width: int = 64
    norm_eps: float = 1e-6


# TransReID's own ViT-small divides by the root of the whole width rather than of the head's.
TRANSREID_VIT_SMALL = ViTSpec(768, 8, 8, mlp_ratio=3.0, qkv_bias=False, attention_scale=768**-0.5)
DEIT_SMALL = ViTSpec(384, 12, 6)
VIT_TYPES = {
    "vit_base_patch16_224_TransReID": ViTSpec(768, 12, 12),
    "deit_base_patch16_224_TransReID": ViTSpec(768, 12, 12),
    "deit_small_patch16_224_TransReID": DEIT_SMALL,
    # vit_small means two networks; MODEL.VIT_SMALL (resolved by load_config) says which.
    "vit_tiny_patch16_224_TransReID": ViTSpec(192, 12, 3),
    # For tests and the quick start: small enough for seconds on a CPU.
    "vit_mini_patch16_TransReID": ViTSpec(128, 6, 4),
    "vit_mini_patch8_TransReID": ViTSpec(128, 6, 4, patch=8, stem_width=32),
    "vit_nano_patch8_TransReID": ViTSpec(64, 4, 4, mlp_ratio=2.0, patch=8, stem_width=32),
    "vit_micro_patch8_TransReID": ViTSpec(32, 3, 2, mlp_ratio=2.0, patch=8, stem_width=16),
}
VIT_SMALL = "vit_small_patch16_224_TransReID"


class ScaleQuery(nn.Module):
    """Multiplies the queries so that attention uses another scale than head width ** -0.5."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, q: Tensor) -> Tensor:
        return q * self.factor


class PatchEmbed(nn.Module):
    """Overlapping patches: a convolution whose stride may be smaller than its kernel. (B, 3, H, W) -> (B, N, D)."""

    def __init__(self, width: int, patch: int, stride: tuple[int, int]):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=stride)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class ConvStem(nn.Module):
    """IBN convolution stem, stride ``patch`` in all (TransReID-SSL, section 3.3: "ICS"). (B, 3, H, W) -> (B, N, D).

    channels: of its convolutions, 64 as published.
    """

    def __init__(self, width: int, patch: int = 16, channels: int = 64):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False), IBN(channels), nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), IBN(channels), nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.proj = nn.Conv2d(channels, width, kernel_size=patch // 2, stride=patch // 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(self.conv(images)).flatten(2).transpose(1, 2)


class SideInformation(nn.Module):
    """Rows of the side information table: camera, view, or both (TransReID, section 3.4).

    A count below 2 means that there is nothing to distinguish. Labels are 0-based; one that training never saw adds
    nothing, as do labels that are ``None``.
    """

    def __init__(self, camera_num: int, view_num: int):
        super().__init__()
        self.camera_num = camera_num if camera_num > 1 else 0
        self.view_num = view_num if view_num > 1 else 0

    @property
    def rows(self) -> int:
        """Returns the number of rows in the table, 0 for none."""
        if not (self.camera_num or self.view_num):
            return 0
        return max(self.camera_num, 1) * max(self.view_num, 1)

    def forward(self, table: Tensor, cam_label: Tensor | None, view_label: Tensor | None) -> Tensor | float:
        """Returns the rows (B, ..., D) of a table (rows, ..., D), zero for unknown labels, or 0.0 without labels."""
        row, known = torch.zeros((), dtype=torch.long, device=table.device), True
        for count, label in ((self.camera_num, cam_label), (self.view_num, view_label)):
            if not count:
                continue
            if label is None:
                return 0.0
            label = torch.as_tensor(label, device=table.device).long()
            row, known = row * count + label, (label >= 0) & (label < count) & known
        assert isinstance(known, Tensor), "a table without rows has no labels to look up"
        return table[row.masked_fill(~known, 0)] * known.view(-1, *[1] * (table.dim() - 1)).to(table.dtype)


def grid_size(image_size: tuple[int, int], patch: int, stride: tuple[int, int]) -> tuple[int, int]:
    """Returns the number of patches per column and per row."""
    if image_size[0] < patch or image_size[1] < patch:
        raise UserError(f"INPUT.SIZE_TRAIN: {tuple(image_size)} is smaller than one patch of {patch} x {patch}")
    return (image_size[0] - patch) // stride[0] + 1, (image_size[1] - patch) // stride[1] + 1


def interpolate_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Returns position embeddings for an image of another size, bicubic, with gradient (DINO, arXiv:2104.14294).

    (1, 1 + old[0] * old[1], D) -> (1, 1 + new[0] * new[1], D); the first token is kept. The scale factors are those of
    grids a tenth of a patch larger, and they, not the ratio of the sizes, say where is sampled, as published.
    """
    if tuple(old) == tuple(new):
        return positions
    patches = positions[:, 1:].reshape(1, *old, -1).permute(0, 3, 1, 2)
    factors = tuple((n + 0.1) / o for n, o in zip(new, old, strict=True))
    patches = F.interpolate(patches, scale_factor=factors, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


class ViT(Backbone):
    """TransReID's backbone. ``forward`` gives the pooled feature (B, D); ``tokens`` and ``last_stage`` serve JPM.

    image_size: (H, W) for which position embeddings are made. camera_num, view_num: rows of side information, 0 for
    none; sie_coe: their weight. drop_path grows linearly with depth from 0 to its value in the last block. any_size:
    images of other sizes get interpolated position embeddings; without it they are refused. pooling: see
    ``model.layers.pooling.pool_tokens``.
    """

    def __init__(
        self,
        spec: ViTSpec,
        image_size: tuple[int, int],
        stride: tuple[int, int] = (16, 16),
        camera_num: int = 0,
        view_num: int = 0,
        sie_coe: float = 3.0,
        drop_path: float = 0.1,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        conv_stem: bool = False,
        pooling: str = "None",
        published_init: str = "transreid",
        grad_checkpoint: bool = False,
        any_size: bool = False,
    ):
        super().__init__()
        if conv_stem and tuple(stride) != (spec.patch, spec.patch):
            raise UserError(
                f"MODEL.STEM_CONV: the stem has stride {spec.patch}; MODEL.STRIDE_SIZE {tuple(stride)} must be "
                f"[{spec.patch}, {spec.patch}]"
            )
        width = spec.width
        self.width, self.pooling, self.grad_checkpoint = width, pooling, grad_checkpoint
        self.patch, self.stride, self.any_size = spec.patch, (stride[0], stride[1]), any_size
        self.image_size, self.sie_coe, self.depths = tuple(image_size), sie_coe, spec.depth
        self.grid = grid_size(image_size, spec.patch, stride)
        self.patches = self.grid[0] * self.grid[1]
        if pooling == "avg_max" and self.patches % GROUP:
            raise UserError(
                f"MODEL.POOLING 'avg_max': it takes patches in groups of {GROUP}, and images of {self.image_size} have "
                f"{self.patches}; change INPUT.SIZE_TRAIN and INPUT.SIZE_TEST, or use 'avg'"
            )
        self.patch_embed = (
            ConvStem(width, spec.patch, spec.stem_width) if conv_stem else PatchEmbed(width, spec.patch, stride)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patches, width))
        self.side = SideInformation(camera_num, view_num)
        if self.side.rows:
            self.sie_embed = nn.Parameter(torch.zeros(self.side.rows, 1, width))
        self.pos_drop = nn.Dropout(drop)
        self.blocks = make_blocks(spec, drop_path, drop, attn_drop)
        self.norm = nn.LayerNorm(width, eps=spec.norm_eps)
        self._initialise(published_init)

    def _initialise(self, published_init: str) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for parameter in (self.cls_token, self.pos_embed, *([self.sie_embed] if self.side.rows else [])):
            trunc_normal_(parameter, std=0.02)
        if published_init == "transreid" and isinstance(self.patch_embed, PatchEmbed):
            kernel = self.patch_embed.proj.kernel_size
            nn.init.normal_(self.patch_embed.proj.weight, std=(2.0 / (kernel[0] * kernel[1] * self.width)) ** 0.5)

    def embed(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        """Returns the tokens before the first block. (B, 3, H, W) -> (B, 1 + N, D)."""
        x, positions = self.patch_embed(images), self.pos_embed
        if self.any_size:
            grid = grid_size((images.shape[2], images.shape[3]), self.patch, self.stride)
            positions = interpolate_positions(positions, self.grid, grid)
        self.require_count(images, x.shape[1], positions.shape[1] - 1)
        # x.shape[0] here and in the other backbones: a tracer takes len(x) for a fixed number, and begins again
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + positions
        if self.side.rows:
            x = x + self.sie_coe * self.side(self.sie_embed, cam_label, view_label)
        return self.pos_drop(x)

    def require_count(self, images: Tensor, count: int, expected: int) -> None:
        """Raises ``UserError`` if the images have another number of patches than there are position embeddings."""
        if count != expected:
            raise UserError(
                f"images of {tuple(images.shape[2:])} give {count} patches, the model was built for {self.image_size} "
                f"({expected} patches): set INPUT.SIZE_TRAIN and INPUT.SIZE_TEST to the same size"
            )

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """Returns the block's output, with gradient checkpointing in training if it is on."""
        return run_block(block, x, self.grad_checkpoint and self.training)

    def tokens(
        self,
        images: Tensor,
        cam_label: Tensor | None = None,
        view_label: Tensor | None = None,
        blocks: int | None = None,
    ) -> Tensor:
        """Returns the tokens (B, 1 + N, D) after the first ``blocks`` blocks (all by default), not normalised."""
        x = self.embed(images, cam_label, view_label)
        for block in self.blocks[:blocks]:
            x = self.run(block, x)
        return x

    def at_depth(self, images: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Returns the features (B, D) after the last block and after block ``depth``, both under the final norm."""
        x = inner = self.embed(images)
        for i, block in enumerate(self.blocks):
            x = self.run(block, x)
            if i == depth:
                inner = self.pool_tokens(self.norm(x))
        return self.pool_tokens(self.norm(x)), inner

    def last_stage(self) -> nn.Sequential:
        """Returns the last block and the final norm, of which JPM keeps two copies."""
        return nn.Sequential(self.blocks[-1], self.norm)

    def pool_tokens(self, tokens: Tensor) -> Tensor:
        """Returns the feature (B, D) of normalised tokens (B, 1 + N, D)."""
        return pool_tokens(tokens, self.pooling)

    def forward(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        return self.pool_tokens(self.norm(self.tokens(images, cam_label, view_label)))

    def require_tiling(self, key: str, size: tuple[int, int]) -> None:
        for side, step in zip(size, self.stride, strict=True):
            if side < self.patch or (side - self.patch) % step:
                raise UserError(
                    f"{key}: {size[0]} x {size[1]} cannot be tiled by patches of {self.patch} at stride {step}: {side} "
                    f"leaves {side % step if side < self.patch else (side - self.patch) % step} pixels over"
                )

    def token_layout(self) -> TokenLayout:
        return TokenLayout(self.grid, 1, self.pooling in ("None", "gem"))

    def rate_layers(self) -> Layers:
        first = ("patch_embed.", "cls_", "part", "pos_embed", "sie_embed")
        return [first, *((f"blocks.{i}.",) for i in range(len(self.blocks)))]

    def position_grids(self) -> dict[str, tuple[int, int]]:
        return {"pos_embed": self.grid}


def make_blocks(spec: ViTSpec, drop_path: float, drop: float, attn_drop: float) -> nn.ModuleList:
    """Returns the blocks; stochastic depth grows linearly from 0 to ``drop_path`` in the last one."""
    blocks = nn.ModuleList()
    for i in range(spec.depth):
        block = Block(
            spec.width,
            spec.heads,
            mlp_ratio=spec.mlp_ratio,
            qkv_bias=spec.qkv_bias,
            proj_drop=drop,
            attn_drop=attn_drop,
            drop_path=drop_path * i / max(spec.depth - 1, 1),
            norm_layer=cast("type[nn.Module]", partial(nn.LayerNorm, eps=spec.norm_eps)),
        )
        if spec.attention_scale is not None:
            block.attn.q_norm = ScaleQuery(spec.attention_scale * (spec.width // spec.heads) ** 0.5)
        blocks.append(block)
    return blocks


def run_block(block: nn.Module, x: Tensor, checkpointed: bool) -> Tensor:
    """Returns the block's output; checkpointed: activations inside are computed again in the backward pass."""
    if not checkpointed:
        return block(x)
    out = checkpoint(block, x, use_reentrant=False)
    assert isinstance(out, Tensor)
    return out
