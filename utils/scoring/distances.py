"""Distances between two lists of features, computed in blocks of rows.

No (Q, G) matrix exists. A row has the same bits in whatever block it is computed: the product is always divided into
the same tiles, and those at the ends are padded to the shape of the others, so that equal features get equal products
(BLAS adds in another order for other shapes). Ties are therefore ties in every block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.scoring.blocks import even_cut, in_threads, strip_height
from utils.scoring.products import product

CHUNK = 640  # columns of one matrix product on a CPU: the tile stays in cache until it is finished
GPU_CHUNK = 4096  # the same on an accelerator


def as_features(feats: object, name: str) -> Tensor:
    """Returns a tensor, an array or nested lists of shape (n, D) as a detached float32 tensor on its device.

    Raises ``UserError`` for an empty list, a wrong number of axes, or rows with NaN or infinity, which would be sorted
    silently. name: whose features they are, in the message.
    """
    feats = feats.detach() if isinstance(feats, Tensor) else torch.as_tensor(np.asarray(feats))
    if feats.ndim != 2 or feats.shape[1] == 0:
        raise UserError(f"{name} features: expected shape (images, width), got {tuple(feats.shape)}")
    if len(feats) == 0:
        raise UserError(f"{name} features: no images, the list is empty")
    feats = feats.float()
    suspects = (~torch.isfinite(feats.sum(1))).nonzero().squeeze(1)  # the sum of a finite row may overflow
    bad = suspects[~torch.isfinite(feats[suspects]).all(1)].tolist()
    if bad:
        first = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise UserError(f"{name} features: {len(bad)} of {len(feats)} rows hold NaN or infinity (rows {first})")
    return feats


def on_one_device(a: Tensor, b: Tensor, names: tuple[str, str] = ("query", "gallery")) -> tuple[Tensor, Tensor]:
    """Returns both on one device, an accelerator if either is on one. Raises ``UserError`` if their widths differ."""
    if a.shape[1] != b.shape[1]:
        raise UserError(f"{names[0]} features are {a.shape[1]} wide, {names[1]} features {b.shape[1]}")
    device = b.device if a.device.type == "cpu" else a.device
    return a.to(device), b.to(device)


def unit_length(feats: Tensor) -> Tensor:
    """Returns the rows of ``feats`` (n, D) divided by max(length, 1e-12); a zero vector stays zero."""
    if feats.device.type != "cpu":
        length = torch.linalg.vector_norm(feats, dim=1, keepdim=True, dtype=torch.float64)
        return feats / length.clamp_(min=1e-12).to(feats.dtype)
    array = feats.numpy()
    out = np.empty(array.shape, array.dtype)

    def work(start: int, stop: int) -> None:
        out[start:stop] = unit_rows(array[start:stop])

    in_threads([(start, min(start + CHUNK, len(array))) for start in range(0, len(array), CHUNK)], work)
    return torch.from_numpy(out)


def unit_rows(feats: np.ndarray) -> np.ndarray:
    """Does the same as ``unit_length`` for a few rows in an array."""
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.sqrt(squared_norms(feats))
    odd = ~((length > 1e-15) & (length < 1e15))  # their squares are out of float32's range
    length[odd] = np.sqrt(squared_norms(feats[odd].astype(np.float64)))
    return feats / np.maximum(length, np.float32(1e-12))[:, None]


def squared_norms(feats: np.ndarray) -> np.ndarray:
    """Returns the squared lengths (n,) of feats (n, D); equal rows give the same bits."""
    return np.einsum("ij,ij->i", feats, feats)


class Distances:
    """Computes distances between the rows of ``a`` (Q, D) and of ``b`` (G, D), tensors on one device.

    metric: ``euclidean`` is the squared distance, clipped at 0; ``cosine`` is 1 - a.b and ``dot`` is -a.b, both for
    rows of unit length. max_memory: bytes that the rows in work may take. scale: changes a block in place, called with
    it and its first row (``utils.scoring.camera_norm``). The type is float32, or float64 if the squared norms are so
    much larger than the distances between neighbours that |a|^2 + |b|^2 - 2 a.b would lose them.
    """

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        metric: str = "euclidean",
        max_memory: int | None = None,
        scale: Callable[[Tensor, int], Tensor] | None = None,
    ):
        self.metric, self.shape, self.device, self.scale = metric, (len(a), len(b)), b.device, scale
        self.one_list, self.max_memory = a is b, max_memory
        self.strip = strip_height(len(a), len(b), max_memory)
        self.on_cpu = b.device.type == "cpu"
        self.norms = torch.empty(0), torch.empty(0)  # squared lengths, for the Euclidean distance
        if metric == "euclidean":
            self.norms = self._norms(a, b)
            if _loses_neighbours(a, b, *self.norms):
                a = a.double()
                b = a if self.one_list else b.double()
                self.norms = self._norms(a, b)
        self.a, self.b = a, b
        width = even_cut(len(b), CHUNK if self.on_cpu else GPU_CHUNK)
        self.chunks = [
            (c, min(c + width, len(b)), padded_tensor(b[c : c + width], width)) for c in range(0, len(b), width)
        ]

    def _norms(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        of_b = _squared_norms(b)
        of_a = of_b if self.one_list else _squared_norms(a)
        if not (torch.isfinite(of_a).all() and torch.isfinite(of_b).all()):
            raise UserError("features are too large for squared distances in float32; normalise them")
        return of_a, of_b

    def rows(self, start: int, stop: int) -> Tensor:
        """Returns the distances of rows ``start`` to ``stop`` of ``a``, (stop - start, G).

        ``start`` is a multiple of ``strip``.
        """
        assert start % self.strip == 0, "blocks begin where strips begin"
        if self.on_cpu:  # torch does not reuse the memory of tensors that several threads create and drop
            out = torch.from_numpy(np.empty((stop - start, self.shape[1]), self.a.numpy().dtype))
        else:
            out = torch.empty(stop - start, self.shape[1], dtype=self.a.dtype, device=self.device)
        for top in range(start, stop, self.strip):
            bottom = min(top + self.strip, self.shape[0])
            rows = out[top - start : min(bottom, stop) - start]
            (self._strip_on_cpu if self.on_cpu else self._strip)(top, bottom, rows)
        return out if self.scale is None else self.scale(out, start)

    def _strip(self, top: int, bottom: int, out: Tensor) -> None:
        tile = padded_tensor(self.a[top:bottom], self.strip)
        for left, right, chunk in self.chunks:
            block = _product(tile, chunk)[: bottom - top, : right - left]
            if self.metric == "euclidean":
                block.mul_(-2).add_(self.norms[0][top:bottom, None] + self.norms[1][left:right]).clamp_(min=0)
            else:
                block.neg_().add_(1.0 if self.metric == "cosine" else 0.0)
            out[:, left:right] = block[: len(out)]

    def _strip_on_cpu(self, top: int, bottom: int, out: Tensor) -> None:
        euclidean = self.metric == "euclidean"
        tile = (-2 if euclidean else -1) * padded_tensor(self.a[top:bottom], self.strip).numpy()
        rows, height = out.numpy(), len(out)
        products = np.empty((len(tile), len(self.chunks[0][2])), tile.dtype)
        of_a, of_b = (norms.numpy() for norms in self.norms)
        sums = np.empty_like(products[:height] if euclidean else products[:0])
        for left, right, chunk in self.chunks:
            block = product(tile, chunk.numpy(), out=products)[:height, : right - left]
            target = rows[:, left:right]
            if euclidean:
                both = np.add(of_a[top : top + height, None], of_b[left:right], out=sums[:, : right - left])
                np.maximum(np.add(block, both, out=target), 0, out=target)
            else:
                np.add(block, 1 if self.metric == "cosine" else 0, out=target)


def padded_tensor(rows: Tensor, height: int) -> Tensor:
    """Returns ``rows`` (n, D) with rows of zeros up to ``height``."""
    missing = height - len(rows)
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Returns a @ b.T in full precision, whatever autocast or TF32 setting the caller trains with."""
    if a.device.type == "cpu":
        return torch.from_numpy(product(a.numpy(), b.numpy()))
    matmul = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, exact)
    try:
        with torch.autocast(a.device.type, enabled=False):
            return a @ b.T
    finally:
        setattr(matmul, name, before)


