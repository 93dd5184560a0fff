"""Necks and classifiers with a margin: from a feature to training scores."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError, nearest


def make_neck(width: int) -> nn.BatchNorm1d:
    """Returns a BNNeck (Luo et al., CVPRW 2019): batch norm whose shift is frozen at 0."""
    neck = nn.BatchNorm1d(width)
    neck.bias.requires_grad_(False)
    return neck


class ClassLinear(nn.Linear):
    """A linear layer that may have no outputs, as where a test's data have no training classes."""

    def reset_parameters(self) -> None:
        if self.out_features:  # torch warns about tensors without elements
            super().reset_parameters()


class LinearHead(ClassLinear):
    """Plain logits. (B, D) -> (B, C)."""

    def __init__(self, width: int, num_class: int, scale: float = 30.0, margin: float = 0.5):
        super().__init__(width, num_class, bias=False)
        nn.init.normal_(self.weight, std=0.001)

    def forward(self, feat: Tensor, label: Tensor | None = None) -> Tensor:
        return F.linear(feat, self.weight)


class MarginHead(nn.Module):
    """Cosine logits with a margin on the label's. ``label`` None leaves the margin out. (B, D), (B,) -> (B, C)."""

    def __init__(self, width: int, num_class: int, scale: float = 30.0, margin: float = 0.5):
        super().__init__()
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(torch.empty(num_class, width))
        if num_class:
            self.initialise()

    def initialise(self) -> None:
        """Draws the first weights."""
        nn.init.xavier_uniform_(self.weight)

    def cosines(self, feat: Tensor) -> Tensor:
        """Returns cosines in float32 whatever the autocast: half precision loses the margin. (B, D) -> (B, C)."""
        with torch.autocast(feat.device.type, enabled=False):
            return F.linear(F.normalize(feat.float()), F.normalize(self.weight.float()))

    def with_margin(self, cosine: Tensor) -> Tensor:
        """Returns the label's logit over the scale, from its cosine."""
        raise NotImplementedError(f"{type(self).__name__} has no margin of its own")

    def forward(self, feat: Tensor, label: Tensor | None = None) -> Tensor:
        cosine = self.cosines(feat)
        if label is None:
            return self.scale * cosine
        target = F.one_hot(label, cosine.shape[1]).bool()
        return self.scale * torch.where(target, self.with_margin(cosine), cosine)


class ArcFace(MarginHead):
    """Deng et al., CVPR 2019: the margin is added to the angle; beyond pi - m a straight line continues it."""

    def with_margin(self, cosine: Tensor) -> Tensor:
        m = self.margin
        sine = (1.0 - cosine.square()).clamp(min=1e-12).sqrt()  # finite slope at cosine 1
        return torch.where(
            cosine > math.cos(math.pi - m),
            cosine * math.cos(m) - sine * math.sin(m),
            cosine - m * math.sin(math.pi - m),
        )


class CosFace(MarginHead):
    """Wang et al., CVPR 2018 (CosFace, AM-softmax): the margin is taken from the cosine."""

    def with_margin(self, cosine: Tensor) -> Tensor:
        return cosine - self.margin


class AMSoftmax(CosFace):
    """As CosFace; published files keep the weight transposed, as ``W`` (D, C)."""

    def __init__(self, width: int, num_class: int, scale: float = 30.0, margin: float = 0.5):
        nn.Module.__init__(self)
        self.scale, self.margin = scale, margin
        self.W = nn.Parameter(torch.empty(width, num_class))
        if num_class:
            nn.init.xavier_normal_(self.W)

    @property
    def weight(self) -> Tensor:
        return self.W.t()


class Circle(MarginHead):
    """Circle loss in its classification form (Sun et al., CVPR 2020); the bracketed weights carry no gradient."""

    def initialise(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, feat: Tensor, label: Tensor | None = None) -> Tensor:
        cosine, m = self.cosines(feat), self.margin
        if label is None:
            return self.scale * cosine
        fixed = cosine.detach()
        positive = (1 + m - fixed).clamp(min=0) * (cosine - (1 - m))
        negative = (fixed + m).clamp(min=0) * (cosine - m)
        target = F.one_hot(label, cosine.shape[1]).bool()
        return self.scale * torch.where(target, positive, negative)


CLASSIFIERS = {"softmax": LinearHead, "arcface": ArcFace, "cosface": CosFace, "amsoftmax": AMSoftmax, "circle": Circle}


def make_head(kind: str, width: int, num_class: int, scale: float = 30.0, margin: float = 0.5) -> nn.Module:
    """Returns the classifier that MODEL.ID_LOSS_TYPE names; its forward takes (feature, label)."""
    if kind not in CLASSIFIERS:
        hint = nearest(kind, CLASSIFIERS)
        raise UserError(f"MODEL.ID_LOSS_TYPE: unknown {kind!r}{hint} Known: {', '.join(CLASSIFIERS)}")
    return CLASSIFIERS[kind](width, num_class, scale, margin)
