"""Other layouts, options and protocols of the catalogue's entries, and how each goes wrong."""

from __future__ import annotations

import builtins
import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from datasets import CATALOGUE, make_dataset
from tests.datasets.miniatures import (
    CAR_CLASSES,
    CAR_FILES,
    CARS,
    CUB,
    CUHK03_FILES,
    DUKE,
    INSHOP,
    INSHOP_FILES,
    LUPERSON,
    MARKET,
    MINIATURES,
    MSMT_FLAT,
    P_DUKE,
    SOP,
    UNIVERSITY,
    annotations,
    lists,
    message,
    new_protocol,
    prid,
    write,
)


def names(records) -> list[str]:
    return [Path(path).name for path in records.paths]


# ---------------------------------------------------------------- counts


def test_counts_other_than_the_published_ones_are_told_with_both_numbers_in_one_line(tmp_path, caplog):
    MARKET.build(tmp_path)
    make_dataset("market1501", tmp_path)
    (line,) = [r.message for r in caplog.records if "published" in r.message]
    assert "train 3 images (published 12,936)" in line and "gallery 2 cameras (published 6)" in line


@pytest.mark.parametrize("name", [n for n in MINIATURES if CATALOGUE[n].counts])
def test_every_entry_warns_once_with_both_numbers(name, tmp_path, caplog):
    MINIATURES[name].build(tmp_path)
    dataset = make_dataset(name, tmp_path)
    (line,) = [r.message for r in caplog.records if "published" in r.message]
    told = 0
    for split, wanted in dataset.spec.published().items():
        found = getattr(dataset, split).counts()
        for what, there, number in zip(("ids", "images", "cameras"), found, wanted, strict=True):
            if number not in (None, there):
                assert f"{split} {there:,} {what} (published {number:,})" in line
                told += 1
    assert told == line.count("(published ") > 0


@pytest.mark.parametrize("name", [n for n in MINIATURES if CATALOGUE[n].counts])
def test_published_counts_name_splits_and_three_numbers(name):
    counts = CATALOGUE[name].published()
    assert counts and set(counts) <= {"train", "query", "gallery"}
    assert all(len(row) == 3 and all(n is None or n > 0 for n in row) for row in counts.values())


def test_published_counts_follow_the_options():
    def published(name, split, **options):
        return CATALOGUE[name].published(**options)[split]

    assert published("msmt17", "train", use_val=False) == (1041, 30248, 15)
    assert published("vehicleid_large", "gallery") == published("vehicleid", "gallery", test_size=2400)
    assert published("veri", "query", missing_view="drop")[1] == 1677
    assert published("cuhk03", "train", labeled=False)[1] == 7365
    assert published("cuhk03", "query", classic=True)[0] == 100
    assert published("university1652", "query", direction="satellite_drone") == (701, 701, None)


# ---------------------------------------------------------------- person sets


def test_market1501_takes_the_distractors_on_request(tmp_path):
    place = MARKET.build(tmp_path)
    assert "no folder 'images'" in message(make_dataset, "market1501", tmp_path, market1501_500k=True)
    write(place / "images", ["0000_c1s1_000001_00.jpg", "-1_c2s1_000002_00.jpg"])
    assert names(make_dataset("market1501", tmp_path, market1501_500k=True).gallery)[2:] == ["0000_c1s1_000001_00.jpg"]
    assert len(make_dataset("market1501", tmp_path).gallery) == 2


def test_lists_beside_the_flat_msmt17_decide_what_belongs(tmp_path):
    place = MSMT_FLAT.build(tmp_path)
    write(place / "bounding_box_train", ["0000_000_03_0303morning_0015_0.jpg", "0005_c1_unlisted.jpg"])
    (place / "list_train.txt").write_text("0000/0000_000_03_0303morning_0015_0.jpg 0\n0001_c1_0002.jpg 1\n")
    (place / "list_val.txt").write_text("0000_c12_0001.jpg 0\n")
    (place / "list_query.txt").write_text("0000_c2_0003.jpg 0\n")
    (place / "list_gallery.txt").write_text("0000_c15_0004.jpg 0\n")
    dataset = make_dataset("msmt17", tmp_path)
    assert [(Path(p).name, pid, cam) for p, pid, cam, _ in dataset.train] == [
        ("0000_000_03_0303morning_0015_0.jpg", 0, 1), ("0000_c12_0001.jpg", 0, 2), ("0001_c1_0002.jpg", 1, 0),
    ]  # fmt: skip
    (place / "list_query.txt").write_text("0000_c2_9999.jpg 0\n")
    assert "list_query.txt, line 1: no image 0000_c2_9999.jpg" in message(make_dataset, "msmt17", tmp_path)


