"""``python -m configs [--config_file FILE] [PATTERN]``: every key with its default, its meaning and its readers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from fnmatch import fnmatch

from configs.defaults import INERT, KEYS, get_cfg_defaults
from configs.loader import load_config, lookup
from configs.readers import find_readers
from configs.values import ConfigError
from utils.errors import UserError


def describe(pattern: str = "", config_file: str = "") -> Iterator[str]:
    """Yields the lines to print, three for each key that fits ``pattern`` (a part of the name, or with * and ?)."""
    cfg = load_config(config_file) if config_file else get_cfg_defaults()
    wildcard = pattern.upper() if any(c in pattern for c in "*?") else f"*{pattern.upper()}*"
    names = [name for name in KEYS if fnmatch(name, wildcard)]
    if not names:
        raise ConfigError(f"{pattern}: no key matches; without a pattern all keys are listed")
    readers = find_readers()
    for name in names:
        key, value = KEYS[name], lookup(cfg, name)
        changed = f"   (here {value!r})" if value != key.default else ""
        yield f"{name} = {key.default!r}{changed}"
        yield f"    {key.meaning}"
        if name in INERT:
            yield f"    read by nothing: {INERT[name]}"
        elif name in readers:
            yield f"    read by {', '.join(readers[name])}"
        else:
            yield "    read by nothing"


def main() -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m configs", description=(__doc__ or "").replace("``", ""))
    parser.add_argument("pattern", nargs="?", default="", help="part of a key's name, such as stride or 'TEST.*'")
    parser.add_argument("--config_file", default="", help="show what this YAML makes of the keys, too")
    args = parser.parse_args()
    try:
        print("\n".join(describe(args.pattern, args.config_file)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:        # python -m configs | head
        sys.stderr.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
