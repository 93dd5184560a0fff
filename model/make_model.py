"""From the configuration to a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from torch import nn
from yacs.config import CfgNode

from model.backbones.clip import LIBRARY, SMALL, openai_name
from model.backbones.msvit import MSVIT_TYPES, MSViT, WindowSpec, check_size, freeze, make_spec
from model.backbones.part_tokens import PartTokenViT
from model.backbones.resnet import RESNET_TYPES, ReIDResNet
from model.backbones.solider import SoliderSwin
from model.backbones.swin import SOLIDER_TYPES, SWIN_TYPES, Swin
from model.backbones.timm_image import TimmBackbone
from model.backbones.vit import DEIT_SMALL, TRANSREID_VIT_SMALL, VIT_SMALL, VIT_TYPES, ViT, ViTSpec
from model.base import Backbone, RetrievalModel, as_backbone
from model.layers.batch_erasing import BatchErasing
from model.layers.heads import make_head
from model.layers.jpm import jigsaw_layout
from model.layers.lora import add_adapters
from model.layers.norms import convert_sync_batch_norm
from model.layers.pooling import TOKEN_POOLINGS, make_pooling
from model.layers.sparse_attention import kept_count
from model.layers.temporal import TemporalPooling
from model.make_clip import make_clip_model, make_clip_tower
from model.networks.cluster_encoder import ClusterEncoder, PooledTrunk
from model.networks.dino import DINOHead, MultiCrop
from model.networks.msvit import MSViTClassifier, MSViTReID, check_parts
from model.networks.necked import NeckedModel
from model.networks.part_tokens import PartTokenModel
from model.networks.reid import ReIDModel
from model.networks.ssdvit import SSDViT
from model.networks.torchreid import (
    PREFIX,
    TRUNKS,
    TorchreidModel,
    gives_stage_maps,
    make_trunk,
    stage_widths,
)
from utils import switch
from utils.errors import UserError, conflict, nearest
from utils.methods import method_of, vit_small_of
from utils.names import BACKBONES, is_clip

Build = TypeVar("Build", bound=Callable[[CfgNode, int, int], nn.Module])


def register_backbone(name: str) -> Callable[[Build], Build]:
    """Returns a decorator that makes ``MODEL.NAME: name`` build the decorated function's backbone.

    Raises ``UserError`` for the name of a network that is here already: its YAML files would mean another one.
    """
    ours = {"transformer", "ssdvit", *RESNET_TYPES, *MSVIT_TYPES, *(PREFIX + trunk for trunk in TRUNKS)}
    if name in ours or name.startswith(("timm:", LIBRARY)) or name in SMALL or openai_name(name):
        raise UserError(f"register_backbone: {name!r} is a network here already; choose another name")

    def add(build: Build) -> Build:
        BACKBONES[name] = build
        return build

    return add


@dataclass(frozen=True)
class TrainingCounts:
    """What a network is sized by, from the training data.

    classes: identities. cameras, views: for side information. kind: what the images show (person, vehicle, ...), for
    prompts; '' if not known.
    """

    classes: int
    cameras: int = 0
    views: int = 0
    kind: str = ""


# ---------------------------------------------------------------- backbones


def vit_spec(cfg: CfgNode) -> ViTSpec:
    """Returns the network that MODEL.TRANSFORMER_TYPE names; ``vit_small`` means two (``MODEL.VIT_SMALL``)."""
    name = cfg.MODEL.TRANSFORMER_TYPE
    if name == VIT_SMALL:
        return TRANSREID_VIT_SMALL if vit_small_of(cfg) == "transreid" else DEIT_SMALL
    if name not in VIT_TYPES:
        known = [*VIT_TYPES, VIT_SMALL, *SWIN_TYPES]
        hint = nearest(name, known)
        raise UserError(f"MODEL.TRANSFORMER_TYPE: unknown {name!r}{hint} Known: {', '.join(sorted(known))}")
    return VIT_TYPES[name]


def make_vit(cfg: CfgNode, camera_num: int, view_num: int) -> ViT:
    """Returns TransReID's vision transformer, or with MODEL.PART_TOKENS PASS's."""
    spec = vit_spec(cfg)
    size, stride = tuple(cfg.INPUT.SIZE_TRAIN), tuple(cfg.MODEL.STRIDE_SIZE)
    shared: dict[str, Any] = {
        "spec": replace(spec, norm_eps=1e-5) if cfg.MODEL.NAME == "ssdvit" else spec,
        "image_size": size,
        "stride": stride,
        "drop_path": cfg.MODEL.DROP_PATH,
        "drop": cfg.MODEL.DROP_OUT,
        "attn_drop": cfg.MODEL.ATT_DROP_RATE,
        "conv_stem": cfg.MODEL.STEM_CONV,
        "published_init": vit_small_of(cfg),
        "grad_checkpoint": cfg.MODEL.GRAD_CHECKPOINT,
        "any_size": method_of(cfg).network == "multi_crop",
    }
    if has_part_tokens(cfg):
        unfit = [*sides(cfg), *switches(cfg, "GEM_POOLING", "JPM")]
        refuse_set("MODEL.PART_TOKENS", "PASS does not have it", *unfit)
        backbone: ViT = PartTokenViT(**shared, fusion=cfg.MODEL.FEAT_FUSION)
    else:
        backbone = ViT(
            **shared,
            camera_num=camera_num if cfg.MODEL.SIE_CAMERA else 0,
            view_num=view_num if cfg.MODEL.SIE_VIEW else 0,
            sie_coe=cfg.MODEL.SIE_COE,
            pooling=token_pooling(cfg),
        )
    if set(stride) == {spec.patch}:  # overlapping patches of published settings leave a few pixels over
        backbone.require_tiling("INPUT.SIZE_TRAIN", (size[0], size[1]))
    return backbone


def has_part_tokens(cfg: CfgNode) -> bool:
    """Returns whether the configuration's ViT is PASS's."""
    return cfg.MODEL.PART_TOKENS is True and is_vit(cfg)


def is_vit(cfg: CfgNode) -> bool:
    """Returns whether MODEL.NAME and MODEL.TRANSFORMER_TYPE name a ViT of ours."""
    return cfg.MODEL.NAME in ("transformer", "ssdvit") and cfg.MODEL.TRANSFORMER_TYPE not in SWIN_TYPES


def make_swin(cfg: CfgNode) -> Swin | SoliderSwin:
    """Returns SOLIDER's or TransReID-SSL's Swin transformer, as MODEL.SWIN says."""
    kind = cfg.MODEL.TRANSFORMER_TYPE
    solider = cfg.MODEL.SWIN == "solider" or kind in SOLIDER_TYPES
    name = f"MODEL.TRANSFORMER_TYPE {kind!r}"
    refuse_set(name, "Swin does not support it", *sides(cfg), *switches(cfg, "STEM_CONV", "GEM_POOLING"))
    spec = SWIN_TYPES[kind]
    if solider:
        return SoliderSwin(
            spec,
            cfg.MODEL.SEMANTIC_WEIGHT,
            drop_path=cfg.MODEL.DROP_PATH,
            drop=cfg.MODEL.DROP_OUT,
            attn_drop=cfg.MODEL.ATT_DROP_RATE,
            grad_checkpoint=cfg.MODEL.GRAD_CHECKPOINT,
        )
    if method_of(cfg).network == "multi_crop":
        raise conflict(method_name(cfg), name, "TransReID-SSL's Swin takes images of one size only; SOLIDER's any")
    return Swin(spec, tuple(cfg.INPUT.SIZE_TRAIN), cfg.MODEL.DROP_PATH, cfg.MODEL.GRAD_CHECKPOINT)


def make_backbone(cfg: CfgNode, camera_num: int, view_num: int) -> Backbone:
    """Returns the backbone that MODEL.NAME names, other than CLIP's and torchreid's."""
    name = cfg.MODEL.NAME
    if cfg.MODEL.PART_TOKENS is True and not is_vit(cfg):
        raise conflict("MODEL.PART_TOKENS", f"MODEL.NAME {name!r}", "PASS is a ViT: 'transformer' with a ViT's type")
    if name == "transformer" and cfg.MODEL.TRANSFORMER_TYPE in SWIN_TYPES:
        return make_swin(cfg)
    if name in ("transformer", "ssdvit"):
        return make_vit(cfg, camera_num, view_num)
    if name in RESNET_TYPES:
        refuse_set(f"MODEL.NAME {name!r}", "it is for transformers", *switches(cfg, "GRAD_CHECKPOINT"))
        return ReIDResNet(RESNET_TYPES[name], cfg.MODEL.LAST_STRIDE, map_pooling(cfg))
    if name in MSVIT_TYPES:
        backbone = MSViT(**msvit_parts(cfg), last_stride=cfg.MODEL.LAST_STRIDE)
        freeze(backbone, tuple(cfg.MODEL.MSVIT.FREEZE))
        return backbone
    if name in BACKBONES:
        return as_backbone(BACKBONES[name](cfg, camera_num, view_num))
    if name.startswith("timm:"):
        size = tuple(cfg.INPUT.SIZE_TRAIN)
        return TimmBackbone(name.removeprefix("timm:"), size, cfg.MODEL.DROP_PATH, cfg.MODEL.GRAD_CHECKPOINT)
    known = ["transformer", "ssdvit", *RESNET_TYPES, *MSVIT_TYPES, *(PREFIX + trunk for trunk in TRUNKS), *BACKBONES]
    hint = nearest(name, [*known, "ViT-B-16", "RN50"])
    raise UserError(
        f"MODEL.NAME: unknown {name!r}{hint} Known: {', '.join(known)}, ViT-B-16, RN50 and CLIP's other names, "
        "open_clip:NAME for any CLIP of open_clip, or timm:NAME for any image model of timm"
    )


def bare_backbone(cfg: CfgNode, camera_num: int, view_num: int) -> Backbone:
    """Returns the backbone that MODEL.NAME names, of any family, for networks that are a backbone and necks."""
    unfit = switches(cfg, "JPM", "REDUCE_FEAT_DIM", "DROPOUT_RATE")
    refuse_set(method_name(cfg), "its encoder is a backbone and a neck", *unfit)
    name = cfg.MODEL.NAME
    if is_clip(name):
        refuse_set(method_name(cfg), "a CLIP's image tower alone takes no side information", *sides(cfg))
        return make_clip_tower(cfg)
    if is_torchreid(name):
        return PooledTrunk(make_trunk(name), make_pooling(map_pooling(cfg)))
    return make_backbone(cfg, camera_num, view_num)


# ---------------------------------------------------------------- what is refused


def is_torchreid(name: str) -> bool:
    """Returns whether MODEL.NAME is a network of the torchreid family."""
    return name not in BACKBONES and name.startswith(PREFIX)


def method_name(cfg: CfgNode) -> str:
    """Returns the method as messages name it."""
    return f"PROCESSOR.NAME {cfg.PROCESSOR.NAME!r}"


def switches(cfg: CfgNode, *keys: str) -> list[str]:
    """Returns the names of those keys of MODEL that are set."""
    return [f"MODEL.{key}" for key in keys if cfg.MODEL[key]]


def sides(cfg: CfgNode) -> list[str]:
    """Returns the names of the keys of side information that are set."""
    return switches(cfg, "SIE_CAMERA", "SIE_VIEW")


def refuse_set(other: str, why: str, *keys: str) -> None:
    """Raises ``UserError`` for the first of the keys that are set although ``other`` excludes them."""
    if keys:
        raise conflict(keys[0], other, why)


def map_pooling(cfg: CfgNode) -> str:
    """Returns the pooling of a map that MODEL.POOLING stands for."""
    return "avg" if cfg.MODEL.POOLING == "auto" else cfg.MODEL.POOLING


def token_pooling(cfg: CfgNode) -> str:
    """Returns the pooling of a ViT's tokens that MODEL.POOLING or GEM_POOLING stands for."""
    word = cfg.MODEL.POOLING
    if cfg.MODEL.GEM_POOLING:
        if word not in ("auto", "gem"):
            raise conflict("MODEL.GEM_POOLING", f"MODEL.POOLING {word!r}", "they name two poolings")
        return "gem"
    if word in ("avg", "max", "avg_max") and cfg.MODEL.JPM:
        raise conflict("MODEL.JPM", f"MODEL.POOLING {word!r}", "a piece of JPM is its class token; use 'None' or 'gem'")
    return "None" if word == "auto" else word


