"""Charts of pages: the legend stands where lines are not."""

from __future__ import annotations

import re

import pytest

from tools.pages.charts import HEIGHT, line_chart


@pytest.mark.parametrize(("end", "low"), [(1.0, True), (0.0, False)])
def test_the_legend_stands_in_the_corner_that_lines_leave_free(end, low):
    rising = {"exact": ([0.0, 1.0], [1 - end, end]), "observed": ([0.0, 0.5, 1.0], [0.5, 0.5, end])}
    chart = line_chart(rising, "name", "x", "y", (0, 1))
    places = [float(y) for y in re.findall(r'y="([\d.]+)">(?:exact|observed)<', chart)]
    assert len(places) == 2 and all((y > HEIGHT / 2) == low for y in places)
