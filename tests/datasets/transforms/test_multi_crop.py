"""DINO's crops: sizes, seeds, one decoding per image, whole batches; lists that filter."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import datasets.images
from datasets import make_dataloader, make_dataset
from datasets.readers.filter_list import listed_names, relative_names
from datasets.transforms.multi_crop import make_multi_crop_transform
from tests.datasets.miniatures import LUPERSON, lists, message, write
from tests.tiny import config, write_market
from utils.errors import UserError

DINO = {
    "PROCESSOR__NAME": "dino", "DATALOADER__SAMPLER": "softmax", "DINO__CROP_HEIGHT": 16, "DINO__CROP_WIDTH": 8,
    "DINO__LOCAL_CROPS_NUMBER": 3, "INPUT__SIZE_TRAIN": [32, 16],
}  # fmt: skip


def settings(root: Path = Path(), **changes):
    return config(root, Path("unused"), **DINO | changes)


def test_a_batch_holds_every_images_crops_in_their_sizes_from_one_decoding(tmp_path, monkeypatch):
    read = []
    real = datasets.images.read_image
    monkeypatch.setattr(datasets.images, "read_image", lambda path: read.append(path) or real(path))
    data = make_dataloader(settings(write_market(tmp_path)))
    for batch in data.train.epoch(1):
        crops = [batch.images, *batch.views]
        assert [tuple(crop.shape) for crop in crops] == [(4, 3, 32, 16)] * 2 + [(4, 3, 16, 8)] * 3
        assert all(crop.dtype == torch.float32 and crop.isfinite().all() for crop in crops)
        assert len({crop.sum().item() for crop in crops}) == 5
        moved = batch.to(torch.device("cpu"))
        assert all(torch.equal(a, b) for a, b in zip(moved.views, batch.views, strict=True))
    assert len(read) == len(set(read)) == 16


def test_the_same_epoch_has_the_same_crops_and_another_one_others(tmp_path):
    data = make_dataloader(settings(write_market(tmp_path)))
    first, again, other = (next(iter(data.train.epoch(e))) for e in (1, 1, 2))
    assert torch.equal(first.images, again.images) and torch.equal(first.views[3], again.views[3])
    assert not torch.equal(first.images, other.images)


def test_crops_take_the_share_of_the_image_that_they_are_told():
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (1, 64, 3)))
    spans = {}
    for kind, i in (("GLOBAL", 0), ("LOCAL", 2)):
        cfg = settings(**{f"DINO__{kind}_CROPS_SCALE": [0.09, 0.09]})
        crop = make_multi_crop_transform(cfg).crops[i].transforms[0]
        torch.manual_seed(0)
        spans[kind] = [np.ptp(np.array(crop(ramp))[..., 0].astype(int)) for _ in range(20)]
    for values in spans.values():  # a tenth of the area at an aspect of 3/4 to 4/3: 0.26 to 0.35 of the height
        assert min(values) > 0.2 * 255 and max(values) < 0.36 * 255


def test_each_kind_of_crop_has_its_blur_and_solarising():
    kinds = [make_multi_crop_transform(settings()).crops[i].transforms for i in (0, 1, 2)]
    assert [kind[4].probability for kind in kinds] == [1.0, 0.1, 0.5]
    assert [kind[5].p for kind in kinds] == [0.0, 0.2, 0.0]
    assert [kind[0].scale for kind in kinds] == [(0.4, 1.0), (0.4, 1.0), (0.05, 0.4)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"DINO__GLOBAL_CROPS_SCALE": [0.5, 0.4]}, "DINO.GLOBAL_CROPS_SCALE"),
        ({"DINO__LOCAL_CROPS_SCALE": [0.0, 0.4]}, "DINO.LOCAL_CROPS_SCALE"),
        ({"DATALOADER__SAMPLER": "softmax_triplet"}, "DATALOADER.SAMPLER 'softmax_triplet' and PROCESSOR.NAME 'dino'"),
    ],
)
def test_mistakes_are_one_line(changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        make_dataloader(settings(write_market(tmp_path), **changes))


# ---------------------------------------------------------------- images without labels, and lists of them


def test_any_folder_trains_without_labels_and_without_a_test(tmp_path):
    write(tmp_path, ["b.jpg", "a/1.jpg", "a/deep/2.png", "c.jpg", "notes.txt"])
    data = make_dataloader(settings(tmp_path, DATASETS__NAMES="images"))
    assert [str(Path(p).relative_to(tmp_path)) for p in data.train.records.paths] == [
        "a/1.jpg", "a/deep/2.png", "b.jpg", "c.jpg",
    ]  # fmt: skip
    assert (data.train.records.pids == -1).all() and data.tests == []
    with pytest.raises(UserError, match="4 training images have no pid"):
        make_dataloader(settings(tmp_path, DATASETS__NAMES="images", PROCESSOR__NAME="supervised"))


@pytest.mark.parametrize("form", ["text", "pickle"])
@pytest.mark.parametrize("name", ["images", "luperson", "market1501"])
def test_a_list_keeps_the_first_of_its_images(form, name, tmp_path):
    if name == "market1501":
        write_market(tmp_path)
    else:
        LUPERSON.build(tmp_path) if name == "luperson" else write(tmp_path, ["a/1.jpg", "b.jpg", "c.jpg", "d.jpg"])
    whole = make_dataset(name, tmp_path)
    root = {"luperson": whole.folder / "images", "images": tmp_path, "market1501": tmp_path}[name]
    names = relative_names(whole.train, root)
    path = tmp_path / f"list.{'txt' if form == 'text' else 'pkl'}"
    best = [names[2], names[0], names[1]]
    path.write_bytes(pickle.dumps(best) if form == "pickle" else "\n".join(best).encode())
    chosen = {"DATASETS__NAMES": name, "DATASETS__FILTER_PATH": str(path), "SOLVER__IMS_PER_BATCH": 2}
    for keep, wanted in ((2, {names[0], names[2]}), (None, set(best))):
        data = make_dataloader(settings(tmp_path, **chosen | {"DATASETS__KEEP_NUM": keep}))
        assert set(relative_names(data.train.records, root)) == wanted


def test_a_list_of_absent_images_is_told_with_one_of_them(tmp_path):
    write_market(tmp_path)
    path = tmp_path / "list.txt"
    path.write_text("market1501/bounding_box_train/none.jpg\n")
    chosen = {"DATASETS__FILTER_PATH": str(path), "SOLVER__IMS_PER_BATCH": 2}
    words = message(make_dataloader, settings(tmp_path, **chosen))
    assert "1 of 1 listed images are not among the training images" in words and "none.jpg" in words
    words = message(make_dataloader, settings(tmp_path, **chosen, DATASETS__NAMES="images"))
    assert "none.jpg" in words and "images" in words
    words = message(make_dataloader, settings(tmp_path, **chosen, PROCESSOR__NAME="supervised"))
    assert "DATASETS.FILTER_PATH and PROCESSOR.NAME 'supervised'" in words


@pytest.mark.parametrize(
    ("text", "keep", "words"),
    [
        ("", None, "the list .* is empty"),
        ("\n \n", None, "the list .* is empty"),
        ("a.jpg", 0, "DATASETS.KEEP_NUM: must be at least 1, got 0"),
        (None, None, "DATASETS.FILTER_PATH: .*: no such file"),
    ],
)
def test_a_list_that_keeps_nothing_is_refused(text, keep, words, tmp_path):
    path = tmp_path / "list.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        listed_names(path, keep)


def test_a_pickle_under_another_name_is_read_without_running_anything(tmp_path):
    path = tmp_path / "list"
    path.write_bytes(pickle.dumps(["b", "a"]))
    assert listed_names(path).tolist() == [b"b", b"a"]
    path.write_bytes(pickle.dumps([Path("x")]))
    assert "it asks for pathlib" in message(listed_names, path)


def test_a_filtered_training_list_leaves_the_test_as_it_is(tmp_path):
    write_market(tmp_path)
    whole = make_dataset("market1501", tmp_path)
    path = tmp_path / "list.txt"
    path.write_text("\n".join(relative_names(whole.train, tmp_path)[:4]))
    data = make_dataloader(settings(tmp_path, DATASETS__FILTER_PATH=str(path)))
    assert len(data.train.records) == 4 and len(data.tests[0].query) == len(whole.query)
    assert lists(data.datasets[0]) == lists(whole)
