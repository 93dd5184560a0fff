"""Windowed cosine attention in which every token keeps its few best partners (MSViT, ``docs/msvit.md``).

Windows are dilated grids: each spans the whole map and takes every r-th row and column of it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError

CACHED_LOGITS = 2**18
"""Logits that are worked on at once on a CPU: a megabyte, which stays in the cache of a core."""

LARGEST_SCALE = 4.6052
"""log 100 as the published code rounds it. Scales are learned as logarithms; beyond it one gets no gradient."""


def kept_count(tokens: int, ratio: float) -> int:
    """Partners that a token keeps out of ``tokens``: ``tokens * ratio``, cut to an integer.

    ratio: in (0, 1]; 1 keeps all. Raises ``UserError`` when nothing would be kept.
    """
    count = int(tokens * ratio)
    if not 0 < ratio <= 1 or count < 1:
        raise UserError(
            f"MODEL.MSVIT.SPARSE_RATIO: {ratio} of {tokens} tokens in a window of MODEL.MSVIT.SPLIT_SIZE keeps "
            f"{count}; it must be above {1 / tokens:.3g} and at most 1"
        )
    return count


def to_windows(x: Tensor, heads: int, split: tuple[int, int]) -> Tensor:
    """Map to windows, channels before tokens. (B, C, H, W) -> (B * windows * heads, C / heads, tokens).

    split: (rows, columns) of tokens in a window. Window (i, j) holds the tokens of rows i + a * H / rows and columns
    j + b * W / columns, in the order of (a, b).
    """
    batch, channels, height, width = x.shape
    rows, columns = split
    if height % rows or width % columns:
        raise UserError(
            f"MODEL.MSVIT.SPLIT_SIZE: a map of {height} x {width} cannot be dealt out to windows of {rows} x {columns} "
            "tokens; INPUT.SIZE_TRAIN and INPUT.SIZE_TEST must be multiples of 16 times SPLIT_SIZE"
        )
    x = x.reshape(batch, heads, channels // heads, rows, height // rows, columns, width // columns)
    return x.permute(0, 4, 6, 1, 2, 3, 5).reshape(-1, channels // heads, rows * columns)


def from_windows(x: Tensor, shape: torch.Size, heads: int, split: tuple[int, int]) -> Tensor:
    """The inverse of ``to_windows`` for tokens before channels. (B * windows * heads, tokens, d) -> ``shape``."""
    batch, channels, height, width = shape
    rows, columns = split
    x = x.reshape(batch, height // rows, width // columns, heads, rows, columns, channels // heads)
    return x.permute(0, 3, 6, 4, 1, 5, 2).reshape(shape)


def tracing() -> bool:
    """Whether a compiler or an exporter is looking, so that only torch's own operators will do."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def kth_largest(logits: Tensor, k: int) -> Tensor:
    """The k-th largest value of each row, without gradient. (..., N) -> (..., 1).

    On a CPU by NumPy's vectorised sort, beside which ``torch.topk`` takes several times as long.
    """
    logits = logits.detach()
    if logits.device.type == "cpu" and not tracing():
        at = logits.shape[-1] - k
        return torch.from_numpy(np.sort(logits.numpy(), axis=-1)[..., at : at + 1])
    return logits.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)


def softmax_from(logits: Tensor, least: Tensor | None) -> Tensor:
    """Softmax over the entries of each row that are at least ``least``, 0 elsewhere; overwrites ``logits``.

    (..., N), (..., 1) -> (..., N). least: None for all entries.
    """
    if least is not None:  # the difference is negative exactly where an entry is smaller
        logits = F.threshold(logits.sub_(least), -torch.finfo(logits.dtype).tiny, float("-inf"), inplace=True)
    return logits.softmax(-1)


