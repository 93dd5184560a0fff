"""PASS's ReID model: a neck for the class token and for each part token, and one classifier on what they give."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.backbones.part_tokens import LEADING, PartTokenViT, fuse
from model.base import Backbone, RetrievalModel, with_base
from model.layers.heads import make_neck
from model.networks.necked import require_neck_feat
from utils.output import ReIDOutput

NECKS = ("bottleneck", *(f"bottleneck_{i}" for i in range(1, LEADING)))


class PartTokenModel(RetrievalModel):
    """PASS with ``MODEL.MULTI_NECK`` (``docs/pass.md``). One feature before the necks, for the triplet, one after.

    base: the backbone. make_head: width -> classifier. neck_feat: ``before`` or ``after`` the necks, for retrieval.
    """

    base: PartTokenViT

    def __init__(self, base: PartTokenViT, make_head: Callable[[int], nn.Module], neck_feat: str = "after"):
        super().__init__()
        self.base, self.neck_feat, self.width = base, require_neck_feat(neck_feat), base.width
        self.classifier = make_head(base.width)
        for name in NECKS:
            self.add_module(name, make_neck(base.token_width))

    def after_necks(self, tokens: Tensor) -> Tensor:
        """Returns the fused feature (B, width) of four tokens (B, 4, D), each through its own neck."""
        necked = [self.get_submodule(name)(tokens[:, i]) for i, name in enumerate(NECKS)]
        return fuse(torch.stack(necked, dim=1), self.base.fusion)

    def forward(
        self,
        images: Tensor,
        label: Tensor | None = None,
        cam_label: Tensor | None = None,
        view_label: Tensor | None = None,
    ) -> ReIDOutput | Tensor:
        """Returns a ``ReIDOutput`` with one score and one feature in training, and in evaluation the feature."""
        tokens = self.base.leading(images)
        before = fuse(tokens, self.base.fusion)
        if not self.training and self.neck_feat == "before":
            return before
        after = self.after_necks(tokens)
        if not self.training:
            return after
        retrieval = before if self.neck_feat == "before" else after
        return ReIDOutput(scores=[self.classifier(after, label)], feats=[before], retrieval=retrieval)

    def outputs(
        self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None
    ) -> ReIDOutput:
        """Returns in evaluation the retrieval feature and the scores, without a margin."""
        if self.training:
            return super().outputs(images, cam_label, view_label)
        tokens = self.base.leading(images)
        after = self.after_necks(tokens)
        retrieval = fuse(tokens, self.base.fusion) if self.neck_feat == "before" else after
        return ReIDOutput(scores=[self.classifier(after, None)], feats=[retrieval])

    def class_scores(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        """Returns the logits (B, C), without a margin."""
        return self.classifier(self.after_necks(self.base.leading(images)), None)

    def backbone_module(self) -> Backbone:
        return self.base

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a published file's state under our names: they are the same, less the unused ImageNet head."""
        state = with_base(state, ("bottleneck", "classifier"))
        return {key: value for key, value in state.items() if not key.startswith(("base.fc.", "base.head"))}
