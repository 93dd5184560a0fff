"""Parameters and multiply-adds of a model."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from utils.checkpoint import rules_of
from utils.errors import UserError, reason_of


def count(model: nn.Module, image_size: tuple[int, int]) -> tuple[int, int, int]:
    """Returns numbers of parameters, of trained ones, and of multiply-adds of one image's retrieval feature.

    image_size: (H, W).
    """
    parameters = list(model.parameters())
    # Attention as matrix products: older versions of torch do not count the fused kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        try_size(model, image_size)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(p.numel() for p in parameters), trained, counter.get_total_flops() // 2


@torch.no_grad()
def try_size(model: nn.Module, image_size: tuple[int, int]) -> None:
    """Computes the retrieval feature of one image of a size, (H, W)."""
    training = model.training
    model.eval()
    model(torch.zeros(1, 3, *image_size, device=next(model.parameters()).device))
    model.train(training)


def require_size(model: nn.Module, key: str, size: tuple[int, int], built_for: tuple[int, int] | None = None) -> None:
    """Raises ``UserError`` if the network cannot take images of a size. key: its name in the message.

    built_for: the size that the network was built for, if it may be another. The sizes in use, multiples of 16 and not
    small, are taken by every network that was built for them, and not tried.
    """
    if built_for in (None, size) and min(size) >= 64 and not any(side % 16 for side in size):
        return
    try:
        try_size(model, size)
    except UserError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"{key}: the network cannot take images of {size[0]} x {size[1]}, which may be too small, leave part of a "
            f"patch over or not be INPUT.SIZE_TRAIN ({reason_of(error)})"
        ) from None


def classifier_products(model: nn.Module) -> int:
    """Returns the multiply-adds of the classifiers, which retrieval does without: one for each of their weights."""
    names = rules_of(model).optional_keys
    return sum(p.numel() for name, p in model.named_parameters() if name.startswith(names) and p.dim() == 2)


def summary(model: nn.Module, image_size: tuple[int, int]) -> str:
    """Returns one line: parameters in millions, multiply-adds in billions without and with the classifiers."""
    total, trained, multiply_adds = count(model, image_size)
    height, width = image_size
    return (
        f"{total / 1e6:.3f} M parameters ({trained / 1e6:.3f} M trained), "
        f"{multiply_adds / 1e9:.3f} G multiply-adds per image of {height} x {width} "
        f"({(multiply_adds + classifier_products(model)) / 1e9:.3f} G with the classifiers)"
    )