def block_of(tokens: int, device: torch.device) -> int:
    """Windows to work on at once: on a CPU as many as have their logits in the cache, else all."""
    return max(1, CACHED_LOGITS // tokens**2) if device.type == "cpu" else 2**31


class _Attention(torch.autograd.Function):
    """Softmax attention over the ``kept`` largest logits of each query, a block of windows at a time.

    Logits exist for one block only; the backward pass makes them again from the thresholds, which are all that is kept
    of them. q, k, v: (G, d, N), q times k being the logits. Products in the type of q, softmax in float32 or wider.
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
            part = slice(start, start + ctx.block)
            logits = torch.bmm(q[part].transpose(1, 2), k[part]).to(wide)
            if least is not None:
                least[part] = kth_largest(logits, kept)
            weights = softmax_from(logits, None if least is None else least[part])
            out[part] = torch.bmm(weights.to(v.dtype), v[part].transpose(1, 2))
        ctx.save_for_backward(q, k, v, least)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, least = ctx.saved_tensors
        grads = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        wide = torch.promote_types(q.dtype, torch.float32)
        for start in range(0, len(q), ctx.block):
            part = slice(start, start + ctx.block)
            logits = torch.bmm(q[part].transpose(1, 2), k[part]).to(wide)
            weights = softmax_from(logits, None if least is None else least[part])
            to_weights = torch.bmm(grad[part], v[part]).to(wide)
            to_logits = torch._softmax_backward_data(to_weights, weights, -1, wide).to(q.dtype)
            grads[0][part] = torch.bmm(k[part], to_logits.transpose(1, 2))
            grads[1][part] = torch.bmm(q[part], to_logits)
            grads[2][part] = torch.bmm(grad[part].transpose(1, 2), weights.to(v.dtype))
        return *grads, None


def attend(q: Tensor, k: Tensor, v: Tensor, kept: int) -> Tensor:
    """Softmax attention in which each query keeps its ``kept`` largest logits q k. (G, d, N) each -> (G, N, d).

    The gradient is that of a softmax over the kept entries; the choice itself has none. Entries that tie with the
    smallest one kept are kept as well, whatever their order.
    """
    if not tracing():
        return _Attention.apply(q, k, v, kept)
    logits = (q.transpose(1, 2) @ k).to(torch.promote_types(q.dtype, torch.float32))
    if kept < logits.shape[-1]:
        logits = logits.masked_fill(logits < kth_largest(logits, kept), float("-inf"))
    return logits.softmax(-1).to(v.dtype) @ v.transpose(1, 2)


def unit_length(x: Tensor) -> Tensor:
    """x over max(its length along dimension 2, 1e-12), quicker than ``F.normalize`` across channels."""
    return x * x.square().sum(2, keepdim=True).clamp(min=1e-24).rsqrt()


def sparse_window_attention(
    q: Tensor, k: Tensor, v: Tensor, logit_scale: Tensor, split_size: tuple[int, int], sparse_ratio: float = 1.0
) -> Tensor:
    """Cosine attention inside dilated windows; each query keeps the ``sparse_ratio`` nearest keys of its window.

    q, k, v: (B, C, H, W) maps; head i owns the i-th of len(logit_scale) equal groups of channels. logit_scale:
    (heads, 1, 1), the logarithm of each head's factor, cut at ``LARGEST_SCALE``. split_size: rows and columns of tokens
    in a window. Returns (B, C, H, W). Under autocast both matrix products run in its precision, norms, scale and
    softmax in float32. Raises ``UserError`` where the map cannot be split or nothing would be kept.
    """
    heads, device = len(logit_scale), v.device.type
    kept = kept_count(split_size[0] * split_size[1], sparse_ratio)
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else v.dtype
    with torch.autocast(device, enabled=False):
        maps = (*unit_maps(q, k, logit_scale), v)
        out = attend(*(to_windows(x.to(dtype), heads, split_size) for x in maps), kept)
    return from_windows(out, v.shape, heads, split_size)


def unit_maps(q: Tensor, k: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys whose products are the logits: of unit length, the queries times their head's factor."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = (unit_length(x.to(wide).unflatten(1, (len(logit_scale), -1))) for x in (q, k))
    q = q * logit_scale.to(wide).clamp(max=LARGEST_SCALE).exp().unsqueeze(-1)  # fewer numbers than the logits
    return q.flatten(1, 2), k.flatten(1, 2)


def attention_weights(
    q: Tensor, k: Tensor, logit_scale: Tensor, split_size: tuple[int, int], sparse_ratio: float = 1.0
) -> Tensor:
    """What ``sparse_window_attention`` weighs the values with, to look at: (B, windows, heads, N, N), rows sum to 1.

    Windows in the order of ``to_windows``: (i, j) row by row.
    """
    batch, heads, tokens = len(q), len(logit_scale), split_size[0] * split_size[1]
    q, k = (to_windows(x, heads, split_size) for x in unit_maps(q, k, logit_scale))
    logits = q.transpose(1, 2) @ k
    weights = softmax_from(logits, kth_largest(logits, kept_count(tokens, sparse_ratio)))
    return weights.view(batch, -1, heads, tokens, tokens)
