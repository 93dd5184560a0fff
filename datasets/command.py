"""What the commands of this folder share: a configuration from the command line, and what it asks of each dataset."""

from __future__ import annotations

import argparse

from datasets.loaders import dataset_options, names_of, refuse_unknown_options


def configured(parser: argparse.ArgumentParser, argv: list[str] | None) -> tuple[argparse.Namespace, object, dict]:
    """(arguments, configuration, dataset name -> options of ``make_dataset``) after adding what all commands take."""
    from configs import load_config

    parser.add_argument("--config_file", "--config-file", default="", metavar="FILE", help="YAML file under configs/")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings that override the file's")
    args = parser.parse_args(argv)
    cfg = load_config(args.config_file, args.opts)
    names, targets = names_of(cfg.DATASETS.NAMES), names_of(cfg.DATASETS.TARGETS or ())
    refuse_unknown_options(cfg, names, targets)
    return args, cfg, {name: dataset_options(cfg, name) for name in dict.fromkeys([*names, *targets])}
