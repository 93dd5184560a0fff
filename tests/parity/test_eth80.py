"""Real photographs: ETH-80 in the Market-1501 layout and as a table are the same data and give the same result."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets import make_dataset
from processor import run
from tests.parity import cases
from tests.tiny import config

ETH80 = cases.DATA / "eth80"

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        not ETH80.exists() and not cases.REQUIRED, reason=f"no {ETH80}; set LINEUP_DATA to the folder that holds eth80"
    ),
]


def test_layout_and_table_list_the_same_images():
    layout, table = make_dataset("market1501", ETH80), make_dataset("csv", ETH80 / "eth80.csv")
    for split, ids, images in (("train", 40, 1640), ("query", 40, 160), ("gallery", 40, 1480)):
        a, b = getattr(layout, split), getattr(table, split)
        assert a.counts() == (ids, images, 4)
        rows_a, rows_b = ([(Path(p).name, pid, cam) for p, pid, cam, _ in r] for r in (a, b))
        assert sorted(rows_a) == sorted(rows_b)
        assert split != "train" or rows_a == rows_b
    assert (layout.num_views, table.num_views) == (1, 3)


def test_layout_and_table_train_to_the_same_result(tmp_path):
    size = {"INPUT__SIZE_TRAIN": [32, 32], "INPUT__SIZE_TEST": [32, 32], "SOLVER__IMS_PER_BATCH": 32}
    settings = size | {"DATALOADER__NUM_INSTANCE": 4, "SOLVER__MAX_EPOCHS": 1, "SOLVER__EVAL_BEFORE": True}
    found = []
    for name, root in (("market1501", ETH80), ("csv", ETH80 / "eth80.csv")):
        metrics = run.train(config(root, tmp_path / name, DATASETS__NAMES=name, **settings))
        found.append([{k: v for k, v in entry.items() if k != "dataset"} for entry in metrics["history"]])
    for a, b in zip(*found, strict=True):
        assert a == pytest.approx(b, abs=1e-6)