def refuse_pooling(cfg: CfgNode) -> None:
    """Raises ``UserError`` if MODEL.POOLING is set for a network without a map to pool, or with its own pooling."""
    word, name = cfg.MODEL.POOLING, f"MODEL.NAME {cfg.MODEL.NAME!r}"
    pooled_trunk = is_torchreid(cfg.MODEL.NAME) and method_of(cfg).network == "cluster_encoder"
    if is_vit(cfg) and not has_part_tokens(cfg):
        known, why = ("auto", *TOKEN_POOLINGS), ""
    elif cfg.MODEL.NAME in RESNET_TYPES or pooled_trunk:
        known, why = ("auto", "avg", "max", "gem"), "it is for the tokens of ViTs"
    else:
        known = ("auto", "avg")
        why = "it is for ResNets and ViTs, and in PROCESSOR.NAME 'cluster' for torchreid's networks too"
    if word not in known:
        raise conflict(f"MODEL.POOLING {word!r}", name, why)


# ---------------------------------------------------------------- networks of one family


def msvit_parts(cfg: CfgNode) -> dict[str, Any]:
    """Returns the arguments that the three networks on MSViT's stages share, checked against the image sizes."""
    keys, split = cfg.MODEL.MSVIT, tuple(cfg.MODEL.MSVIT.SPLIT_SIZE)
    unfit = [*switches(cfg, "JPM", "GRAD_CHECKPOINT"), *sides(cfg)]
    if keys.HEAD != "bnneck":
        unfit += switches(cfg, "REDUCE_FEAT_DIM", "DROPOUT_RATE")
    refuse_set(f"MODEL.NAME {cfg.MODEL.NAME!r}", "MSViT does not support it", *unfit)
    kept_count(split[0] * split[1], keys.SPARSE_RATIO)
    check_size("INPUT.SIZE_TRAIN", tuple(cfg.INPUT.SIZE_TRAIN), split)
    check_size("INPUT.SIZE_TEST", tuple(cfg.INPUT.SIZE_TEST), split)
    return {
        "spec": make_spec(cfg.MODEL.NAME, tuple(keys.WIDTHS), tuple(keys.BLOCKS)),
        "attention": WindowSpec(split, keys.SPARSE_RATIO),
        "drop_path": cfg.MODEL.DROP_PATH,
        "act": keys.ACT,
    }


