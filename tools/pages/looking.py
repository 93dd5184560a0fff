"""Where a network looks: attention of transformers, strength of the last map of convolutional networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from model.base import RetrievalModel, TokenLayout


def timm_weights(module: Attention, x: Tensor) -> Tensor:
    """Attention weights (B, heads, T, T) that timm's fused attention does not hand out. x: (B, T, D)."""
    shape = len(x), x.shape[1], 3, module.num_heads, module.head_dim
    q, k, _ = module.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = module.q_norm(q), module.k_norm(k)
    return (module.scale * q @ k.transpose(-2, -1)).softmax(-1)


def torch_weights(module: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """The same of torch's attention, as open_clip's towers have it. x: (B, T, D)."""
    width, heads = module.embed_dim, module.num_heads
    bias = None if module.in_proj_bias is None else module.in_proj_bias[: 2 * width]
    both = F.linear(x, module.in_proj_weight[: 2 * width], bias)
    q, k = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in both.chunk(2, dim=2))
    return ((width // heads) ** -0.5 * q @ k.transpose(-2, -1)).softmax(-1)


@contextmanager
def hooked(modules: list[nn.Module], hook: Callable, before: bool) -> Iterator[None]:
    """Inside, ``hook`` is called before or after each of the modules."""
    handles = [m.register_forward_pre_hook(hook) if before else m.register_forward_hook(hook) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def attentions(model: RetrievalModel, images: Tensor, **labels: Tensor) -> list[Tensor]:
    """Weights (B, heads, T, T) of every attention over all tokens of an image, first block first; model in evaluation.

    Empty where the attention is of another kind. labels: what the model's forward takes besides. JPM's pieces are left
    out: they hold a part of the tokens each.
    """
    layout, found = model.token_layout(), []
    if layout is None:
        return found
    total = layout.prefix + layout.grid[0] * layout.grid[1]

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if x.dim() == 3 and x.shape[:2] == (len(images), total):
            found.append((timm_weights if isinstance(module, Attention) else torch_weights)(module, x))

    with hooked([m for m in model.modules() if isinstance(m, (Attention, nn.MultiheadAttention))], keep, before=True):
        model(images, **labels)
    return found


def of_feature(weights: Tensor, layout: TokenLayout) -> Tensor:
    """From weights (B, T, T) to what the feature takes from each patch, (B, down, across)."""
    rows = weights[:, 0] if layout.by_class else weights[:, layout.prefix :].mean(1)
    return rows[:, layout.prefix :].unflatten(1, layout.grid)


def last_attention(found: list[Tensor], layout: TokenLayout) -> Tensor:
    """The last block's attention, mean over heads, as heat (B, down, across)."""
    return of_feature(found[-1].mean(1), layout)


def roll_out(found: list[Tensor], layout: TokenLayout) -> Tensor:
    """Attention roll-out (Abnar and Zuidema, ACL 2020, section 3) as heat (B, down, across).

    The mean over heads, half of it and half the residual path, multiplied through all blocks.
    """
    joint = torch.eye(found[0].shape[-1], device=found[0].device).expand(len(found[0]), -1, -1)
    for weights in found:
        joint = (0.5 * weights.mean(1) + 0.5 * torch.eye(weights.shape[-1], device=weights.device)) @ joint
    return of_feature(joint, layout)


@torch.no_grad()
def last_map(model: RetrievalModel, images: Tensor, **labels: Tensor) -> Tensor | None:
    """The last map (B, C, h, w) that any part of a convolutional network gives; model in evaluation.

    None where tokens come after it, as behind a transformer's patch embedding.
    """
    found: list[Tensor | None] = [None]

    def keep(module: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output[0, 0].numel() > 1:
            found[0] = output
        elif isinstance(output, Tensor) and output.dim() == 3:
            found[0] = None

    with hooked(list(model.modules()), keep, before=False):
        model(images, **labels)
    if found[0] is None or not model.maps_channels_last():
        return found[0]
    return found[0].permute(0, 3, 1, 2)


def strength(maps: Tensor) -> Tensor:
    """Mean of the squares over channels (Zagoruyko and Komodakis, ICLR 2017). (B, C, h, w) -> (B, h, w)."""
    return maps.float().square().mean(1)
