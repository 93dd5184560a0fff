"""Tables as people and programs write them: what is one id, what one column, and what is refused before any harm."""

from __future__ import annotations

import json
import os
import time

import pytest

from configs import load_config
from datasets import make_dataset
from datasets.options import dataset_options, options_of_run
from datasets.readers.image_list import read_image_list
from tests.datasets.miniatures import message
from utils.errors import UserError

HEADER = "path,pid,camid,split"
SPLITS = (("1", "train"), ("2", "train"), ("3", "query"), ("3", "gallery"))
ROWS = [(f"{split}{pid}_{cam}.jpg", pid, cam, split) for pid, split in SPLITS for cam in ("1", "2")]


def write(folder, rows=ROWS, header=HEADER, name="dataset.csv", separator=","):
    lines = [header.replace(",", separator), *(separator.join(row) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def read(path, **options):
    return make_dataset("csv", path, list_cache=False, **options)


def spelled(column, change):
    """The rows with a column changed."""
    place = HEADER.split(",").index(column)
    return [tuple(change(cell, row) if i == place else cell for i, cell in enumerate(row)) for row in ROWS]


@pytest.mark.parametrize("column", ["pid", "camid"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_floats_of_one_split_are_the_numbers_of_the_other(column, ending, tmp_path):
    plain = read(write(tmp_path))
    rows = spelled(column, lambda cell, row: f"{cell}.0" if row[3] == "gallery" else cell)
    if ending == "csv":
        found = read(write(tmp_path, rows))
    else:
        names = HEADER.split(",")
        objects = [dict(zip(names, row, strict=True)) | {column: json.loads(row[names.index(column)])} for row in rows]
        (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, objects)))
        found = read(tmp_path / "t.jsonl")
    for split in ("train", "query", "gallery"):
        one, other = plain.split(split), found.split(split)
        assert one.original_pids().tolist() == other.original_pids().tolist()
        assert one.original_camids().tolist() == other.original_camids().tolist()


@pytest.mark.parametrize("junk", ["-1", "-1.0", "-1.00", " -1 "])
def test_nobody_is_left_out(junk, tmp_path):
    rows = [*ROWS, ("j.jpg", junk, "1", "train"), ("k.jpg", junk, "1", "gallery")]
    found = read(write(tmp_path, rows))
    assert len(found.train) == 4 and len(found.gallery) == 2 and found.num_classes == 2


@pytest.mark.parametrize("word", ["nan", "NaN", "N/A", "NULL", "None", "<NA>", "#N/A", "inf", "-inf", ""])
def test_missing_values(word, tmp_path):
    for split in ("query", "gallery", "test"):
        rows = [row for row in ROWS if row[3] == "train"] + [("t.jpg", word, "1", split)]
        assert "line 6: pid must not be empty" in message(read, write(tmp_path, rows))
    assert "line 10: camid must not be empty" in message(read, write(tmp_path, [*ROWS, ("t.jpg", "9", word, "train")]))
    found = read(write(tmp_path, [*ROWS, ("t.jpg", word, "1", "train")]))
    assert (found.train.pids == -1).sum() == 1 and found.num_classes == 2


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_of_json_that_are_none_are_missing_values(word, tmp_path):
    def line(split: str, pid: str, camid: str = "1") -> str:
        return f'{{"path": "a.jpg", "pid": {pid}, "camid": {camid}, "split": "{split}"}}\n'

    table = tmp_path / "t.jsonl"
    for split in ("query", "gallery", "test"):
        table.write_text(line("train", "1") + line(split, word))
        assert "line 2: pid must not be empty" in message(read, table)
    table.write_text(line("train", "1", camid=word))
    assert "line 1: camid must not be empty" in message(read, table)
    table.write_text(line("train", "1") + line("train", word))
    assert read(table).train.pids.tolist() == [0, -1]


@pytest.mark.parametrize("value", [[1], {"a": 1}, True, "\ud800"])
def test_values_that_are_no_id_are_refused_in_json(value, tmp_path):
    for column in ("pid", "camid"):
        row = {"path": "a.jpg", "pid": 1, "camid": 1, "split": "train"} | {column: value}
        (tmp_path / "t.jsonl").write_text(json.dumps(row))
        assert f"line 1: {column} " in message(read, tmp_path / "t.jsonl")


def test_a_name_that_stands_twice_in_an_object_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"path": "a", "pid": 1, "split": "train", "pid": 2}')
    assert "stands twice" in message(read, tmp_path / "t.jsonl")


@pytest.mark.parametrize(("header", "counts"), [
    ("path,pid,camid,split,label", "pid"), ("path,pid,camid,split,PID", "pid"),
    ("path,pid,camid,split,camera", "camid"),
    ("path,label,camid,split,pid", "pid"), ("path,pid,camera,split,camid", "camid"),
])  # fmt: skip
def test_our_name_wins_over_another_for_the_same_and_one_line_says_so(header, counts, tmp_path):
    names = header.split(",")
    rows = []
    for row in ROWS:
        known = dict(zip(HEADER.split(","), row, strict=True))
        rows.append(tuple(known.get(name, "other") for name in names))
    found, plain = read(write(tmp_path, rows, header)), read(write(tmp_path))
    assert found.train.original_pids().tolist() == plain.train.original_pids().tolist()
    assert found.query.original_camids().tolist() == plain.query.original_camids().tolist()
    assert [note for note in found.notes if f"{counts!r} counts" in note]


@pytest.mark.parametrize("header", [
    "path,pid,camid,split,pid", "path,label,camid,split,Label", "path,pid,camera,split,camera_id",
    "path,pid,camid,split,path",
])  # fmt: skip
def test_two_columns_of_one_meaning_are_refused(header, tmp_path):
    rows = [(*row, "x", "y")[: header.count(",") + 1] for row in ROWS]
    assert "mean the same" in message(read, write(tmp_path, rows, header))


@pytest.mark.parametrize("box", ["0.05,0.1,0.95,0.98", "0,0,1,1", "0.0,0.0,1.0,1.0", "0.2,0.3,0.4,0.5"])
@pytest.mark.parametrize("columns", ["x1,y1,x2,y2", "x_1,y_1,x_2,y_2"])
def test_boxes_as_shares_are_refused_with_how_to_convert(box, columns, tmp_path):
    rows = [(*row, *box.split(",")) for row in ROWS]
    text = message(read, write(tmp_path, rows, f"{HEADER},{columns}"))
    assert "x1, y1, x2, y2 are within 0 to 1" in text and "multiply x1 and x2 by the image's width" in text
    mixed = [(*row, *("3,4,9,12" if i else box).split(",")) for i, row in enumerate(ROWS)]
    assert "line 2:" in message(read, write(tmp_path, mixed, f"{HEADER},{columns}"))
    assert "within 0 to 1" in message(read_image_list, write(tmp_path, rows, f"{HEADER},{columns}"))


@pytest.mark.parametrize("box", ["inf,0,9,9", "0,0,1e999,9", "0,0,3000000000,9", "-inf,0,9,9", "nan,0,9,9", "0,0,9,x"])
def test_boxes_that_are_no_pixels_are_refused(box, tmp_path):
    rows = [(*row, *box.split(",")) for row in ROWS]
    assert "line 2: the crop box must be four numbers" in message(read, write(tmp_path, rows, f"{HEADER},x1,y1,x2,y2"))


@pytest.mark.parametrize("word", ["", "nan", "NULL"])
def test_a_missing_box_is_the_whole_image(word, tmp_path):
    rows = [(*row, *([word] * 4 if i else ["1", "2", "9", "9"])) for i, row in enumerate(ROWS)]
    found = read(write(tmp_path, rows, f"{HEADER},x1,y1,x2,y2"))
    assert found.train.boxes.any(1).sum() == 1


@pytest.mark.parametrize(("separator", "words"), [
    ("\t", "by tabs, not commas; call it .tsv"), (";", "by semicolons, not commas"),
    ("|", "by vertical bars, not commas"),
])  # fmt: skip
def test_another_separator_is_named(separator, words, tmp_path):
    assert words in message(read, write(tmp_path, separator=separator))
    assert "call it .csv" in message(read, write(tmp_path, name="a.tsv"))


def test_a_comma_in_a_path_does_not_shift_the_columns(tmp_path):
    assert "line 2: 5 cells, and 4 columns" in message(read, write(tmp_path, [("a,b.jpg", "1", "1", "train")]))
    assert len(read(write(tmp_path, [('"a,b.jpg"', "1", "1", "train"), *ROWS])).train) == 5


def test_very_many_columns_are_refused_at_once(tmp_path):
    many = ",".join(f"c{i}" for i in range(100_000))
    began = time.monotonic()
    rows = [(*row, *["1"] * 100_000) for row in ROWS]
    assert "100,004 columns" in message(read, write(tmp_path, rows, f"{HEADER},{many}"))
    (tmp_path / "t.jsonl").write_text(json.dumps({f"c{i}": 1 for i in range(100_000)}))
    assert "more than 1,000 names" in message(read, tmp_path / "t.jsonl")
    assert time.monotonic() - began < 5


def test_what_is_no_table_ends_at_once_and_is_not_repeated(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.csv", "folder.csv", "/dev/zero"):
        assert "DATASETS.FILE" in message(read, tmp_path, file=str(tmp_path / name))
    with pytest.raises(UserError):
        read_image_list(tmp_path / "pipe.csv")
    (tmp_path / "secret").write_text("hunter2:x:0:0\nswordfish,1,2\n")
    text = message(read, tmp_path / "secret")
    assert "hunter2" not in text and "swordfish" not in text and "no column 'path'" in text
    (tmp_path / "nul.csv").write_bytes(HEADER.encode() + b"\na\0.jpg,1,1,train\n")
    assert "line 2: not a table, it holds NUL bytes" in message(read, tmp_path / "nul.csv")
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + b"\n\xe9.jpg,1,1,train\n")
    assert "UTF-8" in message(read, tmp_path / "latin.csv")


def test_a_large_table_is_refused_before_it_is_read_unless_the_key_allows_it(tmp_path):
    table = write(tmp_path)
    with open(table, "r+b") as handle:
        handle.truncate(10**12)  # takes no room
    assert "DATASETS.MAX_TABLE_GB" in message(read, table)
    table = write(tmp_path)
    assert "DATASETS.MAX_TABLE_GB" in message(read, table, max_table_gb=1e-8)
    cfg = load_config(opts=["DATASETS.NAMES", "csv", "DATASETS.MAX_TABLE_GB", 2.5])
    assert dataset_options(cfg, "csv")["max_table_gb"] == 2.5


def test_very_long_texts(tmp_path):
    rows = [(*row, "x" * 500) for row in ROWS]
    found = read(write(tmp_path, rows, f"{HEADER},caption"))
    assert not found.train.extra and any("caption" in note for note in found.notes)
    for column, length in (("pid", 300), ("path", 5000)):
        text = message(read, write(tmp_path, spelled(column, lambda cell, row, n=length: "x" * n)))
        assert "longer than" in text and len(text) < 600
    assert "not a row of a table" in message(read, write(tmp_path, spelled("path", lambda *_: "x" * 200_000)))


def test_folders_spell_ids_the_same_way(tmp_path):
    for split, person in (("train", "1.0"), ("train", "2"), ("query", "3.0"), ("gallery", "3"), ("gallery", "-1.0")):
        (tmp_path / "a" / split / person).mkdir(parents=True)
        (tmp_path / "a" / split / person / "1.jpg").write_bytes(b"")
    found = make_dataset("folder", tmp_path / "a", list_cache=False)
    assert found.train.original_pids().tolist() == [1, 2]
    assert found.query.pids.tolist() == found.gallery.pids.tolist() == [3]
    (tmp_path / "a" / "train" / "nan").mkdir()
    (tmp_path / "a" / "train" / "nan" / "1.jpg").write_bytes(b"")
    assert "a missing identity" in message(make_dataset, "folder", tmp_path / "a", list_cache=False)


@pytest.mark.parametrize("names", [["market1501", "market1501"], ["market1501", "market"]])
def test_a_dataset_named_twice_is_refused(names, tmp_path):
    for key in ("NAMES", "TARGETS"):
        cfg = load_config(opts=[f"DATASETS.{key}", names])
        assert f"DATASETS.{key}: market1501 is named twice" in message(options_of_run, cfg)
    assert list(options_of_run(load_config(opts=["DATASETS.TARGETS", ""]))) == ["market1501"]
