"""Published weights on real vehicles: mAP and Rank-1 of an independent implementation, to four digits.

``LINEUP_WEIGHTS`` names the folder of weights (default ``../shared/weights`` beside the checkout). The figures are
those of ``vehicle2cam/README.md``: torchreid's own export, run by onnxruntime, and a ranking in plain NumPy.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from configs import load_config
from processor import run
from tests.parity import cases

WEIGHTS = Path(os.environ.get("LINEUP_WEIGHTS") or cases.ROOT.parent / "shared" / "weights")
VEHICLES = cases.DATA / "vehicle2cam"
FIGURES = {"osnet_x0_25_msmt17.pth": (0.8439, 0.7500), "osnet_x0_25_market1501.pth": (0.6529, 0.5500)}
CONFIG = cases.ROOT / "configs" / "torchreid" / "osnet_x0_25.yml"

ABSENT = [str(path) for path in (WEIGHTS, VEHICLES) if not path.is_dir()]

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        bool(ABSENT) and not cases.REQUIRED,
        reason=f"no {' and no '.join(ABSENT)}; set LINEUP_WEIGHTS and LINEUP_DATA to the folders that hold them",
    ),
]


@pytest.mark.parametrize("file", FIGURES)
def test_a_published_file_tests_to_the_published_figures(file, tmp_path):
    assert not ABSENT, f"no {' and no '.join(ABSENT)}"
    table = VEHICLES / "dataset.csv"
    cfg = load_config(CONFIG, [
        "DATASETS.NAMES", "csv", "DATASETS.ROOT_DIR", str(table), "TEST.WEIGHT", str(WEIGHTS / file),
        "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0,
    ])  # fmt: skip
    (metrics,) = run.test(cfg, str(CONFIG))["results"].values()
    assert (round(metrics["mAP"], 4), round(metrics["Rank-1"], 4)) == FIGURES[file]
    assert (metrics["queries"], metrics["valid_queries"]) == (60, 60)
