"""The ReID model: a backbone, one or five parts, and on each part a neck and a classifier."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.layers.heads import make_neck
from model.layers.jpm import LOCAL_PARTS, jigsaw_features
from model.networks.cluster_encoder import with_base
from model.output import ReIDOutput
from utils.errors import UserError


class ReIDModel(nn.Module):
    """Features, necks and scores as TransReID and the strong baseline have them (``docs/transreid.md``).

    base: backbone with ``width`` and ``forward(images, cam_label, view_label) -> (B, width)``. With ``jigsaw`` (the
    arguments of ``model.layers.jpm.jigsaw_pieces``) it also has ``tokens``, ``last_stage`` and ``pool``, and there are
    five parts. make_head: width -> classifier. neck_feat: ``before`` or ``after`` the necks, for retrieval. use_neck:
    False passes the features on. reduce_dim: features become this wide by a linear layer, 0 leaves them.
    """

    def __init__(
        self,
        base: nn.Module,
        make_head: Callable[[int], nn.Module],
        neck_feat: str = "after",
        jigsaw: dict | None = None,
        use_neck: bool = True,
        reduce_dim: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if neck_feat not in ("before", "after"):
            raise UserError(f"TEST.NECK_FEAT: {neck_feat!r} is neither 'before' nor 'after'")
        self.base, self.neck_feat, self.jigsaw = base, neck_feat, jigsaw
        self.dropout = nn.Dropout(dropout)
        if jigsaw:
            self.b1, self.b2 = nn.Sequential(), nn.Sequential()
            self.sync_copies()
            base.last_stage().requires_grad_(False)  # kept for the published layout, unused from here on
        self.suffixes = [""] + ([f"_{i}" for i in range(1, LOCAL_PARTS + 1)] if jigsaw else [])
        self.width = reduce_dim or base.width
        for suffix in self.suffixes:
            if reduce_dim:
                reducer = nn.Linear(base.width, reduce_dim, bias=False)
                nn.init.xavier_uniform_(reducer.weight)
                self.add_module(f"fcneck{suffix}", reducer)
            self.add_module(f"classifier{suffix}", make_head(self.width))
            self.add_module(f"bottleneck{suffix}", make_neck(self.width) if use_neck else nn.Identity())

    def sync_copies(self) -> None:
        """Makes JPM's two branches copies of the backbone's last stage; to be called when weights are in."""
        if self.jigsaw:
            for branch in (self.b1, self.b2):
                stage = copy.deepcopy(self.base.last_stage()).requires_grad_(True)
                if len(branch):
                    branch.load_state_dict(stage.state_dict())
                else:
                    branch.extend(stage)

    def features(self, images: Tensor, cam_label=None, view_label=None) -> list[Tensor]:
        """One feature per part, before the necks, (B, width) each."""
        if self.jigsaw:
            tokens = self.base.tokens(images, cam_label, view_label, blocks=-1)
            feats = jigsaw_features(tokens, self.b1, self.b2, self.base.pool, **self.jigsaw)
        else:
            feats = [self.base(images, cam_label, view_label)]
        return [self.part("fcneck", s)(f) for s, f in zip(self.suffixes, feats, strict=True)]

    def part(self, kind: str, suffix: str) -> nn.Module:
        """A part's module by its published name, such as ``bottleneck_2``; nothing to do where there is none."""
        return getattr(self, f"{kind}{suffix}", None) or nn.Identity()

    def forward(self, images: Tensor, label=None, cam_label=None, view_label=None) -> ReIDOutput | Tensor:
        """Training: ``ReIDOutput``. Evaluation: (B, width), or (B, 5 * width) with the locals divided by four."""
        feats = self.features(images, cam_label, view_label)
        if not self.training and self.neck_feat == "before":
            return self._join(feats)
        necked = [self.part("bottleneck", s)(f) for s, f in zip(self.suffixes, feats, strict=True)]
        if not self.training:
            return self._join(necked)
        scores = [
            self.part("classifier", s)(self.dropout(f), label) for s, f in zip(self.suffixes, necked, strict=True)
        ]
        return ReIDOutput(scores=scores, feats=feats)

    def class_scores(self, images: Tensor, cam_label=None, view_label=None) -> Tensor:
        """Logits of the whole image's part, (B, C), without a margin."""
        feat = self.features(images, cam_label, view_label)[0]
        return self.part("classifier", "")(self.part("bottleneck", "")(feat), None)

    @staticmethod
    def _join(feats: list[Tensor]) -> Tensor:
        return torch.cat([feats[0], *(f / LOCAL_PARTS for f in feats[1:])], dim=1)

    optional_keys = ("classifier",)
    """Prefixes of parameters that retrieval does without."""

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published files of the TransReID family under our names: they are the same, less the unused ImageNet head.

        A cluster encoder's file has the backbone's names bare; it serves too.
        """
        state = with_base(state, ("bottleneck", "classifier", "fcneck", "b1.", "b2."))
        return {key: value for key, value in state.items() if not key.startswith(("base.fc.", "base.head"))}
