"""How wrong data are told: for every entry, one line that names the entry, the place and what was looked for."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from datasets import CATALOGUE, make_dataloader, make_dataset
from datasets.checks import refuse_missing
from datasets.readers.scan import is_image
from tests.datasets.every import build, paint
from tests.datasets.miniatures import MINIATURES, lists, message
from tests.tiny import config, write_market

ENTRIES = sorted(MINIATURES)
LISTS = {
    "msmt17": ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt"),
    "msmt17v1": ("list_train.txt", "list_gallery.txt"),
    "msmt17v2": ("list_train.txt", "list_gallery.txt"),
    "mm": ("MSMT17/list_train.txt", "MSMT17/list_query.txt"),
    "vehicleid": ("train_test_split/train_list.txt", "train_test_split/test_list_800.txt"),
    "vehicleid_medium": ("train_test_split/test_list_1600.txt",),
    "vehicleid_large": ("train_test_split/test_list_2400.txt",),
    "car196": ("cars_annos.mat",),
    "cub200": ("images.txt", "image_class_labels.txt"),
    "sop": ("Ebay_train.txt", "Ebay_test.txt"),
    "inshop": ("list_eval_partition.txt",),
    "cuhk03": ("cuhk03_new_protocol_config_labeled.mat",),
}
FILES_IN_LISTS = [name for name in ENTRIES if name in LISTS or name.startswith("vehicleid")]


def read(name: str, root: Path):
    return make_dataset(name, root)


def one_line(name: str, root: Path) -> str:
    text = message(read, name, root)
    parts = ("market1501", "msmt17") if name == "mm" else (name,)
    assert text.startswith(tuple(f"{part}: " for part in parts)) or text.startswith("DATASETS.")
    return text


def test_every_miniature_is_walked():
    assert len(ENTRIES) >= 24 and len(LISTS) >= 12


# ---------------------------------------------------------------- wrong layout


@pytest.mark.parametrize("name", ENTRIES)
def test_a_root_without_the_dataset_names_every_place_that_was_looked_at(name, tmp_path):
    (tmp_path / "unrelated").mkdir()
    text = one_line(name, tmp_path)
    parts = ("msmt17",) if name == "mm" else (name,)
    assert all(str(tmp_path / folder) in text for part in parts for folder in CATALOGUE[part].folders)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["unrelated"]


@pytest.mark.parametrize("name", [n for n in ENTRIES if n != "mm"])
def test_a_folder_with_another_layout_says_what_is_missing_in_it_and_what_is_there(name, tmp_path):
    place = tmp_path / CATALOGUE[name].folders[0]
    (place / "stuff").mkdir(parents=True)
    text = one_line(name, tmp_path)
    assert str(place) in text and ("stuff" in text or "looked for" in text)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_folder_of_images_that_is_missing_is_told(name, tmp_path):
    """Each in turn, by the reader or by the look for the images of a list."""
    MINIATURES[name].build(tmp_path)
    folders = {Path(p).parent for rows in lists(read(name, tmp_path)).values() for p, *_ in rows}
    if name == "duke_video":  # no list names its people and tracklets, so only a split's folder can be missed
        folders = {folder.parents[1] for folder in folders}
    for folder in sorted(map(str, folders)):
        os.rename(folder, f"{folder}.away")
        line = message(make_dataloader, config(tmp_path, tmp_path / "out", DATASETS__NAMES=name))
        os.rename(f"{folder}.away", folder)
        top = Path(folder).relative_to(tmp_path).parts[0]
        assert str(tmp_path / top) in line or "no query" in line or "no training" in line, line


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in LISTS.items() for file in files])
def test_a_missing_list_is_named(name, file, tmp_path):
    place = MINIATURES[name].build(tmp_path)
    (place / file).unlink()
    assert Path(file).name in one_line(name, tmp_path)


@pytest.mark.parametrize(("name", "file"), [(n, f) for n, files in LISTS.items() for f in files if f.endswith("txt")])
def test_an_empty_list_and_one_that_is_no_text_are_named(name, file, tmp_path):
    place = MINIATURES[name].build(tmp_path)
    (place / file).write_text("\n")
    assert f"{place / file} is empty" in one_line(name, tmp_path)
    (place / file).write_bytes(b"\xff\xfe\x00\xd8\n")
    assert f"{place / file} is not a text file" in one_line(name, tmp_path)


@pytest.mark.parametrize(("name", "split"), [
    (name, split) for name in (*FILES_IN_LISTS, "csv") for split in ("train", "query")
    if (name, split) != ("mm", "query")
])  # fmt: skip
def test_a_list_that_names_a_missing_image_is_refused_before_training(name, split, tmp_path, caplog):
    build(name, tmp_path)
    paint(tmp_path)
    dataset = read(name, tmp_path)
    path = getattr(dataset, split).paths[0]
    os.unlink(path)
    count = len(getattr(dataset, split))
    words = f"{name}: images of the {split} list are missing, 1 of {count}: {path};"
    line = message(make_dataloader, config(tmp_path, tmp_path / "out", DATASETS__NAMES=name))
    assert line.startswith(words) and ("BAD_IMAGES 'skip'" in line) == (split == "train")
    caplog.clear()
    if split == "train":
        refuse_missing(dataset, ("train",), skip=True)
        assert [r for r in caplog.records if r.message.startswith(words)]
        refuse_missing(dataset, ("query", "gallery"), skip=False)
    else:
        assert message(refuse_missing, dataset, ("train", "query"), True).startswith(words)


def test_a_test_does_without_the_training_images_of_a_list(tmp_path):
    build("csv", tmp_path)
    paint(tmp_path)
    os.unlink(tmp_path / "in/a.png")
    assert make_dataloader(config(tmp_path, tmp_path / "out", DATASETS__NAMES="csv"), training=False).tests


# ---------------------------------------------------------------- names


NAMED = ("market1501", "dukemtmc", "occ_duke", "veri", "cuhk03_np_detected", "cuhk03_np_labeled", "cuhk_sysu", "prid",
         "p_dukemtmc", "university1652", "mm")  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_a_name_that_does_not_follow_the_pattern_is_named(name, tmp_path):
    MINIATURES[name].build(tmp_path)
    dataset = read(name, tmp_path)
    path = Path(dataset.train.paths[-1])
    if name in ("p_dukemtmc", "university1652"):
        odd = path.parent.with_name("holiday")
        path.parent.rename(odd)
    else:
        odd = path.rename(path.with_name("holiday.jpg"))
    assert str(odd) in one_line("market1501" if name == "mm" else name, tmp_path)


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize(("name", "split"), [
    (name, split) for name in ENTRIES for split in CATALOGUE[name].splits
    if any(f"{split}/" in file for file in MINIATURES[name].files)
] + [("cuhk_sysu", "cropped_images"), ("luperson", "images"), ("p_dukemtmc", "test/whole_body_images"),
     ("p_dukemtmc", "test/occluded_body_images"), ("prid", "single_shot/cam_a"), ("prid", "single_shot/cam_b"),
     ("university1652", "test/query_drone"), ("university1652", "test/gallery_satellite")])  # fmt: skip
def test_an_empty_split_is_told_with_its_folder(name, split, tmp_path):
    place = MINIATURES[name].build(tmp_path)
    (place / "CFS_list.pkl").unlink(missing_ok=True)
    if name == "mm":
        place = tmp_path / MINIATURES["market1501"].folder
    for path in [p for p in (place / split).rglob("*") if is_image(p.name)]:
        path.unlink()
    assert f"no images in {place / split}" in one_line(name, tmp_path).replace("the folders of ", "")


def test_identities_in_training_and_test_are_counted_in_a_warning(tmp_path, caplog):
    write_market(tmp_path)
    train = tmp_path / "market1501/bounding_box_train"
    for i, path in enumerate(sorted(train.iterdir())[:4]):
        path.rename(path.with_name(f"{5 + i // 2:04d}_c{i % 2 + 1}s1_999999_00.jpg"))
    make_dataloader(config(tmp_path, tmp_path / "out"))
    line = "market1501: 2 identities are in training and in the test: it measures memory"
    assert [r.levelno for r in caplog.records if r.message == line] == [logging.WARNING]


# ---------------------------------------------------------------- files


def test_an_image_that_cannot_be_opened_is_named(tmp_path):
    write_market(tmp_path)
    data = make_dataloader(config(tmp_path, tmp_path / "out", DATALOADER__SAMPLER="softmax"))
    path = data.train.records.paths[0]
    os.unlink(path)
    os.mkdir(path)
    assert f"{path}: the image cannot be read (Is a directory)" in message(list, data.train.epoch(1))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    place = MINIATURES["market1501"].build(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    assert f"{place / 'bounding_box_train'} cannot be read (Permission denied)" in one_line("market1501", tmp_path)