def make_msvit(cfg: CfgNode, num_class: int, head_of_width: Callable[[int], nn.Module]) -> MSViTReID | MSViTClassifier:
    """Returns the network of two branches and part heads, or the classifier. head_of_width: width -> classifier."""
    keys, stride = cfg.MODEL.MSVIT, cfg.MODEL.LAST_STRIDE
    if keys.HEAD == "classifier":
        model = MSViTClassifier(**msvit_parts(cfg), num_class=num_class)
        freeze(model, tuple(keys.FREEZE))
        return model
    shared = msvit_parts(cfg)
    for height, _ in (cfg.INPUT.SIZE_TRAIN, cfg.INPUT.SIZE_TEST):
        check_parts(math.ceil(height / (16 * stride)), keys.NUM_PART, keys.SPARSE_POOL)
    return MSViTReID(
        **shared,
        make_head=head_of_width,
        parts=keys.NUM_PART,
        interleaved=keys.SPARSE_POOL,
        last_stride=stride,
        erasing=BatchErasing(keys.BATCH_ERASING, keys.BATCH_ERASING_PROB),
        frozen=tuple(keys.FREEZE),
        neck_feat=cfg.TEST.NECK_FEAT,
    )


def make_torchreid(cfg: CfgNode, num_class: int) -> TorchreidModel:
    """Returns a torchreid model by MODEL.FC_HEAD, MODEL.FC_DIM and MODEL.MAPS, with a head per target if asked for."""
    name, maps, head = cfg.MODEL.NAME, cfg.MODEL.MAPS, cfg.MODEL.FC_HEAD
    only_resnets = "only torchreid's ResNets give stage maps"
    if maps != "none" and not gives_stage_maps(name):
        raise conflict(f"MODEL.MAPS {maps!r}", f"MODEL.NAME {name!r}", only_resnets)
    if cfg.KD.MULTI_HEAD and not method_of(cfg).head_per_target:
        raise conflict("KD.MULTI_HEAD", method_name(cfg), "it is for methods with a head per target, such as mtda_kd")
    if cfg.KD.MULTI_HEAD and head != "feat":
        raise conflict("KD.MULTI_HEAD", f"MODEL.FC_HEAD {head!r}", "the heads per target are copies of 'feat'")
    matched: tuple[int, ...] = ()
    if maps == "student":
        if not gives_stage_maps(cfg.KD.TEACHER.NAME):
            raise conflict("MODEL.MAPS 'student'", f"KD.TEACHER.NAME {cfg.KD.TEACHER.NAME!r}", only_resnets)
        matched = stage_widths(cfg.KD.TEACHER.NAME)
    domains = len(cfg.DATASETS.TARGETS) if cfg.KD.MULTI_HEAD else 0
    return TorchreidModel(make_trunk(name), num_class, head, cfg.MODEL.FC_DIM, maps, matched, domains)


