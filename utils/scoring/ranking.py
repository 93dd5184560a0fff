"""Computes CMC, mAP and mINP from ranks, without sorting the gallery.

Only the ranks of a query's positives matter, and a rank is a count: 1 + the kept images that are nearer, or equally
near with a lower gallery index. The order (distance, gallery index) makes the result the same on every machine and
for every block size. Formulas: Zheng et al., ICCV 2015 (Market-1501 protocol); mINP: Ye et al., arXiv:2001.04193.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError, nearest
from utils.scoring.blocks import each_block, whole_number
from utils.scoring.matching import Matching, PairBlock
from utils.scoring.single_shot import single_shot_cmc

logger = logging.getLogger("lineup")

PROTOCOLS = ("market1501", "cuhk03")
AVERAGES = ("rectangle", "trapezoid")


@dataclass(frozen=True)
class RankResult:
    """The scores of one evaluation, all shares of 1, over the ``num_valid_q`` queries that have a match.

    cmc: (max_rank,), the share of queries with a match among the first k + 1. per_query: ``AP``, ``INP`` and
    ``first_match_rank`` (1-based), (Q,) each, -1 for a query without a match.
    """

    cmc: np.ndarray
    mAP: float  # noqa: N815 - the name every ReID paper uses
    mINP: float  # noqa: N815
    num_valid_q: int
    per_query: dict[str, np.ndarray]


def evaluate_rank(
    distmat: object,
    q_pids: object,
    g_pids: object,
    q_camids: object = None,
    g_camids: object = None,
    max_rank: int = 50,
    protocol: str = "market1501",
    ap: str = "rectangle",
    seed: int = 0,
    repeats: int | None = 10,
    q_seqs: object = None,
    g_seqs: object = None,
    same_list: bool = False,
) -> RankResult:
    """Returns CMC, mAP and mINP of a matrix of distances.

    distmat: (Q, G), smaller is nearer, a tensor or an array. q_pids, g_pids: identities, integers. q_camids, g_camids:
    cameras; images of the query's identity and camera are left out, None for no filter. q_seqs, g_seqs: the same for
    sequences. same_list: query i is gallery image i and never its own match; cameras and sequences then filter nothing.
    max_rank: length of the curve; a shorter gallery repeats the last value. ap: ``rectangle``, the mean of
    t / r_t, or ``trapezoid``, the original Market-1501 code's. protocol: ``market1501``, or ``cuhk03``, where the
    curve is for one drawn image per gallery identity (Li et al., CVPR 2014; mAP and mINP stay over all images):
    ``repeats`` draws per query from ``RandomState(seed)``, or with ``repeats=None`` the exact mean over all draws.

    Equal distances are ordered by gallery index. Queries without a match count in no mean. Raises ``ValueError`` if
    none has one, for lengths that do not fit, ids that are not integers, NaN distances and unknown names.
    """
    check_names(protocol, ap, max_rank, repeats)
    rows, shape = distance_rows(distmat)
    matching = Matching(q_pids, g_pids, q_camids, g_camids, q_seqs, g_seqs, same_list, shape)
    return rank_blocks(rows, matching, max_rank, protocol, ap, seed, repeats)


def distance_rows(distmat: object) -> tuple[Callable[[int, int], Tensor], tuple[int, int]]:
    """Returns ``rows(start, stop)`` of a (Q, G) tensor or array as float32 or float64, and its shape; refuses NaN."""
    matrix = distmat.detach() if isinstance(distmat, Tensor) else torch.as_tensor(np.asarray(distmat))
    if matrix.ndim != 2:
        raise UserError(f"distmat: expected shape (queries, gallery), got {tuple(matrix.shape)}")

    def rows(start: int, stop: int) -> Tensor:
        block = matrix[start:stop]
        if not block.is_floating_point():
            block = block.double()  # float32 would round integers from 2**24 on
        elif block.dtype not in (torch.float32, torch.float64):
            block = block.float()
        if torch.isnan(block.amin()):  # the smallest of a NaN and a number is NaN
            bad = torch.isnan(block).any(1).nonzero().squeeze(1) + start
            raise UserError(f"distmat: NaN in {len(bad)} rows from row {int(bad[0])} on")
        return block

    return rows, (matrix.shape[0], matrix.shape[1])


def check_names(protocol: str, ap: str, max_rank: int, repeats: int | None) -> None:
    """Raises ``UserError`` for an unknown protocol or kind of average precision, and for a wrong count."""
    choose("protocol", protocol, PROTOCOLS)
    choose("ap", ap, AVERAGES)
    whole_number("max_rank", max_rank)
    if repeats is not None:
        whole_number("repeats", repeats)


def choose(what: str, name: str, known: tuple[str, ...]) -> None:
    """Raises ``UserError`` with the choices if ``name`` is not one of ``known``."""
    if name not in known:
        raise UserError(f"{what}: unknown {name!r}{nearest(name, known)} Known: {', '.join(known)}")


def rank_blocks(
    rows: Callable[[int, int], Tensor],
    matching: Matching,
    max_rank: int,
    protocol: str,
    ap: str,
    seed: int,
    repeats: int | None,
    block_size: int | None = None,
    strip: int | None = None,
    threads: bool = False,
    max_memory: int | None = None,
    watch: Callable[[int, Tensor, PairBlock], None] | None = None,
) -> RankResult:
    """Returns what ``evaluate_rank`` does, from ``rows(start, stop) -> (stop - start, G)``, called block by block.

    block_size, strip, threads, max_memory: as for ``each_block``; drawn galleries (cuhk03) are drawn in order.
    watch: called with (start, block, pairs) for every block (``utils.scoring.watching``).
    """
    num_q, num_g = len(matching.q_pids), len(matching.g_pids)
    scores = {"AP": np.full(num_q, -1.0), "INP": np.full(num_q, -1.0), "first_match_rank": np.full(num_q, -1)}
    tied = np.zeros(num_q, bool)
    curves = np.zeros((num_q, max_rank if protocol == "cuhk03" else 0))
    rng = np.random.RandomState(seed)

    def work(start: int, stop: int) -> None:
        block, pairs = rows(start, stop), matching.pairs(start, stop)
        query, rank, is_tied = positive_ranks(block, pairs)
        tied[start + query[is_tied]] = True
        valid = start + np.unique(query)
        for name, of_query in _scores(query, rank, ap).items():
            scores[name][valid] = of_query
        if protocol == "cuhk03":
            curves[start:stop] = single_shot_cmc(block, pairs, matching.g_pids, max_rank, rng, repeats)
        if watch:
            watch(start, block, pairs)

    threads = threads and protocol != "cuhk03"
    each_block(num_q, num_g, block_size, work, "ranking", strip=strip, threads=threads, max_memory=max_memory)
    valid = matching.num_positives > 0
    num_valid = int(valid.sum())
    if 2 * (tied & valid).sum() > num_valid:
        logger.warning(
            "%d of %d queries have a match at exactly the distance of a wrong image: such ties are in the gallery's "
            "order, so do not trust these numbers",
            tied.sum(),
            num_valid,
        )
    if protocol == "cuhk03":
        cmc = curves[valid].mean(0)
    else:
        first = np.minimum(scores["first_match_rank"][valid], max_rank + 1)
        cmc = np.cumsum(np.bincount(first, minlength=max_rank + 2)[1 : max_rank + 1]) / num_valid
    return RankResult(
        cmc=cmc,
        mAP=float(scores["AP"][valid].mean()),
        mINP=float(scores["INP"][valid].mean()),
        num_valid_q=num_valid,
        per_query=scores,
    )


def _scores(query: np.ndarray, rank: np.ndarray, ap: str) -> dict[str, np.ndarray]:
    """Returns AP, INP and first rank of each query that occurs in ``query`` (P,), from its ascending ranks (P,)."""
    first = np.flatnonzero(np.diff(query, prepend=-1))
    if len(first) == 0:
        return {}
    count = np.diff(np.append(first, len(query)))
    return {
        "AP": average_precisions(query, rank, ap),
        "INP": count / rank[first + count - 1],
        "first_match_rank": rank[first],
    }


def average_precisions(query: np.ndarray, rank: np.ndarray, ap: str) -> np.ndarray:
    """Returns the average precision of each query that occurs in ``query`` (P,), ascending, from its ranks (P,)."""
    first = np.flatnonzero(np.diff(query, prepend=-1))
    count = np.diff(np.append(first, len(query)))
    t = np.arange(1, len(query) + 1) - np.repeat(first, count)  # the t-th positive of its query
    share = t / rank
    if ap == "trapezoid":
        share = (share + np.where(rank == 1, 1.0, (t - 1) / np.maximum(rank - 1, 1))) / 2
    return np.add.reduceat(share, first) / count


def positive_ranks(
    block: Tensor, pairs: PairBlock, first_only: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the ranks of the positives of a block of queries among the gallery images kept for each.

    block: (B, G) distances. Returns (P,) each, sorted by query and rank: the query's row, the 1-based rank, and
    whether a negative is at exactly the same distance. first_only: the nearest positive of each query alone.
    """
    value = at_pairs(block, pairs.query, pairs.gallery)
    order = np.lexsort((value, pairs.query))  # stable, so equal distances stay in order of gallery index
    query, gallery, value = pairs.query[order], pairs.gallery[order], value[order]
    positive = pairs.positive[order]
    # Pairs of one query at one distance get one code; codes ascend with (query, distance).
    fresh = np.ones(len(query), bool)
    fresh[1:] = (query[1:] != query[:-1]) | (value[1:] != value[:-1])
    code = np.cumsum(fresh)
    junk_code, positive_code = code[~positive], code[positive]
    query, gallery, value, code = query[positive], gallery[positive], value[positive], code[positive]
    if first_only:
        first = np.flatnonzero(np.diff(query, prepend=-1))
        query, gallery, value, code = query[first], gallery[first], value[first], code[first]

    below, upto = _count_around(block, query, value)
    junk_before = np.searchsorted(junk_code, code)
    starts = np.searchsorted(pairs.query[~pairs.positive], query)  # junk of earlier queries
    twins_before = np.searchsorted(positive_code, code)
    twins = np.searchsorted(positive_code, code, "right") - twins_before
    equal_junk = np.searchsorted(junk_code, code, "right") - junk_before
    rank = 1 + below - (junk_before - starts)
    if not first_only:
        rank += np.arange(len(code)) - twins_before  # equal positives follow each other
    tied = upto - below - equal_junk > twins
    for one in np.unique(code[tied]):  # rare, but for dead models: a pass over the row for each tied distance
        here = slice(*np.searchsorted(code, [one, one + 1]))
        row = int(query[here.start])
        level = np.flatnonzero((block[row] == block[row, int(gallery[here.start])]).cpu().numpy())
        of_row = slice(*np.searchsorted(pairs.query, [row, row + 1]))
        level = level[~np.isin(level, pairs.gallery[of_row][~pairs.positive[of_row]])]
        rank[here] = 1 + below[here] - (junk_before - starts)[here] + np.searchsorted(level, gallery[here])
    return query, rank, tied


