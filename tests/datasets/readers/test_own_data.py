"""Your own data: folders, further columns of a table, and what is found wrong before training."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import make_dataloader, make_dataset
from datasets.checks import findings, missing, missing_line
from datasets.joining import hold_out, join_training
from datasets.records import Records, join
from datasets.storage.pillow_decoding import load_image
from tests.datasets.miniatures import lists, message, write
from tests.tiny import config, write_market
from utils.errors import UserError


def rows(records) -> list[tuple]:
    return [(Path(path).name, *ids) for path, *ids in records]


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize(("test", "names"), [
    (("query", "gallery"), ("train", "query", "gallery")),
    (("query", "test"), ("bounding_box_train", "query", "test")),
    (("image_query", "image_test"), ("image_train", "image_query", "image_test")),
])  # fmt: skip
def test_a_folder_per_identity_below_split_folders(test, names, tmp_path):
    train, query, gallery = names
    write(tmp_path, [f"{train}/rex/b.jpg", f"{train}/ann/a.png", f"{train}/ann/deep/c.jpg"])
    write(tmp_path, [f"{query}/tom/q.jpg", f"{gallery}/tom/g.jpg", f"{gallery}/eve/h.jpg", "val/eve/v.jpg"])
    dataset = make_dataset("folder", tmp_path)
    assert rows(dataset.train) == [("a.png", 0, 0, 0), ("c.jpg", 0, 0, 0), ("b.jpg", 1, 0, 0)]
    assert rows(dataset.query) == [("q.jpg", 1, 0, 0)]
    assert rows(dataset.gallery) == [("h.jpg", 0, 1, 0), ("g.jpg", 1, 1, 0)]  # another camera: no filter
    assert not dataset.same_list


def test_classes_of_training_beside_it_are_to_be_classified(tmp_path):
    write(tmp_path, ["train/n02/a.jpg", "train/n01/b.jpg", "train/n03/c.jpg", "val/n03/v.jpg", "val/n01/w.jpg"])
    dataset = make_dataset("folder", tmp_path)
    assert (dataset.protocol, dataset.same_list, dataset.shared_ids) == ("classification", True, 0)
    assert rows(dataset.train) == [("b.jpg", 0, 0, 0), ("a.jpg", 1, 0, 0), ("c.jpg", 2, 0, 0)]
    assert rows(dataset.query) == [("w.jpg", 0, 0, 0), ("v.jpg", 2, 0, 0)]
    assert findings(dataset) == [f for f in findings(dataset) if not f.serious]
    write(tmp_path, ["val/n09/x.jpg"])
    assert "classes that train has not, such as 'n09'" in message(lambda: make_dataset("folder", tmp_path))


def test_cameras_are_those_of_the_names_if_every_name_has_one_or_of_the_pattern(tmp_path):
    write(tmp_path, ["train/7/x_c12_1.jpg", "train/8/x_c3_1.jpg", "query/9/x_c3.jpg", "gallery/9/x_c12.jpg"])
    assert [row[2] for row in rows(make_dataset("folder", tmp_path).train)] == [1, 0]
    write(tmp_path, ["gallery/9/none.jpg"])
    assert set(make_dataset("folder", tmp_path).train.camids) == {0}
    wrong = (("(", "is not a regular expression"), ("c", "has 0 groups"), (r"_c(\d+)", "finds no camera in"),
             (r"_(c)\d|none", "finds no camera in"))  # fmt: skip
    for pattern, words in wrong:
        assert words in message(make_dataset, "folder", tmp_path, camera_pattern=pattern)


def test_a_test_folder_alone_is_searched_among_itself(tmp_path):
    write(tmp_path, ["train/1/a.jpg", "test/2/b.jpg", "test/2/c.jpg"])
    dataset = make_dataset("folder", tmp_path)
    assert dataset.same_list and dataset.query.paths == dataset.gallery.paths
    for name in ("train/1/a.jpg", "test/2/b.jpg", "test/2/c.jpg"):
        path = tmp_path / name
        path.rename(path.with_name(f"x_c{'abc'.index(path.stem) + 1}.jpg"))
    dataset = make_dataset("folder", tmp_path)
    assert not dataset.same_list  # the camera filter decides
    assert dataset.query.paths == dataset.gallery.paths and len(dataset.query) == 2
    assert dataset.query.camids.tolist() == dataset.gallery.camids.tolist()
    write(tmp_path, ["test/2/y_c2.jpg"])
    assert len(make_dataset("folder", tmp_path).query) == 3  # every test image is a query, as a table's test rows


@pytest.mark.parametrize("flat", [True, False])
def test_identities_are_split_by_a_seed_where_no_folder_splits_them(flat, tmp_path):
    files = [f"{i:04d}_c{cam}s1_{n}.jpg" for i in range(10) for cam in (1, 2) for n in (0, 1)]
    write(tmp_path, files if flat else [f"{name[:4]}/{name}" for name in files])
    one, again, other = (make_dataset("folder", tmp_path, seed=seed) for seed in (0, 0, 1))
    assert lists(one) == lists(again) and set(one.query.pids) != set(other.query.pids)
    assert one.num_classes == 5 and len(set(one.query.pids)) == 5 and one.num_cameras == 2
    assert len(one.query) == 10 and len(one.gallery) == 20
    assert not {Path(p).name[:4] for p in one.train.paths} & {Path(p).name[:4] for p in one.gallery.paths}
    assert make_dataset("folder", tmp_path, test_share=0.2).num_classes == 8
    assert make_dataset("folder", tmp_path, test_share=0.99).num_classes == 1
    assert not len(make_dataset("folder", tmp_path, test_share=0).query)
    assert "DATASETS.TEST_SHARE" in message(make_dataset, "folder", tmp_path, test_share=1.0)


def test_folders_that_cannot_be_read_say_why(tmp_path):
    assert "DATASETS.ROOT_DIR" in message(make_dataset, "folder", tmp_path / "none")
    assert "expected a folder per identity" in message(make_dataset, "folder", tmp_path)
    write(tmp_path / "a", ["query/1/a.jpg"])
    assert "has a query folder and none for the gallery" in message(make_dataset, "folder", tmp_path / "a")
    write(tmp_path / "b", ["one/a.jpg", "holiday.jpg"])
    assert "holiday.jpg: an image in no identity's folder" in message(make_dataset, "folder", tmp_path / "b")
    (tmp_path / "b" / "holiday.jpg").unlink()
    assert "has one identity only, 'one'" in message(make_dataset, "folder", tmp_path / "b")


def test_the_keys_of_folders_reach_them(tmp_path):
    write_market(tmp_path, ids=3)
    place = tmp_path / "market1501"
    changes = {"DATASETS__NAMES": "folder", "DATASETS__TEST_SHARE": 0.34, "DATASETS__CAMERA_PATTERN": r"c\d(s)1"}
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in place.glob("*/*.jpg"):
        path.rename(flat / path.name)
    data = make_dataloader(config(flat, tmp_path, DATASETS__NAMES="folder", DATASETS__TEST_SHARE=0.34))
    assert (data.num_classes, data.num_cameras) == (4, 2)
    with pytest.raises(UserError, match="their own camera only"):
        make_dataloader(config(flat, tmp_path, **changes))


# ---------------------------------------------------------------- tables

BOXED = "path,pid,split,x1,y1,x2,y2,seq\na.png,1,train,2,1,6,9,s\na.png,2,train,,,,,\nq.png,3,query,0,0,4,4,t\n"


def test_crop_boxes_and_sequences_stay_with_their_rows(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "q.png", "g.png"):
        Image.fromarray(rng.integers(0, 255, (12, 8, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "dataset.csv").write_text(BOXED + "g.png,3,gallery,1,1,100,100,u\ng.png,3,gallery,,,,,\n")
    dataset = make_dataset("csv", tmp_path)
    assert dataset.train.boxes.tolist() == [[2, 1, 6, 9], [0, 0, 0, 0]]
    whole = load_image(dataset.train.paths[0])
    cut = load_image(dataset.train.paths[0], dataset.train.boxes[0])
    assert np.array_equal(np.asarray(cut), np.asarray(whole)[1:9, 2:6])
    assert load_image(dataset.train.paths[1], dataset.train.boxes[1]).size == (8, 12)
    assert load_image(dataset.gallery.paths[0], dataset.gallery.boxes[0]).size == (7, 11)  # cut off at the edge
    with pytest.raises(UserError, match="crop box is outside of 8 x 12"):
        load_image(dataset.train.paths[0], (9, 0, 12, 4))
    seqs = [*dataset.query.seqs, *dataset.gallery.seqs]
    assert len(set(seqs)) == 3  # a row without a sequence is one of its own
    joined = join_training([dataset.train, dataset.train])
    assert joined.boxes.tolist() == dataset.train.boxes.tolist() * 2
    assert set(joined.seqs[:2]) & set(joined.seqs[2:]) == set()
    assert joined.take([2]).boxes.tolist() == [[2, 1, 6, 9]]
    data = make_dataloader(config(tmp_path, tmp_path, DATASETS__NAMES="csv", SOLVER__IMS_PER_BATCH=2,
                                  DATALOADER__SAMPLER="softmax"))  # fmt: skip
    assert len(next(iter(data.train.epoch(1)))) == 2 and len(list(data.tests[0].loader)) == 1


def test_joined_lists_keep_the_columns_that_all_have():
    one = Records.of(["a"], [0], seqs=np.array([4]), extra={"x": np.array(["1"]), "y": np.array(["2"])})
    two = Records.of(["b"], [0], seqs=np.array([4]), boxes=np.array([[1, 2, 3, 4]]), extra={"x": np.array(["3"])})
    both = join([one, two])
    assert both.boxes.tolist() == [[0, 0, 0, 0], [1, 2, 3, 4]] and both.seqs.tolist() == [4, 9]
    assert {k: v.tolist() for k, v in both.extra.items()} == {"x": ["1", "3"]}
    assert join([one, Records.of(["c"], [1])]).seqs is None


def test_json_lines_read_like_the_table(tmp_path):
    lines = [
        {"path": "a.jpg", "pid": 7, "split": "train", "camid": 1, "note": None},
        {"path": "q.jpg", "pid": 9, "split": "query", "camid": 1},
        {"path": "g.jpg", "pid": 9, "split": "gallery", "camid": 2},
    ]
    (tmp_path / "dataset.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (tmp_path / "same.csv").write_text("path,pid,split,camid\na.jpg,7,train,1\nq.jpg,9,query,1\ng.jpg,9,gallery,2\n")
    dataset = make_dataset("csv", tmp_path)
    assert lists(dataset) == lists(make_dataset("csv", tmp_path / "same.csv"))
    for text in ("[1]", "{", '"a"'):
        (tmp_path / "dataset.jsonl").write_text(json.dumps(lines[0]) + "\n" + text)
        assert "dataset.jsonl, line 2: expected an object" in message(make_dataset, "csv", tmp_path)
    (tmp_path / "dataset.jsonl").write_text('{"path": "a"}\n')
    assert "no column 'pid'" in message(make_dataset, "csv", tmp_path)


OML = "path,label,split,is_query,is_gallery,x_1,y_1,x_2,y_2,category\na,5,train,,,0,0,3,4,dog\n"


def test_open_metric_learnings_table_reads_as_it_is(tmp_path):
    table = tmp_path / "dataset.csv"
    table.write_text(OML + "b,6,validation,True,True,,,,,dog\nc,6,validation,True,True,,,,,cat\n")
    dataset = make_dataset("csv", tmp_path)
    assert dataset.same_list and dataset.query.seqs is None and len(dataset.query) == 2
    table.write_text(OML + "b,6,validation,True,True,,,,,dog\nc,6,validation,False,True,,,,,cat\n")
    dataset = make_dataset("csv", tmp_path)
    assert not dataset.same_list and (len(dataset.query), len(dataset.gallery)) == (1, 2)
    assert dataset.query.seqs[0] == dataset.gallery.seqs[0] != dataset.gallery.seqs[1]  # never its own match
    assert not [f for f in findings(dataset) if "perfect match" in f.text]
    assert dataset.gallery.extra["category"].tolist() == ["dog", "cat"]


def test_unlabelled_training_images_are_for_methods_without_labels(tmp_path):
    write(tmp_path, ["a.jpg", "b.jpg", "q.jpg", "g.jpg"])
    table = "path,pid,split\na.jpg,,train\nb.jpg,rex,train\nq.jpg,x,query\ng.jpg,x,gallery\n"
    (tmp_path / "dataset.csv").write_text(table)
    dataset = make_dataset("csv", tmp_path)
    assert dataset.train.pids.tolist() == [-1, 0] and dataset.num_classes == 1
    assert join_training([dataset.train, dataset.train]).pids.tolist() == [-1, 0, -1, 1]
    with pytest.raises(UserError, match="1 training images have no pid"):
        make_dataloader(config(tmp_path, tmp_path, DATASETS__NAMES="csv", PROCESSOR__NAME="supervised"))
    with pytest.raises(UserError, match="no pid"):
        make_dataloader(config(tmp_path, tmp_path, DATASETS__NAMES="csv", DATASETS__VAL_SHARE=0.5))


def test_held_out_rows_keep_their_boxes():
    boxes = np.arange(48).reshape(12, 4)
    records = Records.of([str(i) for i in range(12)], np.repeat(np.arange(4), 3), boxes=boxes)
    for part in hold_out(records, 0.5, 0):
        assert part.boxes.tolist() == [boxes[int(p)].tolist() for p in part.paths]


# ---------------------------------------------------------------- findings


def texts(tmp_path, table: str, **options) -> list[str]:
    (tmp_path / "dataset.csv").write_text(re.sub(r"^(\w),", r"\1.jpg,", table, flags=re.MULTILINE))
    return [finding.text for finding in findings(make_dataset("csv", tmp_path, **options))]


@pytest.mark.parametrize(("table", "words"), [
    ("a,1,train,1\nb,1,train,1\nc,1,query,1\nd,1,gallery,2", "1 identities are in training and in the test"),
    ("a,1,train,1\nb,1,train,1\nc,2,train,1\nd,2,train,2\nq,5,query,1\ng,5,gallery,2",
     "1 of 2 training identities have all their images from one camera"),
    ("a,1,train,1\nb,1,train,2\nc,2,train,2\nq,5,query,1\ng,5,gallery,2", "1 training identities have a single image"),
    ("q,5,query,1\ng,5,gallery,2\nr,6,query,1", "1 of 2 queries have an identity that is absent from the gallery"),
    ("q,5,query,1\ng,5,gallery,2\nr,6,query,1\nh,6,gallery,1", "1 of 2 queries are found under their own camera only"),
    ("q,5,query,1\nq,5,gallery,2", "1 images are query and gallery at once"),
    ("q,5,query,1\ng,5,gallery,2\ng,5,gallery,3", "gallery: 1 images are listed more than once, such as"),
    ("t,5,test,1\nu,5,test,2\nv,6,test,2", "1 of 3 queries are found under their own camera only"),
])  # fmt: skip
def test_what_looks_wrong_is_counted_in_one_line(table, words, tmp_path):
    (line,) = texts(tmp_path, f"path,pid,split,camid\n{table}\n")
    assert words in line and "\n" not in line


def test_nothing_is_found_in_an_ordinary_set(tmp_path):
    assert findings(make_dataset("market1501", write_market(tmp_path))) == []


def test_images_that_are_not_there_are_counted_and_the_first_are_named(tmp_path):
    place = write_market(tmp_path) / "market1501"
    table = [f"{p.relative_to(place)},{p.name[:4]},{p.name[6]},{s}" for s, d in
             (("train", "bounding_box_train"), ("query", "query"), ("gallery", "bounding_box_test"))
             for p in sorted((place / d).iterdir())]  # fmt: skip
    (place / "dataset.csv").write_text("\n".join(["path,pid,camid,split", *table]))
    dataset = make_dataset("csv", place)
    for path in dataset.query.paths[:6]:
        Path(path).unlink()
    line = message(make_dataloader, config(place, tmp_path, DATASETS__NAMES="csv"))
    named = ", ".join(dataset.query.paths[:5])
    assert line.startswith(f"csv: images of the query list are missing, 6 of 8: {named}, ...; unpack everything")
    for part, count in ((dataset.train, 16), (dataset.train.take([]), 0)):
        absent, looked = missing(part)
        assert len(absent) == 0 and looked == count


def test_the_look_for_missing_images_ends_in_time_and_says_how_far_it_came(tmp_path):
    records = Records.of([str(tmp_path / f"{i}.jpg") for i in range(5_000)], None)
    absent, looked = missing(records, seconds=0)
    assert looked == len(absent) == 256 and np.all(np.diff(absent) > 0)
    assert absent[0] < 100 and absent[-1] > 4_900  # spread over the list
    words = "images of the train list are missing, 256 of 256 looked for: "
    assert missing_line("train", records, absent, looked).startswith(words + records.paths[absent[0]])


# ---------------------------------------------------------------- everything trains


def test_a_run_on_all_of_its_sources_is_tested_elsewhere(tmp_path, caplog):
    write_market(tmp_path)
    (tmp_path / "market1501").rename(tmp_path / "all")
    write_market(tmp_path)
    words = {"DATASETS__USE_ALL": True, "DATASETS__NAMES": "folder"}
    with pytest.raises(UserError, match="train on their test images; name other sets in DATASETS.TARGETS"):
        make_dataloader(config(tmp_path / "all", tmp_path, **words))
    (tmp_path / "all" / "market1501").symlink_to(tmp_path / "market1501")
    for name in ("bounding_box_train", "query", "bounding_box_test"):
        assert (tmp_path / "all" / name).is_dir()
    data = make_dataloader(config(tmp_path / "all", tmp_path, DATASETS__TARGETS=["market1501"], **words))
    assert data.num_classes == 8 and [t.name for t in data.tests] == ["market1501"]
    assert [r for r in caplog.records if "trains on its query and gallery images too" in r.message]
