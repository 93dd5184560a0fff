"""From the configuration to a model."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from torch import nn

from model.backbones.msvit import MSVIT_TYPES, Attention, MSViT, check_size, freeze, make_spec
from model.backbones.resnet import RESNET_TYPES, ReIDResNet
from model.backbones.swin import SWIN_TYPES, Swin
from model.backbones.timm_image import TimmBackbone
from model.backbones.vit import DEIT_SMALL, TRANSREID_VIT_SMALL, VIT_SMALL, VIT_TYPES, ViT, ViTSpec
from model.layers.batch_erasing import BatchErasing
from model.layers.heads import make_head
from model.layers.jpm import jigsaw_layout
from model.layers.norms import convert_sync_batch_norm
from model.layers.pooling import make_pooling
from model.layers.sparse_attention import kept_count
from model.make_clip import make_clip_model, make_clip_tower
from model.networks.cluster_encoder import ClusterEncoder, PooledTrunk
from model.networks.dino import make_multi_crop
from model.networks.msvit import MSViTClassifier, MSViTReID, check_parts
from model.networks.reid import ReIDModel
from model.networks.ssdvit import SSDViT
from model.networks.torchreid import HEADS, PREFIX, RESNETS, TRUNKS, TorchreidModel, make_trunk, stage_widths
from utils import switch
from utils.errors import UserError, nearest
from utils.names import is_clip

BACKBONES: dict = {}
"""Backbones from outside the repository: name -> function of (cfg, camera_num, view_num)."""


def register_backbone(name: str):
    """Decorator: makes ``MODEL.NAME: name`` build the decorated function's backbone."""

    def add(build):
        BACKBONES[name] = build
        return build

    return add


def vit_spec(cfg) -> ViTSpec:
    """The network that MODEL.TRANSFORMER_TYPE names; ``vit_small`` means two (``MODEL.VIT_SMALL``)."""
    name = cfg.MODEL.TRANSFORMER_TYPE
    if name == VIT_SMALL:
        return TRANSREID_VIT_SMALL if cfg.MODEL.VIT_SMALL == "transreid" else DEIT_SMALL
    if name not in VIT_TYPES:
        known = [*VIT_TYPES, VIT_SMALL, *SWIN_TYPES]
        hint = nearest(name, known)
        raise UserError(f"MODEL.TRANSFORMER_TYPE: unknown {name!r}{hint} Known: {', '.join(sorted(known))}")
    return VIT_TYPES[name]


def make_vit(cfg, camera_num: int, view_num: int) -> ViT:
    spec = vit_spec(cfg)
    return ViT(
        replace(spec, norm_eps=1e-5) if cfg.MODEL.NAME == "ssdvit" else spec,
        image_size=tuple(cfg.INPUT.SIZE_TRAIN),
        stride=tuple(cfg.MODEL.STRIDE_SIZE),
        camera_num=camera_num if cfg.MODEL.SIE_CAMERA else 0,
        view_num=view_num if cfg.MODEL.SIE_VIEW else 0,
        sie_coe=cfg.MODEL.SIE_COE,
        drop_path=cfg.MODEL.DROP_PATH,
        drop=cfg.MODEL.DROP_OUT,
        attn_drop=cfg.MODEL.ATT_DROP_RATE,
        conv_stem=cfg.MODEL.STEM_CONV,
        gem_pooling=cfg.MODEL.GEM_POOLING,
        published_init=cfg.MODEL.VIT_SMALL,
        grad_checkpoint=cfg.MODEL.GRAD_CHECKPOINT,
        any_size=cfg.PROCESSOR.NAME == "dino",
    )


def make_swin(cfg) -> Swin:
    unfit = {
        "MODEL.SIE_CAMERA": cfg.MODEL.SIE_CAMERA, "MODEL.SIE_VIEW": cfg.MODEL.SIE_VIEW,
        "MODEL.STEM_CONV": cfg.MODEL.STEM_CONV, "MODEL.GEM_POOLING": cfg.MODEL.GEM_POOLING,
        "PROCESSOR.NAME 'dino'": cfg.PROCESSOR.NAME == "dino",
    }  # fmt: skip
    for key in (name for name, value in unfit.items() if value):
        raise UserError(f"{key} and MODEL.TRANSFORMER_TYPE {cfg.MODEL.TRANSFORMER_TYPE!r} cannot go together")
    spec = SWIN_TYPES[cfg.MODEL.TRANSFORMER_TYPE]
    return Swin(spec, tuple(cfg.INPUT.SIZE_TRAIN), cfg.MODEL.DROP_PATH, cfg.MODEL.GRAD_CHECKPOINT)


