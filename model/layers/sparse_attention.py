"""Windowed cosine attention in which every token attends to its few nearest tokens (MSViT, ``docs/msvit.md``).

Windows are dilated grids: each spans the whole map and has every r-th row and column of it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError

CACHED_LOGITS = 2**18
"""Logits in a block on a CPU: a megabyte, which fits into the cache of a core."""

LARGEST_SCALE = 4.6052
"""log 100 as the published code rounds it. Scales are learned as logarithms; above it they have no gradient."""


def kept_count(tokens: int, ratio: float) -> int:
    """Returns the number of tokens that a token attends to: ``tokens * ratio``, cut to an integer.

    tokens: in a window. ratio: in (0, 1]; 1 keeps all. Raises ``UserError`` if none would be kept.
    """
    count = int(tokens * ratio)
    if not 0 < ratio <= 1 or count < 1:
        raise UserError(
            f"MODEL.MSVIT.SPARSE_RATIO: {ratio} of {tokens} tokens in a window of MODEL.MSVIT.SPLIT_SIZE keeps "
            f"{count}; it must be above {1 / tokens:.3g} and at most 1"
        )
    return count


def to_windows(x: Tensor, heads: int, split: tuple[int, int]) -> Tensor:
    """Returns the windows of a map, channels before tokens. (B, C, H, W) -> (B * windows * heads, C / heads, tokens).

    split: (rows, columns) of tokens in a window. Window (i, j) has the tokens of rows i + a * H / rows and columns
    j + b * W / columns, in the order of (a, b).
    """
    batch, channels, height, width = x.shape
    rows, columns = split
    if height % rows or width % columns:
        raise UserError(
            f"MODEL.MSVIT.SPLIT_SIZE: a map of {height} x {width} cannot be split into windows of {rows} x {columns} "
            "tokens; INPUT.SIZE_TRAIN and INPUT.SIZE_TEST must be multiples of 16 times SPLIT_SIZE"
        )
    x = x.reshape(batch, heads, channels // heads, rows, height // rows, columns, width // columns)
    return x.permute(0, 4, 6, 1, 2, 3, 5).reshape(-1, channels // heads, rows * columns)


def from_windows(x: Tensor, shape: torch.Size, heads: int, split: tuple[int, int]) -> Tensor:
    """Returns the map of windows with tokens before channels. (B * windows * heads, tokens, d) -> ``shape``."""
    batch, channels, height, width = shape
    rows, columns = split
    x = x.reshape(batch, height // rows, width // columns, heads, rows, columns, channels // heads)
    return x.permute(0, 3, 6, 4, 1, 5, 2).reshape(shape)


def tracing() -> bool:
    """Returns whether a compiler or an exporter is running, which understand only torch's own operators."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] - public


def kth_largest(logits: Tensor, k: int) -> Tensor:
    """Returns the k-th largest value of each row, without gradient. (..., N) -> (..., 1).

    On a CPU by NumPy's vectorised sort, which is several times as fast as ``torch.topk``.
    """
    logits = logits.detach()
    if logits.device.type == "cpu" and not tracing():
        at = logits.shape[-1] - k
        return torch.from_numpy(np.sort(logits.numpy(), axis=-1)[..., at : at + 1])
    return logits.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)


def softmax_from(logits: Tensor, least: Tensor | None) -> Tensor:
    """Returns the softmax over the entries of each row that are at least ``least``, 0 elsewhere; overwrites ``logits``.

    (..., N), (..., 1) -> (..., N). least: None for all entries.
    """
    if least is not None:  # the difference is negative exactly where an entry is smaller
        logits = F.threshold(logits.sub_(least), -torch.finfo(logits.dtype).tiny, float("-inf"), inplace=True)
    return logits.softmax(-1)