# ---------------------------------------------------------------- the networks of the methods


def make_reid(cfg: CfgNode, counts: TrainingCounts) -> RetrievalModel:
    """Returns the network of supervised training: a backbone with necks and classifiers."""
    name = cfg.MODEL.NAME
    if is_clip(name):
        return make_clip_model(cfg, counts.classes, counts.cameras, counts.views)
    if is_torchreid(name):
        return make_torchreid(cfg, counts.classes)
    head_of_width = partial(
        make_head,
        cfg.MODEL.ID_LOSS_TYPE,
        num_class=counts.classes,
        scale=cfg.SOLVER.COSINE_SCALE,
        margin=cfg.SOLVER.COSINE_MARGIN,
    )
    if name in MSVIT_TYPES and cfg.MODEL.MSVIT.HEAD != "bnneck":
        return make_msvit(cfg, counts.classes, head_of_width)
    base = make_backbone(cfg, counts.cameras, counts.views)
    if isinstance(base, PartTokenViT) and cfg.MODEL.MULTI_NECK:
        unfit = switches(cfg, "REDUCE_FEAT_DIM", "DROPOUT_RATE")
        refuse_set("MODEL.MULTI_NECK", "PASS does not have it", *unfit)
        return PartTokenModel(base, head_of_width, cfg.TEST.NECK_FEAT)
    return ReIDModel(
        base,
        head_of_width,
        neck_feat=cfg.TEST.NECK_FEAT,
        jigsaw=jigsaw_layout(cfg, base.patches),
        use_neck=cfg.MODEL.NECK == "bnneck" or name == "transformer",
        reduce_dim=cfg.MODEL.FEAT_DIM if cfg.MODEL.REDUCE_FEAT_DIM else 0,
        dropout=cfg.MODEL.DROPOUT_RATE,
    )


