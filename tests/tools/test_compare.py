"""``tools.compare``: who is put together, what is told of the difference, and what the page shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from processor.evaluate import Scored, per_query_csv
from processor.query_files import Queries
from tests.browser import Browser, Page, needs_browser
from tests.runs import call
from tests.tiny import options, write_market
from tools import compare
from utils.errors import UserError

QUERIES = 80


def finished(folder: Path, ap: np.ndarray, **settings) -> Path:
    """A folder as training leaves it, with these APs; settings: SOLVER keys of its YAML."""
    from datasets.records import Records

    folder.mkdir(parents=True)
    first = np.where(ap > 0.5, 1, 7)
    query = Records.of([f"/data/{folder.name}/q{i:03d}.jpg" for i in range(len(ap))], np.arange(len(ap)) // 4)
    scored = Scored({}, query, {"AP": ap, "INP": ap / 2, "first_match_rank": first})
    (folder / "per_query.csv").write_bytes(per_query_csv(scored))
    row = {"mAP": ap.mean(), "mINP": ap.mean() / 2, "Rank-1": (first == 1).mean(), "queries": len(ap)}
    (folder / "metrics.json").write_text(json.dumps({"results": {"market1501": row}}))
    tree = {"SOLVER": {"SEED": 1, "MAX_EPOCHS": 5} | settings, "OUTPUT_DIR": str(folder)}
    (folder / "config.yml").write_text(yaml.safe_dump(tree))
    return folder


def aps(seed: int, lift: float = 0.0) -> np.ndarray:
    hard = np.random.default_rng(0).beta(0.8, 0.6, QUERIES)
    return (hard + lift + 0.05 * np.random.default_rng(seed).standard_normal(QUERIES)).clip(0.01, 1)


def rows(capsys) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_two_seeds_of_one_setting_do_not_differ_and_a_better_setting_does(tmp_path, capsys):
    one, two = (finished(tmp_path / f"s{i}", aps(i), SEED=i) for i in (1, 2))
    compare.main([str(one), str(two)])
    told = capsys.readouterr().out
    assert "no significant difference" in told and "choice of queries" in told
    better = finished(tmp_path / "long", aps(3, 0.1), SEED=1, MAX_EPOCHS=40)
    compare.main([str(one), str(better)])
    told = capsys.readouterr().out
    assert "mAP: better, significant" in told and "SOLVER.MAX_EPOCHS 5 -> 40" in told
    compare.main([str(better), str(one)])
    assert "mAP: worse, significant" in capsys.readouterr().out


def test_seeds_of_one_setting_are_one_side_unless_told_otherwise(tmp_path, capsys):
    runs = [finished(tmp_path / f"a{i}", aps(i), SEED=i) for i in (1, 2, 3)]
    runs += [finished(tmp_path / f"b{i}", aps(10 + i, 0.05), SEED=i, MAX_EPOCHS=40) for i in (1, 2)]
    compare.main([str(run) for run in runs])
    printed = rows(capsys)
    first, second = printed[2], printed[3]
    assert "(seeds 1, 2, 3)" in " ".join(first) and "(seeds 1, 2)" in " ".join(second)
    means = [[100 * aps(i).mean() for i in (1, 2, 3)], [100 * aps(10 + i, 0.05).mean() for i in (1, 2)]]
    assert [float(w) for w in first[-3:]] == pytest.approx([3, np.mean(means[0]), np.std(means[0], ddof=1)], abs=0.006)
    assert float(second[-5]) == pytest.approx(np.mean(means[1]) - np.mean(means[0]), abs=0.01)
    compare.main(["--each", *map(str, runs)])
    printed = rows(capsys)
    assert [row[0] for row in printed[2:7]] == [str(run) for run in runs]
    again = finished(tmp_path / "again", aps(1), SEED=1)  # the same seed is no second draw of the luck
    compare.main([str(runs[0]), str(again)])
    assert rows(capsys)[3][-1] == "1"


def test_figures_that_are_no_mean_over_queries_are_left_out(tmp_path, capsys):
    runs = [finished(tmp_path / name, aps(i)) for i, name in enumerate("ab")]
    for run in runs:
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["results"]["market1501"]["Rank-1"] = 0.123  # of drawn galleries
        (run / "metrics.json").write_text(json.dumps(metrics))
    compare.main([str(run) for run in runs])
    told = capsys.readouterr().out
    assert "mAP" in told and "Rank-1" not in told


def test_mistakes_are_one_line(tmp_path):
    one = finished(tmp_path / "one", aps(1))
    for match, folder in (
        ("expected two or more runs", one),
        ("no metrics.json", tmp_path),
        ("not tested on the same queries of market1501: 79 and 80", finished(tmp_path / "short", aps(1)[1:])),
    ):
        with pytest.raises(UserError, match=match):
            compare.main([str(one), str(folder)])
    other = finished(tmp_path / "other", aps(1))
    lines = (other / "per_query.csv").read_text().replace("q005", "q905")
    (other / "per_query.csv").write_text(lines)
    with pytest.raises(UserError, match="row 6 is .*q905"):
        compare.main([str(one), str(other)])
    (other / "per_query.csv").write_text(lines[: len(lines) // 2])
    with pytest.raises(UserError, match="damaged|same queries"):
        compare.main([str(one), str(other)])
    metrics = json.loads((one / "metrics.json").read_text().replace("market1501", "msmt17"))
    elsewhere = finished(tmp_path / "elsewhere", aps(1))
    (elsewhere / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match="different sets: market1501; msmt17"):
        compare.main([str(one), str(elsewhere)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs with ranked galleries that differ in their epochs."""
    root, runs = write_market(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("runs")
    for epochs in (1, 3):
        changes = {"TEST__REPORT": True, "SOLVER__MAX_EPOCHS": epochs, "SOLVER__EVAL_PERIOD": 0}
        assert call("train", options(root, runs / f"e{epochs}", **changes)) == 0
    return runs / "e1", runs / "e3"


def test_the_page_shows_what_changed_most_in_both_rankings(trained, tmp_path):
    compare.main([*map(str, trained), "--out", str(tmp_path / "page.html")])
    page = Page(tmp_path / "page.html")
    before, after = (Queries.load(run / "per_query.csv") for run in trained)
    gap = after.ap - before.ap
    assert gap.max() > 0, "the runs must differ for this test to show anything"
    most = int(np.argsort(gap, kind="stable")[-1])
    told = f"{100 * before.ap[most]:.1f} → {100 * after.ap[most]:.1f}"
    assert told in page.text and page.text.index(told) < page.text.index("lost most")
    assert len(page.all("img")) > 20 and "SOLVER.MAX_EPOCHS 1 -> 3" in page.text


def test_without_ranked_galleries_the_page_says_so(trained, tmp_path):
    plain = shutil.copytree(trained[0], tmp_path / "plain")
    (plain / "ranked.npz").unlink()
    compare.main([str(plain), str(trained[1]), "--out", str(tmp_path / "page.html")])
    assert "TEST.REPORT True" in Page(tmp_path / "page.html").text


@needs_browser
def test_a_browser_opens_the_page(trained, tmp_path):
    compare.main([*map(str, trained), "--out", str(tmp_path / "page.html")])
    with Browser(tmp_path / "profile", width=390) as browser:
        browser.size(390, 800, phone=True)
        browser.open(tmp_path / "page.html")
        assert browser.ask("[...document.images].every(i => i.naturalWidth > 0)")
        assert browser.ask("document.documentElement.scrollWidth") <= 390
        assert browser.troubles == []
