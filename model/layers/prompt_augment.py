"""Augmentation of prompts for language self-supervision (SVLL-ReID): two random copies of the same prompts.

Each augmentation is a function of prompts (U, L, W) and of draws, for all prompts together; ``draw`` makes the draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

AUGMENTATIONS = ("mask", "swap", "mix")


def mask(prompts: Tensor, dropped: Tensor) -> Tensor:
    """Returns the prompts with single numbers set to 0, the rest not rescaled. dropped: (U, L, W), True for these."""
    return prompts.masked_fill(dropped, 0)


def swap(prompts: Tensor, chosen: Tensor, order: Tensor) -> Tensor:
    """Returns the prompts with whole token vectors permuted: position ``chosen[j]`` gets that of ``chosen[order[j]]``.

    chosen: (U, k) distinct positions per prompt. order: (U, k) permutations of 0..k-1.
    """
    width = prompts.shape[2]
    source = chosen.gather(1, order)[:, :, None].expand(-1, -1, width)
    return prompts.scatter(1, chosen[:, :, None].expand(-1, -1, width), prompts.gather(1, source))


def mix(prompts: Tensor, partner: Tensor, scale: float) -> Tensor:
    """Returns ``1 - scale`` times each prompt plus ``scale`` times another, unmixed one. partner: (U,) rows."""
    return (1 - scale) * prompts + scale * prompts[partner]


def draw(
    method: str, shape: tuple[int, int, int], scale: float, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """Returns one random augmentation of prompts of the given shape (U, L, W), a function of them.

    method: of ``AUGMENTATIONS``. scale: for mask the share of numbers set to 0, for swap the share of positions
    permuted, for mix the other prompt's share. generator: on the device of the prompts.
    """
    count, length, _ = shape
    random = partial(torch.rand, generator=generator, device=generator.device)
    if method == "mask":
        return partial(mask, dropped=random(shape) < scale)
    if method == "swap":
        chosen = random(count, length).argsort(1)[:, : int(scale * length)]
        return partial(swap, chosen=chosen, order=random(chosen.shape).argsort(1))
    rows = torch.arange(count, device=generator.device)
    if count == 1:
        return partial(mix, partner=rows, scale=scale)
    other = torch.randint(count - 1, (count,), generator=generator, device=generator.device)
    return partial(mix, partner=other + (other >= rows), scale=scale)
