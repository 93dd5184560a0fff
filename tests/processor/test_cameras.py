"""Cameras keep the dataset's own numbers in the filter and in everything that people read."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import build_transforms, make_dataloader
from model import RetrievalModel
from processor.evaluate import Settings, evaluate
from tests.runs import call
from tests.tiny import config, options

SMALL = {
    "DATASETS__SYNTHETIC__IDS": 8, "DATASETS__SYNTHETIC__CAMERAS": 4, "DATASETS__SYNTHETIC__IMAGES": 2,
    "SOLVER__MAX_EPOCHS": 1, "TEST__REPORT": True, "MODEL__SIE_CAMERA": True,
}  # fmt: skip


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_cameras_of_a_target_are_those_of_its_file_names(tmp_path, caplog):
    caplog.set_level("INFO", "lineup")
    changes = {"DATASETS__NAMES": "synthetic", "DATASETS__TARGETS": ["synthetic_b"], **SMALL}
    words = [str(word) for word in options(tmp_path / "data", tmp_path / "out", **changes)]
    assert call("train", words) == 0
    rows = rows_of(tmp_path / "out" / "per_query.csv")
    shown = {int(row["camid"]) for row in rows}
    assert shown == {1, 2, 3, 4}
    for row in rows:
        assert int(row["camid"]) == int(re.search(r"_c(\d+)", Path(row["path"]).name)[1])
    with np.load(tmp_path / "out" / "ranked.npz", allow_pickle=False) as ranked:
        paths = ranked["paths"].tobytes().decode().split("\0")
        assert ranked["camids"].tolist() == [int(re.search(r"_c(\d+)", Path(path).name)[1]) for path in paths]
        assert set(ranked["q_cameras"].tolist()) | set(ranked["g_cameras"].tolist()) == {1, 2, 3, 4}
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "synthetic_b: 16 queries, gallery" in log
    assert "matches of the same identity and camera are left out" in log
    page = (tmp_path / "out" / "report.html").read_text()
    assert "camera 1" in page and "camera 4" in page and "camera 7" not in page


def test_the_network_gets_the_labels_that_were_trained(tmp_path):
    both = {"DATASETS__NAMES": ["synthetic", "synthetic_b"], **SMALL}
    data = make_dataloader(config(tmp_path, tmp_path / "out", **both))
    for test, first in zip(data.tests, (0, 4), strict=True):
        assert set(test.query.camids.tolist()) == {0, 1, 2, 3}
        assert set(test.query.cam_labels.tolist()) == set(range(first, first + 4))
        batch = next(iter(test.loader))
        assert set(batch.cam_labels.tolist()) <= set(range(first, first + 4))


class Mean(RetrievalModel):
    """The mean colour as a feature."""

    def forward(self, images, cam_label=None, view_label=None):
        return images.mean((2, 3))


@pytest.mark.parametrize("split", ["test", "query and gallery"])
def test_cameras_with_names_are_filtered_and_shown_by_name(split, tmp_path):
    rng = np.random.default_rng(0)
    lines = ["path,pid,camid,split"]
    for pid in ("ann", "rex"):
        for camera in ("door west", "door east"):
            for i in range(2):
                name = f"{pid}_{camera}_{i}.png".replace(" ", "_")
                Image.fromarray(rng.integers(0, 255, (8, 4, 3), np.uint8)).save(tmp_path / name)
                splits = ["test"] if split == "test" else ["query", "gallery"]
                lines += [f"{name},{pid},{camera},{s}" for s in splits]
    (tmp_path / "dataset.csv").write_text("\n".join(lines))
    cfg = config(tmp_path, tmp_path / "out", DATASETS__NAMES="csv", DATALOADER__SAMPLER="softmax")
    data = make_dataloader(cfg, training=False)
    results = evaluate(Mean(), data.tests, Settings.from_cfg(cfg), torch.device("cpu"), tmp_path)
    assert results["csv"]["queries"] == results["csv"]["valid_queries"] == 8
    rows = rows_of(tmp_path / "per_query.csv")
    assert {row["camid"] for row in rows} == {"door west", "door east"}
    assert {row["pid"] for row in rows} == {"ann", "rex"}
    distances = torch.cdist(*[torch.stack([features(Path(row["path"])) for row in rows])] * 2)
    kinds = [(row["pid"], row["camid"]) for row in rows]
    hits = []
    for i, kind in enumerate(kinds):  # what the protocol says, in loops
        kept = [j for j in np.argsort(distances[i].numpy(), kind="stable") if kinds[j] != kind]
        hits.append(kinds[kept[0]][0] == kind[0])
    assert results["csv"]["Rank-1"] == pytest.approx(np.mean(hits))


def features(path: Path) -> torch.Tensor:
    """The normalised mean colour of an image, as ``Mean`` gives it for 32 x 16 pixels."""
    cfg = config(path.parent, path.parent, DATASETS__NAMES="csv")
    feature = build_transforms(cfg, is_train=False)(Image.open(path)).mean((1, 2))
    return feature / feature.norm()
