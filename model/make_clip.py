"""From the configuration to a CLIP model: the image side alone, or with prompts for ``PROCESSOR.NAME: prompt``."""

from __future__ import annotations

import logging
from functools import partial

from torch import nn

from model.backbones.clip import CLIPViT, build_clip, clip_config, make_image_tower
from model.backbones.clip_text import CLIPText
from model.backbones.vit import SideInformation
from model.layers.heads import make_head
from model.layers.jpm import jigsaw_layout
from model.layers.norms import convert_sync_batch_norm
from model.layers.prompt_learner import PromptLearner, prompt_tokens
from model.layers.ssl_heads import Predictor, ProjectionHead
from model.networks.clip_reid import CLIPReID, PromptReID
from model.networks.cluster_encoder import ImageTower
from utils import switch
from utils.errors import UserError

log = logging.getLogger("lineup")

VEHICLE_SETS = ("veri", "vehicleid")
"""Where CLIP-ReID says vehicle; for the rest of the catalogue the data's kind is given."""


def noun_of(cfg, kind: str) -> str:
    """The word that prompts end with. kind: what the training data show, '' when they are not at hand."""
    if cfg.MODEL.PROMPT_NOUN or kind:
        return cfg.MODEL.PROMPT_NOUN or kind
    names = cfg.DATASETS.NAMES
    first = names if isinstance(names, str) else names[0]
    return "vehicle" if first.lower() in VEHICLE_SETS else "person"


def language_supervised(cfg) -> bool:
    """Whether stage 1 has its self-supervised term: by its own key, or as stage 2."""
    return cfg.MODEL.USE_SSL if cfg.MODEL.USE_SSL_STAGE1 is None else cfg.MODEL.USE_SSL_STAGE1


def make_side(cfg, tower: nn.Module, camera_num: int, view_num: int) -> SideInformation:
    """What is embedded of cameras and views; a line in the log where a switch that is on has nothing to embed."""
    counts = []
    for key, wanted, count, word in (
        ("MODEL.SIE_CAMERA", cfg.MODEL.SIE_CAMERA, camera_num, "camera"),
        ("MODEL.SIE_VIEW", cfg.MODEL.SIE_VIEW, view_num, "view"),
    ):
        if wanted and not isinstance(tower, CLIPViT):
            log.info("%s does nothing here: %s has no class token to add it to", key, cfg.MODEL.NAME)
        elif wanted and count < 2:
            log.info("%s does nothing here: there is nothing to tell apart in %d %s", key, count, word)
        counts.append(count if wanted and isinstance(tower, CLIPViT) else 0)
    return SideInformation(*counts)


def refuse_foreign_keys(cfg) -> None:
    """Raises ``UserError`` for settings of other networks that a CLIP model has no place for."""
    foreign = {
        "MODEL.STEM_CONV": cfg.MODEL.STEM_CONV,
        "MODEL.GEM_POOLING": cfg.MODEL.GEM_POOLING,
        "MODEL.REDUCE_FEAT_DIM": cfg.MODEL.REDUCE_FEAT_DIM,
        "MODEL.DROPOUT_RATE": cfg.MODEL.DROPOUT_RATE,
    }
    for key, value in foreign.items():
        if value:
            raise UserError(
                f"{key} {value} and MODEL.NAME {cfg.MODEL.NAME!r} cannot go together: CLIP has no such part"
            )


def make_clip_model(cfg, num_class: int, camera_num: int = 0, view_num: int = 0, kind: str = "") -> CLIPReID:
    """A CLIP model, randomly initialised. kind: what the data show, for the prompts; other arguments as ``make_model``.

    ``PROCESSOR.NAME: prompt`` gives a ``PromptReID``, with heads where self-supervision is on.
    """
    refuse_foreign_keys(cfg)
    prompted = cfg.PROCESSOR.NAME == "prompt"
    config = clip_config(cfg.MODEL.NAME)
    clip = build_clip(cfg.MODEL.NAME, config, with_text=prompted)
    tower = make_image_tower(
        clip.visual,
        config["embed_dim"],
        tuple(cfg.INPUT.SIZE_TRAIN),
        tuple(cfg.MODEL.STRIDE_SIZE),
        cfg.MODEL.GRAD_CHECKPOINT,
    )
    patches = tower.grid[0] * tower.grid[1] if isinstance(tower, CLIPViT) else 0
    head = partial(make_head, cfg.MODEL.ID_LOSS_TYPE, scale=cfg.SOLVER.COSINE_SCALE, margin=cfg.SOLVER.COSINE_MARGIN)
    image_side = {
        "image_encoder": tower,
        "make_head": partial(head, num_class=num_class),
        "neck_feat": cfg.TEST.NECK_FEAT,
        "side": make_side(cfg, tower, camera_num, view_num),
        "sie_coe": cfg.MODEL.SIE_COE,
        "jigsaw": jigsaw_layout(cfg, patches),
        "quick_gelu": config.get("quick_gelu", False),
    }
    if prompted:
        model = PromptReID(**image_side, **make_text_side(cfg, clip, tower.width, num_class, kind))
    else:
        model = CLIPReID(**image_side)
    if switch("MODEL.SYNC_BN", cfg.MODEL.SYNC_BN):
        for name, child in list(model.named_children()):
            if name != "text_mlp":  # sees the rows of all processes on each of them
                setattr(model, name, convert_sync_batch_norm(child))
    return model


def make_clip_tower(cfg) -> ImageTower:
    """CLIP's image side alone, as a backbone."""
    refuse_foreign_keys(cfg)
    for key, value in {"MODEL.SIE_CAMERA": cfg.MODEL.SIE_CAMERA, "MODEL.SIE_VIEW": cfg.MODEL.SIE_VIEW}.items():
        if value:
            raise UserError(f"{key} and PROCESSOR.NAME 'cluster' cannot go together with a CLIP: it has no place there")
    config = clip_config(cfg.MODEL.NAME)
    visual = build_clip(cfg.MODEL.NAME, config, with_text=False).visual
    sizes = tuple(cfg.INPUT.SIZE_TRAIN), tuple(cfg.MODEL.STRIDE_SIZE)
    tower = make_image_tower(visual, config["embed_dim"], *sizes, cfg.MODEL.GRAD_CHECKPOINT)
    return ImageTower(tower, config.get("quick_gelu", False))


def make_text_side(cfg, clip: nn.Module, width: int, num_class: int, kind: str) -> dict:
    """The further arguments of ``PromptReID``: prompts, text tower, and the heads that self-supervision asks for.

    width: of the image feature that the vision head takes.
    """
    source = getattr(clip, "text", clip)
    text = CLIPText(source)
    tokens = prompt_tokens(noun_of(cfg, kind), len(text.positional_embedding))
    return {
        "prompt_learner": PromptLearner(num_class, tokens, source.token_embedding.weight),
        "text_encoder": text,
        "image_mlp": make_image_head(cfg, width) if cfg.MODEL.USE_SSL else None,
        "text_mlp": ProjectionHead(text.embed_dim, cfg.MODEL.SSL_HIDDEN) if language_supervised(cfg) else None,
    }


def make_image_head(cfg, width: int) -> nn.Module:
    """The head of vision self-supervision that MODEL.SSL_TYPE names."""
    if cfg.MODEL.SSL_TYPE == "SIMSIAM":
        return Predictor(width)
    return ProjectionHead(width, cfg.MODEL.SSL_HIDDEN).initialise_as_published()