def make_prompted(cfg: CfgNode, counts: TrainingCounts) -> RetrievalModel:
    """Returns a CLIP with learnt prompts."""
    if not is_clip(cfg.MODEL.NAME):
        raise conflict(
            method_name(cfg), f"MODEL.NAME {cfg.MODEL.NAME!r}",
            "prompts need a CLIP, such as ViT-B-16, RN50 or open_clip:NAME",
        )  # fmt: skip
    return make_clip_model(cfg, counts.classes, counts.cameras, counts.views, counts.kind, prompted=True)


def make_cluster_encoder(cfg: CfgNode, counts: TrainingCounts) -> ClusterEncoder:
    """Returns the network of cluster contrast around any backbone."""
    return ClusterEncoder(bare_backbone(cfg, counts.cameras, counts.views))


def make_ssdvit(cfg: CfgNode, counts: TrainingCounts) -> SSDViT:
    """Returns the network of self distillation around any backbone."""
    refuse_set(method_name(cfg), "its targets' cameras are never trained on", *sides(cfg))
    return SSDViT(bare_backbone(cfg, 0, 0), cfg.TEST.NECK_FEAT, cfg.SSD.RANDOM_BLOCK)


def make_multi_crop(cfg: CfgNode, counts: TrainingCounts) -> MultiCrop:
    """Returns the network of DINO's pre-training; its batch norms share statistics over all processes."""
    name = cfg.MODEL.NAME
    if is_clip(name) or is_torchreid(name) or name in MSVIT_TYPES:
        why = "it pre-trains a transformer, a ResNet or timm:NAME"
        raise conflict(method_name(cfg), f"MODEL.NAME {name!r}", why)
    refuse_set(method_name(cfg), "a crop has one feature", *switches(cfg, "JPM"))
    backbone = make_backbone(cfg, counts.cameras, counts.views)
    backbone.require_tiling("INPUT.SIZE_TRAIN", tuple(cfg.INPUT.SIZE_TRAIN))
    backbone.require_tiling("DINO.CROP_HEIGHT, DINO.CROP_WIDTH", (cfg.DINO.CROP_HEIGHT, cfg.DINO.CROP_WIDTH))
    keys = cfg.DINO
    head = DINOHead(backbone.width, keys.OUT_DIM, keys.USE_BN_IN_HEAD, keys.NORM_LAST_LAYER, keys.HIDDEN_DIM)
    model = MultiCrop(backbone, head)
    convert_sync_batch_norm(model)
    return model


