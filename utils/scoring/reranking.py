"""k-reciprocal re-ranking, the Jaccard distance for clustering, and query expansion, exact and sparse.

Of an N x N matrix of distances the method reads only each row's nearest entries, its largest entry and the entries of
the encoding, so no such matrix is built: neighbours come from blocks of a matrix product, reciprocity and encodings are
sparse matrices, and the final distance is mixed in blocks of queries. The numbers are those of the dense code.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from utils.errors import UserError
from utils.scoring.blocks import each_block, in_threads, whole_number
from utils.scoring.distances import Distances, as_features, on_one_device, squared_norms, unit_length
from utils.scoring.neighbours import nearest_rows

logger = logging.getLogger("lineup")

ROWS = 4096  # rows of a sparse product per pass
PAIRS = 256  # pairs of features subtracted per pass, so that they stay in cache
GATHERED = 2**22  # numbers of gathered features per pass in query expansion


def re_ranking(
    qf: object, gf: object, k1: int = 20, k2: int = 6, lambda_value: float = 0.3, max_memory: int | None = None
) -> np.ndarray:
    """Returns distances by k-reciprocal encoding (Zhong et al., CVPR 2017), as the TransReID family computes them.

    qf: (Q, D), gf: (G, D), tensors or arrays, used as they are (normalise them first if needed). k1: length
    of the neighbour lists, the image itself not counted. k2: images averaged over, itself counted, 1 for none.
    lambda_value: share of the original distance, 0 to 1. Lists stop at N = Q + G, with a warning in the log.
    max_memory: bytes that the distances in work may take, beside the result.

    Returns (1 - lambda) J + lambda O, (Q, G) float32 in [0, 1], smaller is nearer: J the Jaccard distance of the
    encodings, O the squared Euclidean distance over the largest one of the query. Where the published code keeps J in
    float16, this is float32. ``evaluate_features(rerank=...)`` needs no (Q, G) matrix.

    Raises ``ValueError`` for NaN features, widths that differ, k1 or k2 below 1 and lambda outside 0 to 1.
    """
    qf, gf = on_one_device(as_features(qf, "query"), as_features(gf, "gallery"))
    ranked = ReRanking(qf, gf, k1, k2, lambda_value, max_memory=max_memory)
    out = np.empty((len(qf), len(gf)), np.float32)

    def work(start: int, stop: int) -> None:
        out[start:stop] = ranked.rows(start, stop).numpy()

    each_block(*out.shape, None, work, "re-ranking", strip=ranked.strip, threads=ranked.on_cpu, max_memory=max_memory)
    return out


class ReRanking:
    """Computes re-ranked distances of features (tensors) on one device in blocks of queries; see ``re_ranking``.

    one_list: query i is gallery image i, so that each image is a neighbour once and not twice.
    """

    def __init__(
        self,
        qf: Tensor,
        gf: Tensor,
        k1: int,
        k2: int,
        lambda_value: float,
        block_size: int | None = None,
        max_memory: int | None = None,
        one_list: bool = False,
    ):
        k1, k2 = whole_number("k1", k1), whole_number("k2", k2)
        if not 0 <= lambda_value <= 1:
            raise UserError(f"lambda: expected a value between 0 and 1, got {lambda_value!r}")
        if one_list and len(qf) != len(gf):
            raise UserError(f"one_list: query and gallery are one list, but have {len(qf)} and {len(gf)} features")
        feats = gf if one_list else torch.cat([qf, gf])
        first = 0 if one_list else len(qf)
        _warn_of_short_lists(len(feats), k1 + 1, k2)
        ranks, _, farthest = nearest_rows(Distances(feats, feats, max_memory=max_memory), max(k1 + 1, k2), block_size)
        codes = _encode(feats, ranks, k1 + 1, k2, half=round(k1 / 2) + 1, farthest=farthest)
        self.num_q, self.lambda_value = len(qf), np.float32(lambda_value)
        self.queries, self.overlaps = codes[: self.num_q], Overlaps(codes[first:])
        farthest = farthest[: self.num_q, None]
        self.farthest = np.where(farthest > 0, farthest, 1)  # 0: all distances of the row are 0
        self.dist = Distances(feats[: self.num_q], feats[first:], max_memory=max_memory)
        self.strip, self.on_cpu = self.dist.strip, self.dist.on_cpu

    def rows(self, start: int, stop: int) -> Tensor:
        """Returns the distances of queries ``start`` to ``stop``, (stop - start, G) float32 on the CPU."""
        out = self.dist.rows(start, stop).float().cpu().numpy()
        np.divide(out, self.farthest[start:stop], out=out)
        np.multiply(out, self.lambda_value, out=out)
        rest = 1 - self.lambda_value
        for row in range(start, stop):
            columns, jaccard = self.overlaps.jaccard(self.queries, row)
            near = out[row - start, columns] + rest * jaccard
            out[row - start] += rest  # no overlap: a Jaccard distance of 1
            out[row - start, columns] = near
        return torch.from_numpy(out)


def _warn_of_short_lists(num: int, length: int, k2: int) -> None:
    if max(length, k2) > num:
        logger.warning("re-ranking: lists of %d and %d images asked for, but there are only %d", length, k2, num)


def jaccard_distance(
    feats: object, k1: int = 30, k2: int = 6, max_distance: float | None = None, max_memory: int | None = None
) -> csr_array:
    """Returns the Jaccard distance of k-reciprocal encodings (Zhong et al., CVPR 2017; as in Cluster Contrast).

    feats: (N, D) of unit length. k1: length of the neighbour lists, the image itself counted (``re_ranking`` does not
    count it). k2: images averaged over, itself counted, 1 for none. Lists stop at N, with a warning in the log.

    Returns (N, N) float32, symmetric. Only pairs whose encodings overlap are stored: an entry that is not stored is 1,
    and a stored 0 (the diagonal, copies) means 0, so never call ``eliminate_zeros``. max_distance: store only entries
    up to it, for instance the ``eps`` of DBSCAN, which takes the matrix as ``metric="precomputed"``: a few entries in
    a row, where all that overlap can be a sixth of it. max_memory: bytes for distances in work, beside the result.

    Raises ``ValueError`` for NaN features and k1 or k2 below 1.
    """
    k1, k2 = whole_number("k1", k1), whole_number("k2", k2)
    feats = as_features(feats, "image")
    num = len(feats)
    _warn_of_short_lists(num, k1, k2)
    ranks, _, _ = nearest_rows(Distances(feats, feats, max_memory=max_memory), max(k1, k2))
    codes = _encode(feats, ranks, k1, k2, half=round(k1 / 2) + 1)
    codes.sort_indices()  # both directions of a pair then add up in one order: symmetric to the last bit
    overlaps = Overlaps(codes)

    def of_rows(start: int, stop: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        pairs = [_kept(*overlaps.jaccard(codes, row), row, max_distance) for row in range(start, stop)]
        return [near for near, _ in pairs], [jaccard for _, jaccard in pairs]

    counts, columns, values = [0], np.empty(0, np.int32), np.empty(0, np.float32)

    def work(start: int, stop: int) -> None:
        strips = in_threads([(top, min(top + 128, stop)) for top in range(start, stop, 128)], of_rows)
        counts.extend(len(near) for lists, _ in strips for near in lists)
        end = size = len(columns)
        size += sum(counts[start + 1 : stop + 1])
        columns.resize(size, refcheck=False)  # grows in place: the result is never in memory twice
        values.resize(size, refcheck=False)
        for strip in strips:
            for near, jaccard in zip(*strip, strict=True):
                columns[end : end + len(near)], values[end : end + len(near)] = near, jaccard
                end += len(near)

    each_block(num, num, None, work, "Jaccard distance", max_memory=max_memory)
    indptr = np.cumsum(counts)
    if indptr[-1] < 2**31:
        indptr = indptr.astype(np.int32)  # scikit-learn takes no 64-bit indices
    return csr_array((values, columns, indptr), shape=(num, num))


def _kept(near: np.ndarray, jaccard: np.ndarray, row: int, most: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the entries of a row that are stored: itself at 0, and those that are not farther than ``most``."""
    position = np.searchsorted(near, row)
    if position == len(near) or near[position] != row:  # an image beyond the lists of its own copies has no code
        near, jaccard = np.insert(near, position, row), np.insert(jaccard, position, 0)
    jaccard[position] = 0
    if most is not None:
        kept = (jaccard <= most) | (near == row)
        near, jaccard = near[kept], jaccard[kept]
    return near.astype(np.int32), jaccard


