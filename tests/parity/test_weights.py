"""Published weights on real images: the figures of an independent implementation, to four digits.

Two OSNet x0.25 of torchreid's model zoo on 60 vehicles under two cameras. The figures come from onnxruntime on
torchreid's own export and a plain ranking (the README of the data).
"""

from __future__ import annotations

import pytest

from configs import load_config
from processor import run
from tests.parity import cases

DATA = cases.DATA / "vehicle2cam"

FIGURES = {"osnet_x0_25_msmt17": (0.8439, 0.7500), "osnet_x0_25_market1501": (0.6529, 0.5500)}
"""File -> (mAP, Rank-1)."""

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        not (DATA.exists() and cases.WEIGHTS.exists()) and not cases.REQUIRED,
        reason=f"no {DATA} or no {cases.WEIGHTS}; set LINEUP_DATA and LINEUP_WEIGHTS to the folders that hold them",
    ),
]


@pytest.mark.parametrize("name", FIGURES)
def test_published_weights_give_the_independent_figures(name, tmp_path):
    cfg = load_config(
        cases.ROOT / "configs" / "torchreid" / "osnet_x0_25.yml",
        [
            "TEST.WEIGHT", str(cases.WEIGHTS / f"{name}.pth"), "DATASETS.NAMES", "csv",
            "DATASETS.ROOT_DIR", str(DATA / "dataset.csv"), "DATALOADER.NUM_WORKERS", 0,
            "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path),
        ],
    )  # fmt: skip
    result = run.test(cfg)["results"]["csv"]
    assert (round(result["mAP"], 4), round(result["Rank-1"], 4)) == FIGURES[name]
