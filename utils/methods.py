"""The table of training methods: what each one needs of the data and of the network, as data.

``PROCESSOR.NAME`` names a row. Datasets, networks and the configuration ask the row for its traits and never compare
names, so that a method that a user registers has every trait that ours have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from utils.errors import UserError, nearest

Builder = Callable[[Any, Any, Any], list]
"""(cfg, data, model) -> the method's stages."""


@dataclass(frozen=True)
class Method:
    """One training method.

    stages: builds the stages; None until ``processor.methods`` has been imported. labels: every training image needs
    an identity. in_order: ``Data.plain``, the training images in list order under the test transform, is needed.
    draws_images: False if training batches are not drawn by a P x K sampler from labelled images (DINO). targets: the
    method trains on the training images of DATASETS.TARGETS. blends_targets: DMMD.BLEND joins several targets into one.
    sources_apart: each training set keeps its own labels and loaders (``Data.sources``). tests: a run must have
    something to evaluate on. views: how many looks at an image a batch holds: ``one``, ``paired`` (two more where
    MODEL.USE_SSL is on), ``crops`` (multi-crop), ``weak_strong``. network: what is put on the backbone: ``reid``,
    ``prompt``, ``multi_crop``, ``cluster_encoder``, ``ssdvit``. head_per_target: KD.MULTI_HEAD is allowed. vit_small:
    which network an ``auto`` MODEL.VIT_SMALL means. sections: sections of the key tree that only such methods read.
    """

    name: str
    stages: Builder | None = None
    labels: bool = True
    in_order: bool = False
    draws_images: bool = True
    targets: bool = False
    blends_targets: bool = False
    sources_apart: bool = False
    tests: bool = True
    views: str = "one"
    network: str = "reid"
    head_per_target: bool = False
    vit_small: str = "transreid"
    sections: tuple[str, ...] = ()


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("supervised"),
        Method("prompt", in_order=True, views="paired", network="prompt"),
        Method(
            "dino", labels=False, draws_images=False, tests=False, views="crops", network="multi_crop",
            vit_small="deit", sections=("DINO",),
        ),
        Method(
            "cluster", labels=False, in_order=True, network="cluster_encoder", vit_small="deit", sections=("CLUSTER",)
        ),
        Method("self_distill", sources_apart=True, views="weak_strong", network="ssdvit", sections=("SSD",)),
        Method("dmmd", targets=True, blends_targets=True, sections=("DMMD",)),
        Method("mtda_kd", targets=True, head_per_target=True, sections=("KD",)),
    )
}  # fmt: skip
"""PROCESSOR.NAME -> its row. ``register_method`` adds one."""


def method_of(cfg: Any) -> Method:
    """Returns the row that ``PROCESSOR.NAME`` names; raises ``UserError`` for an unknown name."""
    name = cfg.PROCESSOR.NAME
    if name not in METHODS:
        hint = nearest(name, METHODS)
        raise UserError(f"PROCESSOR.NAME: unknown method {name!r}{hint} Known: {', '.join(METHODS)}")
    return METHODS[name]


def builds(name: str) -> Callable[[Builder], Builder]:
    """Decorator: the function builds the stages of a method that the table has already."""

    def add(build: Builder) -> Builder:
        METHODS[name] = replace(METHODS[name], stages=build)
        return build

    return add


def register_method(name: str, **traits: Any) -> Callable[[Builder], Builder]:
    """Decorator: adds a method to the table, so that ``PROCESSOR.NAME: name`` runs the stages the function builds.

    traits: fields of ``Method``; what is not given has the default, which fits a supervised method. Raises
    ``TypeError`` for an unknown trait.
    """

    def add(build: Builder) -> Builder:
        METHODS[name] = Method(name, stages=build, **traits)
        return build

    return add
