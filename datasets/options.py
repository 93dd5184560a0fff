"""Which datasets a configuration names, and with which options each is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from yacs.config import CfgNode

from datasets.catalogue import find_spec
from utils.errors import UserError

OPTION_KEYS = (
    "LABELED", "CLASSIC", "SPLIT_ID", "TEST_SIZE", "TRIAL", "USE_VAL", "MISSING_VIEW", "DIRECTION", "KEEP_NUM",
    "MARKET1501_500K",
)  # fmt: skip
"""Keys of DATASETS that are options of ``make_dataset`` in capitals; None leaves the dataset's own default."""


def names_of(value: str | Iterable[str]) -> list[str]:
    """Returns the datasets that DATASETS.NAMES or DATASETS.TARGETS names, one or several; '' names none."""
    return [name for name in ([value] if isinstance(value, str) else value) if str(name).strip()]


def dataset_options(cfg: CfgNode, name: str) -> dict[str, Any]:
    """Returns the options for one dataset of the run, from ``DATASETS.KEY`` and ``DATASETS.OPTIONS``.

    ``DATASETS.USE_ALL`` applies to the sets that are trained on.
    """
    spec = find_spec(name)
    options = {key.lower(): cfg.DATASETS[key] for key in OPTION_KEYS if cfg.DATASETS[key] is not None}
    options = {k: v for k, v in options.items() if k in spec.options}
    if "ids" in spec.options:
        size = cfg.DATASETS.SYNTHETIC
        sizes = {
            "ids": size.IDS, "cameras": size.CAMERAS, "images": size.IMAGES, "frames": size.FRAMES, "seed": size.SEED,
            "gap": size.CAMERA_GAP,
        }  # fmt: skip
        options |= {name: value for name, value in sizes.items() if name in spec.options}
    elif "seed" in spec.options:
        options["seed"] = cfg.DATASETS.SEED
    locations = {
        "view_dir": cfg.DATASETS.VIEW_DIR, "file": cfg.DATASETS.FILE, "image_dir": cfg.DATASETS.IMAGE_DIR,
        "camera_pattern": cfg.DATASETS.CAMERA_PATTERN, "filter_path": cfg.DATASETS.FILTER_PATH,
        "max_table_gb": cfg.DATASETS.MAX_TABLE_GB,
    }  # fmt: skip
    options |= {k: v for k, v in locations.items() if v and k in spec.options}
    if "test_share" in spec.options:
        options["test_share"] = cfg.DATASETS.TEST_SHARE
    if not cfg.DATASETS.LIST_CACHE:
        options["list_cache"] = False
    if cfg.DATASETS.SHARDS:
        options["shards"] = cfg.DATASETS.SHARDS
    if cfg.DATASETS.USE_ALL and name in names_of(cfg.DATASETS.NAMES):
        options["use_all"] = True
    if cfg.MODEL.SIE_VIEW and "missing_view" in spec.options:
        options.setdefault("missing_view", "drop")
    pairs = list(cfg.DATASETS.OPTIONS)
    if len(pairs) % 2:
        raise UserError(f"DATASETS.OPTIONS: expected ['dataset.option', value, ...], got {pairs}")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        owner, _, option = str(key).partition(".")
        if find_spec(owner, "DATASETS.OPTIONS") is spec:
            options[option] = value
    return options


def refuse_unknown_options(cfg: CfgNode, names: list[str], targets: list[str]) -> None:
    """Raises ``UserError`` for an option that no dataset of the run has, and for a dataset that is named twice.

    names: sources; targets: DATASETS.TARGETS.
    """
    specs = [find_spec(name) for name in names] + [find_spec(name, "DATASETS.TARGETS") for name in targets]
    for key, chosen in (("NAMES", specs[: len(names)]), ("TARGETS", specs[len(names) :])):
        twice = [spec.name for i, spec in enumerate(chosen) if spec in chosen[:i]]
        if twice:
            raise UserError(f"DATASETS.{key}: {twice[0]} is named twice; name each dataset once")
    names, known = [*names, *targets], set().union(*(spec.options for spec in specs))
    if cfg.DATASETS.FILTER_PATH:  # any dataset can be filtered
        known = known | {"keep_num"}
    for key in OPTION_KEYS:
        if cfg.DATASETS[key] is not None and key.lower() not in known:
            raise UserError(f"DATASETS.{key}: no dataset of this run ({', '.join(names)}) has that option")
    for key in cfg.DATASETS.OPTIONS[::2]:
        if find_spec(str(key).partition(".")[0], "DATASETS.OPTIONS") not in specs:
            raise UserError(f"DATASETS.OPTIONS: {key!r} belongs to no dataset of this run ({', '.join(names)})")


def options_of_run(cfg: CfgNode) -> dict[str, dict[str, Any]]:
    """Returns name -> options for each dataset of a run, targets included; raises ``UserError`` for unknown options."""
    names, targets = names_of(cfg.DATASETS.NAMES), names_of(cfg.DATASETS.TARGETS or ())
    refuse_unknown_options(cfg, names, targets)
    return {name: dataset_options(cfg, name) for name in dict.fromkeys([*names, *targets])}
