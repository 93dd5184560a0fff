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
    """One training method and what it needs.

    stages: builds the stages; None until ``processor.methods`` has been imported.

    Data:
    labels: every training image needs an identity. Without labels, batches are drawn by pseudo-labels that the method
    gives to its loader in every epoch (``in_order``: they come from features of all training images), or, where
    ``in_order`` is False too, as shuffled images that never have one. unlabelled_too: images without an identity are
    accepted beside labelled ones, or alone, in shuffled batches.
    in_order: needs the training images in list order under the test transform (``Data.plain``).
    targets: trains on the training images of DATASETS.TARGETS too (``Data.targets``). targets_in_order: needs these in
    list order as well (``Data.plain_targets``). blends_targets: DMMD.BLEND joins several targets into one.
    sources_apart: each training set keeps its own labels and loaders (``Data.sources``), and ``Data.train`` is None.
    tests: a run must have something to evaluate on.
    views: the views of an image in a training batch: ``one``, ``paired`` (two more where MODEL.USE_SSL is on),
    ``crops`` (DINO's multi-crop), ``weak_strong`` (a view with and one without the learned policy).
    clips: takes clips of several frames, which the network pools (DATALOADER.FRAMES). batch_key: the key of the batch
    size.

    Network:
    network: what is put on the backbone: ``reid``, ``prompt``, ``multi_crop``, ``cluster_encoder``, ``ssdvit``.
    head_per_target: KD.MULTI_HEAD is allowed. vit_small: which network an ``auto`` MODEL.VIT_SMALL means.

    Configuration:
    keys: the keys, or sections ending in a dot, that only such methods read. Setting one for another method gives a
    line in the log. shared_keys: those of them that a network reads in any method.
    """

    name: str
    stages: Builder | None = None
    labels: bool = True
    unlabelled_too: bool = False
    in_order: bool = False
    targets: bool = False
    targets_in_order: bool = False
    blends_targets: bool = False
    sources_apart: bool = False
    tests: bool = True
    views: str = "one"
    clips: bool = False
    batch_key: str = "SOLVER.IMS_PER_BATCH"
    network: str = "reid"
    head_per_target: bool = False
    vit_small: str = "transreid"
    keys: tuple[str, ...] = ()
    shared_keys: tuple[str, ...] = ()

    @property
    def pseudo_labels(self) -> bool:
        """Whether batches are drawn by labels that the method gives to its loader in every epoch."""
        return self.in_order and not self.labels

    @property
    def label_free(self) -> bool:
        """Whether training images never have a label, so that a batch is a draw of shuffled images."""
        return not (self.labels or self.in_order)

    def owns(self, key: str) -> bool:
        """Returns whether ``keys`` names this key or a section that it is in, and other methods never read it."""
        if key in self.shared_keys:
            return False
        return any(key == name or (name.endswith(".") and key.startswith(name)) for name in self.keys)


VIEWS = ("one", "paired", "crops", "weak_strong")
BATCH_KEYS = ("SOLVER.IMS_PER_BATCH", "SOLVER.STAGE1.IMS_PER_BATCH", "SOLVER.STAGE2.IMS_PER_BATCH")
VIT_SMALLS = ("transreid", "deit")
"""Values of the traits of these names."""

PROMPT_KEYS = (
    "SOLVER.STAGE1.", "SOLVER.STAGE2.", "MODEL.USE_SSL", "MODEL.USE_SSL_STAGE1", "MODEL.SSL_TYPE", "MODEL.SSL_HIDDEN",
    "MODEL.PROMPT_NOUN",
)  # fmt: skip

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("supervised", clips=True),
        Method(
            "prompt", in_order=True, views="paired", batch_key="SOLVER.STAGE2.IMS_PER_BATCH", network="prompt",
            keys=PROMPT_KEYS,
        ),
        Method(
            "dino", labels=False, tests=False, views="crops", network="multi_crop", vit_small="deit", keys=("DINO.",)
        ),
        Method(
            "cluster", labels=False, in_order=True, network="cluster_encoder", vit_small="deit", keys=("CLUSTER.",)
        ),
        Method("self_distill", sources_apart=True, views="weak_strong", network="ssdvit", keys=("SSD.",)),
        Method("dmmd", targets=True, targets_in_order=True, blends_targets=True, keys=("DMMD.", "CLUSTER.")),
        Method("distill", unlabelled_too=True, keys=("DISTILL.",)),
        Method("mtda_kd", targets=True, head_per_target=True, keys=("KD.", "DMMD."), shared_keys=("KD.TEACHER.NAME",)),
    )
}  # fmt: skip
"""PROCESSOR.NAME -> its row. ``register_method`` adds one."""


def owners_of(key: str) -> list[str]:
    """Returns the names of the methods that alone read ``key``; empty when all may read it."""
    return [name for name, method in METHODS.items() if method.owns(key)]


def method_of(cfg: Any) -> Method:
    """Returns the row that ``PROCESSOR.NAME`` names; raises ``UserError`` for an unknown name."""
    name = cfg.PROCESSOR.NAME
    if name not in METHODS:
        hint = nearest(name, METHODS)
        raise UserError(f"PROCESSOR.NAME: unknown {name!r}{hint} Known: {', '.join(METHODS)}")
    return METHODS[name]


def vit_small_of(cfg: Any) -> str:
    """Returns what MODEL.VIT_SMALL stands for; it is ``auto`` until EXTRA_MODULES have registered the method."""
    return method_of(cfg).vit_small if cfg.MODEL.VIT_SMALL == "auto" else cfg.MODEL.VIT_SMALL


def builds(name: str) -> Callable[[Builder], Builder]:
    """Returns a decorator that sets the function that builds the stages of a method in the table."""

    def add(build: Builder) -> Builder:
        METHODS[name] = replace(METHODS[name], stages=build)
        return build

    return add


def register_method(name: str, **traits: Any) -> Callable[[Builder], Builder]:
    """Returns a decorator that adds a method, so that ``PROCESSOR.NAME: name`` runs the stages the function builds.

    traits: fields of ``Method``; those left out have their defaults, which fit a supervised method. Raises
    ``TypeError`` for an unknown trait and ``UserError`` for a value that the trait does not have.
    """
    row = Method(name, **traits)
    for trait, value, known in (
        ("views", row.views, VIEWS), ("batch_key", row.batch_key, BATCH_KEYS), ("vit_small", row.vit_small, VIT_SMALLS),
    ):  # fmt: skip
        if value not in known:
            raise UserError(f"register_method({name!r}): {trait} {value!r} is unknown. Known: {', '.join(known)}")

    def add(build: Builder) -> Builder:
        METHODS[name] = replace(row, stages=build)
        return build

    return add
