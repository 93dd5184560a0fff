"""From a YAML file and overrides to the frozen configuration: read, check, fill in what ``auto`` stands for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from configs.defaults import INERT, KEYS, SECTIONS, get_cfg_defaults, owner_of, reserved_for
from configs.values import ConfigError, coerce

BASE = "_BASE_"

#: Keys that only TransReID-SSL's tree has: a file that sets one was written for that system.
SSL_KEYS = {"MODEL.PRETRAIN_HW_RATIO", "MODEL.STEM_CONV", "MODEL.GEM_POOLING", "MODEL.REDUCE_FEAT_DIM",
            "MODEL.FEAT_DIM", "MODEL.DROPOUT_RATE", "SOLVER.TRP_L2", "DATALOADER.REMOVE_TAIL",
            "DATASETS.ROOT_TRAIN_DIR", "DATASETS.ROOT_VAL_DIR"}


def load_config(config_file: str | Path = "", opts: Sequence = ()) -> CfgNode:
    """The frozen configuration: defaults, then the YAML with its ``_BASE_`` chain, then ``opts`` (KEY, VALUE, ...)."""
    return load_config_with_notes(config_file, opts)[0]


def load_config_with_notes(config_file: str | Path = "", opts: Sequence = ()) -> tuple[CfgNode, list[str]]:
    """As ``load_config``, and the lines that the log should open with: settings that do nothing, or not upstream's."""
    given: dict[str, Any] = read_yaml(config_file) if config_file else {}
    given.update(read_opts(opts))
    cfg = get_cfg_defaults()
    for name, value in given.items():
        section, _, leaf = name.rpartition(".")
        (lookup(cfg, section) if section else cfg)[leaf] = value
    resolve(cfg, given)
    cfg.freeze()
    return cfg, notes(cfg, given)


def dump(cfg: CfgNode) -> str:
    """YAML text that ``load_config`` reads back to the same configuration.

    Keys that nothing reads are left out at their default, so that reading back has nothing to say about them.
    """
    tree: dict = {}
    for name, key in KEYS.items():
        value = lookup(cfg, name)
        if name in INERT and value == key.default:
            continue
        *sections, leaf = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = _plain(value)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


# ---------------------------------------------------------------- reading


