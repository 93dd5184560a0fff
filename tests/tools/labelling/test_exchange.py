"""Labels of CVAT, Label Studio and FiftyOne come in and go out; damaged and foreign files end in one line."""

from __future__ import annotations

import json
import random
import zipfile

import pytest

from tests.fuzz.mutate_files import damaged
from tools.labelling import exchange
from tools.labelling.exchange import FORMATS, matched, read_labels, write_labels
from tools.labelling.session import Images
from utils.errors import UserError

PATHS = [
    "/data/a/one.jpg",
    "/data/a/two.jpg",
    "/data/b/two.jpg",
    "/data/b/three.jpg",
    "/data/b/0007_c1s1_000000_00.jpg",
]


@pytest.fixture
def images() -> Images:
    return Images(PATHS, [path[6:] for path in PATHS], columns={"camid": ["0", "1", "1", "2", "0"]})


def test_what_is_written_is_read_back(images, tmp_path):
    pids = ["anna", "7", "12", "anna", ""]
    for kind in FORMATS:
        path = tmp_path / kind if kind == "cvat" else tmp_path / f"{kind}.json"
        assert write_labels(kind, path, images, pids) == 4
        entries, unknown = matched(read_labels(path), images)
        if kind == "cvat":  # file names alone, so that two.jpg in two folders cannot be told from each other
            text = (path / "images_default.txt").read_text()
            assert "bounding_box_default/0001_c1s1_000000_00one.jpg\n" in text and "0012_c2s1_000000_00two.jpg" in text
            assert (path / "identities.csv").read_text() == "number,identity\n1,anna\n7,7\n12,12\n"
            assert entries == [[0, "1"], [3, "1"]] and unknown == ["two.jpg", "two.jpg"]
        else:
            assert entries == [[0, "anna"], [1, "7"], [2, "12"], [3, "anna"]] and not unknown


def test_cvats_layouts_are_read(images, tmp_path):
    folder = tmp_path / "export"
    for name in ("bounding_box_default/7_c1s1_000000_00one.jpg", "query/0012_c2s3_000015_00three.jpg",
                 "bounding_box_default/0007_c1s1_000000_00.jpg", "bounding_box_default/-1_c1s1_000000_00x.jpg",
                 "other/1_c1s1_000000_00one.jpg"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for path in folder.rglob("*.jpg"):
            archive.write(path, path.relative_to(folder))
    for path in (folder, tmp_path / "export.zip"):
        entries, unknown = matched(read_labels(path), images)
        assert sorted(entries) == [[0, "7"], [3, "12"], [4, "7"]] and unknown == ["x.jpg"]


def test_label_studios_addresses_are_matched(images, tmp_path):
    def task(address, *words, **more):
        return {
            "data": {"image": address},
            "annotations": [{"result": [{"value": {"choices": [w]}}]} | more for w in words],
        }

    tasks = [
        task("/data/upload/3/0a1b2c3d-one.jpg", "old", "anna"), task("/data/local-files/?d=a/two.jpg", "7"),
        task("s3://bucket/three.jpg", "x", was_cancelled=True),
        {"data": {"image": "three.jpg"}, "annotations": [{"result": [{"value": {"text": ["zoe"]}}]}]},
    ]  # fmt: skip
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    assert matched(read_labels(tmp_path / "tasks.json"), images)[0] == [[0, "anna"], [1, "7"], [3, "zoe"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no", "neither JSON of Label Studio"),
        ("{}", "expected Label Studio's list of tasks"),
        ('[{"image": "a.jpg"}]', "task 1 has no data; export as JSON, not JSON-MIN"),
        ('[{"data": {"text": 3}}]', "task 1 names no image"),
        ('{"labels": {"one.jpg": 3}, "classes": ["a"]}', "is neither a name nor the number of a class"),
        ("[" * 99999, "neither JSON"),
    ],
)
def test_what_is_not_understood_is_said(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / "a.json")
    with pytest.raises(UserError, match="does not exist"):
        read_labels(tmp_path / "b.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="no image in a folder bounding_box_"):
        read_labels(tmp_path / "folder")


def test_damaged_files_end_in_a_line_or_in_labels(images, tmp_path):
    for kind in FORMATS[1:]:
        write_labels(kind, tmp_path / f"{kind}.json", images, ["a", "b", "c", "a", ""])
    write_labels("cvat", tmp_path / "cvat", images, ["1", "2", "3", "1", ""])
    with zipfile.ZipFile(tmp_path / "cvat.zip", "w") as archive:
        archive.write(tmp_path / "cvat" / "images_default.txt", "images_default.txt")
    sound = [(tmp_path / name).read_bytes() for name in ("labelstudio.json", "fiftyone.json", "cvat.zip")]
    refused = 0
    for seed in range(300):
        draw = random.Random(seed)
        path = tmp_path / "damaged"
        path.write_bytes(damaged(draw.choice(sound), draw))
        try:
            entries, _ = matched(read_labels(path), images)
            assert all(0 <= row < 5 and isinstance(name, str) for row, name in entries)
        except UserError:
            refused += 1
    assert 50 < refused < 300


def test_lists_of_a_zip_are_not_unpacked_beyond_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "LARGEST", 2**20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images_x.txt", bytes(2**20 + 1))
    assert (tmp_path / "bomb.zip").stat().st_size < 2**12
    with pytest.raises(UserError, match="images_x.txt is larger than 1 MB"):
        read_labels(tmp_path / "bomb.zip")
