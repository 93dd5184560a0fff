"""Settings that exclude each other, where the keys alone decide: one table, checked when a configuration is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from utils.errors import conflict
from utils.methods import Method, traits_of


@dataclass(frozen=True)
class Rule:
    """Two keys that exclude each other. applies: whether they do, by the configuration and the method's traits."""

    first: str
    second: str
    why: str
    applies: Callable[[CfgNode, Method], Any]


RULES = (
    Rule(
        "DATALOADER.DRAFT",
        "DATALOADER.DECODER",
        "torchvision decodes whole images",
        lambda cfg, method: cfg.DATALOADER.DRAFT and cfg.DATALOADER.DECODER == "torchvision",
    ),
    Rule(
        "INPUT.OCCLUSION_MIN",
        "INPUT.OCCLUSION_MAX",
        "the least side of the square is above the greatest",
        lambda cfg, method: cfg.INPUT.OCCLUSION_MIN > cfg.INPUT.OCCLUSION_MAX,
    ),
    *(
        Rule(
            f"INPUT.{name}",
            "DATALOADER.SAMPLER",
            "mixed images have no identity to mine triplets by; use 'softmax'",
            lambda cfg, method, name=name: cfg.INPUT[name] and cfg.DATALOADER.SAMPLER != "softmax",
        )
        for name in ("MIXUP", "CUTMIX")
    ),
    *(
        Rule(
            f"INPUT.{name}",
            "SOLVER.IMS_PER_BATCH",
            "images are mixed in pairs; use an even number",
            lambda cfg, method, name=name: cfg.INPUT[name] and cfg.SOLVER.IMS_PER_BATCH % 2,
        )
        for name in ("MIXUP", "CUTMIX")
    ),
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
        "INPUT.PIPELINE",
        "PROCESSOR.NAME",
        "use 'reid'",
        lambda cfg, method: method.views == "weak_strong" and cfg.INPUT.PIPELINE != "reid",
    ),
    Rule(
        "DATALOADER.BAD_IMAGES",
        "PROCESSOR.NAME",
        "the method takes a feature of every training image; use 'raise'",
        lambda cfg, method: method.in_order and cfg.DATALOADER.BAD_IMAGES == "skip",
    ),
)


def refuse_conflicts(cfg: CfgNode) -> None:
    """Raises ``UserError`` for the first rule of the table that the configuration breaks.

    Rules on a method's traits hold for the methods that are in the table by now. A user's method is registered after
    the configuration was loaded, so the data are checked once more before training.
    """
    method = traits_of(cfg.PROCESSOR.NAME)
    for rule in RULES:
        if rule.applies(cfg, method):
            raise conflict(_shown(cfg, rule.first), _shown(cfg, rule.second), rule.why)


def _shown(cfg: CfgNode, key: str) -> str:
    node = cfg
    for word in key.split("."):
        node = node[word]
    return f"{key} {node!r}"
