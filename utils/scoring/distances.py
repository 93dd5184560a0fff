"""Distances between two lists of features, a block of rows at a time.

Nothing here ever holds a (Q, G) matrix. A row has the same bits whatever block it is asked for in: the product is
always cut into the same tiles, and those at the ends are padded to the shape of the others, so that equal features
get equal products (BLAS adds in another order for other shapes). Ties are therefore ties in every block.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.scoring.blocks import even_cut, in_threads, strip_height

CHUNK = 640  # columns of one matrix product on a processor: the tile stays in cache while it is finished
GPU_CHUNK = 4096  # the same on an accelerator


def as_features(feats: object, name: str) -> Tensor:
    """``feats``, a tensor, an array or nested lists of shape (n, D), as a detached float32 tensor on its device.

    Raises ``UserError`` for an empty list, a wrong number of axes, or rows with NaN or infinity (which would be
    sorted somewhere in silence); ``name`` says whose features they are.
    """
    feats = feats.detach() if isinstance(feats, Tensor) else torch.as_tensor(np.asarray(feats))
    if feats.ndim != 2 or feats.shape[1] == 0:
        raise UserError(f"{name} features: expected shape (images, width), got {tuple(feats.shape)}")
    if len(feats) == 0:
        raise UserError(f"{name} features: no images, the list is empty")
    feats = feats.float()
    suspects = (~torch.isfinite(feats.sum(1))).nonzero().squeeze(1)  # a finite row may overflow, so look again
    bad = suspects[~torch.isfinite(feats[suspects]).all(1)].tolist()
    if bad:
        first = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise UserError(f"{name} features: {len(bad)} of {len(feats)} rows hold NaN or infinity (rows {first})")
    return feats


def same_place(a: Tensor, b: Tensor, names: tuple[str, str] = ("query", "gallery")) -> tuple[Tensor, Tensor]:
    """Both features on one device, an accelerator if either is on one; ``UserError`` when their widths differ."""
    if a.shape[1] != b.shape[1]:
        raise UserError(f"{names[0]} features are {a.shape[1]} wide, {names[1]} features {b.shape[1]}")
    device = b.device if a.device.type == "cpu" else a.device
    return a.to(device), b.to(device)


def unit_length(feats: Tensor) -> Tensor:
    """Rows of ``feats`` (n, D) divided by max(length, 1e-12); a zero vector stays zero."""
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
    """As ``unit_length``, for a few rows in an array."""
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.sqrt(squared_norms(feats))
    odd = ~((length > 1e-15) & (length < 1e15))  # their squares are no float32
    length[odd] = np.sqrt(squared_norms(feats[odd].astype(np.float64)))
    return feats / np.maximum(length, np.float32(1e-12))[:, None]


def squared_norms(feats: np.ndarray) -> np.ndarray:
    """(n,) of feats (n, D); the same bits for equal rows."""
    return np.einsum("ij,ij->i", feats, feats)


class Distances:
    """Distances between the rows of ``a`` (Q, D) and of ``b`` (G, D), tensors on one device.

    ``metric``: ``euclidean`` is the squared distance, clipped at 0; ``cosine`` is 1 - a.b and ``dot`` is -a.b, both for
    rows of unit length. float32, but float64 where the squared norms are so much larger than the distances between
    neighbours that |a|^2 + |b|^2 - 2 a.b would lose them. ``max_memory``: bytes that the rows in work may take.
    """

    def __init__(self, a: Tensor, b: Tensor, metric: str = "euclidean", max_memory: int | None = None):
        self.metric, self.shape, self.device = metric, (len(a), len(b)), b.device
        self.one_list, self.max_memory = a is b, max_memory
        self.strip = strip_height(len(a), len(b), max_memory)
        self.on_cpu = b.device.type == "cpu"
        if metric == "euclidean":
            self.norms = self._norms(a, b)
            if _loses_neighbours(a, b, *self.norms):
                a = a.double()
                b = a if self.one_list else b.double()
                self.norms = self._norms(a, b)
        self.a, self.b = a, b
        width = even_cut(len(b), CHUNK if self.on_cpu else GPU_CHUNK)
        self.chunks = [(c, min(c + width, len(b)), _padded(b[c : c + width], width)) for c in range(0, len(b), width)]

    def _norms(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        of_b = _squared_norms(b)
        of_a = of_b if self.one_list else _squared_norms(a)
        if not (torch.isfinite(of_a).all() and torch.isfinite(of_b).all()):
            raise UserError("features are too large for squared distances in float32; normalise them")
        return of_a, of_b

    def rows(self, start: int, stop: int) -> Tensor:
        """Distances of rows ``start`` to ``stop`` of ``a``, (stop - start, G); ``start`` is a multiple of ``strip``."""
        assert start % self.strip == 0, "blocks begin where strips begin"
        if self.on_cpu:  # torch's own arrays, made and dropped in several threads, are not given back for reuse
            out = torch.from_numpy(np.empty((stop - start, self.shape[1]), self.a.numpy().dtype))
        else:
            out = torch.empty(stop - start, self.shape[1], dtype=self.a.dtype, device=self.device)
        for top in range(start, stop, self.strip):
            bottom = min(top + self.strip, self.shape[0])
            part = out[top - start : min(bottom, stop) - start]
            (self._strip_on_cpu if self.on_cpu else self._strip)(top, bottom, part)
        return out

    def _strip(self, top: int, bottom: int, out: Tensor) -> None:
        tile = _padded(self.a[top:bottom], self.strip)
        for left, right, chunk in self.chunks:
            part = _product(tile, chunk)[: bottom - top, : right - left]
            if self.metric == "euclidean":
                part.mul_(-2).add_(self.norms[0][top:bottom, None] + self.norms[1][left:right]).clamp_(min=0)
            else:
                part.neg_().add_(1.0 if self.metric == "cosine" else 0.0)
            out[:, left:right] = part[: len(out)]

    def _strip_on_cpu(self, top: int, bottom: int, out: Tensor) -> None:
        tile = (-2 if self.metric == "euclidean" else -1) * _padded(self.a[top:bottom], self.strip).numpy()
        out, height = out.numpy(), len(out)
        product = np.empty((len(tile), len(self.chunks[0][2])), tile.dtype)
        if self.metric == "euclidean":
            of_a, of_b = self.norms[0][top : top + height, None].numpy(), self.norms[1].numpy()
            sums = np.empty_like(product[:height])
        for left, right, chunk in self.chunks:
            part = np.matmul(tile, chunk.numpy().T, out=product)[:height, : right - left]
            target = out[:, left:right]
            if self.metric == "euclidean":
                both = np.add(of_a, of_b[left:right], out=sums[:, : right - left])
                np.maximum(np.add(part, both, out=target), 0, out=target)
            else:
                np.add(part, 1 if self.metric == "cosine" else 0, out=target)


def _padded(rows: Tensor, height: int) -> Tensor:
    missing = height - len(rows)
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T in full precision, whatever autocast or TF32 setting the caller trains with."""
    if a.device.type == "cpu":  # NumPy's BLAS: 1.1 to 1.6 times as fast as torch's on the processors tried
        return torch.from_numpy(a.numpy() @ b.numpy().T)
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
    """Whether squared norms are over 1e5 times the distances to nearest neighbours, told from a few rows of ``a``."""
    places = torch.linspace(0, len(a) - 1, min(sample, len(a))).long().to(a.device)
    some, norm, of_b = a[places], of_a[places].cpu().numpy()[:, None], of_b.cpu().numpy()
    rough = np.full_like(norm, np.inf)
    for left in range(0, len(b), GPU_CHUNK):
        part = _product(some, b[left : left + GPU_CHUNK]).cpu().numpy()
        rough = np.minimum(rough, (of_b[left : left + GPU_CHUNK] - 2 * part).min(1, keepdims=True))
    if (rough + norm > 1e-4 * norm).all():
        return False
    some = some.cpu().double().numpy()
    norm = squared_norms(some)[:, None]
    nearest = np.full_like(norm, np.inf)
    for part in b.split(GPU_CHUNK):
        part = part.cpu().double().numpy()
        dist = norm + squared_norms(part) - 2 * some @ part.T
        dist[dist <= 1e-12 * norm] = np.inf  # the image itself and its copies
        nearest = np.minimum(nearest, dist.min(1, keepdims=True))
    return bool(np.quantile(norm / nearest, 0.5, method="lower") > 1e5)


def _squared_norms(feats: Tensor) -> Tensor:
    if feats.device.type == "cpu":
        return torch.from_numpy(squared_norms(feats.numpy()))
    return torch.cat([part.square().sum(1) for part in feats.split(GPU_CHUNK)])