def read_yaml(path: str | Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Key -> checked value of what a YAML file and the files it stands on set."""
    path = Path(path)
    if path.resolve() in [p.resolve() for p in chain]:
        raise ConfigError(f"{BASE} goes round in a circle: {' -> '.join(str(p) for p in (*chain, path))}")
    asked_by = f" ({BASE} of {chain[-1]})" if chain else ""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file{asked_by}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise ConfigError(f"{path}: cannot be read{asked_by}: {reason}") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as 'MODEL:', not {str(tree)[:40]!r}")
    base = tree.pop(BASE, None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{path}: {BASE} must be one file name, not {base!r}")
    given = read_yaml(path.parent / Path(base).expanduser(), (*chain, path)) if base else {}
    given.update(_flatten(tree, "", f"in {path}"))
    return given


def read_opts(opts: Sequence | None) -> dict[str, Any]:
    """Key -> checked value of a flat list of overrides."""
    opts = list(opts or ())
    where = "in the overrides"
    for word in opts[::2]:
        if isinstance(word, str) and word not in KEYS and "=" in word:
            key, value = word.split("=", 1)
            raise ConfigError(f"{word}: overrides are KEY VALUE with a space between them: {key} {value}")
        if not isinstance(word, str):
            raise ConfigError(f"{word!r}: expected a key {where}; they come as KEY VALUE KEY VALUE ...")
    if len(opts) % 2:
        raise ConfigError(f"{opts[-1]}: a key without a value {where}; they come as KEY VALUE KEY VALUE ...")
    return {_known(name, where): coerce(name, value, where) for name, value in zip(opts[::2], opts[1::2], strict=True)}


def _flatten(tree: dict, prefix: str, where: str) -> dict[str, Any]:
    """Nested sections -> dotted keys with checked values. What was left empty is left at what it was."""
    given = {}
    for word, value in tree.items():
        name = f"{prefix}{word}"
        if name in SECTIONS and (value is None or isinstance(value, dict)):
            given.update(_flatten(value or {}, f"{name}.", where))
        elif _known(name, where) and (value is not None or KEYS[name].default is None):
            given[name] = coerce(name, value, where)
    return given


def _known(name: str, where: str) -> str:
    """``name`` if it is a key, else the error that says what it might have been."""
    if name in KEYS:
        return name
    if name in SECTIONS:
        raise ConfigError(f"{name}: is a section, set a key of it ({where})")
    kind = "key" if "." in name else "section or key"
    raise ConfigError(f"{name}: unknown {kind}{_nearest(name)} ({where}; 'python -m configs' lists all keys)")


def _nearest(name: str) -> str:
    """The hint for an unknown name: the closest key that ends alike, else the closest key or section."""
    folded = {known.lower(): known for known in (*SECTIONS, *KEYS)}
    ending = f".{name.lower()}".rpartition(".")[2]
    alike = [known for known in folded if known.rpartition(".")[2] == ending]
    close = difflib.get_close_matches(name.lower(), alike or folded, n=1, cutoff=0.0 if alike else 0.6)
    return f", did you mean '{folded[close[0]]}'?" if close else ""


# ---------------------------------------------------------------- meaning


def resolve(cfg: CfgNode, given: Iterable[str]) -> None:
    """Put what ``auto`` stands for in its place (docs/configuration.md, "What auto stands for").

    cfg: not yet frozen. given: the keys that the YAML or the overrides set; a key left at its default is not evidence.
    """
    given, solver = set(given), cfg.SOLVER
    clip = cfg.MODEL.NAME.startswith(("ViT-", "RN", "open_clip:")) or solver.WARMUP_ITERS > 0
    ssl = solver.WARMUP_METHOD == "cosine"
    if cfg.PROCESSOR.NAME == "auto":
        cfg.PROCESSOR.NAME = "prompt" if any(k.startswith("SOLVER.STAGE1.") for k in given) else "supervised"
    if cfg.MODEL.VIT_SMALL == "auto":
        without_labels = cfg.PROCESSOR.NAME in ("dino", "cluster")  # TransReID-SSL's own methods
        cfg.MODEL.VIT_SMALL = "deit" if ssl or without_labels or given & SSL_KEYS else "transreid"
    if solver.SCHEDULER == "auto":
        multistep = not ssl and (clip or solver.WARMUP_METHOD == "constant")
        solver.SCHEDULER = "multistep" if multistep else "cosine"
    if solver.SCHEDULER_START == "auto":
        first = {"cosine": 0 if ssl else 1, "multistep": 1 if clip else 0, "step": 0, "cosine_per_step": 0}
        solver.SCHEDULER_START = first.get(solver.SCHEDULER, 1)


def notes(cfg: CfgNode, given: Iterable[str]) -> list[str]:
    """One line for each setting that does nothing (yet), or is honoured where upstream ignores it."""
    lines = []
    for name in given:
        owner = reserved_for(name)
        if name in INERT:
            lines.append(f"{name} is set and does nothing here: {INERT[name]}")
        elif owner not in ("", cfg.PROCESSOR.NAME) and lookup(cfg, name) != KEYS[name].default:
            lines.append(f"{name} is set and does nothing yet: it belongs to '{owner}', which is not built")
        elif owner_of(name) not in ("", cfg.PROCESSOR.NAME) and lookup(cfg, name) != KEYS[name].default:
            lines.append(f"{name} is set and does nothing here: it belongs to PROCESSOR.NAME '{owner_of(name)}'")
    if cfg.TEST.FEAT_NORM.lower() in ("no", "off", "false"):
        lines.append(f"TEST.FEAT_NORM {cfg.TEST.FEAT_NORM!r}: features are not normalised; upstream would have done it")
    if cfg.TEST.RE_RANKING:
        lines.append("TEST.RE_RANKING True: distances are re-ranked; upstream would not have done it")
    if cfg.SOLVER.TRP_L2 and cfg.MODEL.JPM:
        lines.append("SOLVER.TRP_L2 has no effect with MODEL.JPM, as upstream")
    return lines


def lookup(cfg: CfgNode, name: str) -> Any:
    """The value of a dotted key."""
    node = cfg
    for word in name.split("."):
        node = node[word]
    return node


def _plain(value: Any) -> Any:
    """Tuples as lists, which YAML can write."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
