"""What DINO trains: a backbone for crops of several sizes, and a head with weight-normalised prototypes.

Caron et al., ICCV 2021, arXiv:2104.14294; at ReID's aspect ratio as TransReID-SSL has it (arXiv:2111.12084).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from model.base import Backbone, RetrievalModel


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose row k is ``g_k * v_k / |v_k|``. (B, width) -> (B, out).

    Its parameters keep the names that published files have: ``weight_g`` (out, 1) and ``weight_v`` (out, width).
    """

    def __init__(self, width: int, out: int):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out, 1))
        self.weight_v = nn.Parameter(trunc_normal_(torch.empty(out, width), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=1))


class DINOHead(nn.Module):
    """Three layers, unit length, then the prototypes. (B, width) -> (B, out_dim).

    use_bn: batch norm before each gelu. norm_last_layer: the lengths of the prototypes stay 1. hidden, bottleneck:
    widths inside.
    """

    def __init__(
        self,
        width: int,
        out_dim: int,
        use_bn: bool = False,
        norm_last_layer: bool = True,
        hidden: int = 2048,
        bottleneck: int = 256,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for inside in (width, hidden):
            layers += [nn.Linear(inside, hidden), *([nn.BatchNorm1d(hidden)] if use_bn else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = WeightNormLinear(bottleneck, out_dim)
        self.last_layer.weight_g.requires_grad_(not norm_last_layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=1))


class MultiCrop(RetrievalModel):
    """Backbone and head. A tensor of images gives the backbone's feature, a list of crops the head's logits."""

    optional_keys = classifier_keys = ("head.",)

    keeps_backbone_prefix = True

    backbone: Backbone

    def __init__(self, backbone: Backbone, head: DINOHead):
        super().__init__()
        self.backbone, self.head, self.width = backbone, head, backbone.width

    def forward(
        self,
        crops: Tensor | Sequence[Tensor],
        label: Tensor | None = None,
        cam_label: Tensor | None = None,
        view_label: Tensor | None = None,
    ) -> Tensor:
        """Returns features (B, width) of images (B, 3, H, W), or the head's logits of crops, in either mode.

        V crops of (B, 3, H_v, W_v) give (V * B, out_dim), crop after crop. Crops of one size that follow each
        other go through the backbone in one pass, all crops through the head in one.
        """
        if isinstance(crops, Tensor):
            return self.backbone(crops)
        runs = [list(run) for _, run in groupby(crops, key=lambda crop: crop.shape[2:])]
        return self.head(torch.cat([self.backbone(torch.cat(run)) for run in runs]))

    def backbone_module(self) -> Backbone:
        return self.backbone

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a file's state under our names: a bare backbone's, or one with torch's later names of weight norm."""
        if not any(key.startswith(("backbone.", "head.")) for key in state):
            return {f"backbone.{key}": value for key, value in state.items()}
        spelling = {
            "head.last_layer.parametrizations.weight.original0": "head.last_layer.weight_g",
            "head.last_layer.parametrizations.weight.original1": "head.last_layer.weight_v",
        }
        return {spelling.get(key, key): value for key, value in state.items()}
