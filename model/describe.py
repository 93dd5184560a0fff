"""Parameters and multiply-adds of a model: ``python -m model.describe --config_file configs/METHOD/DATASET.yml``."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from utils.commands import make_parser


def count(model: nn.Module, image_size: tuple[int, int]) -> tuple[int, int, int]:
    """(all parameters, trained ones, multiply-adds of one image's retrieval feature). image_size: (H, W)."""
    parameters = list(model.parameters())
    training = model.training
    model.eval()
    device = parameters[0].device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *image_size, device=device))
    model.train(training)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(p.numel() for p in parameters), trained, counter.get_total_flops() // 2


def classifier_products(model: nn.Module) -> int:
    """Multiply-adds of the classifiers, which the retrieval feature does without: one for each of their weights."""
    names = tuple(getattr(model, "optional_keys", ()))
    return sum(p.numel() for name, p in model.named_parameters() if names and name.startswith(names) and p.dim() == 2)


def summary(model: nn.Module, image_size: tuple[int, int]) -> str:
    """One line: parameters in millions, multiply-adds in billions, those of training besides."""
    total, trained, multiply_adds = count(model, image_size)
    height, width = image_size
    return (
        f"{total / 1e6:.3f} M parameters ({trained / 1e6:.3f} M trained), "
        f"{multiply_adds / 1e9:.3f} G multiply-adds per image of {height} x {width} "
        f"({(multiply_adds + classifier_products(model)) / 1e9:.3f} G with the classifiers)"
    )


def main(argv: list[str] | None = None) -> None:
    """The command."""
    from configs import load_config
    from model import make_model

    example = "--config_file configs/transreid/market1501.yml MODEL.JPM False"
    parser = make_parser("python -m model.describe", __doc__, example, settings=True)
    parser.add_argument("--num_class", type=int, default=751, help="training identities (default: Market-1501's)")
    parser.add_argument("--camera_num", type=int, default=6)
    parser.add_argument("--view_num", type=int, default=1)
    args = parser.parse_args(argv)
    cfg = load_config(args.config_file, args.opts)
    model = make_model(cfg, args.num_class, args.camera_num, args.view_num)
    for name, child in model.named_children():
        print(f"{name:14s} {sum(p.numel() for p in child.parameters()) / 1e6:10.3f} M")
    print(summary(model, tuple(cfg.INPUT.SIZE_TEST)))


if __name__ == "__main__":
    from processor.command import guarded

    guarded(main)