def msvit_parts(cfg) -> dict:
    """What the three networks that stand on MSViT's stages share, checked against the image sizes."""
    keys, split = cfg.MODEL.MSVIT, tuple(cfg.MODEL.MSVIT.SPLIT_SIZE)
    unfit = {
        "MODEL.JPM": cfg.MODEL.JPM, "MODEL.GRAD_CHECKPOINT": cfg.MODEL.GRAD_CHECKPOINT,
        "MODEL.SIE_CAMERA": cfg.MODEL.SIE_CAMERA, "MODEL.SIE_VIEW": cfg.MODEL.SIE_VIEW,
    }  # fmt: skip
    if keys.HEAD != "bnneck":
        unfit |= {"MODEL.REDUCE_FEAT_DIM": cfg.MODEL.REDUCE_FEAT_DIM, "MODEL.DROPOUT_RATE": cfg.MODEL.DROPOUT_RATE}
    for key in (name for name, value in unfit.items() if value):
        raise UserError(f"{key} and MODEL.NAME {cfg.MODEL.NAME!r} cannot go together: the network has no place for it")
    kept_count(split[0] * split[1], keys.SPARSE_RATIO)
    check_size("INPUT.SIZE_TRAIN", tuple(cfg.INPUT.SIZE_TRAIN), split)
    check_size("INPUT.SIZE_TEST", tuple(cfg.INPUT.SIZE_TEST), split)
    return {
        "spec": make_spec(cfg.MODEL.NAME, tuple(keys.WIDTHS), tuple(keys.BLOCKS)),
        "attention": Attention(split, keys.SPARSE_RATIO),
        "drop_path": cfg.MODEL.DROP_PATH,
        "act": keys.ACT,
    }


def make_msvit(cfg, num_class: int, make_head) -> MSViTReID | MSViTClassifier:
    """The network of two branches and part heads, or the classifier. make_head: width -> classifier of a head."""
    keys, stride = cfg.MODEL.MSVIT, cfg.MODEL.LAST_STRIDE
    if keys.HEAD == "classifier":
        model = MSViTClassifier(**msvit_parts(cfg), num_class=num_class)
        freeze(model, tuple(keys.FREEZE))
        return model
    if stride not in (1, 2):
        raise UserError(f"MODEL.LAST_STRIDE: {stride} is not 1 or 2")
    shared = msvit_parts(cfg)
    for height, _ in (cfg.INPUT.SIZE_TRAIN, cfg.INPUT.SIZE_TEST):
        check_parts(math.ceil(height / (16 * stride)), keys.NUM_PART, keys.SPARSE_POOL)
    return MSViTReID(
        **shared,
        make_head=make_head,
        parts=keys.NUM_PART,
        interleaved=keys.SPARSE_POOL,
        last_stride=stride,
        erasing=BatchErasing(keys.BATCH_ERASING, keys.BATCH_ERASING_PROB),
        frozen=tuple(keys.FREEZE),
        neck_feat=cfg.TEST.NECK_FEAT,
    )


def make_backbone(cfg, camera_num: int, view_num: int) -> nn.Module:
    name = cfg.MODEL.NAME
    if name == "transformer" and cfg.MODEL.TRANSFORMER_TYPE in SWIN_TYPES:
        return make_swin(cfg)
    if name in ("transformer", "ssdvit"):
        return make_vit(cfg, camera_num, view_num)
    if name in RESNET_TYPES:
        if cfg.MODEL.GRAD_CHECKPOINT:
            raise UserError(f"MODEL.GRAD_CHECKPOINT and MODEL.NAME {name!r} cannot go together: it is for transformers")
        return ReIDResNet(RESNET_TYPES[name], cfg.MODEL.LAST_STRIDE, cfg.MODEL.POOLING)
    if name in MSVIT_TYPES:
        backbone = MSViT(**msvit_parts(cfg), last_stride=cfg.MODEL.LAST_STRIDE)
        freeze(backbone, tuple(cfg.MODEL.MSVIT.FREEZE))
        return backbone
    if name in BACKBONES:
        return BACKBONES[name](cfg, camera_num, view_num)
    if name.startswith("timm:"):
        size = tuple(cfg.INPUT.SIZE_TRAIN)
        return TimmBackbone(name.removeprefix("timm:"), size, cfg.MODEL.DROP_PATH, cfg.MODEL.GRAD_CHECKPOINT)
    known = ["transformer", "ssdvit", *RESNET_TYPES, *MSVIT_TYPES, *(PREFIX + trunk for trunk in TRUNKS), *BACKBONES]
    hint = nearest(name, [*known, "ViT-B-16", "RN50"])
    raise UserError(
        f"MODEL.NAME: unknown {name!r}{hint} Known: {', '.join(known)}, ViT-B-16, RN50 and CLIP's other names, "
        "open_clip:NAME for any CLIP of open_clip, or timm:NAME for any image model of timm"
    )


