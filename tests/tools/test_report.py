"""The page of a run: what it says is what the evaluation found, and it opens in a browser without a complaint."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import make_model
from processor.query_files import Queries, Ranked
from tests.browser import Browser, Page, needs_browser
from tests.parity.cases import DATA
from tests.runs import call
from tests.tiny import config, options, write_market
from tools import report
from tools.report import figures, write_report
from utils.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run with a report, its data beside it."""
    root = write_market(tmp_path_factory.mktemp("data"), ids=6, cameras=3)
    folder = tmp_path_factory.mktemp("runs") / "done"
    assert call("train", options(root, folder, TEST__REPORT=True, SOLVER__EVAL_BEFORE=True)) == 0
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def test_the_page_says_what_the_evaluation_found(run):
    page, metrics = Page(run / "report.html"), json.loads((run / "metrics.json").read_text())
    for name in ("mAP", "mINP", "Rank-1", "Rank-5", "Rank-10"):
        value = f"{100 * metrics['results']['market1501'][name]:.1f}"
        assert re.search(rf"{name} {value} [\d.]+ – [\d.]+", page.text), name
    for word in ("Worst queries", "Best queries", "From camera to camera", "Training", "MODEL", "TRANSFORMER_TYPE",
                 metrics["commit"], metrics["environment"]["torch"], "Python".lower()):  # fmt: skip
        assert word in page.text, word
    assert len(page.all("svg")) >= 4  # CMC, APs, map, training
    queries = Queries.load(run / "per_query.csv")
    worst = queries.paths[int(np.argmin(queries.quality))]
    assert page.text.index(Path(worst).name) < page.text.index("Best queries")


def test_the_page_needs_nothing_from_elsewhere_and_speaks_to_everyone(run):
    page = Page(run / "report.html")
    addresses = [attrs.get("src") or attrs.get("href") for _, attrs in page.tags if "src" in attrs or "href" in attrs]
    assert len(addresses) > 50 and all(a.startswith(("data:", "#")) for a in addresses)
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert all(a[1:] in ids for a in addresses if a.startswith("#"))
    assert all(len(image["alt"]) > 10 for image in page.all("img"))
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in page.all("svg"))
    assert len(page.all("table")) == len(page.all("caption"))
    assert all("scope" in head for head in page.all("th"))
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1


def test_lists_are_marked_and_ranked_as_the_scores_are(run):
    page, queries, ranked = (f(run / n) for f, n in (
        (Page, "report.html"), (Queries.load, "per_query.csv"), (Ranked.load, "ranked.npz"),
    ))  # fmt: skip
    for i, first in enumerate(queries.first):
        judged = ranked.judged[i]
        assert (judged[judged >= 0][: first - 1] == 0).all() and judged[judged >= 0][first - 1] == 1
    shown = [image["alt"] for image in page.all("img") if "class" not in image]  # no pictures of the network
    kinds = {alt.split(",")[0] for alt in shown}
    assert kinds == {"query", "right", "wrong", "junk"}
    assert all(("no rank" in alt) == alt.startswith("junk") for alt in shown if not alt.startswith("query"))


def test_intervals_stand_only_at_means_over_queries():
    ap = np.array([0.2, 0.4, 0.9, np.nan])
    first, valid = np.array([3, 2, 1, 0]), np.array([True, True, True, False])
    queries = Queries(["a", "b", "c", "d"], np.arange(4), np.zeros(4, int), ap, ap, first, valid)
    metrics = {"mAP": 0.5, "mINP": 0.4, "Rank-1": 1 / 3, "Rank-5": 0.9, "Recall@1": 0.25, "queries": 4}
    rows = {row["name"]: row for row in figures(metrics, queries)}
    assert "queries" not in rows
    assert [n for n, r in rows.items() if r["low"] is not None] == ["mAP", "Rank-1", "Recall@1"]  # the others are not
    assert rows["mAP"]["low"] <= 50 <= rows["mAP"]["high"] and rows["mAP"]["high"] - rows["mAP"]["low"] > 20


def test_every_protocol_has_a_page(tmp_path):
    root = write_market(tmp_path / "data")
    for protocol in ("cuhk03", "vehicleid", "retrieval"):
        folder = tmp_path / protocol
        changes = {"TEST__PROTOCOL": protocol, "TEST__REPORT": True, "SOLVER__MAX_EPOCHS": 1, "TEST__REPEATS": 2}
        assert call("train", options(root, folder, **changes)) == 0
        page = Page(folder / "report.html")
        assert "Worst queries" in page.text and len(page.all("img")) > 20
    assert "Recall@1" in page.text and "CMC" not in page.text


@pytest.mark.slow
def test_several_sets_have_a_section_each_and_a_test_has_its_own_yaml(tmp_path):
    root = write_market(tmp_path / "data")
    sets = {"DATASETS__TARGETS": ["market1501", "synthetic"], "DATASETS__SYNTHETIC__IDS": 8, "TEST__REPORT": True}
    assert call("train", options(root, tmp_path / "run", **sets)) == 0
    assert len(Page(tmp_path / "run" / "report.html").all("section")) == 5  # two sets, training, pictures, settings
    weight = tmp_path / "run" / "transformer_2.pth"
    assert call("test", options(root, tmp_path / "run", TEST__WEIGHT=weight, TEST__REPORT=True, TEST__FLIP=True)) == 0
    text = Page(tmp_path / "run" / "report.html").text
    assert "FLIP: true" in text and str(weight) in text and "synthetic" not in text.split("Settings")[0]
    assert "stage supervised" in text  # how it was trained
    assert call("test", options(root, tmp_path / "run", TEST__WEIGHT=weight)) == 0
    assert not (tmp_path / "run" / "ranked.npz").exists()  # of an evaluation that is no longer the last
    assert "Worst queries" not in Page(write_report(tmp_path / "run")).text


