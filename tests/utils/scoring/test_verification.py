"""The number of impostor pairs that a false accept rate allows, where quotients round."""

from __future__ import annotations

import numpy as np
import pytest

from utils.scoring.verification import _most


@pytest.mark.parametrize("num", [1, 3, 7, 100, 997])
def test_a_rate_that_is_a_quotient_allows_just_that_many(num):
    for m in range(num + 1):
        assert _most(m / num, num) == m  # 0.29 * 100 is below 29
        if m:
            assert _most(float(np.nextafter(m / num, 0)), num) == m - 1
