"""The first weights of a training run: from a file, or from the library that provides them."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import open_clip
from yacs.config import CfgNode

from model.backbones.clip import LIBRARY, clip_config, openai_name
from model.backbones.osnet import OSNET_TYPES
from model.backbones.vit import VIT_SMALL
from model.base import RetrievalModel
from model.networks.torchreid import FINE_RESNETS, PREFIX
from utils.checkpoint import load_pretrained, load_weights
from utils.errors import UserError
from utils.methods import method_of
from utils.names import is_clip, is_msvit
from utils.weight_files import read_state

log = logging.getLogger("lineup")

#: TRANSFORMER_TYPE -> timm's name of the ImageNet weights that the published YAMLs start from.
TIMM_SOURCES = {
    "vit_base_patch16_224_TransReID": "vit_base_patch16_224.orig_in21k_ft_in1k",
    "deit_base_patch16_224_TransReID": "deit_base_distilled_patch16_224.fb_in1k",
    "deit_small_patch16_224_TransReID": "deit_small_distilled_patch16_224.fb_in1k",
    "swin_base_patch4_window7_224": "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_tiny_patch4_window7_224": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_small_patch4_window7_224": "swin_small_patch4_window7_224.ms_in1k",
    "vit_tiny_patch16_224_TransReID": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
}

#: MODEL.NAME -> torchvision's constructor.
TORCHVISION_SOURCES = {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"}

#: Published files that no library provides, and who does.
ELSEWHERE = {
    VIT_SMALL: "vit_small_p16_224-15ec54c9.pth, published with early timm releases",
    "msvit_s": "msvit_s.pth, published by the MSViT repository, or one made with configs/msvit/imagenet_s.yml",
    "msvit_l": "msvit_l.pth, published by the MSViT repository, or one made with configs/msvit/imagenet_l.yml",
    "resnet50_ibn_a": "resnet50_ibn_a.pth.tar, published by the IBN-Net repository",
    **{f"{PREFIX}{name}": f"{name}_imagenet.pth, published in torchreid's model zoo" for name in OSNET_TYPES},
    f"{PREFIX}mobilenetv2_x1_0": "the ImageNet weights of mobilenetv2_x1_0, published in torchreid's model zoo",
    f"{PREFIX}mobilenetv2_x1_4": "mobilenetv2_1.4-bc1cc36b.pth, published in torchreid's model zoo",
    "resnet101_ibn_a": "resnet101_ibn_a.pth.tar, published by the IBN-Net repository",
}


WAY_OUT = "set MODEL.PRETRAIN_PATH to the file, or MODEL.PRETRAIN_CHOICE 'no' to start from random weights"


def fetch_imagenet(name: str, transformer_type: str) -> dict[str, Any]:
    """Returns ImageNet weights from torchvision or timm, kept in their usual cache.

    Raises ``UserError`` if neither has them or they cannot be fetched.
    """
    network = transformer_type if name in ("transformer", "ssdvit") else name
    name = name.removeprefix(PREFIX)
    name = FINE_RESNETS.get(name, name)  # torchreid starts it from the same file
    try:
        if name in TORCHVISION_SOURCES:
            import torchvision

            return torchvision.models.get_model(name, weights="IMAGENET1K_V1").state_dict()
        if name.startswith("timm:") or network in TIMM_SOURCES:
            import timm

            source = name.removeprefix("timm:") if name.startswith("timm:") else TIMM_SOURCES[network]
            return timm.create_model(source, pretrained=True).state_dict()
    except Exception as error:  # noqa: BLE001 - network, cache and hub errors come in many kinds
        library = "torchvision" if name in TORCHVISION_SOURCES else "timm"
        raise UserError(
            f"MODEL.PRETRAIN_PATH is empty and the ImageNet weights of {network!r} could not be fetched through "
            f"{library} ({first_line(error)}); {WAY_OUT}"
        ) from None
    file = ELSEWHERE.get(network, "no published file is known")
    raise UserError(
        f"MODEL.PRETRAIN_PATH is empty and no library provides ImageNet weights of {network!r} ({file}); {WAY_OUT}"
    )


def first_line(error: Exception) -> str:
    """Returns the beginning of an error's text, or its type if it has none."""
    return str(error).strip().split("\n")[0][:100] or type(error).__name__


