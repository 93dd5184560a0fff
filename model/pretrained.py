"""Where a training run's first weights come from: a file, or the library that gives them out."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from model.backbones.vit import VIT_SMALL
from utils.checkpoint import load_pretrained, load_weights
from utils.errors import UserError

log = logging.getLogger("lineup")

#: TRANSFORMER_TYPE -> the name under which timm gives out the ImageNet weights that the published YAMLs start from.
TIMM_SOURCES = {
    "vit_base_patch16_224_TransReID": "vit_base_patch16_224.orig_in21k_ft_in1k",
    "deit_base_patch16_224_TransReID": "deit_base_distilled_patch16_224.fb_in1k",
    "deit_small_patch16_224_TransReID": "deit_small_distilled_patch16_224.fb_in1k",
    "vit_tiny_patch16_224_TransReID": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
}

#: MODEL.NAME -> torchvision's constructor.
TORCHVISION_SOURCES = {"resnet18", "resnet34", "resnet50", "resnet101"}

#: Published files that no library gives out, and who does.
ELSEWHERE = {
    VIT_SMALL: "vit_small_p16_224-15ec54c9.pth, given out with early timm releases",
    "msvit_s": "msvit_s.pth, given out by the MSViT repository, or one made with configs/msvit/imagenet_s.yml",
    "msvit_l": "msvit_l.pth, given out by the MSViT repository, or one made with configs/msvit/imagenet_l.yml",
    "resnet50_ibn_a": "resnet50_ibn_a.pth.tar, given out by the IBN-Net repository",
    "resnet101_ibn_a": "resnet101_ibn_a.pth.tar, given out by the IBN-Net repository",
}


def fetch_imagenet(name: str, transformer_type: str) -> dict:
    """ImageNet weights through torchvision or timm, kept in their usual cache; ``UserError`` when none has them."""
    wanted = transformer_type if name == "transformer" else name
    way_out = "set MODEL.PRETRAIN_PATH to the file, or MODEL.PRETRAIN_CHOICE 'no' to start from random weights"
    try:
        if name in TORCHVISION_SOURCES:
            import torchvision

            return torchvision.models.get_model(name, weights="IMAGENET1K_V1").state_dict()
        if name.startswith("timm:") or wanted in TIMM_SOURCES:
            import timm

            source = name.removeprefix("timm:") if name.startswith("timm:") else TIMM_SOURCES[wanted]
            return timm.create_model(source, pretrained=True).state_dict()
    except Exception as error:  # noqa: BLE001 - network, cache and hub errors come in many kinds
        reason = str(error).strip().split("\n")[0][:100] or type(error).__name__
        source = "torchvision" if name in TORCHVISION_SOURCES else "timm"
        raise UserError(
            f"MODEL.PRETRAIN_PATH is empty and the ImageNet weights of {wanted!r} could not be fetched through "
            f"{source} ({reason}); {way_out}"
        ) from None
    file = ELSEWHERE.get(wanted, "no file known to us")
    raise UserError(
        f"MODEL.PRETRAIN_PATH is empty and no library gives out ImageNet weights of {wanted!r} ({file}); {way_out}"
    )


def load_initial_weights(cfg, model: nn.Module) -> None:
    """Loads what MODEL.PRETRAIN_CHOICE and PRETRAIN_PATH name into a model about to be trained.

    ``imagenet``: the backbone, from the path or through the library that has it. ``self``: a whole model. Anything
    else: nothing. A path that is set but absent is an error, never replaced.
    """
    choice, path = cfg.MODEL.PRETRAIN_CHOICE, cfg.MODEL.PRETRAIN_PATH
    if choice.lower() in ("no", "none", "") and cfg.MODEL.NAME.startswith("msvit_") and cfg.MODEL.MSVIT.FREEZE:
        log.warning("MODEL.MSVIT.FREEZE %s: random weights stay random; set it to []", cfg.MODEL.MSVIT.FREEZE)
    if choice == "self":
        if not path:
            raise UserError("MODEL.PRETRAIN_PATH is empty, and PRETRAIN_CHOICE 'self' loads a whole model from it")
        log.info("%s", load_weights(model, path, cfg.MODEL.PRETRAIN_HW_RATIO))
    elif choice == "imagenet":
        source = path
        if path and not path.startswith("timm:") and not Path(path).is_file():
            raise UserError(f"MODEL.PRETRAIN_PATH: {path}: no such file; a path that is set is never replaced")
        if not path or path.startswith("timm:"):
            source = fetch_imagenet(path or cfg.MODEL.NAME, cfg.MODEL.TRANSFORMER_TYPE)
        log.info("%s", load_pretrained(model, source, cfg.MODEL.PRETRAIN_HW_RATIO))
    elif choice.lower() not in ("no", "none", ""):
        log.warning("MODEL.PRETRAIN_CHOICE %r is neither 'imagenet' nor 'self': no weights are loaded", choice)
