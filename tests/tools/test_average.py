"""``tools.average``: mean and deviation over the runs of one setting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.datasets.miniatures import prid
from tests.runs import call
from tests.tiny import options
from tools import average
from utils.errors import UserError


def finished(folder: Path, **values) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"results": {"prid": values}}))
    return folder


def test_mean_and_deviation_stand_below_a_row_for_each_run(tmp_path, capsys):
    runs = [finished(tmp_path / n, mAP=v, queries=100) for n, v in (("a", 0.5), ("b", 0.7), ("c", 0.6))]
    average.main([*map(str, runs), str(tmp_path / "a")])  # named twice, counted once
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    values = {"prid": "mAP", "a": "50.0", "b": "70.0", "c": "60.0", "mean": "60.0", "deviation": "10.0"}
    assert dict(rows) == values and [name for name, _ in rows] == list(values)
    average.main([str(runs[0])])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["deviation", "0.0"]


@pytest.mark.slow
def test_the_mean_over_splits_of_trained_runs(tmp_path, capsys):
    from tests.datasets.every import paint

    prid().build(tmp_path)
    paint(tmp_path)
    small = {"DATASETS__NAMES": "prid", "SOLVER__MAX_EPOCHS": 1, "SOLVER__IMS_PER_BATCH": 64, "MODEL__NAME": "resnet10"}
    runs = [tmp_path / f"split{i}" for i in (0, 1)]
    for i, run in enumerate(runs):
        assert call("train", options(tmp_path, run, DATASETS__SPLIT_ID=i, **small)) == 0
    capsys.readouterr()
    average.main([str(run) for run in runs])
    out = capsys.readouterr().out.splitlines()
    assert out[1].startswith("split0 (split 0, seed 1234)") and out[2].startswith("split1 (split 1, seed 1234)")
    found = [json.loads((run / "metrics.json").read_text())["results"]["prid"]["mAP"] for run in runs]
    assert float(out[3].split()[1]) == pytest.approx(50 * sum(found), abs=0.06)
    with pytest.raises(UserError, match="split0, copy: all of split 0, seed 1234; name one of them"):
        (tmp_path / "copy").mkdir()
        for name in ("metrics.json", "config.yml"):
            (tmp_path / "copy" / name).write_text((runs[0] / name).read_text())
        average.main([*map(str, runs), str(tmp_path / "copy")])


def test_runs_that_do_not_belong_together_or_are_not_finished_are_refused(tmp_path):
    one, other = finished(tmp_path / "a", mAP=0.5), finished(tmp_path / "b", **{"Recall@1": 0.5})
    with pytest.raises(UserError, match="no common values: mAP on prid and Recall@1 on prid"):
        average.main([str(one), str(other)])
    with pytest.raises(UserError, match="no metrics.json or test_metrics.json of a finished run"):
        average.main([str(tmp_path)])
