"""What the networks of the TransReID and CLIP-ReID families share: parts, each with a neck and a classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.base import RetrievalModel
from model.layers.heads import make_neck
from model.layers.jpm import LOCAL_PARTS
from model.layers.temporal import TemporalPooling
from utils.errors import UserError
from utils.output import ReIDOutput


def require_neck_feat(neck_feat: str) -> str:
    """Returns the word. Raises ``UserError`` unless TEST.NECK_FEAT is ``before`` or ``after``."""
    if neck_feat not in ("before", "after"):
        raise UserError(f"TEST.NECK_FEAT: unknown {neck_feat!r}. Known: before, after")
    return neck_feat


class NeckedModel(RetrievalModel):
    """One feature per part, and for each a module ``bottleneck`` and a module ``classifier`` with the part's suffix.

    A subclass makes its backbone, calls ``add_part`` for every part in the order of ``part_features``, and says how
    the features come about. neck_feat: ``before`` or ``after`` the necks, for retrieval. dropout: before classifiers.

    temporal: pools the features of each clip in training; None: every image is one by itself.
    """

    whole_parts = 1
    """Parts of the whole image, before JPM's local ones."""

    def __init__(self, neck_feat: str = "after", dropout: float = 0.0):
        super().__init__()
        self.neck_feat = require_neck_feat(neck_feat)
        self.suffixes: list[str] = []
        self.dropout = nn.Dropout(dropout)
        self.temporal: TemporalPooling | None = None

    def add_part(self, suffix: str, width: int, make_head: Callable[[int], nn.Module], use_neck: bool = True) -> None:
        """Adds the classifier and the neck of a part. make_head: width -> classifier. use_neck: False adds no neck."""
        self.suffixes.append(suffix)
        self.add_module(f"classifier{suffix}", make_head(width))
        self.add_module(f"bottleneck{suffix}", make_neck(width) if use_neck else nn.Identity())

    def part_features(
        self, images: Tensor, cam_label: Tensor | None, view_label: Tensor | None
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Returns the features of the parts before their necks, and those that only the metric loss takes, first."""
        raise NotImplementedError(f"{type(self).__name__} has no parts")

    def forward(
        self,
        images: Tensor,
        label: Tensor | None = None,
        cam_label: Tensor | None = None,
        view_label: Tensor | None = None,
    ) -> ReIDOutput | Tensor:
        """Returns a ``ReIDOutput`` in training, and in evaluation the parts side by side, local ones over four."""
        feats, metric_only = self.part_features(images, cam_label, view_label)
        if self.training and self.temporal is not None:
            feats, metric_only = ([self.temporal(feat) for feat in part] for part in (feats, metric_only))
            label = None if label is None else label[:: self.temporal.frames]
        if not self.training and self.neck_feat == "before":
            return self.join(feats)
        necked = self.after_necks(feats)
        if not self.training:
            return self.join(necked)
        retrieval = self.join(feats if self.neck_feat == "before" else necked)
        return ReIDOutput(scores=self.scores(necked, label), feats=[*metric_only, *feats], retrieval=retrieval)

    def outputs(
        self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None
    ) -> ReIDOutput:
        """Returns in evaluation the retrieval feature and the scores of every part, without a margin."""
        if self.training:
            return super().outputs(images, cam_label, view_label)
        feats, _ = self.part_features(images, cam_label, view_label)
        necked = self.after_necks(feats)
        retrieval = self.join(feats if self.neck_feat == "before" else necked)
        return ReIDOutput(scores=self.scores(necked, None), feats=[retrieval])

    def after_necks(self, feats: Sequence[Tensor]) -> list[Tensor]:
        """Returns the parts' features behind their necks."""
        return [self.get_submodule(f"bottleneck{s}")(f) for s, f in zip(self.suffixes, feats, strict=True)]

    def scores(self, necked: Sequence[Tensor], label: Tensor | None) -> list[Tensor]:
        """Returns the logits (B, C) of every part. label: (B,) where a margin is wanted."""
        return [
            self.get_submodule(f"classifier{s}")(self.dropout(f), label)
            for s, f in zip(self.suffixes, necked, strict=True)
        ]

    def join(self, feats: Sequence[Tensor]) -> Tensor:
        """Returns the retrieval feature of all parts, (B, sum of their widths)."""
        whole, local = feats[: self.whole_parts], feats[self.whole_parts :]
        return torch.cat([*whole, *(f / LOCAL_PARTS for f in local)], dim=1)