def test_images_that_have_gone_are_told_and_counted(copy, caplog):
    ranked = Ranked.load(copy / "ranked.npz")
    queries = (copy / "per_query.csv").read_text().splitlines()
    queries[1:] = [line.replace(".jpg", "_gone.jpg") for line in queries[1:]]
    (copy / "per_query.csv").write_text("\n".join(queries) + "\n")
    with caplog.at_level("WARNING", "lineup"):
        page = Page(write_report(copy))
    assert "cannot be read" in page.text and "images could not be read" in caplog.text
    assert len(page.all("img")) > 20 and len(ranked.paths) > 0


def test_mistakes_are_one_line(copy, tmp_path):
    with pytest.raises(UserError, match="no metrics.json"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="could not be written"):
        write_report(copy, copy / "per_query.csv" / "report.html")
    whole = (copy / "ranked.npz").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text"):
        (copy / "ranked.npz").write_bytes(damaged)
        with pytest.raises(UserError, match="ranked.npz: damaged"):
            write_report(copy)
    (copy / "per_query.csv").write_text("path,pid\n")
    with pytest.raises(UserError, match="per_query.csv: (missing|damaged)|ranked.npz"):
        write_report(copy)
    (copy / "per_query.csv").unlink()
    with pytest.raises(UserError, match="per_query.csv: missing"):
        write_report(copy)


def test_the_command_writes_where_it_is_told(copy, tmp_path, capsys):
    report.main([str(copy), "--out", str(tmp_path / "page.html")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 50_000


def builtin_run(folder: Path) -> Path:
    changes = {"DATASETS__NAMES": "synthetic", "DATASETS__SYNTHETIC__IDS": 8, "SOLVER__EVAL_BEFORE": True}
    assert call("train", options(folder, folder / "run", TEST__REPORT=True, SOLVER__MAX_EPOCHS=1, **changes)) == 0
    return folder / "run"


def eth80_run(folder: Path) -> Path:
    """A test of an untrained network: what is looked at is the page, not the figures."""
    data = DATA / "eth80"
    if not data.exists():
        pytest.skip(f"no {data}; set LINEUP_DATA to the folder that holds eth80")
    changes = {"INPUT__SIZE_TRAIN": [32, 32], "INPUT__SIZE_TEST": [32, 32], "TEST__REPORT": True}
    torch.save(make_model(config(data, folder, **changes), 40, 4, 1).state_dict(), folder / "model.pth")
    assert call("test", options(data, folder / "run", TEST__WEIGHT=folder / "model.pth", **changes)) == 0
    return folder / "run"


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("make", [builtin_run, eth80_run])
def test_a_browser_opens_the_page(make, tmp_path):
    page = make(tmp_path) / "report.html"
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        images = browser.ask("[...document.images].map(i => [i.complete, i.naturalWidth])")
        assert len(images) > 60 and all(complete and width > 0 for complete, width in images)
        column = "[...document.querySelectorAll('table.sortable')][1].tBodies[0].rows"
        read = f"[...{column}].map(row => Number(row.cells[2].dataset.value))"
        button = "[...document.querySelectorAll('table.sortable')][1].tHead.rows[0].cells[2].querySelector('button')"
        worst_first = browser.ask(read)
        assert worst_first == sorted(worst_first) and len(set(worst_first)) > 1
        browser.ask(f"{button}.focus()")
        browser.press("Enter", 13)
        assert browser.ask(read) == sorted(worst_first, reverse=True)
        assert browser.ask(f"{button}.closest('th').getAttribute('aria-sort')") == "descending"
        browser.press("Enter", 13)
        assert browser.ask(read) == worst_first
        for width in (1280, 390):
            browser.size(width, 800, phone=width == 390)
            assert browser.ask("document.documentElement.scrollWidth") <= width  # nothing sticks out sideways
            browser.picture(tmp_path / f"{width}.png", whole=False)
            assert len(np.unique(np.asarray(Image.open(tmp_path / f"{width}.png")))) > 50
        assert browser.troubles == []


@needs_browser
def test_the_keyboard_reaches_everything(run, tmp_path):
    wanted = "document.querySelectorAll('a[href], button, summary, [tabindex=\"0\"]')"
    with Browser(tmp_path / "profile") as browser:
        browser.open(run / "report.html")
        browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
        total = browser.ask(f"{wanted}.length")
        browser.ask("window.reached = new Set(); document.addEventListener('focusin', e => reached.add(e.target))")
        for _ in range(total + 5):
            browser.press("Tab", 9)
        missed = browser.ask(f"[...{wanted}].filter(e => !reached.has(e)).map(e => e.outerHTML.slice(0, 100))")
        assert total > 20 and missed == [] and browser.troubles == []
