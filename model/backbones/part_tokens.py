"""PASS's vision transformer: three part tokens beside the class token (Zhu et al., ECCV 2022, arXiv:2203.03931)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from model.backbones.vit import ViT, ViTSpec, grid_size, interpolate_positions
from model.base import TokenLayout
from utils.errors import UserError

PARTS = 3
LEADING = 1 + PARTS
"""Tokens before the patches: the class token, then one for each part."""

FUSIONS = ("cat", "mean")


def fuse(tokens: Tensor, fusion: str) -> Tensor:
    """Returns one feature of the four leading tokens (B, 4, D), in which the parts count by their mean.

    ``cat``: (B, 2D), class token and parts side by side. ``mean``: (B, D), the mean of the two.
    """
    whole, parts = tokens[:, 0], tokens[:, 1:].mean(1)
    return torch.cat([whole, parts], dim=1) if fusion == "cat" else (whole + parts) / 2


class PartTokenViT(ViT):
    """PASS's backbone. ``forward`` gives the fused feature (B, width); ``leading`` the four tokens.

    fusion: ``cat`` or ``mean``, see ``fuse``. options: those of ``ViT``, without side information and pooling. Every
    leading token has a position embedding of its own, and ``pos_embed`` has the patches alone.
    """

    def __init__(self, spec: ViTSpec, image_size: tuple[int, int], fusion: str = "cat", **options: Any):
        super().__init__(spec, image_size, **options)
        if fusion not in FUSIONS:
            raise UserError(f"MODEL.FEAT_FUSION: unknown {fusion!r}. Known: {', '.join(FUSIONS)}")
        self.fusion, self.token_width = fusion, spec.width
        self.width = 2 * spec.width if fusion == "cat" else spec.width
        shapes = {"pos_embed": self.patches, "cls_pos": 1}
        shapes |= {name: 1 for i in range(1, LEADING) for name in (f"part_token{i}", f"part{i}_pos")}
        for name, count in shapes.items():
            self.register_parameter(name, nn.Parameter(trunc_normal_(torch.empty(1, count, spec.width), std=0.02)))
        self.patches = 0  # JPM's pieces have one leading token

    def embed(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        """Returns the tokens before the first block, (B, 3, H, W) -> (B, 4 + N, D)."""
        x, positions = self.patch_embed(images), self.pos_embed
        if self.any_size:
            grid = grid_size((images.shape[2], images.shape[3]), self.patch, self.stride)
            positions = interpolate_positions(F.pad(positions, (0, 0, 1, 0)), self.grid, grid)[:, 1:]
        self.require_count(images, x.shape[1], positions.shape[1])
        parts = [self.get_parameter(f"part_token{i}") + self.get_parameter(f"part{i}_pos") for i in range(1, LEADING)]
        leading = torch.cat([self.cls_token + self.get_parameter("cls_pos"), *parts], dim=1)
        return self.pos_drop(torch.cat([leading.expand(x.shape[0], -1, -1), x + positions], dim=1))

    def leading(self, images: Tensor) -> Tensor:
        """Returns the class token and the part tokens behind the final norm, (B, 4, D)."""
        return self.norm(self.tokens(images)[:, :LEADING])

    def pool_tokens(self, tokens: Tensor) -> Tensor:
        return fuse(tokens[:, :LEADING], self.fusion)

    def token_layout(self) -> TokenLayout:
        return TokenLayout(self.grid, LEADING, True)
