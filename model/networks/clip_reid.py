"""The CLIP models: the image side alone (the single-stage baseline), and with prompts (CLIP-ReID, SVLL-ReID)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.backbones.clip import CLIPTower, Taps
from model.backbones.clip_text import CLIPText
from model.backbones.vit import SideInformation
from model.base import TokenLayout
from model.layers.jpm import LOCAL_PARTS, local_features
from model.layers.prompt_learner import PromptLearner
from model.networks.necked import NeckedModel
from utils.errors import UserError
from utils.output import ReIDOutput


class CLIPReID(NeckedModel):
    """Two features of a CLIP image tower, each with neck and classifier (Li et al., AAAI 2023, section 3.3).

    image_encoder: a tower of ``model.backbones.clip``. make_head: width -> classifier. neck_feat: ``before`` or
    ``after`` the necks, for retrieval. side, sie_coe: rows and weight of side information, added to the class token.
    jigsaw: arguments of ``model.layers.jpm.jigsaw_pieces``, for four local parts beside CLIP's own; None: none.
    quick_gelu: whether the tower has the activation that OpenAI's weights need.
    """

    whole_parts = 2

    optional_keys = ("classifier", "prompt_learner", "text_encoder", "image_mlp", "text_mlp")

    needed_of_pretrained = ("image_encoder.",)

    image_encoder: CLIPTower

    def __init__(
        self,
        image_encoder: CLIPTower,
        make_head: Callable[[int], nn.Module],
        *,
        neck_feat: str = "after",
        side: SideInformation | None = None,
        sie_coe: float = 3.0,
        jigsaw: dict[str, int] | None = None,
        quick_gelu: bool = True,
    ):
        super().__init__(neck_feat)
        self.image_encoder, self.jigsaw, self.sie_coe = image_encoder, jigsaw, sie_coe
        self.side, self.quick_gelu = side or SideInformation(0, 0), quick_gelu
        if self.side.rows:
            self.cv_embed = nn.Parameter(torch.empty(self.side.rows, image_encoder.width))
            nn.init.trunc_normal_(self.cv_embed, std=0.02)
        self.width = image_encoder.width
        for suffix in ("", "_proj", *(f"_{i}" for i in range(1, LOCAL_PARTS + 1) if jigsaw)):
            self.add_part(suffix, image_encoder.embed_dim if suffix == "_proj" else self.width, make_head)
        if jigsaw:
            self.jigsaw_branch = copy.deepcopy(image_encoder.last_stage())

    def sync_copies(self) -> None:
        """Makes JPM's branch a copy of the tower's last stage; called after pre-trained weights are loaded."""
        if self.jigsaw:
            self.jigsaw_branch.load_state_dict(self.image_encoder.last_stage().state_dict())

    def side_vector(self, cam_label: Tensor | None, view_label: Tensor | None) -> Tensor | float:
        """Returns what is added to the class token, (B, D); 0 if the model embeds nothing or no labels are given."""
        return self.sie_coe * self.side(self.cv_embed, cam_label, view_label) if self.side.rows else 0.0

    def embed(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        """Returns the projected feature, which is compared with text. (B, 3, H, W) -> (B, P)."""
        return self.image_encoder(images, self.side_vector(cam_label, view_label)).projected

    def part_features(
        self, images: Tensor, cam_label: Tensor | None, view_label: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the last feature, the projected one and JPM's local ones; the early one is for the metric loss."""
        taps: Taps = self.image_encoder(images, self.side_vector(cam_label, view_label))
        feats = [taps.late, taps.projected]
        if self.jigsaw:
            assert taps.tokens is not None, "JPM is refused for towers without tokens"
            feats += local_features(taps.tokens, self.jigsaw_branch, self.image_encoder.pool_tokens, **self.jigsaw)
        return feats, [taps.early]

    def token_layout(self) -> TokenLayout | None:
        return self.image_encoder.token_layout()

    def pretrained_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a CLIP's state under our names; of a whole ReID model the parts that a CLIP has."""
        return clip_state(state, self.quick_gelu, self.needed_of_pretrained)


