"""Do new images fit a calibration: pairs that share no image, and a p value that means what it says."""

from __future__ import annotations

import numpy as np
import pytest

from utils.scoring.drift import disjoint_pairs, drift


@pytest.mark.parametrize(("count", "most", "pairs"), [(7, 100, 3), (8, 100, 4), (9, 2, 2), (1, 5, 0)])
def test_every_image_is_in_one_pair_at_most(count, most, pairs):
    first, second = disjoint_pairs(count, seed=3, most=most)
    assert len(first) == len(second) == pairs == len(np.unique(np.concatenate([first, second]))) / 2


def test_the_ratio_is_of_the_pairs_within_a_tenth_of_the_old_ones():
    before, now = np.arange(1, 101) / 100, np.arange(1, 101) / 200
    found = drift(before, now)
    limit = np.quantile(before, 0.1)
    assert found.ratio == pytest.approx((now <= limit).sum() / (before <= limit).sum()) and found.ratio > 1.9
    assert (found.before, found.now) == (np.median(before), np.median(now)) and not found.fits
    assert drift(before, before).fits


def test_the_p_value_of_drift_is_one_over_images():
    """Of samples of one distribution, one in a hundred is called drift, however many pairs share an image."""
    rng, calls = np.random.default_rng(0), 0
    for _ in range(200):
        one, other = (rng.standard_normal((120, 6)) for _ in range(2))
        pairs = [disjoint_pairs(120) for _ in (one, other)]
        samples = [((feats[a] - feats[b]) ** 2).sum(1) for feats, (a, b) in zip((one, other), pairs, strict=True)]
        calls += not drift(*samples).fits
    assert calls <= 8
