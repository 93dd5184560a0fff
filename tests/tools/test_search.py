"""Search in extracted galleries: brute force's lists, every kind of query, files and page, one-line mistakes."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import make_model
from model.backbones.clip import build_clip, clip_config
from processor.extractor import make_extractor
from tests.browser import PROGRAM, Browser
from tests.tiny import CLIP, config, options
from tools import search as command
from tools.extract import extract_to_folder
from utils.errors import UserError
from utils.feature_files import Features


@pytest.fixture(scope="module")
def place(market, tmp_path_factory):
    """A folder with a checkpoint, ``gallery`` and ``query`` extracted with it, ``other`` with another."""
    folder = tmp_path_factory.mktemp("search")
    for name in ("model", "another"):
        torch.manual_seed(len(name))
        torch.save(make_model(settings(market, folder), 4).state_dict(), folder / f"{name}.pth")
    images = sorted((market / "market1501" / "bounding_box_train").iterdir())
    with open(folder / "gallery.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("path", "pid"), *((path, path.name[:4]) for path in images)])
    extract_to_folder(settings(market, folder), folder / "gallery.csv", folder / "gallery")
    extract_to_folder(settings(market, folder), market / "market1501" / "query", folder / "query")
    extract_to_folder(settings(market, folder, "another"), market / "market1501" / "query", folder / "other")
    return folder


def settings(market, folder, weight="model", **changes):
    return config(market, folder, TEST__WEIGHT=str(folder / f"{weight}.pth"), TEST__IMS_PER_BATCH=5, **changes)


@pytest.fixture
def given(market, place, tmp_path, monkeypatch):
    """Words that name the model, to stand last; they need a configuration file."""
    (tmp_path / "any.yml").write_text("OUTPUT_DIR: ''\n")
    words = options(market, tmp_path, TEST__WEIGHT=place / "model.pth", TEST__IMS_PER_BATCH=5)
    return ["--config_file", tmp_path / "any.yml", *words]


def search(*words) -> None:
    command.main([str(word) for word in words])


def brute_force(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All distances in double precision, sorted."""
    dist = ((query[:, None].astype(float) - gallery[None].astype(float)) ** 2).sum(2)
    order = np.argsort(dist, axis=1, kind="stable")
    return order, np.take_along_axis(dist, order, 1)


def found_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_search_equals_brute_force(place, tmp_path, capsys):
    search("--query", place / "query", "--gallery", place / "gallery", "--k", 5, "--out", tmp_path / "found.jsonl")
    assert "the 5 nearest of 16 images for 8 queries" in capsys.readouterr().out
    query, gallery = Features(place / "query"), Features(place / "gallery")
    order, wanted = brute_force(query.array, gallery.array)
    paths = [row["path"] for row in csv.DictReader((place / "gallery" / "rows.csv").open())]
    lines = found_in(tmp_path / "found.jsonl")
    assert [line["query"]["row"] for line in lines] == list(range(8))
    for i, line in enumerate(lines):
        assert [hit["row"] for hit in line["found"]] == order[i, :5].tolist()
        assert [hit["rank"] for hit in line["found"]] == [1, 2, 3, 4, 5]
        np.testing.assert_allclose([hit["distance"] for hit in line["found"]], wanted[i, :5], atol=1e-5)
        assert [hit["path"] for hit in line["found"]] == [paths[j] for j in order[i, :5]]
        assert all(hit["pid"] == Path(hit["path"]).name[:4] for hit in line["found"])


def test_image_files_find_what_their_extraction_finds_and_bad_ones_are_skipped(place, market, given, tmp_path, capsys):
    images = sorted((market / "market1501" / "query").iterdir())
    (tmp_path / "bad.jpg").write_bytes(images[0].read_bytes()[:200])
    words = ["--query", *images[:3], tmp_path / "bad.jpg", tmp_path / "absent.jpg", *images[3:]]
    out = ["--out", tmp_path / "found.jsonl", "--page", tmp_path / "page.html"]
    search(*words, "--gallery", place / "gallery", *out, *given)
    told = capsys.readouterr()
    assert "for 8 queries, 2 skipped" in told.out
    assert len(re.findall(r"skipped: .*(?:bad.jpg: the image cannot|absent.jpg: the image is missing)", told.err)) == 2
    order, _ = brute_force(Features(place / "query").array, Features(place / "gallery").array)
    lines = found_in(tmp_path / "found.jsonl")
    assert [line["query"]["path"] for line in lines] == [str(path) for path in images]
    assert [[hit["row"] for hit in line["found"]] for line in lines] == order.tolist()
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8 * 17 and page.count('class="shot match"') == 8 * 16
    assert "8 queries in 16 images" in page and not re.search(r'(?:src|href)="(?!data:|#)', page)


