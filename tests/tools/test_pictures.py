"""``tools.pictures``: each network gets what there is to see of it, as files and in the report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.loaders import make_dataloader
from model import make_model
from tests.model.families import MODELS
from tests.runs import call
from tests.tiny import config, options
from tools.pictures import KINDS, draw_pictures, main, overlaid
from tools.report import write_report
from utils.errors import UserError

ATTENTION = {"attention", "map", "sheet"}
ACTIVATION = {"activation", "map", "sheet"}
FOUND = {
    "vit": ATTENTION, "jpm": ATTENTION, "clip vit": ATTENTION, "timm vit": ATTENTION, "resnet": ACTIVATION,
    "osnet": ACTIVATION, "mobilenet": ACTIVATION, "clip rn": ACTIVATION, "msvit": ACTIVATION | {"tokens"},
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_each_network_gets_its_pictures(name, market, tmp_path):
    changes = MODELS[name]
    if "INPUT__SIZE_TRAIN" in changes:
        changes = changes | {"INPUT__SIZE_TEST": changes["INPUT__SIZE_TRAIN"]}
    cfg = config(market, tmp_path, **changes)
    data = make_dataloader(cfg, training=False)
    model = make_model(cfg, data.num_classes, data.num_cameras, data.num_views, data.kind).train()
    pictures = draw_pictures(cfg, model, data, torch.device("cpu"), tmp_path, count=3)
    assert {picture.kind for picture in pictures} == FOUND[name] and model.training
    listed = json.loads((tmp_path / "pictures" / "index.json").read_text())
    assert [one["file"] for one in listed] == [picture.file for picture in pictures]
    for one in listed:
        assert len(one["alt"]) > 20 and one["title"] and one["caption"]
        pixels = np.asarray(Image.open(tmp_path / "pictures" / one["file"]).convert("RGB"))
        assert min(pixels.shape[:2]) > 80 and len(np.unique(pixels)) > 20


def test_heat_is_drawn_where_it_is():
    images, heat = np.full((1, 40, 20, 3), 0.5), np.zeros((1, 4, 2))
    heat[0, 3, 1] = 5
    drawn = overlaid(images, heat)[0]
    brightness = drawn.mean(-1)
    assert np.unravel_index(brightness.argmax(), brightness.shape)[0] > 30
    assert brightness[35, 15] > brightness[5, 5] + 0.1
    flat = overlaid(images, np.ones((1, 4, 2)))[0]
    assert np.ptp(flat.reshape(-1, 3), axis=0).max() < 1e-6  # nothing stands out where nothing does


@pytest.fixture(scope="module")
def trained(market, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert call("train", options(market, folder, SOLVER__MAX_EPOCHS=1, TEST__REPORT=True)) == 0
    return folder


def test_the_report_shows_the_pictures_with_their_words(trained):
    page = (trained / "report.html").read_text()
    listed = json.loads((trained / "pictures" / "index.json").read_text())
    assert {one["kind"] for one in listed} == {"attention", "sheet"}
    assert all(f'alt="{one["alt"]}"' in page and one["title"] in page for one in listed)


def test_the_command_draws_what_it_is_asked_for(market, trained, tmp_path, capsys):
    words = [str(w) for w in options(market, tmp_path / "run", TEST__WEIGHT=trained / "transformer_1.pth")]
    main(["--only", "attention", "--only", "map", "--images", "2", *words])
    files = [line for line in capsys.readouterr().out.splitlines() if line.endswith(".png")]
    assert files == [str(tmp_path / "run" / "pictures" / f"{kind}.png") for kind in ("attention", "map")]
    two = Image.open(files[0]).size
    main(["--only", "attention", "--images", "4", "--out", str(tmp_path / "four"), *words])
    assert Image.open(tmp_path / "four" / "pictures" / "attention.png").size[0] > two[0]
    main(["--only", "sheet", *map(str, options(market, tmp_path / "sheets"))])  # needs no checkpoint
    assert (tmp_path / "sheets" / "pictures" / "sheet_market1501.png").exists()


def test_mistakes_are_one_line(market, trained, tmp_path):
    words = [str(w) for w in options(market, tmp_path / "run", TEST__WEIGHT=trained / "transformer_1.pth")]
    with pytest.raises(UserError, match="--only tokens: does not apply to MODEL.NAME 'transformer'"):
        main(["--only", "tokens", *words])
    with pytest.raises(UserError, match="TEST.WEIGHT is empty"):
        main(list(map(str, options(market, tmp_path / "run"))))
    with pytest.raises(UserError, match="no such file"):
        main(list(map(str, options(market, tmp_path / "run", TEST__WEIGHT="none.pth"))))
    with pytest.raises(UserError, match="resnet10|backbone|tensors|checkpoint"):
        main([*words, "MODEL.NAME", "resnet10"])
    with pytest.raises(UserError, match="--at"):
        main(["--at", "0.5", "1.5", *words])
    (trained / "pictures" / "index.json").write_text("{")
    with pytest.raises(UserError, match="index.json: damaged"):
        write_report(trained)


def test_kinds_are_told_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert all(f"\n{kind} " in told for kind in KINDS)
