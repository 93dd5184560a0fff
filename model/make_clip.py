"""From the configuration to a CLIP model: the image side alone, or with learnt prompts."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import open_clip
from open_clip.transformer import TextTransformer
from torch import nn
from yacs.config import CfgNode

from model.backbones.clip import CLIPTower, build_clip, clip_config, make_image_tower
from model.backbones.clip_text import CLIPText
from model.backbones.vit import SideInformation
from model.layers.heads import make_head
from model.layers.jpm import jigsaw_layout
from model.layers.prompt_learner import PromptLearner, prompt_tokens
from model.layers.ssl_heads import Predictor, ProjectionHead
from model.networks.clip_reid import CLIPReID, PromptReID
from model.networks.cluster_encoder import ImageTower
from utils.errors import conflict

log = logging.getLogger("lineup")

VEHICLE_SETS = ("veri", "vehicleid")
"""Where CLIP-ReID says vehicle; for the rest of the catalogue the data's kind is given."""


def noun_of(cfg: CfgNode, kind: str) -> str:
    """Returns the word that prompts end with. kind: what the training data show, '' if that is not known."""
    if cfg.MODEL.PROMPT_NOUN or kind:
        return cfg.MODEL.PROMPT_NOUN or kind
    names = cfg.DATASETS.NAMES
    first = names if isinstance(names, str) else names[0]
    return "vehicle" if first.lower() in VEHICLE_SETS else "person"


def language_supervised(cfg: CfgNode) -> bool:
    """Returns whether stage 1 has its self-supervised term: by its own key, or as stage 2."""
    return cfg.MODEL.USE_SSL if cfg.MODEL.USE_SSL_STAGE1 is None else cfg.MODEL.USE_SSL_STAGE1


def make_side(cfg: CfgNode, tower: CLIPTower, camera_num: int, view_num: int) -> SideInformation:
    """Returns the rows for cameras and views, with a line in the log if a switch that is on has nothing to embed."""
    counts = []
    for key, switched_on, count, word in (
        ("MODEL.SIE_CAMERA", cfg.MODEL.SIE_CAMERA, camera_num, "camera"),
        ("MODEL.SIE_VIEW", cfg.MODEL.SIE_VIEW, view_num, "view"),
    ):
        if switched_on and not tower.patches:
            log.info("%s does nothing here: %s has no class token to add it to", key, cfg.MODEL.NAME)
        elif switched_on and count < 2:
            log.info("%s does nothing here: the data have %d %s, and two are needed to differ", key, count, word)
        counts.append(count if switched_on and tower.patches else 0)
    return SideInformation(*counts)


def refuse_foreign_keys(cfg: CfgNode) -> None:
    """Raises ``UserError`` for settings of other networks that a CLIP model does not support."""
    foreign = {
        "MODEL.STEM_CONV": cfg.MODEL.STEM_CONV,
        "MODEL.GEM_POOLING": cfg.MODEL.GEM_POOLING,
        "MODEL.REDUCE_FEAT_DIM": cfg.MODEL.REDUCE_FEAT_DIM,
        "MODEL.DROPOUT_RATE": cfg.MODEL.DROPOUT_RATE,
    }
    for key, value in foreign.items():
        if value:
            raise conflict(f"{key} {value}", f"MODEL.NAME {cfg.MODEL.NAME!r}", "CLIP has no such part")


def make_clip_model(
    cfg: CfgNode, num_class: int, camera_num: int = 0, view_num: int = 0, kind: str = "", prompted: bool = False
) -> CLIPReID:
    """Returns a CLIP model, randomly initialised.

    kind: what the data show, for the prompts. prompted: a ``PromptReID``, with heads if self-supervision is on. Other
    arguments as for ``make_model``.
    """
    refuse_foreign_keys(cfg)
    config = clip_config(cfg.MODEL.NAME)
    clip = build_clip(cfg.MODEL.NAME, config, with_text=prompted)
    tower = make_image_tower(
        clip.visual,
        config["embed_dim"],
        tuple(cfg.INPUT.SIZE_TRAIN),
        tuple(cfg.MODEL.STRIDE_SIZE),
        cfg.MODEL.GRAD_CHECKPOINT,
    )
    head = partial(make_head, cfg.MODEL.ID_LOSS_TYPE, scale=cfg.SOLVER.COSINE_SCALE, margin=cfg.SOLVER.COSINE_MARGIN)
    image_side = {
        "image_encoder": tower,
        "make_head": partial(head, num_class=num_class),
        "neck_feat": cfg.TEST.NECK_FEAT,
        "side": make_side(cfg, tower, camera_num, view_num),
        "sie_coe": cfg.MODEL.SIE_COE,
        "jigsaw": jigsaw_layout(cfg, tower.patches),
        "quick_gelu": config.get("quick_gelu", False),
    }
    if prompted:
        return PromptReID(**image_side, **make_text_side(cfg, clip, tower.width, num_class, kind))
    return CLIPReID(**image_side)


def make_clip_tower(cfg: CfgNode) -> ImageTower:
    """Returns CLIP's image side alone, as a backbone."""
    refuse_foreign_keys(cfg)
    config = clip_config(cfg.MODEL.NAME)
    visual = build_clip(cfg.MODEL.NAME, config, with_text=False).visual
    sizes = tuple(cfg.INPUT.SIZE_TRAIN), tuple(cfg.MODEL.STRIDE_SIZE)
    tower = make_image_tower(visual, config["embed_dim"], *sizes, cfg.MODEL.GRAD_CHECKPOINT)
    return ImageTower(tower, config.get("quick_gelu", False))


def make_text_side(
    cfg: CfgNode, clip: open_clip.CLIP | open_clip.CustomTextCLIP, width: int, num_class: int, kind: str
) -> dict[str, Any]:
    """Returns the further arguments of ``PromptReID``: prompts, text tower, and heads of self-supervision if it is on.

    width: of the image feature that the vision head takes.
    """
    source = clip.text if isinstance(clip, open_clip.CustomTextCLIP) else clip
    assert isinstance(source, open_clip.CLIP | TextTransformer), "build_clip refuses text towers of other libraries"
    text = CLIPText(source)
    tokens = prompt_tokens(noun_of(cfg, kind), len(text.positional_embedding))
    return {
        "prompt_learner": PromptLearner(num_class, tokens, source.get_parameter("token_embedding.weight")),
        "text_encoder": text,
        "image_mlp": make_image_head(cfg, width) if cfg.MODEL.USE_SSL else None,
        "text_mlp": ProjectionHead(text.embed_dim, cfg.MODEL.SSL_HIDDEN) if language_supervised(cfg) else None,
    }


def make_image_head(cfg: CfgNode, width: int) -> nn.Module:
    """Returns the head of vision self-supervision that MODEL.SSL_TYPE names."""
    if cfg.MODEL.SSL_TYPE == "SIMSIAM":
        return Predictor(width)
    return ProjectionHead(width, cfg.MODEL.SSL_HIDDEN).initialise_as_published()
