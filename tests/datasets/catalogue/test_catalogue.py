"""Every catalogue entry reads a miniature in its published layout; rules for numbering, names, junk and messages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from datasets import CATALOGUE, DatasetSpec, make_dataset, register_dataset
from datasets.checks import filter_line
from datasets.readers.folders import draw_one_each
from datasets.records import Records
from tests.datasets.every import NAMES, OPTIONS, build
from tests.datasets.miniatures import (
    BUFFER,
    DUKE,
    MARKET,
    MINIATURES,
    MSMT_FLAT,
    MSMT_QUERY,
    MSMT_TRAIN,
    VEHICLES,
    VERI,
    keypoints,
    lists,
    message,
    msmt17,
    vehicleid,
    write,
)
from tests.parity.cases import ROOT
from utils.scoring.matching import Matching

ENTRIES = [n for n in CATALOGUE if n not in ("csv", "folder", "images") and not n.startswith("synthetic")]


def test_the_catalogue_is_walked():
    assert len(ENTRIES) >= 29 and len(NAMES) >= 38
    assert set(MINIATURES) == set(ENTRIES) and set(PUBLISHED_NAMES) == set(ENTRIES)


def test_a_joint_set_is_a_composition_of_entries():
    joint = CATALOGUE["mm"]
    assert [name for name, _ in joint.parts] == ["msmt17", "market1501"] and joint.read is None
    assert all(set(options) <= CATALOGUE[name].options for name, options in joint.parts)


def test_a_registered_joint_set_is_read_and_joined(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.catalogue.CATALOGUE", dict(CATALOGUE))
    for name in ("dukemtmc", "market1501", "veri"):
        MINIATURES[name].build(tmp_path)
    parts = (("dukemtmc", {}), ("veri", {"missing_view": "keep"}), ("market1501", {}))
    register_dataset(DatasetSpec("ours", (), parts=parts))
    joint = make_dataset("ours", tmp_path)
    alone = [make_dataset(name, tmp_path, **options) for name, options in parts]
    assert list(joint.train.paths) == [path for part in alone for path in part.train.paths]
    assert joint.num_classes == sum(part.num_classes for part in alone)
    assert joint.num_cameras == sum(part.num_cameras for part in alone)
    assert joint.query.paths == alone[2].query.paths and joint.gallery.pids.tolist() == alone[2].gallery.pids.tolist()
    assert joint.query.original_camids().tolist() == alone[2].query.original_camids().tolist()
    assert joint.train.original_camids().tolist() == [c for part in alone for c in part.train.original_camids()]
    assert set(joint.query.camids.tolist()) & set(joint.train.camids.tolist())  # cameras that were trained


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_reads_its_published_layout_exactly(name, tmp_path):
    assert name in MINIATURES, f"{name} is in the catalogue and has no miniature here"
    miniature = MINIATURES[name]
    place = miniature.build(tmp_path)
    dataset = make_dataset(name, tmp_path)
    assert lists(dataset) == miniature.expected(place)
    assert dataset.folder == place
    ids = {pid for _, pid, _, _ in dataset.train}
    assert ids == set(range(dataset.num_classes))
    assert {cam for _, _, cam, _ in dataset.train} == set(range(dataset.num_cameras))
    assert {view for _, _, _, view in dataset.train} == set(range(dataset.num_views))


CANDIDATES = [(name, folder) for name in ENTRIES for folder in (*CATALOGUE[name].folders, "")]


@pytest.mark.parametrize(("name", "folder"), CANDIDATES, ids=[f"{n}-{f or 'root'}" for n, f in CANDIDATES])
def test_every_candidate_folder_is_found_below_the_root_and_below_a_folder_of_the_name(name, folder, tmp_path):
    miniature = MINIATURES[name]
    root = tmp_path / "a"
    root.mkdir()
    place = miniature.build(root, folder)
    assert lists(make_dataset(name, root)) == miniature.expected(place)
    if folder:
        for i, alias in enumerate((name, *CATALOGUE[name].aliases, name.upper())):
            root = tmp_path / str(i)
            place = miniature.build(root, f"{alias}/{folder}")
            assert make_dataset(name, root).folder == place


def test_the_first_candidate_with_the_dataset_in_it_wins(tmp_path):
    (tmp_path / "market1501").mkdir()  # an empty folder of the first name is no dataset
    place = MARKET.build(tmp_path, "Market-1501-v15.09.15")
    assert make_dataset("market1501", tmp_path).folder == place
    first = MARKET.build(tmp_path, "market1501")
    assert make_dataset("market1501", tmp_path).folder == first


PUBLISHED_NAMES = {
    "mars": ("MARS",),
    "ilids_vid": ("iLIDS-VID", "ilidsvid"),
    "prid_video": ("PRID-2011-video",),
    "duke_video": ("DukeMTMC-VideoReID", "dukemtmcvidreid"),
    "lsvid": ("LS-VID", "ls_vid"),
    "market1501": ("Market1501", "market", "market-1501", "MARKET_1501"),
    "dukemtmc": ("dukemtmcreid", "DukeMTMC", "duke", "dukemtmc-reid", "DukeMTMC-reID"),
    "occ_duke": ("occluded_duke", "occludedduke", "occluded_dukemtmc", "Occluded-Duke"),
    "msmt17": ("MSMT17",),
    "msmt17v1": ("msmt17_v1", "MSMT17_V1"),
    "msmt17v2": ("msmt", "msmt17_v2", "MSMT17_V2"),
    "veri": ("veri776", "veri-776", "VeRi", "VeRi-776"),
    "vehicleid": ("VehicleID",),
    "vehicleid_small": ("SmallVehicleID",),
    "vehicleid_medium": ("MediumVehicleID", "VehicleID_medium"),
    "vehicleid_large": ("LargeVehicleID",),
    "p_dukemtmc": ("p_dukemtmc_reid", "pduke", "P-DukeMTMC-reID"),
    "cuhk03": ("CUHK03",),
    "cuhk03_np_detected": ("npdetected", "cuhknp", "cuhk03np", "cuhk03-np"),
    "cuhk03_np_labeled": ("nplabeled",),
    "cuhk_sysu": ("cuhksysu", "CUHK-SYSU"),
    "prid": ("prid2011", "prid_2011"),
    "luperson": ("lup", "LUPerson"),
    "mm": ("market_msmt",),
    "car196": ("cars196", "cars", "cars_196"),
    "cub200": ("cub", "cub_200_2011", "cub200_2011"),
    "sop": ("stanford_online_products",),
    "inshop": ("deepfashion", "in_shop", "In-shop"),
    "university1652": ("university", "University-1652"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_published_names_compare_without_case_hyphen_and_underscore(name, tmp_path):
    MINIATURES[name].build(tmp_path)
    for alias in (*PUBLISHED_NAMES[name], name.upper(), *CATALOGUE[name].aliases):
        assert make_dataset(alias, tmp_path).spec.name == name


def test_junk_is_dropped_everywhere_and_distractors_stay_in_the_gallery_alone(tmp_path):
    MARKET.build(tmp_path)
    dataset = make_dataset("market1501", tmp_path)
    names = {split: [Path(path).name for path, *_ in rows] for split, rows in lists(dataset).items()}
    assert not [n for split in names.values() for n in split if n.startswith("-1")]
    assert not [n for n in names["train"] if n.startswith("0000")]
    assert [n for n in names["gallery"] if n.startswith("0000")] == ["0000_c6s3_000026_01.jpg"]
    assert 0 in dataset.gallery.pids


@pytest.mark.parametrize("name", ["dukemtmc", "veri", "msmt17"])
def test_identity_0_is_a_person_like_any_other_outside_market1501(name, tmp_path):
    spec = CATALOGUE[name]
    files = {"dukemtmc": "0000_c1_f0000001.jpg", "veri": "0000_c001_00000001_0.jpg", "msmt17": "0000_c1_0001.jpg"}
    write(tmp_path / spec.folders[0], [f"{split}/{files[name]}" for split in spec.splits])
    dataset = make_dataset(name, tmp_path)
    assert len(dataset.train) == len(dataset.query) == len(dataset.gallery) == 1


def test_cameras_unseen_in_training_follow_in_raw_order(tmp_path):
    place = tmp_path / "market1501"
    write(place / "bounding_box_train", ["0001_c3s1_1.jpg", "0001_c5s1_1.jpg"])
    write(place / "query", ["0002_c6s1_1.jpg", "0002_c3s1_1.jpg"])
    write(place / "bounding_box_test", ["0002_c1s1_1.jpg", "0002_c5s1_1.jpg"])
    dataset = make_dataset("market1501", tmp_path)
    assert dataset.num_cameras == 2
    cameras = {Path(p).name[6]: cam for rows in lists(dataset).values() for p, _, cam, _ in rows}
    assert cameras == {"3": 0, "5": 1, "1": 2, "6": 3}


def test_a_root_whose_own_path_looks_like_an_id_changes_nothing(tmp_path):
    root = tmp_path / "2019_c1" / "0042_c2s1"
    place = MARKET.build(root)
    assert lists(make_dataset("market1501", root)) == MARKET.expected(place)


@pytest.mark.slow
def test_every_entry_numbers_alike_and_densely_in_processes_with_other_hash_seeds(tmp_path):
    for name in NAMES:
        build(name, tmp_path / name)
    DUKE.build(tmp_path / "dukemtmc")
    for i in range(1, 60):  # as many and as far apart as make the walk through a set of them depend on its history
        name = f"bounding_box_train/{(i * 617) % 7141:04d}_c{i % 8 + 1}_f{i:07d}.jpg"
        (tmp_path / "dukemtmc" / DUKE.folder / name).touch()
    rows = [f"{i}.jpg,{'abcdefg'[i % 7]}{i},{'train' if i % 2 else 'test'},cam{i % 5},{i % 3}v" for i in range(60)]
    (tmp_path / "csv" / "dataset.csv").write_text("\n".join(["path,pid,split,camid,viewid", *rows]))
    code = (
        "import sys, json; from datasets import make_dataset\n"
        "for name, options in json.loads(sys.argv[2]).items():\n"
        "    d = make_dataset(name, f'{sys.argv[1]}/{name}', **options)\n"
        "    counts = d.num_classes, d.num_cameras, d.num_views\n"
        "    print(json.dumps([name, *counts, list(d.train), list(d.query), list(d.gallery)]))"
    )
    wanted = json.dumps({name: OPTIONS.get(name, {}) for name in NAMES})
    pipes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), wanted],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (pipe.communicate(timeout=120)[0].splitlines() for pipe in pipes)
    assert first == second
    assert len(first) == len(NAMES)
    for line in first:
        name, *counts, train, _, _ = json.loads(line)
        for count, column in zip(counts, (1, 2, 3), strict=True):
            labels = {row[column] for row in train}
            assert labels == set(range(count)) or (column == 1 and labels == {-1} and not count), name
    assert len({row[1] for row in json.loads(first[NAMES.index("dukemtmc")])[4]}) > 50


# ---------------------------------------------------------------- MSMT17


def test_msmt17_is_either_release_and_v1_and_v2_are_only_themselves(tmp_path):
    v1, v2 = tmp_path / "one", tmp_path / "two"
    msmt17("MSMT17", "train", "test").build(v1)
    msmt17("MSMT17", "mask_train_v2", "mask_test_v2").build(v2)
    assert "/train/" in make_dataset("msmt17", v1).train[0][0]
    assert "/mask_train_v2/" in make_dataset("msmt17", v2).train[0][0]
    assert "/train/" in make_dataset("msmt17v1", v1).train[0][0]
    assert "/mask_train_v2/" in make_dataset("msmt", v2).train[0][0]
    assert "no folder 'train'" in message(make_dataset, "msmt17v1", v2)
    assert "no folder 'mask_train_v2'" in message(make_dataset, "msmt17v2", v1)


def test_msmt17_leaves_the_validation_list_out_on_request(tmp_path):
    MINIATURES["msmt17"].build(tmp_path)
    with_val, without = (make_dataset("msmt17", tmp_path, use_val=use).train for use in (True, False))
    assert len(with_val) == 3
    assert [Path(p).name for p, *_ in without] == [Path(n).name for n in MSMT_TRAIN]


def test_msmt17_in_the_flat_layout_reads_cameras_of_two_digits(tmp_path):
    place = MSMT_FLAT.build(tmp_path)
    assert lists(make_dataset("msmt17", tmp_path)) == MSMT_FLAT.expected(place)


def test_msmt17_names_the_list_and_line_that_do_not_fit(tmp_path):
    place = MINIATURES["msmt17"].build(tmp_path)
    (place / "list_query.txt").write_text(f"{MSMT_QUERY[0]} 0\nodd.jpg\n")
    text = message(make_dataset, "msmt17", tmp_path)
    assert "list_query.txt, line 2" in text
    (place / "list_query.txt").unlink()
    assert "no list file 'list_query.txt'" in message(make_dataset, "msmt17", tmp_path)
    (place / "list_query.txt").write_text("\n")
    assert "list_query.txt is empty" in message(make_dataset, "msmt17", tmp_path)


# ---------------------------------------------------------------- VeRi, VehicleID


def test_veri_drops_images_without_a_view_from_all_splits_on_request(tmp_path):
    VERI.build(tmp_path)
    dropped = make_dataset("veri", tmp_path, missing_view="drop")
    kept = make_dataset("veri", tmp_path, missing_view="keep")
    assert [Path(p).name for p, *_ in dropped.train] == ["0001_c001_00016450_0.jpg", "0001_c020_00016480_0.jpg"]
    assert [(pid, view) for _, pid, _, view in dropped.train] == [(0, 0), (0, 1)]
    assert [Path(p).name for p, *_ in dropped.gallery] == ["0002_c001_00030605_1.jpg"]
    assert (len(kept.train), len(kept.query), len(kept.gallery)) == (3, 1, 2)
    assert "must be 'drop' or 'keep', got 'perhaps'" in message(make_dataset, "veri", tmp_path, missing_view="perhaps")


def test_veri_takes_its_key_point_lists_from_another_folder(tmp_path):
    place = VERI.build(tmp_path)
    apart = tmp_path / "lists"
    apart.mkdir()
    for name in ("keypoint_train.txt", "keypoint_test.txt"):
        (place / name).rename(apart / name)
    assert lists(make_dataset("veri", tmp_path, view_dir=str(apart))) == VERI.expected(place)


def test_veri_without_key_point_lists_warns_once_or_stops_where_views_are_asked_for(tmp_path, caplog):
    place = VERI.build(tmp_path)
    for name in ("keypoint_train.txt", "keypoint_test.txt"):
        (place / name).unlink()
    dataset = make_dataset("veri", tmp_path)
    assert {view for rows in lists(dataset).values() for *_, view in rows} == {0}
    assert len([r for r in caplog.records if "keypoint_train.txt" in r.message]) == 1
    assert "no keypoint_train.txt" in message(make_dataset, "veri", tmp_path, missing_view="drop")


def test_veri_names_the_line_without_an_orientation_and_lists_that_name_no_image(tmp_path):
    place = VERI.build(tmp_path)
    (place / "keypoint_test.txt").write_text("image_test/0002_c001_00030605_1.jpg 3 4\nodd.jpg front\n")
    assert "keypoint_test.txt, line 2" in message(make_dataset, "veri", tmp_path)
    for name in ("keypoint_train.txt", "keypoint_test.txt"):
        (place / name).write_text(keypoints("unknown.jpg", 1))
    assert "name no image of the train split" in message(make_dataset, "veri", tmp_path, missing_view="drop")


def test_vehicleid_draws_one_gallery_image_per_vehicle_and_another_seed_draws_others(tmp_path):
    vehicleid(800).build(tmp_path)
    galleries = set()
    for seed in range(6):
        dataset = make_dataset("vehicleid", tmp_path, seed=seed)
        assert sorted(dataset.gallery.pids.tolist()) == sorted(VEHICLES)
        assert len(dataset.query) + len(dataset.gallery) == 6
        assert not set(dataset.query.paths) & set(dataset.gallery.paths)
        assert list(make_dataset("vehicleid", tmp_path, seed=seed).gallery) == list(dataset.gallery)
        galleries.add(tuple(dataset.gallery.paths))
    assert len(galleries) > 1
    assert list(make_dataset("vehicleid", tmp_path, seed=1, trial=3).gallery) == list(
        make_dataset("vehicleid", tmp_path, seed=4).gallery
    )
    assert draw_one_each([5, 5, 5], 0) != draw_one_each([5, 5, 5], 2)


def test_vehicleid_names_the_sizes_that_there_are(tmp_path):
    vehicleid(1600).build(tmp_path)
    assert len(make_dataset("vehicleid", tmp_path, test_size=1600).gallery) == 3
    assert "found [1600]" in message(make_dataset, "vehicleid", tmp_path, test_size=2400)


# ---------------------------------------------------------------- your own table


def table(root: Path, text: str, name: str = "dataset.csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def test_a_table_with_cameras_keeps_query_order_and_sorts_training_rows(tmp_path):
    table(
        tmp_path,
        "path,pid,camid,split,viewid\nb.jpg,12,7,train,3\na.jpg,2,9,train,1\nz.jpg,5,9,query,1\ny.jpg,4,8,query,3\n"
        "x.jpg,5,7,gallery,3\njunk.jpg,-1,7,gallery,3\nv.jpg,3,7,val,3\ni.jpg,3,7,ignore,3\n",
    )
    dataset = make_dataset("csv", tmp_path)
    here = str(tmp_path)
    assert list(dataset.train) == [(f"{here}/a.jpg", 0, 1, 0), (f"{here}/b.jpg", 1, 0, 1)]
    assert list(dataset.query) == [(f"{here}/z.jpg", 5, 1, 0), (f"{here}/y.jpg", 4, 2, 1)]
    assert list(dataset.gallery) == [(f"{here}/x.jpg", 5, 0, 1)]


def test_a_table_without_cameras_switches_the_camera_filter_off(tmp_path):
    table(tmp_path, "path,pid,split\na.jpg,1,train\nq.jpg,2,query\ng.jpg,2,gallery\n")
    dataset = make_dataset("csv", tmp_path)
    assert set(dataset.train.camids) == set(dataset.query.camids) == {0}
    assert set(dataset.gallery.camids) == {1}
    assert not dataset.same_list


@pytest.mark.parametrize("cameras", [True, False])
def test_rows_of_split_test_are_filtered_by_camera_where_cameras_are_known(cameras, tmp_path):
    rows = [("a.jpg", 1, "train"), ("t.jpg", 3, "test"), ("u.jpg", 3, "Test"), ("v.jpg", 3, "test")]
    lines = ["path,pid,split,camid"] + [f"{p},{i},{s},{min(k, 2)}" for k, (p, i, s) in enumerate(rows)]
    table(tmp_path, "\n".join(lines if cameras else [line.rpartition(",")[0] for line in lines]))
    dataset = make_dataset("csv", tmp_path)
    assert dataset.same_list != cameras
    assert dataset.query.paths == dataset.gallery.paths == [f"{tmp_path}/{name}.jpg" for name in "tuv"]
    matching = Matching(
        dataset.query.pids, dataset.gallery.pids, dataset.query.camids, dataset.gallery.camids,
        same_list=dataset.same_list,
    )  # fmt: skip
    pairs = matching.pairs(0, 3)
    counted = set(zip(pairs.query[pairs.positive].tolist(), pairs.gallery[pairs.positive].tolist(), strict=True))
    if cameras:
        assert dataset.query.camids.tolist() == dataset.gallery.camids.tolist() == [1, 2, 2]
        assert counted == {(0, 1), (0, 2), (1, 0), (2, 0)}
    else:
        assert not set(dataset.query.camids) & set(dataset.gallery.camids)
        assert counted == {(i, j) for i in range(3) for j in range(3) if i != j}
    rule = "matches of the same identity and camera are left out"
    if not cameras:
        rule = "no camera filter, an image is never its own match"
    line = filter_line("csv", "market1501", dataset.query, dataset.gallery, dataset.same_list)
    assert line == f"csv: 3 queries, gallery 3; {rule}"


def test_the_line_of_a_test_set_says_which_filter_acts():
    def line(protocol="market1501", query=None, gallery=None, same_list=False, seqs=None):
        lists = [
            Records.of(["a", "b"], [0, 1], cams, seqs=None if seqs is None else np.array(seqs))
            for cams in (query or [0, 0], gallery or [1, 1])
        ]
        return filter_line("x", protocol, *lists, same_list).partition("; ")[2]

    assert line() == line("retrieval", [0, 0], [0, 0]) == "no camera filter"
    assert line(query=[0, 1], gallery=[0, 1]) == "matches of the same identity and camera are left out"
    assert line(seqs=[4, 5]) == "matches of the same identity and sequence are left out"
    assert line("cuhk03", [0, 1], [0, 1], seqs=[4, 5]).endswith("identity and camera or sequence are left out")
    assert line(same_list=True) == "no camera filter, an image is never its own match"
    assert line("vehicleid") == "no camera filter, the gallery is drawn"
    assert line("classification", same_list=True).startswith("images are classified")


def test_lists_keep_the_ids_that_the_files_show(tmp_path):
    text = "path,pid,split,camid,viewid\na,rex,train,door west,left\nb,ann,train,door east,right\n"
    table(tmp_path, text + "q,tom,query,door west,left\ng,tom,gallery,yard,left\n")
    dataset = make_dataset("csv", tmp_path)
    assert dataset.train.original_pids().tolist() == ["rex", "ann"]
    assert dataset.train.original_camids().tolist() == ["door west", "door east"]
    assert dataset.train.original_viewids().tolist() == ["left", "right"]
    assert dataset.query.original_pids().tolist() == ["tom"] and dataset.query.pids.tolist() == [0]
    assert dataset.gallery.original_camids().tolist() == ["yard"] and dataset.gallery.camids.tolist() == [2]
    place = MINIATURES["market1501"].build(tmp_path)
    market = make_dataset("market1501", tmp_path)
    shown = [int(re.search(r"_c(\d)", Path(path).name)[1]) for path in market.gallery.paths]
    assert place.is_dir() and market.gallery.original_camids().tolist() == shown
    assert market.gallery.original_pids().tolist() == market.gallery.pids.tolist()


def test_text_ids_are_numbered_in_text_order(tmp_path):
    table(
        tmp_path,
        "path,pid,split,camid\na,rex,train,yard\nb,10,train,gate\nc,9,train,yard\nq,tom,query,hall\ng,ann,gallery,yard\n",
    )
    dataset = make_dataset("csv", tmp_path)
    assert [(Path(p).name, pid, cam) for p, pid, cam, _ in dataset.train] == [("a", 2, 1), ("b", 0, 0), ("c", 1, 1)]
    assert [(pid, cam) for _, pid, cam, _ in dataset.query] == [(1, 2)]
    assert [(pid, cam) for _, pid, cam, _ in dataset.gallery] == [(0, 1)]


def test_ids_that_are_all_numbers_compare_as_numbers(tmp_path):
    table(tmp_path, "path,pid,split,camid\na,10,train,01\nb,9,train,1\nc,009,train,10\nq,07,query,1\ng,7,gallery,2\n")
    dataset = make_dataset("csv", tmp_path)
    assert [pid for _, pid, _, _ in dataset.train] == [1, 0, 0]
    assert [cam for _, _, cam, _ in dataset.train] == [0, 0, 1]
    assert dataset.query[0][1] == dataset.gallery[0][1] == 7


def test_ids_too_long_for_an_integer_are_text(tmp_path):
    long = "9" * 30
    table(tmp_path, f"path,pid,split\na,{long},train\nb,{long}1,train\nq,{long},query\ng,{long},gallery\n")
    dataset = make_dataset("csv", tmp_path)
    assert [pid for _, pid, _, _ in dataset.train] == [0, 1]
    assert dataset.query[0][1] == dataset.gallery[0][1] == 0


def test_a_view_left_empty_is_view_0(tmp_path):
    table(tmp_path, "path,pid,split,view\na,1,train,0\nb,1,train,\nc,2,train,4\nq,3,query,\ng,3,gallery,4\n")
    dataset = make_dataset("csv", tmp_path)
    assert [view for *_, view in dataset.train] == [0, 0, 1]
    assert (dataset.query[0][3], dataset.gallery[0][3]) == (0, 1)


@pytest.mark.parametrize("form", ["tsv", "bom", "windows", "quoted", "spaces"])
def test_other_forms_of_the_table_read_alike(form, tmp_path):
    text = "path,pid,split\na.jpg,1,train\nsub/q.jpg,2,query\ng.jpg,2,gallery\n"
    table(tmp_path / "plain", text)
    plain = [[row[1:] for row in rows] for rows in lists(make_dataset("csv", tmp_path / "plain")).values()]
    changed = {
        "tsv": text.replace(",", "\t"),
        "bom": "\ufeff" + text,
        "windows": text.replace("\n", "\r\n"),
        "quoted": text.replace("a.jpg", '"a.jpg"'),
        "spaces": text.replace(",", " , "),
    }[form]
    (tmp_path / f"dataset.{'tsv' if form == 'tsv' else 'csv'}").write_bytes(changed.encode())
    dataset = make_dataset("csv", tmp_path)
    assert [[row[1:] for row in rows] for rows in lists(dataset).values()] == plain
    assert dataset.train.paths == [str(tmp_path / "a.jpg")]
    assert dataset.query.paths == [str(tmp_path / "sub/q.jpg")]


def test_the_table_is_the_root_or_named_and_paths_stand_below_it_or_the_image_folder_or_alone(tmp_path):
    text = "path,pid,split\na.jpg,1,train\n/elsewhere/q.jpg,2,query\ng.jpg,2,gallery\n"
    path = table(tmp_path, text, "mine.csv")
    assert make_dataset("csv", path).train.paths == [str(tmp_path / "a.jpg")]
    assert make_dataset("csv", tmp_path, file="mine.csv").train.paths == [str(tmp_path / "a.jpg")]
    dataset = make_dataset("csv", tmp_path / "nowhere", file=str(path), image_dir=str(tmp_path / "images"))
    assert dataset.train.paths == [str(tmp_path / "images/a.jpg")]
    assert dataset.query.paths == ["/elsewhere/q.jpg"]


def test_columns_that_nothing_reads_are_told(tmp_path, caplog):
    table(tmp_path, "path,pid,split,weather,note\na,1,train,3,hi\nq,2,query,3,\ng,2,gallery,3,\n")
    dataset = make_dataset("csv", tmp_path)
    assert [r.message for r in caplog.records if r.message.endswith("weather, note")]
    assert dataset.train.extra["note"].tolist() == ["hi"]  # kept beside the row


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,split\na,train\n", "no column 'pid' (found: path, split)"),
        ("", "no column 'path' (found: nothing)"),
        ("path,pid,split\na,1,train\nb,2,training\n", "line 3: split must be one of train, query"),
        ("path,pid,split\na,1,train\n\n,2,query\n", "line 4: path must not be empty"),
        ("path,pid,split\na,,query\n", "line 2: pid must not be empty"),
        ("path,pid,split,x1\na,1,train,3\n", "a crop box needs all of x1, y1, x2, y2; found only x1"),
        ("path,pid,split,x1,y1,x2,y2\na,1,train,3,4,3,9\n", "line 2: the crop box 3, 4, 3, 9 is empty"),
        ("path,pid,split,x1,y1,x2,y2\na,1,train,3,4,b,9\n", "the crop box must be four numbers, got 3, 4, b, 9"),
        ("path,label,split,is_query,is_gallery\na,1,validation,maybe,0\n", "is_query must be true or false"),
        ("path,pid,split,camid\na,1,train,1\nb,1,train,\n", "line 3: camid must not be empty"),
        ("path,pid,split\na,1,train\nb,2,test\nc,2,gallery\n", "'test' is query and gallery at once"),
        ("path,pid,split\na,1,val\n", "no row with split train, query or test"),
        ("path,pid,split\n", "no row with split train, query or test"),
    ],
)
def test_a_table_that_cannot_be_used_says_where(text, words, tmp_path):
    path = table(tmp_path, text)
    line = message(make_dataset, "csv", tmp_path)
    assert words in line
    assert str(path) in line


def test_a_table_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "dataset.csv").write_bytes(b"path,pid,split\n\xff\xfe\x00,1,train\n")
    assert "not a table in UTF-8" in message(make_dataset, "csv", tmp_path)


def test_a_missing_table_names_the_places(tmp_path):
    text = message(make_dataset, "csv", tmp_path)
    assert f"{tmp_path}/dataset.csv" in text
    assert "DATASETS.FILE" in text


# ---------------------------------------------------------------- messages


def test_a_missing_dataset_names_all_places_and_nothing_is_made(tmp_path):
    text = message(make_dataset, "dukemtmc", tmp_path)
    assert all(str(tmp_path / folder) in text for folder in CATALOGUE["dukemtmc"].folders)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_root_and_a_missing_split_folder_are_told(tmp_path):
    assert "DATASETS.ROOT_DIR" in message(make_dataset, "market1501", tmp_path / "none")
    write(tmp_path / "market1501" / "Query", ["0001_c1s1_1.jpg"])
    write(tmp_path / "market1501" / "bounding_box_train", ["0001_c1s1_1.jpg"])
    text = message(make_dataset, "market1501", tmp_path)
    assert "no folder 'query'" in text
    assert "found: Query, bounding_box_train" in text


@pytest.mark.parametrize("name", ["market1501", "dukemtmc", "veri"])
def test_a_file_name_that_does_not_fit_is_named(name, tmp_path):
    place = MINIATURES[name].build(tmp_path)
    odd = place / CATALOGUE[name].splits[2] / "holiday.jpg"
    odd.write_bytes(BUFFER.getvalue())
    assert str(odd) in message(make_dataset, name, tmp_path)


def test_an_empty_split_is_told(tmp_path):
    place = MARKET.build(tmp_path)
    for path in (place / "query").iterdir():
        path.unlink()
    assert f"no images in {place / 'query'}" in message(make_dataset, "market1501", tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"), [("market1502", "'market1501'"), ("very", "'veri'"), ("ourapi", ""), ("dukemtcm", "'dukemtmc'")]
)
def test_an_unknown_dataset_is_refused_with_the_nearest_name(name, hint, tmp_path):
    text = message(make_dataset, name, tmp_path)
    assert f"unknown dataset {name!r}" in text
    assert (f"did you mean {hint}?" in text) == bool(hint)
    assert "vehicleid" in text


def test_an_unknown_option_is_refused_with_the_known_ones(tmp_path):
    MARKET.build(tmp_path)
    assert "DATASETS.TEST_SIZE: market1501 has no option" in message(make_dataset, "market1501", tmp_path, test_size=3)
    text = message(make_dataset, "vehicleid", tmp_path, use_val=True)
    assert "seed, test_size, trial" in text


def test_withdrawn_data_say_so(tmp_path, caplog):
    DUKE.build(tmp_path)
    make_dataset("dukemtmc", tmp_path)
    assert len([r for r in caplog.records if "withdrawn" in r.message]) == 1


def test_an_entry_from_outside_reads_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.catalogue.CATALOGUE", dict(CATALOGUE))
    place = tmp_path / "zoo"
    write(place, ["bounding_box_train/t3-k1.png", "query/t5-k1.png", "bounding_box_test/t5-k2.png"])
    register_dataset(DatasetSpec("zoo", ("zoo",), r"^t(?P<pid>\d+)-k(?P<cam>\d+)"))
    build = partial(make_dataset, "Zoo", tmp_path)
    assert [row[1:] for row in build().train] == [(0, 0, 0)]
    assert [row[1:] for row in build().gallery] == [(5, 1, 0)]