class Overlaps:
    """Computes the Jaccard distance of one encoding to many: ``codes`` (G, N) sparse, rows of sum 1."""

    def __init__(self, codes: csr_array):
        self.num = len(codes.indptr) - 1
        columns = codes.tocsc()
        self.indptr, self.rows, self.weights = columns.indptr, columns.indices, columns.data

    def jaccard(self, codes: csr_array, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns which encodings overlap with row ``row`` of ``codes``, ascending, and their distances in [0, 1].

        With S the sum of the minima of two encodings the sum of their maxima is 2 - S. Only the columns on which the
        row has weight can add to S; they are laid end to end.
        """
        of_row = slice(codes.indptr[row], codes.indptr[row + 1])
        first = self.indptr[codes.indices[of_row]]
        count = self.indptr[codes.indices[of_row] + 1] - first
        where = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
        minima = np.minimum(self.weights.take(where), np.repeat(codes.data[of_row], count))
        shared = np.bincount(self.rows.take(where), weights=minima, minlength=self.num)
        near = np.flatnonzero(shared)
        shared = shared[near]
        return near, np.maximum(1 - shared / (2 - shared), 0).astype(np.float32)


def _encode(
    feats: Tensor, ranks: np.ndarray, length: int, k2: int, half: int, farthest: np.ndarray | None = None
) -> csr_array:
    """Returns k-reciprocal encodings, (N, N) sparse float32, rows of sum 1 (or 0 for an image in no other's list).

    ranks: (N, K) neighbours, nearest first. length, half: entries of the full and of the short lists, both cut at K.
    farthest: (N,), the distance that the weights' distances are divided by; None for distances as they are.
    """
    num = len(ranks)
    full, short = _reciprocal(ranks[:, :length]), _reciprocal(ranks[:, : min(half, length)])
    size = np.diff(short.indptr)
    blocks = []
    for top in range(0, num, ROWS):
        some = full[top : top + ROWS]
        shared = some.multiply(some @ short.T).tocsr()  # |short list of c in the full list of i|, for c in the latter
        shared.data = (3 * shared.data > 2 * size[shared.indices]).astype(np.int32)
        shared.eliminate_zeros()
        blocks.append((some + shared @ short).tocsr())
    indptr = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(block.indptr) for block in blocks]))])
    columns = np.concatenate([block.indices for block in blocks])
    rows = np.repeat(np.arange(num, dtype=columns.dtype), np.diff(indptr))
    dist = _pair_distances(feats, rows, columns)
    if farthest is not None:
        dist /= np.where(farthest > 0, farthest, 1)[rows]
    weights = np.exp(-dist)
    weights /= np.bincount(rows, weights=weights, minlength=num).astype(np.float32)[rows]
    codes = csr_array((weights, columns, indptr), shape=(num, num))
    if k2 != 1:
        k2 = min(k2, ranks.shape[1])
        codes = _lists_to_matrix(ranks[:, :k2], np.float32(1 / k2)) @ codes
    return codes


def _lists_to_matrix(lists: np.ndarray, value: np.generic) -> csr_array:
    """Returns (N, N) with ``value`` at (i, j) for j in row i of ``lists`` (N, width)."""
    num, width = lists.shape
    # flatten() copies: sorting the matrix's indices must not sort the ranking.
    columns, indptr = lists.flatten(), np.arange(0, num * width + 1, width)
    return csr_array((np.full(num * width, value), columns, indptr), shape=(num, num))


def _reciprocal(lists: np.ndarray) -> csr_array:
    """Returns the pairs (i, j) with j in the list of i and i in the list of j, as an (N, N) 0/1 matrix of int32."""
    listed = _lists_to_matrix(lists, np.int32(1))
    return listed.multiply(listed.T.tocsr()).tocsr()


def _pair_distances(feats: Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the squared distances of the pairs (rows[p], columns[p]), (P,) float32."""
    if feats.device.type != "cpu":
        pairs = zip(*(torch.from_numpy(i).to(feats.device).split(GATHERED // 64) for i in (rows, columns)), strict=True)
        return torch.cat([(feats[r.long()] - feats[c.long()]).square_().sum(1) for r, c in pairs]).cpu().numpy()
    array, out = feats.numpy(), np.empty(len(rows), np.float32)

    def work(start: int, stop: int) -> None:
        for top in range(start, stop, PAIRS):
            some = slice(top, min(top + PAIRS, stop))
            gap = array.take(rows[some], axis=0)
            gap -= array.take(columns[some], axis=0)
            out[some] = squared_norms(gap)

    step = 64 * PAIRS
    in_threads([(top, min(top + step, len(rows))) for top in range(0, len(rows), step)], work)
    return out


def query_expansion(
    qf: object, gf: object, times: int = 1, k: int = 5, alpha: float = 3.0, one_list: bool = False
) -> tuple[Tensor, Tensor] | tuple[np.ndarray, np.ndarray]:
    """Returns features after weighted average query expansion (alpha-QE, Radenovic et al., TPAMI 2019) in both lists.

    qf: (Q, D), gf: (G, D). ``times`` rounds; in each, every feature becomes 1/k of the sum over its k nearest by
    cosine, itself among them, of cosine ** alpha times the feature as it was before the round. alpha 0 is the plain
    mean; a negative cosine keeps its sign under an odd alpha and counts as 0 under a fractional one. k beyond N is N.
    one_list: query i is gallery image i. Each image is then counted once; in two lists it would be its own neighbour
    twice, and so would every other.

    Returns the new (Q, D) and (G, D), not normalised: tensors when given tensors, else arrays. Raises ``ValueError``
    for NaN features, widths that differ, ``times`` or ``k`` below 1, a negative alpha, and lists of
    different lengths with ``one_list``.
    """
    times, k = whole_number("times", times), whole_number("k", k)
    if alpha < 0:
        raise UserError(f"alpha: expected at least 0, got {alpha!r}")
    as_arrays = not isinstance(qf, Tensor) and not isinstance(gf, Tensor)
    qf, gf = on_one_device(as_features(qf, "query"), as_features(gf, "gallery"))
    if one_list and len(qf) != len(gf):
        raise UserError(f"one_list: expected as many queries as gallery images, got {len(qf)} and {len(gf)}")
    feats = gf if one_list else torch.cat([qf, gf])
    for _ in range(times):
        unit = unit_length(feats)
        ranks, cosines, _ = nearest_rows(Distances(unit, unit, "dot"), k)
        cosines = -cosines
        weights = (cosines if alpha == int(alpha) else cosines.clip(0)) ** alpha / ranks.shape[1]
        weights = torch.from_numpy(weights.astype(np.float32)).to(feats.device)
        ranks = torch.from_numpy(ranks).to(feats.device)
        step = max(GATHERED // (ranks.shape[1] * feats.shape[1]), 1)
        chunks = zip(weights.split(step), ranks.split(step), strict=True)
        feats = torch.cat([(w[:, :, None] * feats[r.long()]).sum(1) for w, r in chunks])
    qf, gf = feats[: len(qf)], feats[0 if one_list else len(qf) :]
    return (qf.numpy(), gf.numpy()) if as_arrays else (qf, gf)
