"""What the commands of this folder share: a configuration from the command line, and what it asks of each dataset."""

from __future__ import annotations

import argparse

from datasets.options import dataset_options, names_of, refuse_unknown_options


def configured(parser: argparse.ArgumentParser, argv: list[str] | None) -> tuple[argparse.Namespace, object, dict]:
    """(arguments, configuration, dataset name -> options of ``make_dataset``) of a parser made with ``settings``."""
    from configs import load_config

    args = parser.parse_args(argv)
    cfg = load_config(args.config_file, args.opts)
    names, targets = names_of(cfg.DATASETS.NAMES), names_of(cfg.DATASETS.TARGETS or ())
    refuse_unknown_options(cfg, names, targets)
    return args, cfg, {name: dataset_options(cfg, name) for name in dict.fromkeys([*names, *targets])}