OCCLUDED_LISTS = {
    "train.list": "0001_c2_f0046182.jpg\n",
    "query.list": "0005_c5_f0051321.jpg\n",  # from the gallery of DukeMTMC-reID
    "gallery.list": "0003_c8_f0000001.jpg\n0005_c2_f0046985.jpg\n",
}


@pytest.mark.parametrize("where", ["Occluded_Duke", "DukeMTMC-reID", "dukemtmcreid", "."])
def test_occluded_duke_is_picked_from_duke_by_its_lists(where, tmp_path):
    place = DUKE.build(tmp_path, "dukemtmcreid/DukeMTMC-reID" if where == "dukemtmcreid" else None)
    (tmp_path / where).mkdir(exist_ok=True)
    for name, text in OCCLUDED_LISTS.items():
        (tmp_path / where / name).write_text(text)
    dataset = make_dataset("occ_duke", tmp_path)
    assert [path for path, *_ in dataset.train] == [str(place / "bounding_box_train/0001_c2_f0046182.jpg")]
    assert names(dataset.query) == ["0005_c5_f0051321.jpg"]
    assert names(dataset.gallery) == ["0003_c8_f0000001.jpg", "0005_c2_f0046985.jpg"]
    assert len(make_dataset("dukemtmc", tmp_path).train) == 2
    (tmp_path / where / "query.list").write_text("0001_c1_f1.jpg\n")
    assert "query.list: 1 images are not in" in message(make_dataset, "occ_duke", tmp_path)


def test_duke_alone_is_not_occluded_duke_and_lists_alone_say_what_is_missing(tmp_path):
    DUKE.build(tmp_path)
    assert "occ_duke: not found" in message(make_dataset, "occ_duke", tmp_path)
    alone = tmp_path / "alone" / "Occluded_Duke"
    alone.mkdir(parents=True)
    for name, text in OCCLUDED_LISTS.items():
        (alone / name).write_text(text)
    assert "no DukeMTMC-reID was found for them" in message(make_dataset, "occ_duke", alone.parent)


def test_p_duke_folders_without_a_number_and_missing_ones_are_told(tmp_path):
    place = P_DUKE.build(tmp_path)
    (place / "train/whole_body_images/someone").mkdir()
    assert "someone: the folder's name is not an identity" in message(make_dataset, "p_dukemtmc", tmp_path)
    assert not set(make_dataset("p_dukemtmc", P_DUKE.build(tmp_path / "b")).query.camids) & {1}


def test_misspelt_cuhk_sysu_reads_too_and_an_empty_folder_is_told(tmp_path):
    write(tmp_path / "cuhk_sysu" / "croppped_images", ["p5_s1_1.jpg"])
    assert list(make_dataset("cuhk_sysu", tmp_path).train.pids) == [0]
    next((tmp_path / "cuhk_sysu" / "croppped_images").iterdir()).unlink()
    assert "no images in" in message(make_dataset, "cuhk_sysu", tmp_path)


def test_a_file_where_a_folder_should_be_is_one_line(tmp_path):
    place = MARKET.build(tmp_path)
    for path in list((place / "query").iterdir()):
        path.unlink()
    (place / "query").rmdir()
    (place / "query").write_text("")
    assert f"{place / 'query'} cannot be read (Not a directory)" in message(make_dataset, "market1501", tmp_path)


# ---------------------------------------------------------------- CUHK03


def raw_cuhk03(folder: Path) -> None:
    """``cuhk-03.mat`` as MATLAB 7.3 writes it: cells of references, everything transposed."""
    h5py = pytest.importorskip("h5py")
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "cuhk-03.mat", "w") as out:
        empty = out.create_dataset("empty", data=np.zeros(2, np.uint64))
        pairs = {int(n[0]): max(int(m[2:5]) for m in CUHK03_FILES if m[0] == n[0]) for n in CUHK03_FILES}
        for kind, shade in (("labeled", 200), ("detected", 90)):
            cells = []
            for pair in range(1, 6):
                table = np.empty((10, pairs.get(pair, 1)), h5py.ref_dtype)
                table[:] = empty.ref
                for name in CUHK03_FILES:
                    if name[0] == str(pair):
                        pixels = np.full((3, 4, 8), shade, np.uint8)  # (channel, width, height)
                        person, image = int(name[2:5]), int(name[8:10])
                        table[image - 1, person - 1] = out.create_dataset(f"{kind}_{name}", data=pixels).ref
                cells.append(out.create_dataset(f"{kind}_pair_{pair}", data=table, dtype=h5py.ref_dtype).ref)
            out.create_dataset(kind, data=np.array([cells], h5py.ref_dtype), dtype=h5py.ref_dtype)
        tests = [out.create_dataset(f"t{i}", data=np.array(t, float).T).ref for i, t in enumerate(
            ([(1, 1), (3, 40)], [(1, 2), (5, 2)]))]  # fmt: skip
        out.create_dataset("testsets", data=np.array([tests], h5py.ref_dtype), dtype=h5py.ref_dtype)


