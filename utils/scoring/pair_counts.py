"""Counts the pairs of two lists by distance, block by block: what thresholds and probabilities are fitted on.

No pair is kept but the genuine ones and the nearest impostors. Counts by identity allow a bootstrap over identities
that never comes back to the pairs: pairs of one identity are not independent, so identities are what must be drawn.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch

from utils.errors import UserError
from utils.scoring.blocks import each_block
from utils.scoring.camera_norm import CameraPairs, PairScale
from utils.scoring.distances import Distances, as_features, on_one_device, unit_length
from utils.scoring.matching import Matching, PairBlock
from utils.scoring.ranking import choose

PAIRS = ("across", "all", "within")
"""Which pairs count: of two cameras, all, or of one camera."""

BINS = 4096
"""Bins of all distances, between the smallest and the largest one of a sample, and beyond."""
TAIL_BINS = 512
"""Bins of the nearest impostors, for the counts by identity."""
EXACT = 2**27
"""Pairs up to which all distances are counted. Of more, those beyond the tail are counted for evenly spaced queries:
a curve there needs no hundred million pairs. Thresholds come from the tail, which is always complete."""
SAMPLE = 2000
"""Images of each list whose distances place the bins."""


@dataclass(frozen=True)
class PairCounts:
    """The pairs of two lists by distance; I identities occur in them.

    identities: (I,) numbers. genuine: (P,) distances, ascending. nearest: (K,)
    the K smallest impostor distances, ascending. impostors: their number in all. edges: (B + 1,) of the bins of all
    distances, the first -inf and the last inf; genuine_counts, impostor_counts: (B,). tail_edges: (T + 1,) of the
    impostors' tail, the first -inf; tail_counts: (I, T) impostor pairs by each of their two identities; pairs_of: (I,)
    all impostor pairs of an identity. Beyond the tail, ``impostor_counts`` of more than ``EXACT`` pairs is scaled up
    from some queries. which: of ``PAIRS``. orders: how often each pair of images is counted, 2 in one
    list. query_rows: (Q,) each query's row in ``identities``; nearest_of: (Q,) the distance of its nearest impostor, at
    most the tail's end.
    """

    which: str
    identities: np.ndarray
    genuine: np.ndarray
    nearest: np.ndarray
    impostors: int
    edges: np.ndarray
    genuine_counts: np.ndarray
    impostor_counts: np.ndarray
    tail_edges: np.ndarray
    tail_counts: np.ndarray
    pairs_of: np.ndarray
    query_rows: np.ndarray
    nearest_of: np.ndarray
    orders: int = 1

    @property
    def distinct(self) -> tuple[int, int]:
        """The numbers of genuine and of impostor pairs, each pair of images once."""
        return len(self.genuine) // self.orders, self.impostors // self.orders


def count_pairs(
    qf: object,
    gf: object,
    q_pids: object,
    g_pids: object,
    q_camids: object = None,
    g_camids: object = None,
    *,
    which: str = "across",
    far: float = 0.01,
    metric: str = "euclidean",
    normalize: bool = True,
    same_list: bool = False,
    max_memory: int | None = None,
    seed: int = 0,
    camera_pairs: CameraPairs | None = None,
) -> PairCounts:
    """Counts the pairs of queries (Q, D) and gallery images (G, D).

    which: pairs that count, of ``PAIRS``; without cameras only ``all``. far: the largest false accept rate that will be
    asked for; impostors up to that share are kept. metric, normalize, same_list, max_memory, camera_pairs: as for
    ``evaluate_features``; with same_list every pair occurs twice, in both orders, and counts once in both. Raises
    ``UserError`` for an unknown word, missing cameras, and if there is no genuine or no impostor pair.
    """
    choose("which", which, PAIRS)
    qf, gf = on_one_device(as_features(qf, "query"), as_features(gf, "gallery"))
    if normalize or metric == "cosine":
        qf, gf = unit_length(qf), unit_length(gf)
    matching = Matching(q_pids, g_pids, same_list=same_list, shape=(len(qf), len(gf)), need_valid=False)
    cameras = _cameras(which, q_camids, g_camids, len(qf), len(gf))
    scale = camera_pairs.between(q_camids, g_camids) if camera_pairs else None
    dist = Distances(qf, gf, metric, max_memory, scale=scale)
    identities, rows = np.unique(np.concatenate([matching.q_pids, matching.g_pids]), return_inverse=True)
    counter = _Counter(dist, matching, cameras, which, rows, len(identities), far, seed, scale)
    each_block(
        len(qf), len(gf), None, counter.work, "pairs", strip=dist.strip, threads=dist.on_cpu, max_memory=max_memory
    )
    return counter.result(identities)


def _cameras(
    which: str, q_camids: object, g_camids: object, queries: int, images: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the cameras of both lists as codes from 0, None where they do not matter."""
    if which == "all":
        return None
    if q_camids is None or g_camids is None:
        raise UserError(f"pairs {which!r}: cameras are not known; choose 'all'")
    cameras = np.asarray(q_camids), np.asarray(g_camids)
    if (len(cameras[0]), len(cameras[1])) != (queries, images):
        raise UserError(f"{len(cameras[0])} and {len(cameras[1])} cameras for {queries} and {images} images")
    known, codes = np.unique(np.concatenate(cameras), return_inverse=True)
    if which == "across" and len(known) == 1:
        raise UserError("pairs 'across' cameras: all images are of one camera; choose 'all' or 'within'")
    return codes[:queries], codes[queries:]


