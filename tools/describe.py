"""Prints a model's parameters and multiply-adds: ``python -m tools.describe --config_file FILE [KEY VALUE ...]``."""

from __future__ import annotations

from collections.abc import Sequence

from configs import load_config
from model import make_model
from model.summary import summary
from utils.commands import make_parser, run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    example = "--config_file configs/transreid/market1501.yml MODEL.JPM False"
    parser = make_parser("python -m tools.describe", __doc__, example, settings=True)
    parser.add_argument("--num_class", type=int, default=751, help="training identities (default: Market-1501's)")
    parser.add_argument("--camera_num", type=int, default=6, help="cameras (default: Market-1501's)")
    parser.add_argument("--view_num", type=int, default=1, help="views")
    args = parser.parse_args(argv)
    cfg = load_config(args.config_file, args.opts)
    model = make_model(cfg, args.num_class, args.camera_num, args.view_num)
    for name, child in model.named_children():
        print(f"{name:14s} {sum(p.numel() for p in child.parameters()) / 1e6:10.3f} M")
    print(summary(model, (cfg.INPUT.SIZE_TEST[0], cfg.INPUT.SIZE_TEST[1])))


if __name__ == "__main__":
    run_command(main)