def _loses_neighbours(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor, sample: int = 16) -> bool:
    """Returns whether squared norms are over 1e5 times the distances to nearest neighbours, by a few rows of ``a``."""
    rows = torch.linspace(0, len(a) - 1, min(sample, len(a))).long().to(a.device)
    some, norm, norms_b = a[rows], of_a[rows].cpu().numpy()[:, None], of_b.cpu().numpy()
    rough = np.full_like(norm, np.inf)
    for left in range(0, len(b), GPU_CHUNK):
        products = _product(some, b[left : left + GPU_CHUNK]).cpu().numpy()
        rough = np.minimum(rough, (norms_b[left : left + GPU_CHUNK] - 2 * products).min(1, keepdims=True))
    if (rough + norm > 1e-4 * norm).all():
        return False
    exact = some.cpu().double().numpy()
    norm = squared_norms(exact)[:, None]
    nearest = np.full_like(norm, np.inf)
    for chunk in b.split(GPU_CHUNK):
        others = chunk.cpu().double().numpy()
        dist = norm + squared_norms(others) - 2 * exact @ others.T
        dist[dist <= 1e-12 * norm] = np.inf  # the image itself and its copies
        nearest = np.minimum(nearest, dist.min(1, keepdims=True))
    return bool(np.quantile(norm / nearest, 0.5, method="lower") > 1e5)


def _squared_norms(feats: Tensor) -> Tensor:
    if feats.device.type == "cpu":
        return torch.from_numpy(squared_norms(feats.numpy()))
    return torch.cat([rows.square().sum(1) for rows in feats.split(GPU_CHUNK)])