class PromptReID(CLIPReID):
    """With a prompt per identity and CLIP's text tower, frozen, for the two stages of CLIP-ReID and SVLL-ReID.

    image_mlp, text_mlp: heads of vision and language self-supervision, None for none. Others as for ``CLIPReID``.
    """

    needed_of_pretrained = ("image_encoder.", "text_encoder.", "prompt_learner.token_")

    needed_for_stage2 = ("image_encoder.", "text_encoder.", "prompt_learner.")

    sees_whole_batch = ("text_mlp",)

    def __init__(
        self,
        image_encoder: CLIPTower,
        make_head: Callable[[int], nn.Module],
        prompt_learner: PromptLearner,
        text_encoder: CLIPText,
        image_mlp: nn.Module | None = None,
        text_mlp: nn.Module | None = None,
        **others: Any,
    ):
        super().__init__(image_encoder, make_head, **others)
        self.prompt_learner, self.text_encoder = prompt_learner, text_encoder.requires_grad_(False)
        self.image_mlp, self.text_mlp = image_mlp, text_mlp

    def prompts(self, labels: Tensor) -> Tensor:
        """Returns the learnt prompts (B, L, W) of identities (B,)."""
        return self.prompt_learner(labels)

    def encode_text(self, prompts: Tensor) -> Tensor:
        """Returns the text features of prompts, read at the template's end. (B, L, W) -> (B, P)."""
        return self.text_encoder(prompts, self.prompt_learner.end)

    def forward(
        self,
        images: Tensor,
        label: Tensor | None = None,
        cam_label: Tensor | None = None,
        view_label: Tensor | None = None,
        views: Sequence[Tensor] = (),
    ) -> ReIDOutput | Tensor:
        """Returns what ``CLIPReID`` returns, and with ``views`` the self-supervised outputs of these.

        views: further views of the images, each passed by itself without side information (batch norm sees one).
        """
        out = super().forward(images, label, cam_label, view_label)
        if not views:
            return out
        assert isinstance(out, ReIDOutput) and self.image_mlp is not None, "views are for training with MODEL.USE_SSL"
        for view in views:
            token = self.image_encoder(view).late
            out.tokens.append(token)
            out.heads.append(self.image_mlp(token))
        return out

    def pretrained_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the state of both towers under our names, and the prompts' fixed parts from the token embedding."""
        out = {}
        for key, value in super().pretrained_state(state).items():
            key = key.removeprefix("text.")
            if key == "token_embedding.weight":
                fixed = self.prompt_learner.fixed_parts(value)
                out |= {f"prompt_learner.{name}": rows for name, rows in fixed.items()}
                continue
            if key.startswith(("transformer.", "ln_final.", "positional_embedding", "text_projection")):
                key = f"text_encoder.{key}"
            out[key] = value
        return out


def clip_state(
    state: dict[str, Tensor], quick_gelu: bool, parts: tuple[str, ...] = ("image_encoder.",)
) -> dict[str, Tensor]:
    """Returns the state of a CLIP of OpenAI or open_clip under our names; names that are not ours stay as they are.

    A whole ReID model serves too: ``parts`` are its prefixes that count. quick_gelu: whether the model has that
    activation; raises ``UserError`` for an archive of OpenAI's without it.
    """
    if any(key.startswith("image_encoder.") for key in state):
        return {key: value for key, value in state.items() if key.startswith(parts)}
    if "input_resolution" in state and not quick_gelu:
        raise UserError(
            "this is an archive of OpenAI's, whose activation is QuickGELU: name the architecture without "
            "'open_clip:', or with '-quickgelu' behind it, in MODEL.NAME"
        )
    return {_renamed(key, "visual.", "image_encoder."): value for key, value in state.items()}


def _renamed(key: str, old: str, new: str) -> str:
    return new + key.removeprefix(old) if key.startswith(old) else key