def _columns(cameras: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """Returns the gallery images of each camera, whose codes count from 0."""
    order = np.argsort(cameras[1], kind="stable")
    count = np.bincount(cameras[1], minlength=1 + max(codes.max() for codes in cameras))
    return np.split(order, np.cumsum(count)[:-1])


class _Counter:
    """Counts blocks of distances; ``work`` may run in several threads."""

    def __init__(
        self,
        dist: Distances,
        matching: Matching,
        cameras: tuple[np.ndarray, np.ndarray] | None,
        which: str,
        rows: np.ndarray,
        identities: int,
        far: float,
        seed: int,
        scale: PairScale | None = None,
    ):
        self.scale, self.dist, self.matching, self.cameras, self.which = scale, dist, matching, cameras, which
        self.q_rows, self.g_rows, self.num = rows[: dist.shape[0]], rows[dist.shape[0] :], identities
        low, cut, high = self._range(far, seed)
        least = low + 1e-7 * max(abs(low), 1)  # where all distances are equal, the bins have a width all the same
        self.edges = np.linspace(low, max(high, least), BINS - 1)
        self.tail_edges = np.linspace(low, max(cut, least), TAIL_BINS)
        self.counts, self.tails = np.zeros((3, BINS), np.int64), np.zeros((identities, TAIL_BINS), np.int32)
        self.pairs_of, self.far = np.zeros(identities, np.int64), far
        self.nearest_of = np.full(dist.shape[0], self.tail_edges[-1])
        self.impostors, self.stride = 0, max(dist.shape[0] * dist.shape[1] // EXACT, 1)
        self.columns = [] if cameras is None else _columns(cameras)
        self.genuine: list[np.ndarray] = []
        self.nearest: list[np.ndarray] = []
        self.lock = threading.Lock()

    def _range(self, far: float, seed: int) -> tuple[float, float, float]:
        """Returns the smallest distance, one beyond which no threshold will lie, and the largest, by a sample."""
        rng = np.random.default_rng(seed)
        chosen = [np.sort(rng.choice(total, min(SAMPLE, total), replace=False)) for total in self.dist.shape]
        a, b = (torch.from_numpy(rows).to(self.dist.device) for rows in chosen)
        scale = self.scale.take(*chosen) if self.scale else None
        sample = Distances(self.dist.a[a], self.dist.b[b], self.dist.metric, scale=scale)
        values = torch.cat([sample.rows(i, min(i + sample.strip, len(a))) for i in range(0, len(a), sample.strip)])
        values = values.cpu().numpy()
        other = self.matching.q_pids[chosen[0]][:, None] != self.matching.g_pids[chosen[1]][None]
        if not other.any():
            raise UserError("no impostor pairs: query and gallery hold one identity only")
        if self.cameras is not None:
            other &= self._kept(chosen[0], chosen[1])
        impostors = values[other] if other.any() else values
        return float(values.min()), float(np.quantile(impostors, min(3 * far + 0.002, 1))), float(values.max())

    def work(self, start: int, stop: int) -> None:
        """Counts the pairs of queries ``start`` to ``stop``, row by row: what a row needs stays in the cache."""
        block, pairs = self.dist.rows(start, stop).cpu().numpy(), self.matching.pairs(start, stop)
        kept = self._kept_pairs(start, pairs)
        genuine = kept & pairs.positive
        same = block[pairs.query[genuine], pairs.gallery[genuine]]
        query, others = pairs.query[kept], pairs.gallery[kept]
        near = [self._near(row, start + i) for i, row in enumerate(block)]
        end = self.tail_edges[-1]
        self.nearest_of[start:stop] = [row[c].min(initial=end) for row, c in zip(block, near, strict=True)]
        values = np.concatenate([row[columns] for row, columns in zip(block, near, strict=True)])
        bins = np.minimum(_bins(values, self.tail_edges), TAIL_BINS - 1)
        rows = np.repeat(np.arange(stop - start), [len(columns) for columns in near])
        tails = np.bincount(rows * TAIL_BINS + bins, minlength=(stop - start) * TAIL_BINS).reshape(-1, TAIL_BINS)
        beyond = self._beyond(block, start, query, others) - _histogram(values[self._read(start + rows)], self.edges)
        of_query, of_gallery = self._impostors(start, stop, query, others)
        with self.lock:
            self.counts += _histogram(same, self.edges), _histogram(values, self.edges), beyond
            for row, tail in zip(self.q_rows[start:stop], tails, strict=True):
                self.tails[row] += tail.astype(np.int32)
            cells = self.g_rows[np.concatenate(near)] * TAIL_BINS + bins
            np.add.at(self.tails.reshape(-1), cells, np.int32(1))  # a plain 1 is twenty times slower: it is cast
            np.add.at(self.pairs_of, self.q_rows[start:stop], of_query)
            np.add.at(self.pairs_of, self.g_rows, of_gallery)
            self.impostors += int(of_query.sum())
            self.genuine.append(same)
            self._keep(values)

    def _keep(self, values: np.ndarray) -> None:
        """Adds impostors of the tail, and drops what cannot be among the nearest that are kept."""
        self.nearest.append(values)
        most = int(self.far * self.dist.shape[0] * self.dist.shape[1]) + 2
        if sum(map(len, self.nearest)) > 2 * most:
            self.nearest = [np.partition(np.concatenate(self.nearest), most - 1)[:most]]

    def _read(self, queries: np.ndarray) -> np.ndarray:
        """Returns which queries' distances beyond the tail are counted: all, or evenly spaced ones."""
        return queries % self.stride == 0

    def _kept_pairs(self, start: int, pairs: PairBlock) -> np.ndarray:
        """Returns which pairs of one identity the choice of cameras keeps."""
        if self.cameras is None:
            return np.ones(len(pairs.query), bool)
        one = self.cameras[0][start + pairs.query] == self.cameras[1][pairs.gallery]
        return one if self.which == "within" else ~one

    def _beyond(self, block: np.ndarray, start: int, query: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Returns the histogram of the impostors of the queries that are read.

        query, others: (P,) rows of the block and images of its kept pairs of one identity.
        """
        first, out = np.searchsorted(query, np.arange(len(block) + 1)), np.zeros(BINS, np.int64)
        for i in np.flatnonzero(self._read(start + np.arange(len(block)))).tolist():
            bins = _bins(block[i], self.edges)
            columns = None if self.cameras is None else self.columns[self.cameras[0][start + i]]
            out += np.bincount(bins if self.which != "within" else bins[columns], minlength=BINS)
            if self.which == "across":
                out -= np.bincount(bins[columns], minlength=BINS)
            out -= np.bincount(bins[others[first[i] : first[i + 1]]], minlength=BINS)
        return out

    def _near(self, row: np.ndarray, query: int) -> np.ndarray:
        """Returns the columns of a query's impostors in the tail."""
        columns = np.flatnonzero(row <= self.tail_edges[-1])
        counts = self.g_rows[columns] != self.q_rows[query]
        if self.cameras is not None:
            one = self.cameras[1][columns] == self.cameras[0][query]
            counts &= one if self.which == "within" else ~one
        return columns[counts]

    def _impostors(
        self, start: int, stop: int, query: np.ndarray, others: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns in how many impostor pairs each query of a block and each gallery image is, (B,) and (G,)."""
        queries, images = stop - start, len(self.g_rows)
        of_query, of_gallery = np.bincount(query, minlength=queries), np.bincount(others, minlength=images)
        if self.cameras is None:
            return images - of_query, queries - of_gallery
        q_codes, g_codes = self.cameras[0][start:stop], self.cameras[1]
        with_query = np.array([len(columns) for columns in self.columns])[q_codes]  # images of a query's camera
        with_image = np.bincount(q_codes, minlength=len(self.columns))[g_codes]
        if self.which == "within":
            return with_query - of_query, with_image - of_gallery
        return images - with_query - of_query, queries - with_image - of_gallery

    def _kept(self, queries: slice | np.ndarray, images: slice | np.ndarray) -> np.ndarray:
        """Returns which pairs of queries and images the choice of cameras keeps."""
        assert self.cameras is not None
        one = self.cameras[0][queries][:, None] == self.cameras[1][images][None]
        return one if self.which == "within" else ~one

    def result(self, identities: np.ndarray) -> PairCounts:
        genuine = np.sort(np.concatenate(self.genuine))
        impostors = self.impostors
        if not len(genuine) or not impostors:
            kind = "genuine" if not len(genuine) else "impostor"
            raise UserError(f"no {kind} pair {self.which} cameras" if self.which != "all" else f"no {kind} pair")
        keep = min(int(np.ceil(self.far * impostors)) + 1, impostors)
        nearest = np.concatenate(self.nearest)
        self.nearest.clear()
        if keep < len(nearest):
            nearest = np.partition(nearest, keep - 1)[:keep]
        nearest.sort()
        return PairCounts(
            which=self.which,
            identities=identities,
            genuine=genuine,
            nearest=nearest,
            impostors=impostors,
            edges=np.concatenate([[-np.inf], self.edges, [np.inf]]),
            genuine_counts=self.counts[0],
            impostor_counts=self.counts[1] + _scaled(self.counts[2], impostors - int(self.counts[1].sum())),
            tail_edges=np.concatenate([[-np.inf], self.tail_edges]),
            tail_counts=self.tails,
            pairs_of=self.pairs_of,
            query_rows=self.q_rows,
            nearest_of=self.nearest_of,
            orders=2 if self.matching.same_list else 1,
        )


def _scaled(counts: np.ndarray, total: int) -> np.ndarray:
    """Returns counts in the same proportions, of the sum ``total``."""
    upto = np.cumsum(counts)
    return counts if upto[-1] in (0, total) else np.diff(np.rint(upto * (total / upto[-1])), prepend=0).astype(np.int64)


def _bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns which of (-inf, e0], (e0, e1], ..., (e_last, inf) each value is in, for evenly spaced edges."""
    kind = values.dtype.type  # float32 is exact enough for bins, and half as long
    bins = values - kind(edges[0])
    bins /= kind(edges[1] - edges[0])
    np.ceil(bins, out=bins)
    np.maximum(bins, 0, out=bins)
    return np.minimum(bins, len(edges), out=bins).astype(np.intp)


def _histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns the counts in the bins of ``_bins``."""
    return np.bincount(_bins(values, edges), minlength=len(edges) + 1)