@pytest.mark.parametrize("level", ["", "cuhk03_release"])
def test_cuhk03_is_taken_out_of_its_raw_file_once(level, tmp_path):
    place = tmp_path / "cuhk03"
    raw_cuhk03(place / level)
    new_protocol("detected")(place)
    first = make_dataset("cuhk03", tmp_path, labeled=False)
    images = place / level / "images_detected"
    assert sorted(path.name for path in images.iterdir()) == CUHK03_FILES
    assert first.train.paths == [str(images / name) for name in CUHK03_FILES[:3]]
    (place / level / "cuhk-03.mat").unlink()
    assert lists(make_dataset("cuhk03", tmp_path, labeled=False)) == lists(first)
    from datasets.storage.pillow_decoding import load_image

    image = load_image(first.train.paths[0])
    assert image.size == (4, 8) and image.getpixel((0, 0)) == (90, 90, 90)


def test_classic_cuhk03_numbers_persons_in_file_order_and_searches_one_list(tmp_path):
    raw_cuhk03(tmp_path / "cuhk03")
    dataset = make_dataset("cuhk03", tmp_path, classic=True)
    assert dataset.protocol == "cuhk03" and CATALOGUE["cuhk03"].protocol == "market1501"
    assert [(Path(p).name, pid, cam) for p, pid, cam, _ in dataset.train] == [
        ("1_002_1_02.png", 0, 0), ("5_002_2_10.png", 1, 1),
    ]  # fmt: skip
    tested = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [(pid, cam) for _, pid, cam, _ in dataset.query] == tested
    assert list(dataset.query) == list(dataset.gallery) and not dataset.same_list
    other = make_dataset("cuhk03", tmp_path, classic=True, split_id=1)
    assert names(other.query) == ["1_002_1_02.png", "5_002_2_10.png"]
    assert "SPLIT_ID: 2; the classic protocol has 2 splits" in message(
        make_dataset, "cuhk03", tmp_path, classic=True, split_id=2
    )


