"""Finished runs become rows of a CSV and tables of the pages."""

from __future__ import annotations

import json

import pytest

from tools import record
from utils.errors import UserError

METRICS = {
    "results": {"market1501": {"mAP": 0.5, "Rank-1": 0.75, "Rank-5": 0.9, "Rank-10": 1.0}},
    "history": [{"stage": "s", "epoch": 0, "mAP": 0.125}, {"stage": "s", "epoch": 2, "mAP": 0.5}],
    "method": "supervised", "config_file": "configs/a.yml", "seed": 1, "seconds": 90.0, "commit": "0123456789abcdef+",
    "machine": "1 x 2 cores x86_64",
}  # fmt: skip


@pytest.fixture
def finished(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    return tmp_path


def test_a_row_holds_the_numbers_in_percent(finished):
    (row,) = record.rows_of(finished)
    assert (row["data"], row["mAP_untrained"], row["mAP"], row["Rank-1"]) == ("market1501", "12.5", "50.0", "75.0")
    assert (row["minutes"], row["commit"]) == ("1.5", "0123456789")
    assert record.rows_of(finished, "ETH-80")[0]["data"] == "ETH-80"


def test_the_same_setting_is_replaced_and_another_added(finished, tmp_path):
    rows = record.rows_of(finished)
    record.append(rows, tmp_path / "results")
    record.append([{**rows[0], "mAP": "51.0"}], tmp_path / "results")
    record.append([{**rows[0], "seed": "2"}], tmp_path / "results")
    found = record.read(tmp_path / "results" / "supervised.csv")
    assert [(r["seed"], r["mAP"]) for r in found] == [("1", "51.0"), ("2", "50.0")]


def test_tables_are_filled_between_their_marks(finished, tmp_path):
    record.append(record.rows_of(finished), tmp_path)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results supervised -->\nold\n<!-- end -->\nafter\n")
    record.fill_tables(tmp_path, [page])
    text = page.read_text()
    assert "old" not in text and "| 12.5 | 50.0 | 75.0 |" in text and text.startswith("before\n") and "after" in text


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no metrics.json or test_metrics.json of a finished run"):
        record.rows_of(tmp_path)
