"""Features of any images: those of the evaluation, the same bytes after a kill and by two processes, mistakes."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.loaders import make_dataloader
from datasets.readers.image_list import read_image_list
from model import make_model
from processor.evaluate import extract_features
from processor.extractor import Extractor, make_extractor
from tests.runs import exit_code_of
from tests.tiny import CLIP, MSVIT, config, options
from tests.together import SIDES, extraction_words, output_of, write_weight
from tools import extract as command
from tools.extract import extract_to_folder
from utils.checkpoint import load_weights
from utils.errors import UserError
from utils.feature_files import Features


@pytest.fixture(scope="module")
def weight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weight")
    write_weight(folder / "model.pth")
    return folder / "model.pth"


def settings(market, out, weight, **changes):
    return config(market, out, **(SIDES | {"TEST__WEIGHT": str(weight), "TEST__IMS_PER_BATCH": 5} | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".txt"}


def test_features_are_those_of_the_evaluation(market, weight, tmp_path):
    cfg = settings(market, tmp_path, weight, TEST__FLIP=True)
    data = make_dataloader(cfg, training=False)
    model = make_model(cfg, data.num_classes, data.num_cameras, data.num_views)
    load_weights(model, weight)
    test = data.tests[0]
    wanted = torch.nn.functional.normalize(extract_features(model, test.loader, torch.device("cpu"), flip=True))
    records = test.loader.records
    extractor = make_extractor(cfg)
    paths = list(records.paths)
    found = extractor(paths, records.camids)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    assert np.abs(extractor(paths) - found).max() > 1e-3  # the camera matters, and may be left out
    pictures = [Image.open(path).convert("RGB") for path in paths[:7]]
    np.testing.assert_array_equal(extractor(pictures, records.camids[:7]), found[:7])
    np.testing.assert_array_equal(extractor(np.stack(pictures), records.camids[:7]), found[:7])
    np.testing.assert_allclose(extractor(paths[0], records.camids[:1]), found[:1], atol=1e-6)
    assert extractor([]).shape == (0, found.shape[1])
    with open(tmp_path / "list.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("path", "pid", "camid"), *zip(paths, records.pids, records.camids, strict=True)])
    meta = extract_to_folder(cfg, tmp_path / "list.csv", tmp_path / "out")
    written = Features(tmp_path / "out")
    assert isinstance(written.array, np.memmap) and written.array.dtype == np.float32
    np.testing.assert_allclose(written.array, found, atol=1e-6)
    row = written.rows([9])[9]
    assert row == {"path": paths[9], "pid": str(records.pids[9]), "camid": str(records.camids[9])}
    assert meta["model_hash"] == extractor.model_hash and meta["count"] == len(paths) and meta["skipped"] == 0


def test_the_hash_tells_models_and_settings_apart_and_no_more(market, weight, tmp_path):
    state = torch.load(weight)
    one = {"classifier.weight": torch.zeros(9, 64)} | {k: v for k, v in state.items() if "classifier" not in k}
    torch.save(one, tmp_path / "no_classifier.pth")
    torch.save(state | {"bottleneck.bias": state["bottleneck.bias"] + 1e-3}, tmp_path / "moved.pth")

    def hash_of(path, **changes):
        return make_extractor(settings(market, tmp_path, path, **changes)).model_hash

    same = hash_of(weight)
    assert len(same) == 64 and same == hash_of(tmp_path / "no_classifier.pth")
    assert same == hash_of(weight, TEST__IMS_PER_BATCH=3, OUTPUT_DIR="x", SOLVER__BASE_LR=1.0)
    others = [
        hash_of(tmp_path / "moved.pth"), hash_of(weight, TEST__FLIP=True), hash_of(weight, INPUT__RESIZE_MARGIN=4),
        hash_of(weight, INPUT__PIXEL_MEAN=[0.1, 0.5, 0.5]), hash_of(weight, TEST__NECK_FEAT="before"),
        hash_of(weight, TEST__FEAT_NORM="no"), hash_of(weight, INPUT__RESIZE="pil_bicubic"),
    ]  # fmt: skip
    assert len({same, *others}) == 1 + len(others)


NETWORKS = {
    "resnet": {"MODEL__NAME": "resnet10"}, "msvit": MSVIT, "clip": {"MODEL__NAME": "ViT-micro-8"},
    "osnet": {"MODEL__NAME": "torchreid_osnet_x0_25", "MODEL__FC_DIM": 16}, "jpm": {"MODEL__JPM": True},
    "cluster": {"MODEL__NAME": "resnet10", "PROCESSOR__NAME": "cluster", "MODEL__POOLING": "gem"},
    "ssdvit": {"MODEL__NAME": "ssdvit", "PROCESSOR__NAME": "self_distill"},
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_is_read_without_a_data_set(name, tmp_path):
    size = {"INPUT__SIZE_TRAIN": [64, 32], "INPUT__SIZE_TEST": [64, 32], "TEST__WEIGHT": str(tmp_path / "model.pth")}
    cfg = config(tmp_path, tmp_path, **(size | NETWORKS[name]))
    torch.manual_seed(0)
    model = make_model(cfg, 7, 3, 1).eval()
    torch.save(model.state_dict(), cfg.TEST.WEIGHT)
    extractor, pixels = make_extractor(cfg), np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(model(extractor.transform(Image.fromarray(pixels))[None]))
    np.testing.assert_allclose(extractor([pixels]), wanted, atol=1e-5)


def test_both_kinds_of_side_information_are_left_out_and_that_is_said(market, tmp_path, caplog):
    cfg = settings(market, tmp_path, tmp_path / "both.pth", MODEL__SIE_VIEW=True)
    torch.save(make_model(cfg, 4, 2, 3).state_dict(), cfg.TEST.WEIGHT)
    extractor = make_extractor(cfg)
    assert extractor.sides == () and "has 6 rows for cameras and views together" in caplog.text
    image = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    np.testing.assert_array_equal(extractor([image], [1], [1]), extractor([image]))
    bare = {key: value for key, value in torch.load(cfg.TEST.WEIGHT).items() if "sie_embed" not in key}
    torch.save(bare, cfg.TEST.WEIGHT)
    np.testing.assert_array_equal(make_extractor(cfg)([image]), extractor([image]))
    assert "both.pth holds none" in caplog.text


def die_at_the_third_write(words: list[str]) -> None:
    """Extracts, and is killed as the third batch is about to be written."""
    command.FLUSH_SECONDS, keep, calls = 0, command.keep, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        keep(*args)

    command.keep = dies
    command.main(words)


@pytest.mark.slow
def test_a_killed_extraction_goes_on_to_the_same_bytes_and_so_do_two_processes(market, together, tmp_path):
    words = [str(word) for word in extraction_words(together, tmp_path / "out")]
    command.main([str(word) for word in extraction_words(together, tmp_path / "whole")])
    assert exit_code_of(die_at_the_third_write, words) == -signal.SIGKILL
    done = np.load(tmp_path / "out" / "done.part.npy")
    assert 0 < (done > 0).sum() < 23 and not (tmp_path / "out" / "meta.json").exists()
    with pytest.raises(UserError, match=r"no finished extraction .* the same command continues it"):
        Features(tmp_path / "out")
    changes = {"another batch size": {"TEST__IMS_PER_BATCH": 4}, "another model": {"TEST__FLIP": True}}
    for line, change in changes.items():
        with pytest.raises(UserError, match=line):
            cfg = settings(market, tmp_path, together / "sides.pth", **change)
            extract_to_folder(cfg, together / "images", tmp_path / "out")
    command.main(words)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    two = together / "features"
    assert output_of(together, "extraction").count("images/s") == 1
    assert contents(two) == contents(tmp_path / "whole")
    skipped = list(csv.reader((two / "skipped.csv").open()))
    damaged = sorted((together / "images").iterdir())[7]
    assert len(skipped) == 2 and skipped[1][0] == str(damaged) and "cannot be read" in skipped[1][1]
    meta = json.loads((two / "meta.json").read_text())
    assert (meta["count"], meta["skipped"], len(Features(two))) == (22, 1, 22)


def test_finished_work_is_left_alone_and_another_list_is_refused(market, weight, tmp_path, monkeypatch):
    images = sorted(map(str, market.rglob("*.jpg")))[:6]
    (tmp_path / "list.txt").write_text("\n".join(images))
    cfg = settings(market, tmp_path, weight)
    first = extract_to_folder(cfg, tmp_path / "list.txt", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(command, "fill", None)
        assert extract_to_folder(cfg, tmp_path / "list.txt", tmp_path / "out") == first
    (tmp_path / "list.txt").write_text("\n".join(images[:5]))
    with pytest.raises(UserError, match="holds features of another list of images"):
        extract_to_folder(cfg, tmp_path / "list.txt", tmp_path / "out")


def interrupted(*_) -> None:
    raise KeyboardInterrupt  # a signal would be ignored where the tests run in the background


def test_killed_while_finishing_it_finishes(market, weight, tmp_path, monkeypatch):
    images = sorted(map(str, market.rglob("*.jpg")))[:6]
    (tmp_path / "list.txt").write_text("\n".join([*images, "absent.jpg"]))
    cfg = settings(market, tmp_path, weight)
    extract_to_folder(cfg, tmp_path / "list.txt", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("utils.feature_files.write_csv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract_to_folder(cfg, tmp_path / "list.txt", tmp_path / "out")
    extract_to_folder(cfg, tmp_path / "list.txt", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_table_brings_boxes_and_columns(tmp_path):
    (tmp_path / "t.csv").write_text("path,label,x1,y1,x2,y2,colour\na.jpg,red,1,2,3,4,x\nb/b.jpg,blue,,,,,y\n")
    records, carried = read_image_list(tmp_path / "t.csv")
    assert list(records.paths) == [str(tmp_path / "a.jpg"), str(tmp_path / "b" / "b.jpg")]
    assert records.boxes.tolist() == [[1, 2, 3, 4], [0, 0, 0, 0]] and records.camids.tolist() == [-1, -1]
    assert carried["pid"] == ["red", "blue"] and carried["x1"] == ["1", ""] and "colour" not in carried


def test_images_that_need_more_than_decoding_are_named(market, weight, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        dark = np.full((16, 8), 4095 - i, np.uint16)
        Image.fromarray(dark).save(tmp_path / "photos" / f"{i}.png")
    extract_to_folder(settings(market, tmp_path, weight), tmp_path / "photos", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "of 3 images of the image list, 3: of 16 bits, scaled to 8" in printed
    assert "3 images of 16 bits use only the lower 12 of them" in printed


def test_mistakes_are_one_line(market, weight, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.csv").write_text("name\nx.jpg\n")
    (tmp_path / "bad.txt").write_text("absent.jpg\n")
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "other.pth")
    cfg, images = settings(market, tmp_path, weight), market / "market1501" / "query"
    wide = {"MODEL__REDUCE_FEAT_DIM": True, "MODEL__FEAT_DIM": 16}
    calls = {
        "TEST.WEIGHT is empty": (settings(market, tmp_path, ""), images, tmp_path / "out"),
        "no such file": (settings(market, tmp_path, "absent.pth"), images, tmp_path / "out"),
        "no tensor fits the model": (settings(market, tmp_path, tmp_path / "other.pth"), images, tmp_path / "out"),
        "of another model": (settings(market, tmp_path, weight, **wide), images, tmp_path / "out"),
        "is a file, not a folder": (cfg, images, tmp_path / "file"),
        "no images in it": (cfg, tmp_path / "empty", tmp_path / "out"),
        "no such folder, list or table": (cfg, tmp_path / "absent", tmp_path / "out"),
        "the list is empty": (cfg, tmp_path / "file", tmp_path / "out"),
        "no column 'path'": (cfg, tmp_path / "t.csv", tmp_path / "out"),
        "none of the 1 images could be read; the first: .*absent.jpg": (cfg, tmp_path / "bad.txt", tmp_path / "out"),
    }
    for line, call in calls.items():
        with pytest.raises(UserError, match=line):
            extract_to_folder(*call)
    with pytest.raises(UserError, match="trains no model that a sentence can search"):
        make_extractor(cfg, space="text")
    extractor = Extractor.load("", weight, *words_of(market, tmp_path))
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), 7):
        with pytest.raises(UserError, match="an image must be a path, a PIL image or a uint8 array"):
            extractor([image])
    with pytest.raises(UserError, match="sentences are compared with features of space 'text'"):
        extractor.sentences(["a car"])
    with pytest.raises(UserError, match=r"absent\.jpg: the image is missing"):
        extractor(["absent.jpg"])


def words_of(market, folder) -> list:
    return [str(w) if isinstance(w, Path) else w for w in options(market, folder, **SIDES)]


def test_a_prompt_model_gives_both_spaces(market, tmp_path):
    cfg = config(market, tmp_path, **CLIP, TEST__WEIGHT=str(tmp_path / "clip.pth"))
    torch.manual_seed(0)
    model = make_model(cfg, 5, 2, 1).eval()
    torch.save(model.state_dict(), cfg.TEST.WEIGHT)
    image, text = make_extractor(cfg), make_extractor(cfg, space="text")
    assert image.model_hash != text.model_hash and image.width > text.width
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        wanted = model.embed(text.transform(Image.fromarray(pixels))[None])
    np.testing.assert_allclose(text([pixels]), torch.nn.functional.normalize(wanted), atol=1e-6)