def make_torchreid(cfg, num_class: int) -> TorchreidModel:
    """A model of the torchreid family: MODEL.FC_HEAD, MODEL.FC_DIM, MODEL.MAPS, and a head per target if asked for."""
    name, maps, head = cfg.MODEL.NAME, cfg.MODEL.MAPS, cfg.MODEL.FC_HEAD
    if maps != "none" and name.removeprefix(PREFIX) not in RESNETS:
        raise UserError(f"MODEL.MAPS {maps!r} and MODEL.NAME {name!r} cannot go together: only ResNets give stage maps")
    if cfg.KD.MULTI_HEAD and (head != "feat" or cfg.PROCESSOR.NAME != "mtda_kd"):
        raise UserError("KD.MULTI_HEAD goes with PROCESSOR.NAME 'mtda_kd' and MODEL.FC_HEAD 'feat' only")
    if head not in HEADS:
        raise UserError(f"MODEL.FC_HEAD: {head!r} is none of {', '.join(HEADS)}")
    matched: tuple[int, ...] = ()
    if maps == "student":
        if cfg.KD.TEACHER.NAME.removeprefix(PREFIX) not in RESNETS or not cfg.KD.TEACHER.NAME.startswith(PREFIX):
            raise UserError(
                f"MODEL.MAPS 'student' and KD.TEACHER.NAME {cfg.KD.TEACHER.NAME!r} cannot go together: only "
                f"{PREFIX} ResNets give stage maps to follow"
            )
        matched = stage_widths(cfg.KD.TEACHER.NAME)
    domains = len(cfg.DATASETS.TARGETS) if cfg.KD.MULTI_HEAD else 0
    return TorchreidModel(make_trunk(name), num_class, head, cfg.MODEL.FC_DIM, maps, matched, domains)


def make_ssdvit(cfg) -> SSDViT:
    """The network of ``PROCESSOR.NAME: self_distill`` around any backbone."""
    sides = {"MODEL.SIE_CAMERA": cfg.MODEL.SIE_CAMERA, "MODEL.SIE_VIEW": cfg.MODEL.SIE_VIEW}
    refuse_unfit(cfg, sides, "its targets' cameras are never trained on")
    return SSDViT(bare_backbone(cfg, 0, 0), cfg.TEST.NECK_FEAT, cfg.SSD.RANDOM_BLOCK)


def make_cluster_encoder(cfg, camera_num: int, view_num: int) -> ClusterEncoder:
    """The model of ``PROCESSOR.NAME: cluster`` around any backbone."""
    return ClusterEncoder(bare_backbone(cfg, camera_num, view_num))


def bare_backbone(cfg, camera_num: int, view_num: int) -> nn.Module:
    """The backbone that MODEL.NAME names, of any family, for models that are a backbone and necks."""
    unfit = {
        "MODEL.JPM": cfg.MODEL.JPM, "MODEL.REDUCE_FEAT_DIM": cfg.MODEL.REDUCE_FEAT_DIM,
        "MODEL.DROPOUT_RATE": cfg.MODEL.DROPOUT_RATE,
    }  # fmt: skip
    refuse_unfit(cfg, unfit, "its encoder is a backbone and a neck")
    name = cfg.MODEL.NAME
    if is_clip(name) and name not in BACKBONES:
        return make_clip_tower(cfg)
    if name.startswith(PREFIX):
        return PooledTrunk(make_trunk(name), make_pooling(cfg.MODEL.POOLING))
    return make_backbone(cfg, camera_num, view_num)


def refuse_unfit(cfg, switches: dict[str, object], why: str) -> None:
    """Raises ``UserError`` for a key that is set and has no place in the method's network."""
    for key in (key for key, value in switches.items() if value):
        raise UserError(f"{key} and PROCESSOR.NAME {cfg.PROCESSOR.NAME!r} cannot go together: {why}")


