"""Parameters and multiply-adds of a model."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


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