def block_of(tokens: int, device: torch.device) -> int:
    """Returns the number of windows in a block: on a CPU as many as fit into the cache with their logits, else all."""
    return max(1, CACHED_LOGITS // tokens**2) if device.type == "cpu" else 2**31


class _Attention(torch.autograd.Function):
    """Softmax attention over the ``kept`` largest logits of each query, block by block of windows.

    Logits exist for one block only; the backward pass computes them again and keeps only the thresholds between the
    passes. q, k, v: (G, d, N), q times k being the logits. Products in the type of q, softmax in float32 or wider.
    Returns (G, N, d).
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, kept: int) -> Tensor:
        count, width, tokens = q.shape
        out = v.new_empty(count, tokens, width)
        wide = torch.promote_types(q.dtype, torch.float32)
        least = None if kept >= tokens else torch.empty(count, tokens, 1, dtype=wide, device=q.device)
        ctx.block = block_of(tokens, q.device)
        for start in range(0, count, ctx.block):
            block = slice(start, start + ctx.block)
            logits = torch.bmm(q[block].transpose(1, 2), k[block]).to(wide)
            if least is not None:
                least[block] = kth_largest(logits, kept)
            weights = softmax_from(logits, None if least is None else least[block])
            out[block] = torch.bmm(weights.to(v.dtype), v[block].transpose(1, 2))
        ctx.save_for_backward(q, k, v, least)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, least = ctx.saved_tensors
        grads = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        wide = torch.promote_types(q.dtype, torch.float32)
        for start in range(0, len(q), ctx.block):
            block = slice(start, start + ctx.block)
            logits = torch.bmm(q[block].transpose(1, 2), k[block]).to(wide)
            weights = softmax_from(logits, None if least is None else least[block])
            to_weights = torch.bmm(grad[block], v[block]).to(wide)
            to_logits = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, wide).to(q.dtype)
            grads[0][block] = torch.bmm(k[block], to_logits.transpose(1, 2))
            grads[1][block] = torch.bmm(q[block], to_logits)
            grads[2][block] = torch.bmm(grad[block].transpose(1, 2), weights.to(v.dtype))
        return grads[0], grads[1], grads[2], None


def attend(q: Tensor, k: Tensor, v: Tensor, kept: int) -> Tensor:
    """Returns softmax attention in which each query keeps its ``kept`` largest logits. (G, d, N) each -> (G, N, d).

    The gradient is that of a softmax over the kept entries; the choice itself has none. Entries that tie with the
    smallest one kept are kept too, whatever their order.
    """
    if not tracing():
        out = _Attention.apply(q, k, v, kept)
        assert isinstance(out, Tensor)
        return out
    logits = (q.transpose(1, 2) @ k).to(torch.promote_types(q.dtype, torch.float32))
    if kept < logits.shape[-1]:
        logits = logits.masked_fill(logits < kth_largest(logits, kept), float("-inf"))
    return logits.softmax(-1).to(v.dtype) @ v.transpose(1, 2)


def normalize_channels(x: Tensor) -> Tensor:
    """Returns x over max(its length along dimension 2, 1e-12), faster than ``F.normalize`` across channels."""
    return x * x.square().sum(2, keepdim=True).clamp(min=1e-24).rsqrt()


def sparse_window_attention(
    q: Tensor, k: Tensor, v: Tensor, logit_scale: Tensor, split_size: tuple[int, int], sparse_ratio: float = 1.0
) -> Tensor:
    """Returns cosine attention inside dilated windows; a query keeps the ``sparse_ratio`` nearest keys of its window.

    q, k, v: (B, C, H, W) maps; head i has the i-th of len(logit_scale) equal groups of channels. logit_scale:
    (heads, 1, 1), the logarithm of each head's factor, cut at ``LARGEST_SCALE``. split_size: rows and columns of tokens
    in a window. Returns (B, C, H, W). Under autocast both matrix products run in its precision, norms, scale and
    softmax in float32. Raises ``UserError`` if the map cannot be split or no key would be kept.
    """
    heads, device = len(logit_scale), v.device.type
    kept = kept_count(split_size[0] * split_size[1], sparse_ratio)
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else v.dtype
    with torch.autocast(device, enabled=False):
        maps = (*unit_maps(q, k, logit_scale), v)
        queries, keys, values = (to_windows(x.to(dtype), heads, split_size) for x in maps)
        out = attend(queries, keys, values, kept)
    return from_windows(out, v.shape, heads, split_size)


def unit_maps(q: Tensor, k: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Returns queries and keys whose products are the logits: of unit length, the queries times their head's factor."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = (normalize_channels(x.to(wide).unflatten(1, (len(logit_scale), -1))) for x in (q, k))
    q = q * logit_scale.to(wide).clamp(max=LARGEST_SCALE).exp().unsqueeze(-1)  # fewer numbers than the logits
    return q.flatten(1, 2), k.flatten(1, 2)


def attention_weights(
    q: Tensor, k: Tensor, logit_scale: Tensor, split_size: tuple[int, int], sparse_ratio: float = 1.0
) -> Tensor:
    """Returns the weights of ``sparse_window_attention``, for pictures: (B, windows, heads, N, N), rows sum to 1.

    Windows in the order of ``to_windows``: (i, j) row by row.
    """
    batch, heads, tokens = len(q), len(logit_scale), split_size[0] * split_size[1]
    q, k = (to_windows(x, heads, split_size) for x in unit_maps(q, k, logit_scale))
    logits = q.transpose(1, 2) @ k
    weights = softmax_from(logits, kth_largest(logits, kept_count(tokens, sparse_ratio)))
    return weights.view(batch, -1, heads, tokens, tokens)
