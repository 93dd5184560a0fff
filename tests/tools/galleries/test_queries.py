"""What a store is searched with: images, sentences, and a calibration, each as tools.search answers it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

if find_spec("lancedb") is None:
    pytest.skip("requirements-dev.txt has lancedb", allow_module_level=True)

from model import make_model
from model.backbones.clip import build_clip, clip_config
from tests.tiny import CLIP, config, options
from tests.tools.galleries.folders import HASH, unit_features, write_features
from tools import gallery, search
from tools.extract import extract_to_folder
from utils.calibration import Calibration
from utils.errors import UserError
from utils.scoring.calibration import Probability, Threshold


def both_answers(folder: Path, store: Path, *words) -> tuple[list[dict], list[dict]]:
    """The lists that tools.search finds in ``folder`` / gallery, and those of the store."""
    answers = []
    for name, main, where in (
        ("files", search.main, ["--gallery", folder / "gallery"]),
        ("store", gallery.main, ["search", "--store", store]),
    ):
        out = folder / f"{name}.jsonl"
        main([str(word) for word in (*where, "--k", 4, "--out", out, *words)])
        answers.append([json.loads(line) for line in out.read_text().splitlines()])
    return answers[0], answers[1]


def stored(folder: Path) -> Path:
    """A store with the features of ``folder`` / gallery."""
    for command in ("create", "add"):
        gallery.main([command, "--store", str(folder / "store"), "--features", str(folder / "gallery")])
    return folder / "store"


def test_images_and_sentences_find_in_a_store_what_they_find_in_files(market, tmp_path):
    torch.manual_seed(5)
    torch.save(build_clip("ViT-micro-8", clip_config("ViT-micro-8"), with_text=True).state_dict(), tmp_path / "clip.pt")
    changes = CLIP | {"MODEL__PRETRAIN_PATH": str(tmp_path / "clip.pt"), "TEST__WEIGHT": str(tmp_path / "model.pth")}
    cfg = config(market, tmp_path, **changes)
    torch.save(make_model(cfg, 5, 2, 1).state_dict(), cfg.TEST.WEIGHT)
    images = market / "market1501" / "query"
    extract_to_folder(cfg, images, tmp_path / "gallery", space="text")
    (tmp_path / "any.yml").write_text("OUTPUT_DIR: ''\n")
    model = ["--config_file", tmp_path / "any.yml", *options(market, tmp_path, **changes)]
    store, image = stored(tmp_path), sorted(images.iterdir())[3]
    for words in (["--text", "a person in red", "an empty street"], ["--query", image]):
        files, found = both_answers(tmp_path, store, *words, *model)
        assert len(files) == len(words) - 1
        for one, two in zip(files, found, strict=True):
            assert one["query"] == two["query"]
            assert [hit["row"] for hit in one["found"]] == [hit["row"] for hit in two["found"]]
            assert [hit["distance"] for hit in one["found"]] == [hit["distance"] for hit in two["found"]]
    assert found[0]["found"][0]["path"] == str(image) and found[0]["found"][0]["distance"] < 1e-5
    extract_to_folder(cfg, images, tmp_path / "mute")
    other = [str(word) for word in ("--store", tmp_path / "other", "--features", tmp_path / "mute")]
    gallery.main(["create", *other])
    gallery.main(["add", *other])
    with pytest.raises(UserError, match="no sentence compares with its features"):
        gallery.main(["search", *other[:2], "--text", "a car", *map(str, model)])


def test_a_calibration_gives_the_probabilities_and_unknowns_of_search(tmp_path):
    write_features(tmp_path / "gallery", unit_features(200))
    write_features(tmp_path / "query", np.concatenate([unit_features(200)[:3], -unit_features(200)[:2]]), name="q")
    threshold = Threshold(0.01, 0.5, 0.4, 0.6, 0.001, 0.1, 0.9)
    chance = Probability(np.array([0.0, 0.5, 2.0]), np.array([100.0, 1.0, 0.01]), 0.1)
    calibration = Calibration(HASH, "euclidean", True, "off", "x", "across", 9, 9, 9, [threshold], chance)
    calibration.write(tmp_path / "calibration.json")
    store, words = stored(tmp_path), ["--query", tmp_path / "query", "--calibration", tmp_path / "calibration.json"]
    files, found = both_answers(tmp_path, store, *words)
    assert [line["query"]["known"] for line in found] == [True] * 3 + [False] * 2
    for one, two in zip(files, found, strict=True):
        assert one["query"]["known"] == two["query"]["known"]
        assert [hit["probability"] for hit in one["found"]] == [hit["probability"] for hit in two["found"]]
    other = Calibration("b2" * 32, "euclidean", True, "off", "x", "across", 9, 9, 9, [threshold], chance)
    other.write(tmp_path / "calibration.json")
    with pytest.raises(UserError, match="calibration.json: is of another model"):
        gallery.main(["search", "--store", str(store), *map(str, words)])
