"""Turns a YAML file and overrides into the frozen configuration: reads, checks and resolves ``auto``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from configs.conflicts import refuse_conflicts
from configs.defaults import INERT, KEYS, SECTIONS, get_cfg_defaults
from configs.paths import BadPath, expanded
from configs.values import ConfigError, coerce, lookup, shown
from configs.yaml_reader import LARGEST_FILE, YAMLMistake, parse_yaml
from utils.errors import NAME, nearest
from utils.methods import METHODS, owners_of, vit_small_of
from utils.names import is_clip

BASE = "_BASE_"
HERE = Path(__file__).parent

#: What a configuration has at its top: sections, keys, and for a hint the keys of sections that were left out.
TOP_NAMES = {BASE, "<<", *SECTIONS, *KEYS, *(name.rpartition(".")[2] for name in KEYS)}

IN_OVERRIDES = "in the overrides"

#: Keys that only TransReID-SSL's tree has: a file that sets one was written for that system.
SSL_KEYS = {"MODEL.PRETRAIN_HW_RATIO", "MODEL.STEM_CONV", "MODEL.GEM_POOLING", "MODEL.REDUCE_FEAT_DIM",
            "MODEL.FEAT_DIM", "MODEL.DROPOUT_RATE", "SOLVER.TRP_L2", "DATALOADER.REMOVE_TAIL",
            "DATASETS.ROOT_TRAIN_DIR", "DATASETS.ROOT_VAL_DIR"}

#: Keys that only PASS's tree has.
PASS_KEYS = {"MODEL.MULTI_NECK", "MODEL.FEAT_FUSION"}


#: Types that both SOLIDER and TransReID-SSL have; only SOLIDER publishes YAML files with them.
PUBLISHED_SWINS = ("swin_base_patch4_window7_224", "swin_small_patch4_window7_224")
SWIN_TINY = "swin_tiny_patch4_window7_224"


def load_config(config_file: str | Path = "", opts: Sequence = ()) -> CfgNode:
    """Returns the frozen configuration: defaults, then the YAML with its ``_BASE_`` chain, then ``opts``.

    opts: a flat list KEY, VALUE, ... Raises ``ConfigError`` for a file that cannot be read and for unknown keys and
    values, ``UserError`` for keys that exclude each other.
    """
    return load_config_with_notes(config_file, opts)[0]


def load_config_with_notes(config_file: str | Path = "", opts: Sequence = ()) -> tuple[CfgNode, list[str]]:
    """Returns the configuration as ``load_config`` does, and the lines for the beginning of the log.

    The lines name settings that do nothing, or that do here what upstream does not do.
    """
    settings: dict[str, Any] = read_yaml(config_file) if config_file else {}
    names_swin = settings.get("MODEL.TRANSFORMER_TYPE", "") in PUBLISHED_SWINS
    settings.update(read_opts(opts))
    cfg = get_cfg_defaults()
    for name, value in settings.items():
        section, _, leaf = name.rpartition(".")
        (lookup(cfg, section) if section else cfg)[leaf] = value
    resolve(cfg, settings, names_swin)
    refuse_conflicts(cfg)
    cfg.freeze()
    return cfg, notes(cfg, settings)


def dump(cfg: CfgNode) -> str:
    """Returns YAML text that ``load_config`` reads back to the same configuration.

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
    """Returns key -> checked value for all that a YAML file and its ``_BASE_`` chain set.

    chain: the files that led to this one, for the error about a circle.
    """
    asked_by = f" ({BASE} of {chain[-1]})" if chain else ""
    try:
        path = shipped(Path(chain[-1].parent if chain else "") / expanded(str(path)))
    except BadPath as error:
        raise ConfigError(f"{path}: cannot be read{asked_by}: {error}") from None
    if path.resolve() in [p.resolve() for p in chain]:
        raise ConfigError(f"{BASE} goes round in a circle: {' -> '.join(str(p) for p in (*chain, path))}")
    try:
        tree = parse_yaml(read_text(path), TOP_NAMES)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file{asked_by}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise ConfigError(f"{path}: cannot be read{asked_by}: {reason}") from None
    except YAMLMistake as mistake:
        line = f", line {mistake.line}" if mistake.line else ""
        raise ConfigError(f"{path}{line}: {mistake.what}{asked_by}") from None
    if not tree:
        return {}
    base = tree.pop(BASE, None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{path}: {BASE} must be one file name, not {shown(base)}")
    settings: dict[str, Any] = read_yaml(base, (*chain, path)) if base else {}
    settings.update(_flatten(tree, "", f"in {path}"))
    return settings


def shipped(path: Path) -> Path:
    """Returns a path; where one that begins with ``configs/`` is no file here, that of the file that we bring along.

    So ``configs/quickstart.yml`` means the same in every working directory.
    """
    ours = HERE.joinpath(*path.parts[1:])
    return ours if path.parts[:1] == (HERE.name,) and not path.exists() and ours.is_file() else path


def read_text(path: Path) -> str:
    """Returns the text of a configuration file. Raises ``YAMLMistake`` for an endless one, before it takes memory."""
    with open(path, "rb") as handle:
        raw = handle.read(LARGEST_FILE + 1)
    if len(raw) > LARGEST_FILE:
        raise YAMLMistake(0, f"it is longer than {LARGEST_FILE:,} bytes; this is not a configuration")
    return raw.decode("utf-8")


def read_opts(opts: Sequence[Any] | None) -> dict[str, Any]:
    """Returns key -> checked value for a flat list of overrides."""
    opts, where = list(opts or ()), IN_OVERRIDES
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
    """Returns nested sections as dotted keys with checked values; what is left empty in the file is left out."""
    settings = {}
    for word, value in tree.items():
        name = f"{prefix}{word}"
        if name in SECTIONS and (value is None or isinstance(value, dict)):
            settings.update(_flatten(value or {}, f"{name}.", where))
        elif _known(name, where) and (value is not None or KEYS[name].default is None):
            settings[name] = coerce(name, value, where)
    return settings


def _known(name: str, where: str) -> str:
    """Returns ``name`` if it is a key; raises ``ConfigError`` with a suggestion otherwise."""
    if name in KEYS:
        return name
    if name in SECTIONS:
        raise ConfigError(f"{name}: is a section, set a key of it ({where})")
    kind = "key" if "." in name else "section or key"
    if where != IN_OVERRIDES and not NAME.fullmatch(name):
        raise ConfigError(f"an unknown {kind}, whose name is not one of a key ({where})")
    raise ConfigError(f"{name}: unknown {kind}{_hint(name)} ({where}; 'python -m configs' lists all keys)")


def _hint(name: str) -> str:
    """Returns the hint for an unknown name: the closest key that ends the same way, else the closest of all names."""
    known = (*SECTIONS, *KEYS)
    same_ending = [key for key in known if key.lower().rpartition(".")[2] == name.lower().rpartition(".")[2]]
    return nearest(name, same_ending or known, cutoff=0.0 if same_ending else 0.6).removesuffix(".")


# ---------------------------------------------------------------- meaning


def resolve(cfg: CfgNode, set_keys: Iterable[str], file_names_swin: bool = False) -> None:
    """Replaces ``auto`` by what it stands for (docs/configuration.md, "What auto stands for").

    cfg: not yet frozen. set_keys: those of the YAML and the overrides; a key left at its default is no evidence.
    file_names_swin: whether the YAML itself names a Swin.
    """
    evidence, solver = set(set_keys), cfg.SOLVER
    clip = is_clip(cfg.MODEL.NAME) or solver.WARMUP_ITERS > 0
    ssl = solver.WARMUP_METHOD == "cosine"
    if cfg.PROCESSOR.NAME == "auto":
        cfg.PROCESSOR.NAME = "prompt" if any(k.startswith("SOLVER.STAGE1.") for k in evidence) else "supervised"
    if cfg.MODEL.PART_TOKENS == "auto":
        cfg.MODEL.PART_TOKENS = bool(evidence & PASS_KEYS)
    known = cfg.PROCESSOR.NAME in METHODS
    written_back = not known and "MODEL.VIT_SMALL" in evidence  # by dump, which writes every key
    if cfg.MODEL.VIT_SMALL == "auto" and (ssl or evidence & SSL_KEYS or cfg.MODEL.PART_TOKENS) and not written_back:
        cfg.MODEL.VIT_SMALL = "deit"
    elif cfg.MODEL.VIT_SMALL == "auto" and known:
        cfg.MODEL.VIT_SMALL = METHODS[cfg.PROCESSOR.NAME].vit_small
    kind = cfg.MODEL.TRANSFORMER_TYPE
    if cfg.MODEL.SWIN == "auto":
        solider = kind == SWIN_TINY or "MODEL.SEMANTIC_WEIGHT" in evidence or file_names_swin
        cfg.MODEL.SWIN = "solider" if solider else "transreid_ssl"
    if solver.SCHEDULER == "auto":
        multistep = not ssl and (clip or solver.WARMUP_METHOD == "constant")
        solver.SCHEDULER = "multistep" if multistep else "cosine"
    if solver.SCHEDULER_START == "auto":
        first = {"cosine": 0 if ssl else 1, "multistep": 1 if clip else 0, "step": 0, "cosine_per_step": 0}
        solver.SCHEDULER_START = first.get(solver.SCHEDULER, 1)


def with_traits(cfg: CfgNode) -> CfgNode:
    """Returns the configuration with what is left ``auto`` until EXTRA_MODULES have registered the method."""
    if cfg.MODEL.VIT_SMALL != "auto":
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.VIT_SMALL = vit_small_of(cfg)
    cfg.freeze()
    return cfg


def notes(cfg: CfgNode, set_keys: Iterable[str]) -> list[str]:
    """Returns a line for each setting that does nothing, or that is honoured although upstream ignores it."""
    lines = []
    method = cfg.PROCESSOR.NAME
    for name in set_keys:
        if name in INERT:
            lines.append(f"{name} is set and does nothing here: {INERT[name]}")
        elif method in METHODS and lookup(cfg, name) != KEYS[name].default:
            owners = owners_of(name)
            if owners and method not in owners:
                names = " and ".join(repr(owner) for owner in owners)
                lines.append(f"{name} is set and does nothing here: it belongs to PROCESSOR.NAME {names}")
    if cfg.TEST.FEAT_NORM.lower() in ("no", "off", "false"):
        lines.append(f"TEST.FEAT_NORM {cfg.TEST.FEAT_NORM!r}: features are not normalised; upstream would have done it")
    swin = cfg.MODEL.NAME == "transformer" and cfg.MODEL.TRANSFORMER_TYPE.startswith("swin_")
    if swin and cfg.MODEL.SWIN == "solider" and "MODEL.SEMANTIC_WEIGHT" not in set_keys:
        lines.append(
            f"MODEL.SEMANTIC_WEIGHT is not set and is {cfg.MODEL.SEMANTIC_WEIGHT}, upstream's default; SOLIDER's "
            "published models are trained and tested with 0.2"
        )
    if cfg.TEST.RE_RANKING and cfg.MODEL.SWIN != "solider":
        lines.append("TEST.RE_RANKING True: distances are re-ranked; upstream would not have done it")
    if cfg.SOLVER.TRP_L2 and cfg.MODEL.JPM:
        lines.append("SOLVER.TRP_L2 has no effect with MODEL.JPM, as upstream")
    return lines


def _plain(value: Any) -> Any:
    """Returns tuples as lists, which YAML can write."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
