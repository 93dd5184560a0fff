"""Open-set figures against loops over queries, and through a whole evaluation."""

from __future__ import annotations

import numpy as np
import pytest

from utils.errors import UserError
from utils.metrics import evaluate_features
from utils.scoring.open_set import ABSENT, KNOWN, NEITHER, NearestImage, drawn_out, open_set


def lists(seed: int):
    """Query and gallery of twenty identities, five of which have no gallery image, and two cameras."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, 12))
    q_pids, g_pids = np.repeat(np.arange(20), 3), np.repeat(np.arange(15), 5)
    q, g = (centres[pids] + 0.7 * rng.normal(size=(len(pids), 12)) for pids in (q_pids, g_pids))
    return q, g, q_pids, g_pids, rng.integers(0, 2, len(q)), rng.integers(0, 2, len(g))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0, 0.4])
def test_figures_are_those_of_a_loop(seed, share):
    q, g, q_pids, g_pids, q_cams, g_cams = lists(seed)
    out = drawn_out(q_pids, g_pids, share, seed) if share else np.zeros(len(g), bool)
    assert len(np.unique(g_pids[out])) == round(share * 15)
    nearest = NearestImage(len(q), out)
    evaluate_features(q, g, q_pids, g_pids, q_cams, g_cams, watch=nearest, max_memory=20_000)
    unit = [feats / np.linalg.norm(feats, axis=1, keepdims=True) for feats in (q, g)]
    dist = ((unit[0][:, None] - unit[1]) ** 2).sum(2)
    known, absent = [], []
    for i in range(len(q)):
        junk = (g_pids == q_pids[i]) & (g_cams == q_cams[i])
        kept = np.flatnonzero(~out & ~junk)
        best = kept[dist[i, kept].argmin()]
        assert nearest.distance[i] == pytest.approx(dist[i, best], abs=1e-5)
        same = g_pids == q_pids[i]
        if (same & ~out & ~junk).any():
            known.append((dist[i, best], g_pids[best] == q_pids[i]))
            assert nearest.kind[i] == KNOWN and nearest.right[i] == known[-1][1]
        elif (same & ~out).any():
            assert nearest.kind[i] == NEITHER
        else:
            absent.append(dist[i, best])
            assert nearest.kind[i] == ABSENT and not nearest.right[i]
    found = open_set(nearest, (0.1, 0.5, 1.0))
    assert found is not None and (found.known, found.absent) == (len(known), len(absent))
    for fpir, rate in found.rates.items():
        best = 0.0
        for limit in [*absent, np.inf]:  # a threshold below each of them in turn
            if np.mean([d < limit for d in absent]) <= fpir:
                best = max(best, np.mean([right and d < limit for d, right in known]))
        assert rate == pytest.approx(best)
    for fpir, rate in found.curve.T:
        limits = [*sorted(absent), np.inf]
        assert rate == pytest.approx(np.mean([right and d < limits[round(fpir * len(absent))] for d, right in known]))
    assert (np.diff(found.curve) >= 0).all() and found.curve[0, 0] == 0 and found.curve[0, -1] == 1
    wins = [(d < s) + 0.5 * (d == s) for d, _ in known for s in absent]
    assert found.auroc == pytest.approx(np.mean(wins))


def test_all_known_is_no_open_set():
    q, g, q_pids, g_pids, q_cams, g_cams = lists(0)
    some = q_pids < 15
    nearest = NearestImage(int(some.sum()), np.zeros(len(g), bool))
    evaluate_features(q[some], g, q_pids[some], g_pids, watch=nearest)
    assert open_set(nearest) is None


def test_a_share_that_takes_all_or_none_is_refused():
    with pytest.raises(UserError, match="TEST.OPEN_SHARE 0.1: of 4 identities, 0 would be taken out"):
        drawn_out(np.arange(4), np.arange(4), 0.1, 0)
    with pytest.raises(UserError, match="some must go and some stay"):
        drawn_out(np.arange(4), np.arange(4), 0.95, 0)