def fetch_clip(name: str, tag: str) -> dict[str, Any]:
    """Returns the weights of a CLIP that open_clip provides under ``tag``, kept in its usual cache.

    name: MODEL.NAME. tag: '' means OpenAI's. Raises ``UserError`` if there are none or they cannot be fetched.
    """
    source = name.removeprefix(LIBRARY) if name.startswith(LIBRARY) else openai_name(name)
    tags = open_clip.list_pretrained_tags_by_model(source)
    if (tag or "openai") not in tags:
        known = ", ".join(f"open_clip:{t}" for t in tags) or "none"
        raise UserError(
            f"MODEL.PRETRAIN_PATH: open_clip provides no {tag or 'openai'!r} weights of {name!r} (it has {known}); "
            f"{WAY_OUT}"
        )
    origin = open_clip.get_pretrained_cfg(source, tag or "openai")
    quick = clip_config(name).get("quick_gelu", False)
    if origin.get("quick_gelu", False) != quick:
        raise UserError(
            f"MODEL.PRETRAIN_PATH: the {tag or 'openai'!r} weights were trained {'without' if quick else 'with'} "
            f"QuickGELU, MODEL.NAME {name!r} is the opposite; a bare name or one ending in -quickgelu has it"
        )
    try:
        path = open_clip.download_pretrained(origin)
    except Exception as error:  # noqa: BLE001 - network, cache and hub errors come in many kinds
        raise UserError(
            f"MODEL.PRETRAIN_PATH: the {tag or 'openai'!r} weights of {name!r} could not be fetched through open_clip "
            f"({first_line(error)}); {WAY_OUT}"
        ) from None
    return read_state(path)


def load_prompts(model: RetrievalModel, path: str) -> None:
    """Loads a stage-1 checkpoint. Raises ``UserError`` if it is of another architecture or of other identities."""
    report = load_weights(model, path)
    log.info("%s", report)
    lacking = [key for key in report.missing if key.startswith(model.needed_for_stage2)]  # the misshaped ones too
    prompts = [text for text in report.mismatched if text.startswith("prompt_learner.cls_ctx")]
    if prompts and len(lacking) == 1:
        theirs, ours = re.findall(r"\((\d+),", prompts[0])
        raise UserError(
            f"SOLVER.STAGE1.WEIGHT: {path} holds prompts of {theirs} identities, the training data have {ours}; train "
            "stage 1 on these data, or name the data that it was trained on"
        )
    if lacking:
        raise UserError(
            f"SOLVER.STAGE1.WEIGHT: {path}: {len(lacking)} tensors that stage 2 starts from are absent or misshaped "
            f"({', '.join(lacking[:3])}, ...): it is not a stage-1 checkpoint of this architecture"
        )


def load_initial_weights(cfg: CfgNode, model: RetrievalModel) -> None:
    """Loads what MODEL.PRETRAIN_CHOICE and PRETRAIN_PATH name into a model about to be trained.

    ``imagenet``: the backbone (CLIP: both towers), from the path or through the library that has it. ``self``: a whole
    model. Anything else: nothing. A path that is set but absent is an error, never replaced. For the prompt method, a
    checkpoint of its stage 1 (``SOLVER.STAGE1.WEIGHT``) replaces all of it.
    """
    choice, path = cfg.MODEL.PRETRAIN_CHOICE, cfg.MODEL.PRETRAIN_PATH
    ratio, key, new_rows = cfg.MODEL.PRETRAIN_HW_RATIO, cfg.MODEL.WEIGHT_KEY, cfg.MODEL.SIE_NEW_ROWS
    if choice.lower() in ("no", "none", "") and is_msvit(cfg.MODEL.NAME) and cfg.MODEL.MSVIT.FREEZE:
        log.warning("MODEL.MSVIT.FREEZE %s: random weights stay random; set it to []", cfg.MODEL.MSVIT.FREEZE)
    if method_of(cfg).network == "prompt" and cfg.SOLVER.STAGE1.WEIGHT:
        load_prompts(model, cfg.SOLVER.STAGE1.WEIGHT)
    elif choice == "self":
        if not path:
            raise UserError("MODEL.PRETRAIN_PATH is empty, and PRETRAIN_CHOICE 'self' loads a whole model from it")
        log.info("%s", load_weights(model, path, ratio, key=key, new_rows=new_rows))
    elif choice == "imagenet":
        log.info("%s", load_pretrained(model, pretrained_source(cfg), ratio, key=key, new_rows=new_rows))
    elif choice.lower() not in ("no", "none", ""):
        log.warning("MODEL.PRETRAIN_CHOICE %r is neither 'imagenet' nor 'self': no weights are loaded", choice)


def pretrained_source(cfg: CfgNode) -> str | dict[str, Any]:
    """Returns the file that MODEL.PRETRAIN_PATH names, or the weights that a library provides."""
    name, path = cfg.MODEL.NAME, cfg.MODEL.PRETRAIN_PATH
    library = next((word for word in ("timm:", LIBRARY) if path.startswith(word)), "")
    if path and not library and not Path(path).is_file():
        raise UserError(f"MODEL.PRETRAIN_PATH: {path}: no such file; a path that is set is never replaced")
    if path and not library:
        return path
    if is_clip(name) and library != "timm:":
        return fetch_clip(name, path.removeprefix(LIBRARY))
    return fetch_imagenet(path or name, cfg.MODEL.TRANSFORMER_TYPE)