def test_a_dark_query_of_16_bits_is_named(place, given, tmp_path, capsys, caplog):
    Image.fromarray(np.full((16, 8), 4095, np.uint16)).save(tmp_path / "dark.png")
    search("--query", tmp_path / "dark.png", "--gallery", place / "gallery", *given)
    assert json.loads(capsys.readouterr().out.splitlines()[0])["query"]["path"] == str(tmp_path / "dark.png")
    assert "--query: of 1 images of the image list, 1 images of 16 bits use only the lower 12 of them" in caplog.text


def test_a_page_marks_identities_and_shows_rows_without_pictures(place, tmp_path, capsys):
    search("--query", place / "gallery", "--gallery", place / "gallery", "--k", 4, "--page", tmp_path / "own.html")
    page = (tmp_path / "own.html").read_text()
    shots = re.findall(r'<li class="shot (\w+)">', page)
    assert len(shots) == 16 * 4 and set(shots) == {"right", "wrong"} and shots[::4] == ["right"] * 16
    raw = place / "gallery" / "features.npy"
    search("--query", raw, "--gallery", raw, "--k", 2, "--page", tmp_path / "raw.html")
    page = (tmp_path / "raw.html").read_text()
    assert "<img" not in page and "cannot be read" not in page and "row 15, 0.000" in page
    assert "could not be read" not in capsys.readouterr().out


@pytest.mark.skipif(PROGRAM is None, reason="no chromium on this machine to open pages with")
def test_a_browser_opens_the_page(place, tmp_path):
    search("--query", place / "query", "--gallery", place / "gallery", "--page", tmp_path / "page.html")
    with Browser(tmp_path / "profile") as browser:
        browser.open(tmp_path / "page.html")
        images = browser.ask("[...document.images].map(i => [i.complete, i.naturalWidth])")
        assert len(images) == 8 * 17 and all(complete and width > 0 for complete, width in images)
        for width in (1280, 390):
            browser.size(width, 800, phone=width == 390)
            assert browser.ask("document.documentElement.scrollWidth") <= width
        assert browser.troubles == []


def test_lines_go_to_standard_output_and_words_do_not(place, capsys):
    search("--query", place / "query", "--gallery", place / "gallery" / "features.npy", "--k", 1)
    told = capsys.readouterr()
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert len(lines) == 8 and set(lines[0]["found"][0]) == {"rank", "distance", "row"} and "nearest" in told.err


def test_faiss_says_its_recall_and_finds_most(place, tmp_path, capsys):
    pytest.importorskip("faiss", reason="requirements-dev.txt has it")
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((3000, 12), dtype=np.float32)
    np.save(tmp_path / "g.npy", gallery)
    np.save(tmp_path / "q.npy", gallery[::30] + 0.1 * rng.standard_normal((100, 12), dtype=np.float32))
    words = ["--query", tmp_path / "q.npy", "--gallery", tmp_path / "g.npy", "--k", 10, "--raw"]
    found = {}
    for kind in ("exact", "faiss"):
        for metric in ("euclidean", "cosine"):
            more = ["--index", "faiss"] if kind == "faiss" else []
            search(*words, "--metric", metric, "--out", tmp_path / "out.npz", *more)
            found[kind, metric] = dict(np.load(tmp_path / "out.npz"))
    shares = [float(word) for word in re.findall(r"recall ([\d.]+) of the exact 10", capsys.readouterr().out)]
    for metric, share in zip(("euclidean", "cosine"), shares, strict=True):
        one, two = found["exact", metric], found["faiss", metric]
        overlap = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(one["indices"], two["indices"], strict=True)])
        assert share == pytest.approx(overlap, abs=1e-4) and 0.6 < share < 1
        first = one["indices"][:, 0] == two["indices"][:, 0]
        assert first.mean() > 0.9
        np.testing.assert_allclose(two["distances"][first, 0], one["distances"][first, 0], atol=1e-5)
    for _ in range(2):  # the second reads the index that the first left
        search(
            "--query", place / "query", "--gallery", place / "gallery", "--index", "faiss", "--out", tmp_path / "a.npz"
        )
        assert "recall 1.0000 of the exact 16" in capsys.readouterr().out
        (kept,) = (place / "gallery").glob("ivf_*.faiss")
    kept.unlink()


def test_without_faiss_that_is_said(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="--index faiss needs faiss-cpu: pip install -r requirements-extra.txt"):
        search("--query", place / "query", "--gallery", place / "gallery", "--index", "faiss")


