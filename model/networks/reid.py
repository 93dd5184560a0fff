"""The ReID model: a backbone, one or five parts, and on each part a neck and a classifier."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

from model.base import Backbone, with_base
from model.layers.jpm import LOCAL_PARTS, jigsaw_features
from model.networks.necked import NeckedModel
from utils.layered import Layers


class ReIDModel(NeckedModel):
    """Features, necks and scores as in TransReID and the strong baseline (``docs/transreid.md``).

    base: the backbone. jigsaw: arguments of ``model.layers.jpm.jigsaw_pieces`` for five parts; None for one. make_head:
    width -> classifier. neck_feat: ``before`` or ``after`` the necks, for retrieval. use_neck: False passes the
    features on. reduce_dim: width to which a linear layer reduces the features, 0 to leave them.
    """

    base: Backbone

    def __init__(
        self,
        base: Backbone,
        make_head: Callable[[int], nn.Module],
        neck_feat: str = "after",
        jigsaw: dict[str, int] | None = None,
        use_neck: bool = True,
        reduce_dim: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__(neck_feat, dropout)
        self.base, self.jigsaw = base, jigsaw
        if jigsaw:
            self.b1, self.b2 = nn.Sequential(), nn.Sequential()
            self.sync_copies()
            base.last_stage().requires_grad_(False)  # kept for the published layout, unused from here on
        self.reduces, self.width = bool(reduce_dim), reduce_dim or base.width
        for suffix in ["", *(f"_{i}" for i in range(1, LOCAL_PARTS + 1) if jigsaw)]:
            if reduce_dim:
                reducer = nn.Linear(base.width, reduce_dim, bias=False)
                nn.init.xavier_uniform_(reducer.weight)
                self.add_module(f"fcneck{suffix}", reducer)
            self.add_part(suffix, self.width, make_head, use_neck)

    def part_features(
        self, images: Tensor, cam_label: Tensor | None, view_label: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        if self.jigsaw:
            tokens = self.base.tokens(images, cam_label, view_label, blocks=-1)
            feats = jigsaw_features(tokens, self.b1, self.b2, self.base.pool_tokens, **self.jigsaw)
        else:
            feats = [self.base(images, cam_label, view_label)]
        if self.reduces:
            feats = [self.get_submodule(f"fcneck{s}")(f) for s, f in zip(self.suffixes, feats, strict=True)]
        return feats, []

    def class_scores(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        """Returns the logits (B, C) of the whole image's part, without a margin."""
        feat = self.part_features(images, cam_label, view_label)[0][0]
        return self.get_submodule("classifier")(self.get_submodule("bottleneck")(feat), None)

    def backbone_module(self) -> Backbone:
        return self.base

    def rate_layers(self) -> Layers:
        layers = [tuple(f"base.{name}" for name in names) for names in self.base.rate_layers()]
        if self.jigsaw:
            layers[-1] += ("b1.0.", "b2.0.")
        return layers

    def sync_copies(self) -> None:
        """Makes JPM's two branches copies of the backbone's last stage; called after pre-trained weights are loaded."""
        if self.jigsaw:
            for branch in (self.b1, self.b2):
                stage = copy.deepcopy(self.base.last_stage()).requires_grad_(True)
                if len(branch):
                    branch.load_state_dict(stage.state_dict())
                else:
                    branch.extend(stage)

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a published file's state under our names: they are the same, less the unused ImageNet head.

        A cluster encoder's file, which has the backbone's names bare, serves too.
        """
        state = with_base(state, ("bottleneck", "classifier", "fcneck", "b1.", "b2."))
        return {key: value for key, value in state.items() if not key.startswith(("base.fc.", "base.head"))}
