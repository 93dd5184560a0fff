"""Settings that exclude each other, where the configuration alone decides, as tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from configs.values import lookup
from utils.errors import conflict
from utils.methods import Method


@dataclass(frozen=True)
class Rule:
    """Two keys that exclude each other. applies: whether they do, by the configuration and the method's traits."""

    first: str
    second: str
    why: str
    applies: Callable[[CfgNode, Method], Any]


@dataclass(frozen=True)
class KeyRule:
    """Two keys that exclude each other whatever the method. applies: whether they do."""

    first: str
    second: str
    why: str
    applies: Callable[[CfgNode], Any]


KEY_RULES = (
    KeyRule(
        "DATALOADER.DRAFT",
        "DATALOADER.DECODER",
        "torchvision decodes whole images",
        lambda cfg: cfg.DATALOADER.DRAFT and cfg.DATALOADER.DECODER == "torchvision",
    ),
    KeyRule(
        "INPUT.OCCLUSION_MIN",
        "INPUT.OCCLUSION_MAX",
        "the least side of the square is above the greatest",
        lambda cfg: cfg.INPUT.OCCLUSION_MIN > cfg.INPUT.OCCLUSION_MAX,
    ),
    KeyRule(
        "INPUT.MIXUP",
        "DATALOADER.SAMPLER",
        "mixed images have no identity to mine triplets by; use 'softmax'",
        lambda cfg: cfg.INPUT.MIXUP and cfg.DATALOADER.SAMPLER != "softmax",
    ),
    KeyRule(
        "INPUT.CUTMIX",
        "DATALOADER.SAMPLER",
        "mixed images have no identity to mine triplets by; use 'softmax'",
        lambda cfg: cfg.INPUT.CUTMIX and cfg.DATALOADER.SAMPLER != "softmax",
    ),
    KeyRule(
        "DATALOADER.FRAMES",
        "DATALOADER.SAMPLER",
        "frames of one tracklet are drawn together; use 'tracklets'",
        lambda cfg: cfg.DATALOADER.FRAMES > 1 and cfg.DATALOADER.SAMPLER != "tracklets",
    ),
    KeyRule(
        "INPUT.MIXUP",
        "SOLVER.IMS_PER_BATCH",
        "images are mixed in pairs; use an even number",
        lambda cfg: cfg.INPUT.MIXUP and cfg.SOLVER.IMS_PER_BATCH % 2,
    ),
    KeyRule(
        "INPUT.CUTMIX",
        "SOLVER.IMS_PER_BATCH",
        "images are mixed in pairs; use an even number",
        lambda cfg: cfg.INPUT.CUTMIX and cfg.SOLVER.IMS_PER_BATCH % 2,
    ),
)
"""Checked when a configuration is loaded."""

TRAINING_RULES = (
    Rule(
        "DATALOADER.SAMPLER",
        "PROCESSOR.NAME",
        "the method has no labels to draw by; use 'softmax'",
        lambda cfg, method: method.label_free and cfg.DATALOADER.SAMPLER != "softmax",
    ),
    Rule(
        "DATALOADER.SAMPLER",
        "PROCESSOR.NAME",
        "use 'multiple_gallery_nocam'",
        lambda cfg, method: method.sources_apart and cfg.DATALOADER.SAMPLER != "multiple_gallery_nocam",
    ),
    Rule(
        "DATALOADER.FRAMES",
        "PROCESSOR.NAME",
        "the method takes images by themselves; 'supervised' takes clips",
        lambda cfg, method: cfg.DATALOADER.FRAMES > 1 and not method.clips,
    ),
    Rule(
        "INPUT.PIPELINE",
        "PROCESSOR.NAME",
        "use 'reid'",
        lambda cfg, method: method.views == "weak_strong" and cfg.INPUT.PIPELINE != "reid",
    ),
    Rule(
        "SOLVER.LAYER_DECAY",
        "PROCESSOR.NAME",
        "its rates follow the schedule of pre-training",
        lambda cfg, method: method.label_free and cfg.SOLVER.LAYER_DECAY != 1,
    ),
    Rule(
        "DATALOADER.BAD_IMAGES",
        "PROCESSOR.NAME",
        "the method takes a feature of every training image; use 'raise'",
        lambda cfg, method: method.in_order and cfg.DATALOADER.BAD_IMAGES == "skip",
    ),
)
"""Checked before training: a user's method is in the table of methods only then, and a test needs none of these."""


def refuse_conflicts(cfg: CfgNode) -> None:
    """Raises ``UserError`` for the first pair of ``KEY_RULES`` that the configuration sets together."""
    for rule in KEY_RULES:
        if rule.applies(cfg):
            raise conflict(_shown(cfg, rule.first), _shown(cfg, rule.second), rule.why)


def refuse_training_conflicts(cfg: CfgNode, method: Method) -> None:
    """Raises ``UserError`` for the first pair of ``TRAINING_RULES`` that the configuration sets together."""
    for rule in TRAINING_RULES:
        if rule.applies(cfg, method):
            raise conflict(_shown(cfg, rule.first), _shown(cfg, rule.second), rule.why)


def _shown(cfg: CfgNode, key: str) -> str:
    return f"{key} {lookup(cfg, key)!r}"