def test_another_models_gallery_is_refused_unless_forced(place, market, given, tmp_path, capsys):
    image = next((market / "market1501" / "query").iterdir())
    calls = [
        ["--query", place / "other", "--gallery", place / "gallery"],
        ["--query", image, "--gallery", place / "other", *given],
        ["--query", image, "--gallery", place / "gallery", *given, "TEST.FLIP", True],
    ]
    for words in calls:
        with pytest.raises(UserError, match=r"made with another model or setting \(\w{12}\) than the query \(\w{12}\)"):
            search(*words)
        search("--force", "--out", tmp_path / "found.npz", *words)


def test_mistakes_are_one_line(place, market, given, tmp_path):
    image = next((market / "market1501" / "query").iterdir())
    for name, file in (("cut", "features.npy"), ("short", "rows.csv"), ("bare", "meta.json")):
        shutil.copytree(place / "gallery", tmp_path / name)
        raw = (tmp_path / name / file).read_bytes()
        (tmp_path / name / file).write_bytes(raw[: len(raw) // 2])
    (tmp_path / "bare" / "meta.json").unlink()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "meta.json").write_text("{}")
    both = ["--query", image, "--gallery", place / "gallery"]
    calls = {
        "features.npy: not a readable .npy file .* truncated": [
            "--query",
            place / "query",
            "--gallery",
            tmp_path / "cut",
        ],
        "rows.csv: ": ["--query", place / "query", "--gallery", tmp_path / "short"],
        "meta.json: not the file that an extraction": ["--query", place / "query", "--gallery", tmp_path / "foreign"],
        "no finished extraction": ["--query", place / "query", "--gallery", tmp_path / "bare"],
        "is a folder without features; run tools.extract": ["--query", market, "--gallery", place / "gallery"],
        "give either --query or --text": ["--gallery", place / "gallery"],
        "must name the model": both,
        "TEST.WEIGHT is empty": [*both, *given, "TEST.WEIGHT", ""],
        "TEST.WEIGHT: absent.pth: no such file": [*both, *given, "TEST.WEIGHT", "absent.pth"],
        "none of the 1 images could be read": ["--query", "absent.jpg", "--gallery", place / "gallery", *given],
        "'supervised' trains no model that a sentence": ["--text", "a car", "--gallery", place / "gallery", *given],
        "holds features; give it alone": ["--query", place / "query", image, "--gallery", place / "gallery"],
        "--k: expected at least 1 image, got 0": [*both, "--k", 0],
        "expected a name that ends in .html, got x.txt": [*both, "--page", "x.txt"],
    }
    for line, words in calls.items():
        with pytest.raises(UserError, match=line) as error:
            search(*words)
        assert "\n" not in str(error.value)


def test_a_sentence_searches_a_gallery_of_its_space(market, place, tmp_path, capsys):
    torch.manual_seed(5)
    clip = build_clip("ViT-micro-8", clip_config("ViT-micro-8"), with_text=True)
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    changes = CLIP | {"MODEL__PRETRAIN_PATH": str(tmp_path / "clip.pt"), "TEST__WEIGHT": str(tmp_path / "model.pth")}
    cfg = config(market, tmp_path, **changes)
    torch.save(make_model(cfg, 5, 2, 1).state_dict(), cfg.TEST.WEIGHT)
    images = market / "market1501" / "query"
    extract_to_folder(cfg, images, tmp_path / "gallery", space="text")
    extract_to_folder(cfg, images, tmp_path / "mute")
    (tmp_path / "any.yml").write_text("OUTPUT_DIR: ''\n")
    given = ["--config_file", tmp_path / "any.yml", *options(market, tmp_path, **changes)]
    sentences = ["a person in red", "an empty street"]
    out = ["--out", tmp_path / "found.jsonl", "--page", tmp_path / "page.html"]
    search("--text", *sentences, "--gallery", tmp_path / "gallery", *out, *given)
    extractor = make_extractor(cfg, space="text")
    order, wanted = brute_force(extractor.sentences(sentences), extractor(sorted(images.iterdir())))
    for i, line in enumerate(found_in(tmp_path / "found.jsonl")):
        assert line["query"] == {"text": sentences[i]}
        assert [hit["row"] for hit in line["found"]] == order[i].tolist()
        np.testing.assert_allclose([hit["distance"] for hit in line["found"]], wanted[i], atol=1e-5)
    page = (tmp_path / "page.html").read_text()
    assert page.count("a person in red") >= 2 and "cannot be read" not in page
    search(
        "--query", next(images.iterdir()), "--gallery", tmp_path / "gallery", *out, *given
    )  # images in that space too
    assert found_in(tmp_path / "found.jsonl")[0]["found"][0]["distance"] < 1e-5
    with pytest.raises(UserError, match="no sentence compares with its features; extract them with --for_text"):
        search("--text", "a car", "--gallery", tmp_path / "mute", *given)