def test_cuhk03_splits_of_other_systems_are_read_by_base_name(tmp_path):
    place = tmp_path / "cuhk03"
    write(place / "images_labeled", CUHK03_FILES)
    rows = [[f"/somewhere/else/images_labeled/{name}", i // 2, 0] for i, name in enumerate(CUHK03_FILES)]
    split = {"train": rows[:2], "query": rows[2:4], "gallery": rows[4:]}
    (place / "splits_new_labeled.json").write_text(json.dumps([split]))
    dataset = make_dataset("cuhk03", tmp_path)
    assert list(dataset.gallery) == [
        (str(place / "images_labeled" / name), 2, 1, 0) for name in CUHK03_FILES[4:]
    ]
    (place / "splits_new_labeled.json").write_text("{}]")
    assert "is not a list of splits" in message(make_dataset, "cuhk03", tmp_path)


def test_cuhk03_says_what_is_missing(tmp_path, monkeypatch):
    place = tmp_path / "cuhk03"
    write(place / "images_labeled", CUHK03_FILES)
    assert "no split of the new protocol; looked for" in message(make_dataset, "cuhk03", tmp_path)
    assert "neither extracted images" in message(make_dataset, "cuhk03", tmp_path, labeled=False)
    savemat(place / "cuhk03_new_protocol_config_labeled.mat", {"labels": [1]})
    assert "holds no split" in message(make_dataset, "cuhk03", tmp_path)
    (place / "cuhk-03.mat").write_bytes(b"no such format")
    if importlib.util.find_spec("h5py"):
        assert "cannot be read" in message(make_dataset, "cuhk03", tmp_path, labeled=False)
    load = builtins.__import__

    def without(name, *args, **more):
        if name == "h5py":
            raise ModuleNotFoundError(name)
        return load(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "requirements-extra.txt" in message(make_dataset, "cuhk03", tmp_path, labeled=False)


# ---------------------------------------------------------------- PRID, LUPerson


def test_prid_follows_the_given_split_or_draws_one_and_slim_train_only_trains(tmp_path):
    place = prid().build(tmp_path)
    one, two = (make_dataset("prid", tmp_path, split_id=i) for i in (0, 1))
    assert set(one.query.pids) == set(range(2, 201, 2)) and set(two.query.pids) == set(range(1, 201, 2))
    (place / "splits_single_shot.json").rename(place.parent / "splits_single_shot.json")
    assert lists(make_dataset("prid", tmp_path)) == lists(one)
    (place.parent / "splits_single_shot.json").unlink()
    drawn = [make_dataset("prid", tmp_path, split_id=i) for i in (0, 0, 9)]
    assert lists(drawn[0]) == lists(drawn[1]) and set(drawn[0].query.pids) != set(drawn[2].query.pids)
    assert len(drawn[0].train) == 200 and len(drawn[0].query) == 100
    assert "prid has 10 splits" in message(make_dataset, "prid", tmp_path, split_id=10)
    (place / "single_shot/cam_b/person_0001.png").unlink()
    assert "person 1 is not in both views" in message(make_dataset, "prid", tmp_path)
    write(tmp_path / "s/prid_2011/slim_train", ["person_0001/a.png", "person_0300/b.png"])
    slim = make_dataset("prid", tmp_path / "s")
    assert slim.train.pids.tolist() == [0, 1] and not len(slim.query)


def test_luperson_keeps_the_best_of_its_list_and_says_when_it_is_short(tmp_path, caplog):
    place = LUPERSON.build(tmp_path)
    assert names(make_dataset("luperson", tmp_path, keep_num=2).train) == ["2.jpg", "c.jpg"]
    assert not [r for r in caplog.records if "asked for" in r.message]
    assert len(make_dataset("luperson", tmp_path, keep_num=9).train) == 4
    assert [r for r in caplog.records if "lists 4 images, 9 were asked for" in r.message]
    (place / "CFS_list.pkl").unlink()
    whole = make_dataset("luperson", tmp_path)
    assert [str(Path(p).relative_to(place / "images")) for p in whole.train.paths] == [
        "a-1.jpg", "a/1.jpg", "a/2.jpg", "b.jpg", "c.jpg",
    ]  # fmt: skip
    assert "KEEP_NUM: luperson has no CFS_list.pkl" in message(make_dataset, "luperson", tmp_path, keep_num=2)
    (place / "CFS_list.txt").write_text("c.jpg\r\nb.jpg\n\n")
    assert names(make_dataset("luperson", tmp_path, keep_num=1).train) == ["c.jpg"]


class Command:
    def __reduce__(self):
        return eval, ("open('ran', 'w')",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps([Command()]), "it asks for builtins.eval"),
        (pickle.dumps({"a": 1}), "it is not a list of texts"),
        (pickle.dumps([1, 2]), "is not a pickled list of names"),
        (b"a.jpg\n", "is not a pickled list of names"),
        (b"", "is not a pickled list of names"),
        (pickle.dumps([]), "is empty"),
    ],
)
def test_a_filter_list_is_read_without_running_anything(content, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (LUPERSON.build(tmp_path) / "CFS_list.pkl").write_bytes(content)
    assert words in message(make_dataset, "luperson", tmp_path)
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- retrieval


def test_cars_in_two_halves_and_as_lists_are_the_same_set(tmp_path):
    halves = tmp_path / "one" / "Cars_196"
    write(halves, ["cars_train/00001.jpg", "cars_test/00001.jpg", "cars_test/00002.jpg"])
    annotations(halves / "devkit/cars_train_annos.mat", **{"class": [7], "fname": ["00001.jpg"]})
    annotations(
        halves / "devkit/cars_test_annos_withlabels.mat", **{"class": [99, 98], "fname": ["00001.jpg", "00002.jpg"]}
    )
    dataset = make_dataset("car196", tmp_path / "one")
    assert [(Path(p).parent.name, pid) for p, pid, *_ in dataset.train] == [("cars_test", 1), ("cars_train", 0)]
    assert dataset.query.pids.tolist() == [99] and dataset.same_list
    listed = tmp_path / "two" / "CARS"
    write(listed, CAR_FILES)
    for split, rows in (("train", (0, 1)), ("test", (2,))):
        (listed / f"{split}.txt").write_text("".join(f"{CAR_FILES[i]},{CAR_CLASSES[i]}\n" for i in rows))
    assert lists(make_dataset("car196", tmp_path / "two")) == CARS.expected(listed)


def test_retrieval_sets_say_which_list_is_wrong(tmp_path):
    place = CARS.build(tmp_path)
    savemat(place / "cars_annos.mat", {"other": 1})
    assert "cars_annos.mat has no 'annotations'" in message(make_dataset, "car196", tmp_path)
    (place / "cars_annos.mat").unlink()
    (place / "devkit").mkdir()
    assert "no cars_annos.mat, train.txt nor devkit/cars_train_annos.mat" in message(make_dataset, "car196", tmp_path)
    place = CUB.build(tmp_path)
    (place / "image_class_labels.txt").write_text("1 1\n2 100\n")
    assert "has no class of image 3" in message(make_dataset, "cub200", tmp_path)
    place = SOP.build(tmp_path)
    (place / "Ebay_test.txt").write_text("image_id class_id super_class_id path\n1 2\n")
    assert "Ebay_test.txt, line 2: expected 'image_id" in message(make_dataset, "sop", tmp_path)
    place = INSHOP.build(tmp_path)
    (place / "list_eval_partition.txt").write_text(f"1\nimage item status\n{INSHOP_FILES[0]} id_1 training\n")
    assert "line 3: status must be one of train, query, gallery" in message(make_dataset, "inshop", tmp_path)
    (place / "Eval").mkdir()
    (place / "list_eval_partition.txt").unlink()
    assert "Eval/list_eval_partition.txt" in message(make_dataset, "inshop", tmp_path)


def test_inshop_in_high_resolution_and_as_lists(tmp_path):
    place = INSHOP.build(tmp_path)
    (place / "img").rename(place / "img_highres")
    paths = make_dataset("inshop", tmp_path).query.paths
    assert paths == [str(place / INSHOP_FILES[3].replace("img/", "img_highres/"))] and Path(paths[0]).exists()
    listed = tmp_path / "two" / "InShop"
    write(listed, ["a.jpg", "b.jpg", "c.jpg"])
    for name, line in (("train", "a.jpg,5"), ("test_query", "b.jpg,7"), ("test_gallery", "c.jpg,7")):
        (listed / f"{name}.txt").write_text(line + "\n")
    dataset = make_dataset("inshop", tmp_path / "two")
    assert list(dataset.gallery) == [(str(listed / "c.jpg"), 7, 1, 0)] and not dataset.same_list


def test_university_searches_in_the_direction_asked_for(tmp_path):
    place = UNIVERSITY.build(tmp_path)
    for direction in ("satellite_drone", "satellite -> drone", "SATELLITE2DRONE"):
        dataset = make_dataset("university1652", tmp_path, direction=direction)
        assert [Path(p).parts[-3] for p in dataset.query.paths] == ["query_satellite"]
        assert [(cam, view) for *_, cam, view in dataset.gallery] == [(1, 1), (1, 1)]
    assert "no folder 'query_street'" in message(make_dataset, "university1652", tmp_path, direction="street_drone")
    for direction in ("drone", "google_drone", ""):
        assert "DATASETS.DIRECTION" in message(make_dataset, "university1652", tmp_path, direction=direction)
    (place / "train/drone/old").mkdir()
    assert "old: the folder's name is not a building" in message(make_dataset, "university1652", tmp_path)


# ---------------------------------------------------------------- train + query + gallery


@pytest.mark.parametrize("name", [n for n in MINIATURES if n not in ("luperson", "prid")])
def test_all_of_a_set_trains_without_junk_and_distractors_and_with_dense_ids(name, tmp_path):
    MINIATURES[name].build(tmp_path)
    plain, whole = make_dataset(name, tmp_path), make_dataset(name, tmp_path, use_all=True)
    junk = {path for path in plain.gallery.paths if Path(path).name.startswith(("0000_c6s3", "-1", "0000C2"))}
    parts = {*plain.train.paths, *plain.query.paths, *plain.gallery.paths}
    assert set(whole.train.paths) == parts - (junk if name in ("market1501", "mm", "mars") else set())
    assert len(whole.train) == len(set(whole.train.paths)) and whole.use_all
    assert set(whole.train.pids.tolist()) == set(range(whole.num_classes))
    assert whole.query.paths == plain.query.paths and whole.query.pids.tolist() == plain.query.pids.tolist()


def test_ids_that_restart_in_the_test_are_other_people_and_no_pseudo_camera_is_counted(tmp_path):
    for name in ("msmt17", "veri", "vehicleid", "market1501"):
        MINIATURES[name].build(tmp_path)
    whole = make_dataset("msmt17", tmp_path, use_all=True)
    assert (whole.num_classes, whole.num_cameras) == (4, 4)  # 0, 1 of training and 0, 1 of the test
    assert make_dataset("market1501", tmp_path, use_all=True).num_classes == 3
    assert make_dataset("vehicleid", tmp_path, use_all=True).num_cameras == 1
