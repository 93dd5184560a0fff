"""Shows where a network looks: attention of transformers, energy of the last map of convolutional networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn

from model.base import RetrievalModel, TokenLayout


def timm_weights(module: Attention, x: Tensor) -> Tensor:
    """Returns attention weights (B, heads, T, T), which timm's fused attention does not return. x: (B, T, D)."""
    shape = len(x), x.shape[1], 3, module.num_heads, module.head_dim
    q, k, _ = module.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = module.q_norm(q), module.k_norm(k)
    return (module.scale * q @ k.transpose(-2, -1)).softmax(-1)


def torch_weights(module: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Returns the same for torch's attention, which open_clip's towers use. x: (B, T, D)."""
    width, heads = module.embed_dim, module.num_heads
    bias = None if module.in_proj_bias is None else module.in_proj_bias[: 2 * width]
    both = F.linear(x, module.in_proj_weight[: 2 * width], bias)
    q, k = (projected.unflatten(2, (heads, -1)).transpose(1, 2) for projected in both.chunk(2, dim=2))
    return ((width // heads) ** -0.5 * q @ k.transpose(-2, -1)).softmax(-1)


@contextmanager
def hooked(modules: list[nn.Module], hook: Callable, before: bool) -> Iterator[None]:
    """Calls ``hook`` before or after each of the modules, inside the context."""
    handles = [m.register_forward_pre_hook(hook) if before else m.register_forward_hook(hook) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def attentions(model: RetrievalModel, images: Tensor, **labels: Tensor) -> list[Tensor]:
    """Returns the weights (B, heads, T, T) of every attention over all tokens of an image, first block first.

    The model is in evaluation mode. labels: what its forward takes beside the images. Empty if the attention is of
    another kind. JPM's pieces are left out: each holds only some of the tokens.
    """
    layout, weights = model.token_layout(), []
    if layout is None:
        return weights
    total = layout.prefix + layout.grid[0] * layout.grid[1]

    def keep(module: Attention | nn.MultiheadAttention, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if x.dim() == 3 and x.shape[:2] == (len(images), total):
            weights.append(timm_weights(module, x) if isinstance(module, Attention) else torch_weights(module, x))

    with hooked([m for m in model.modules() if isinstance(m, (Attention, nn.MultiheadAttention))], keep, before=True):
        model(images, **labels)
    return weights


def of_feature(weights: Tensor, layout: TokenLayout) -> Tensor:
    """Returns what the feature takes from each patch, (B, down, across), by weights (B, T, T)."""
    rows = weights[:, 0] if layout.by_class else weights[:, layout.prefix :].mean(1)
    return rows[:, layout.prefix :].unflatten(1, layout.grid)


def last_attention(weights: list[Tensor], layout: TokenLayout) -> Tensor:
    """Returns the last block's attention, mean over heads, as heat (B, down, across)."""
    return of_feature(weights[-1].mean(1), layout)


def roll_out(weights: list[Tensor], layout: TokenLayout) -> Tensor:
    """Returns attention roll-out (Abnar and Zuidema, ACL 2020, section 3) as heat (B, down, across).

    The mean over heads, half of it and half the residual path, multiplied through all blocks.
    """
    identity = torch.eye(weights[0].shape[-1], device=weights[0].device)
    joint = identity.expand(len(weights[0]), -1, -1)
    for of_block in weights:
        joint = (0.5 * of_block.mean(1) + 0.5 * identity) @ joint
    return of_feature(joint, layout)


@torch.no_grad()
def last_map(model: RetrievalModel, images: Tensor, **labels: Tensor) -> Tensor | None:
    """Returns the last map (B, C, h, w) that any module of a convolutional network gives; model in evaluation mode.

    None if tokens follow it, as they follow a transformer's patch embedding.
    """
    maps: Tensor | None = None

    def keep(module: nn.Module, inputs: tuple, output: object) -> None:
        nonlocal maps
        if isinstance(output, Tensor) and output.dim() == 4 and output[0, 0].numel() > 1:
            maps = output
        elif isinstance(output, Tensor) and output.dim() == 3:
            maps = None

    with hooked(list(model.modules()), keep, before=False):
        model(images, **labels)
    if maps is None or not model.maps_channels_last():
        return maps
    return maps.permute(0, 3, 1, 2)


def channel_energy(maps: Tensor) -> Tensor:
    """Returns the mean of the squares over channels (Zagoruyko and Komodakis, ICLR 2017). (B, C, h, w) -> (B, h, w)."""
    return maps.float().square().mean(1)