def at_pairs(block: Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the entries of ``block`` at (rows[p], columns[p]), (P,)."""
    if block.device.type == "cpu":
        return block.numpy()[rows, columns]
    on_device = [torch.from_numpy(index).to(block.device) for index in (rows, columns)]
    return block[on_device[0], on_device[1]].cpu().numpy()


def _count_around(block: Tensor, query: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts the entries of row ``query[p]`` of ``block`` that are below ``value[p]``, and those that are not above it.

    query: (P,) ascending, value: (P,) ascending within a query. Returns two (P,) vectors of int64.
    """
    # Sorting a block's values is fast on an accelerator; a CPU is faster without.
    return (_count_by_comparing if block.device.type == "cpu" else _count_by_sorting)(block, query, value)


def _count_by_sorting(block: Tensor, query: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first = np.searchsorted(query, query)
    column = np.arange(len(query)) - first
    bounds = torch.full((len(block), int(column.max(initial=0)) + 1), float("inf"), dtype=block.dtype)
    bounds[query, column] = torch.from_numpy(value)
    ordered, on_device = block.sort(dim=1).values, bounds.to(block.device)
    below, upto = (torch.searchsorted(ordered, on_device, right=right).cpu().numpy() for right in (False, True))
    return below[query, column], upto[query, column]


def _count_by_comparing(block: Tensor, query: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    below, upto = np.zeros(len(query), np.int64), np.zeros(len(query), np.int64)
    edges = np.append(np.flatnonzero(np.diff(query, prepend=-1)), len(query))
    array = block.numpy()
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        row = array[query[start]]
        near = row[row <= value[stop - 1]]
        # Measured: sorting an entry costs about as much as comparing it with fifty positives, below and up to.
        if 100 * len(near) < (stop - start) * len(row):
            near.sort()
            below[start:stop] = near.searchsorted(value[start:stop])
            upto[start:stop] = near.searchsorted(value[start:stop], "right")
        else:
            for p in range(start, stop):
                below[p] = np.count_nonzero(row < value[p])
                upto[p] = np.count_nonzero(row <= value[p])
    return below, upto
