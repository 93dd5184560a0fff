"""The CLIP models: the image side alone (the single-stage baseline), and with prompts (CLIP-ReID, SVLL-ReID)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.backbones.clip_text import CLIPText
from model.backbones.vit import SideInformation
from model.layers.heads import make_neck
from model.layers.jpm import LOCAL_PARTS, local_features
from model.layers.prompt_learner import PromptLearner
from model.output import ReIDOutput
from utils.errors import UserError


class CLIPReID(nn.Module):
    """Two features of a CLIP image tower, each with neck and classifier (Li et al., AAAI 2023, section 3.3).

    image_encoder: a tower of ``model.backbones.clip``. make_head: width -> classifier. neck_feat: ``before`` or
    ``after`` the necks, for retrieval. side, sie_coe: rows and weight of side information, added to the class token.
    jigsaw: arguments of ``model.layers.jpm.jigsaw_pieces``, for four local parts beside CLIP's own; None: none.
    quick_gelu: whether the tower has the activation that OpenAI's weights need.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        make_head: Callable[[int], nn.Module],
        *,
        neck_feat: str = "after",
        side: SideInformation | None = None,
        sie_coe: float = 3.0,
        jigsaw: dict | None = None,
        quick_gelu: bool = True,
    ):
        super().__init__()
        if neck_feat not in ("before", "after"):
            raise UserError(f"TEST.NECK_FEAT: {neck_feat!r} is neither 'before' nor 'after'")
        self.image_encoder, self.neck_feat, self.jigsaw, self.sie_coe = image_encoder, neck_feat, jigsaw, sie_coe
        self.side, self.quick_gelu = side or SideInformation(0, 0), quick_gelu
        if self.side.rows:
            self.cv_embed = nn.Parameter(torch.empty(self.side.rows, image_encoder.width))
            nn.init.trunc_normal_(self.cv_embed, std=0.02)
        self.width = image_encoder.width
        local = [f"_{i}" for i in range(1, LOCAL_PARTS + 1)] if jigsaw else []
        self.suffixes = ["", "_proj", *local]
        for suffix in self.suffixes:
            width = image_encoder.embed_dim if suffix == "_proj" else self.width
            self.add_module(f"classifier{suffix}", make_head(width))
            self.add_module(f"bottleneck{suffix}", make_neck(width))
        if jigsaw:
            self.jigsaw_branch = copy.deepcopy(image_encoder.last_stage())

    def sync_copies(self) -> None:
        """Makes JPM's branch a copy of the tower's last stage; to be called when weights are in."""
        if self.jigsaw:
            self.jigsaw_branch.load_state_dict(self.image_encoder.last_stage().state_dict())

    def side_vector(self, cam_label: Tensor | None, view_label: Tensor | None) -> Tensor | float:
        """(B, D) for the class token; 0 where the model embeds nothing or no labels are given."""
        return self.sie_coe * self.side(self.cv_embed, cam_label, view_label) if self.side.rows else 0.0

    def embed(self, images: Tensor, cam_label=None, view_label=None) -> Tensor:
        """The projected feature, which is compared with text. (B, 3, H, W) -> (B, P)."""
        return self.image_encoder(images, self.side_vector(cam_label, view_label)).projected

    def forward(self, images: Tensor, label=None, cam_label=None, view_label=None) -> ReIDOutput | Tensor:
        """Training: ``ReIDOutput``, feats with the early feature first. Evaluation: (B, D + P), locals in quarters."""
        taps = self.image_encoder(images, self.side_vector(cam_label, view_label))
        parts = [taps.late, taps.projected]
        if self.jigsaw:
            parts += local_features(taps.tokens, self.jigsaw_branch, self.image_encoder.pool, **self.jigsaw)
        if not self.training and self.neck_feat == "before":
            return self._join(parts)
        necked = [self.get_submodule(f"bottleneck{s}")(f) for s, f in zip(self.suffixes, parts, strict=True)]
        if not self.training:
            return self._join(necked)
        scores = [self.get_submodule(f"classifier{s}")(f, label) for s, f in zip(self.suffixes, necked, strict=True)]
        return ReIDOutput(scores=scores, feats=[taps.early, *parts])

    @staticmethod
    def _join(parts: list[Tensor]) -> Tensor:
        return torch.cat([*parts[:2], *(p / LOCAL_PARTS for p in parts[2:])], dim=1)

    optional_keys = ("classifier", "prompt_learner", "text_encoder", "image_mlp", "text_mlp")
    """Prefixes of parameters that retrieval does without."""

    needed_of_pretrained = ("image_encoder.",)
    """Prefixes of what a pre-trained CLIP must bring."""

    def pretrained_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A CLIP, or of a whole ReID model the parts that a CLIP has, under our names."""
        return clip_state(state, self.quick_gelu, self.needed_of_pretrained)


class PromptReID(CLIPReID):
    """With a prompt per identity and CLIP's text tower, frozen, for the two stages of CLIP-ReID and SVLL-ReID.

    image_mlp, text_mlp: heads of vision and language self-supervision, None: without. Others as ``CLIPReID``.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        make_head: Callable[[int], nn.Module],
        prompt_learner: PromptLearner,
        text_encoder: CLIPText,
        image_mlp: nn.Module | None = None,
        text_mlp: nn.Module | None = None,
        **others,
    ):
        super().__init__(image_encoder, make_head, **others)
        self.prompt_learner, self.text_encoder = prompt_learner, text_encoder.requires_grad_(False)
        self.image_mlp, self.text_mlp = image_mlp, text_mlp

    needed_of_pretrained = ("image_encoder.", "text_encoder.", "prompt_learner.token_")
    needed_for_stage2 = ("image_encoder.", "text_encoder.", "prompt_learner.")

    def prompts(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, L, W)."""
        return self.prompt_learner(labels)

    def encode_text(self, prompts: Tensor) -> Tensor:
        """(B, L, W) -> (B, P), read at the template's end whatever augmentation did to the prompts."""
        return self.text_encoder(prompts, self.prompt_learner.end)

    def text_features(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, P)."""
        return self.encode_text(self.prompts(labels))

    def forward(
        self, images: Tensor, label=None, cam_label=None, view_label=None, views: Sequence[Tensor] = ()
    ) -> ReIDOutput | Tensor:
        """views: further views of the images, each passed by itself without side information (batch norm sees one)."""
        out = super().forward(images, label, cam_label, view_label)
        for view in views:
            token = self.image_encoder(view).late
            out.tokens.append(token)
            out.heads.append(self.image_mlp(token))
        return out

    def pretrained_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
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
    """A CLIP of OpenAI or open_clip under our names; what has no place here keeps its own.

    A whole ReID model serves too: of that, ``parts``. quick_gelu: whether the model has that activation.
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