def adapt(cfg: CfgNode, model: RetrievalModel) -> None:
    """Freezes the model's backbone and gives it the adapters of MODEL.LORA."""
    keys, backbone = cfg.MODEL.LORA, model.backbone_module()
    refuse_set("MODEL.LORA.RANK", "its branches are copies of a last block that learns whole", *switches(cfg, "JPM"))
    if backbone is None:
        raise conflict(
            f"MODEL.LORA.RANK {keys.RANK}", f"MODEL.NAME {cfg.MODEL.NAME!r}", "adapters are for a backbone with a neck"
        )
    targets = [keys.TARGETS] if isinstance(keys.TARGETS, str) else keys.TARGETS
    add_adapters(backbone, keys.RANK, keys.ALPHA, targets)


def pool_clips(cfg: CfgNode, model: RetrievalModel) -> None:
    """Makes the model pool the features of each clip in training, as MODEL.TEMPORAL says."""
    if not isinstance(model, NeckedModel):
        raise conflict(
            f"DATALOADER.FRAMES {cfg.DATALOADER.FRAMES}", f"MODEL.NAME {cfg.MODEL.NAME!r}",
            "clips are pooled between a backbone and its neck, which this network does not keep apart",
        )  # fmt: skip
    model.temporal = TemporalPooling(cfg.MODEL.TEMPORAL, cfg.DATALOADER.FRAMES)


NETWORKS: dict[str, Callable[[CfgNode, TrainingCounts], RetrievalModel]] = {
    "reid": make_reid,
    "prompt": make_prompted,
    "cluster_encoder": make_cluster_encoder,
    "ssdvit": make_ssdvit,
    "multi_crop": make_multi_crop,
}
"""``Method.network`` -> function that builds it."""


def make_model(cfg: CfgNode, num_class: int, camera_num: int = 0, view_num: int = 0, kind: str = "") -> RetrievalModel:
    """Returns the model that the configuration asks for, randomly initialised; reads no file.

    num_class: training identities. camera_num, view_num: their numbers in the training split, for side information.
    kind: what the data show (person, vehicle, ...), for prompts. Raises ``UserError`` for unknown names and for keys
    that cannot go together.
    """
    method = method_of(cfg)
    refuse_pooling(cfg)
    if method.network not in NETWORKS:
        raise UserError(
            f"{method_name(cfg)}: its method asks for network {method.network!r}. Known: {', '.join(NETWORKS)}"
        )
    model = NETWORKS[method.network](cfg, TrainingCounts(num_class, camera_num, view_num, kind))
    if cfg.MODEL.LORA.RANK:
        adapt(cfg, model)
    if cfg.DATALOADER.FRAMES > 1:
        pool_clips(cfg, model)
    if switch("MODEL.SYNC_BN", cfg.MODEL.SYNC_BN):
        for name, child in list(model.named_children()):
            if name not in model.sees_whole_batch:
                setattr(model, name, convert_sync_batch_norm(child))
    return model