def make_model(cfg, num_class: int, camera_num: int = 0, view_num: int = 0, kind: str = "") -> nn.Module:
    """The model that the configuration asks for, randomly initialised; reads no file.

    num_class: training identities. camera_num, view_num: their numbers in the training split, for side information.
    kind: what the data show (person, vehicle, ...), for prompts. Raises ``UserError`` for unknown names and for keys
    that cannot go together.
    """
    refuse_pooling(cfg)
    if cfg.PROCESSOR.NAME == "cluster":
        return synchronised(cfg, make_cluster_encoder(cfg, camera_num, view_num))
    if cfg.PROCESSOR.NAME == "self_distill":
        return synchronised(cfg, make_ssdvit(cfg))
    clip = is_clip(cfg.MODEL.NAME) and cfg.MODEL.NAME not in BACKBONES
    if cfg.PROCESSOR.NAME == "dino" and (clip or cfg.MODEL.NAME.startswith(PREFIX) or cfg.MODEL.NAME in MSVIT_TYPES):
        raise UserError(
            f"PROCESSOR.NAME 'dino' and MODEL.NAME {cfg.MODEL.NAME!r} cannot go together: it pre-trains a transformer, "
            "a ResNet or timm:NAME"
        )
    if clip:
        return make_clip_model(cfg, num_class, camera_num, view_num, kind)
    if cfg.PROCESSOR.NAME == "prompt":
        raise UserError(
            f"PROCESSOR.NAME 'prompt' and MODEL.NAME {cfg.MODEL.NAME!r} cannot go together: prompts need a CLIP, such "
            "as ViT-B-16, RN50 or open_clip:NAME"
        )
    if cfg.MODEL.NECK not in ("bnneck", "no"):
        raise UserError(f"MODEL.NECK: {cfg.MODEL.NECK!r} is neither 'bnneck' nor 'no'")
    if cfg.MODEL.NAME.startswith(PREFIX):
        return synchronised(cfg, make_torchreid(cfg, num_class))
    head = partial(
        make_head,
        cfg.MODEL.ID_LOSS_TYPE,
        num_class=num_class,
        scale=cfg.SOLVER.COSINE_SCALE,
        margin=cfg.SOLVER.COSINE_MARGIN,
    )
    if cfg.MODEL.NAME in MSVIT_TYPES and cfg.MODEL.MSVIT.HEAD != "bnneck":
        model = make_msvit(cfg, num_class, lambda width: head(width=width))
        return convert_sync_batch_norm(model) if switch("MODEL.SYNC_BN", cfg.MODEL.SYNC_BN) else model
    base = make_backbone(cfg, camera_num, view_num)
    if cfg.PROCESSOR.NAME == "dino":
        return make_multi_crop(cfg, base)
    model = ReIDModel(
        base,
        lambda width: head(width=width),
        neck_feat=cfg.TEST.NECK_FEAT,
        jigsaw=jigsaw_layout(cfg, base.pos_embed.shape[1] - 1 if hasattr(base, "last_stage") else 0),
        use_neck=cfg.MODEL.NECK == "bnneck" or cfg.MODEL.NAME == "transformer",
        reduce_dim=cfg.MODEL.FEAT_DIM if cfg.MODEL.REDUCE_FEAT_DIM else 0,
        dropout=cfg.MODEL.DROPOUT_RATE,
    )
    return synchronised(cfg, model)


def refuse_pooling(cfg) -> None:
    """Raises ``UserError`` where MODEL.POOLING is set for a network that has no map to pool, or pools its own way."""
    pools = cfg.MODEL.NAME in RESNET_TYPES or (cfg.MODEL.NAME.startswith(PREFIX) and cfg.PROCESSOR.NAME == "cluster")
    if cfg.MODEL.POOLING != "avg" and not pools:
        raise UserError(
            f"MODEL.POOLING {cfg.MODEL.POOLING!r} and MODEL.NAME {cfg.MODEL.NAME!r} cannot go together: it is for "
            "ResNets, and in PROCESSOR.NAME 'cluster' for torchreid's networks too"
        )


def synchronised(cfg, model: nn.Module) -> nn.Module:
    """The model with batch norms over all processes where MODEL.SYNC_BN asks for it."""
    return convert_sync_batch_norm(model) if switch("MODEL.SYNC_BN", cfg.MODEL.SYNC_BN) else model
