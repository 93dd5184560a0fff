"""Random features and labels, and the comparison of a loss with its slow version."""

from __future__ import annotations

import torch

LABELS = {
    "pairs": torch.arange(4).repeat_interleave(2),
    "unequal": torch.tensor([0, 2, 0, 1, 2, 0, 0, 3]),
    "mixed order": torch.tensor([3, 0, 1, 3, 0, 1, 1, 3]),
}


def draw(count: int = 8, width: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, dtype=torch.double, generator=generator).requires_grad_()


def same_value_and_gradient(ours, theirs, *inputs) -> None:
    torch.testing.assert_close(ours, theirs)
    for one, two in zip(*(torch.autograd.grad(x, inputs) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, two)
