"""The video sets beyond their miniatures: tracklets, splits, and lists that do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.io import savemat

from datasets import make_dataset
from datasets.readers.matlab import read_matrix
from datasets.tracklets import tracklets_of
from tests.datasets.miniatures import MINIATURES, message, write

VIDEO = ("mars", "ilids_vid", "prid_video", "duke_video", "lsvid")


@pytest.mark.parametrize("name", VIDEO)
def test_every_video_set_has_tracklets_in_order(name, tmp_path):
    MINIATURES[name].build(tmp_path)
    dataset = make_dataset(name, tmp_path, list_cache=False)
    for split in ("train", "query", "gallery"):
        records = dataset.split(split)
        found = tracklets_of(records, name)
        assert 0 < len(found) <= len(records) and records.frames is not None
        for number in range(len(found)):
            own = np.flatnonzero(found.of_image == number)
            assert (np.diff(records.frames[own]) > 0).all()
    if name in ("mars", "lsvid"):  # the queries are in the gallery, as the same tracklets
        assert set(dataset.query.seqs) <= set(dataset.gallery.seqs)
    else:
        assert not set(dataset.query.seqs) & set(dataset.gallery.seqs)


def test_mars_junk_is_nobody_and_distractors_are_in_the_gallery_alone(tmp_path):
    MINIATURES["mars"].build(tmp_path)
    dataset = make_dataset("mars", tmp_path, list_cache=False)
    assert 0 in dataset.gallery.pids and -1 not in dataset.gallery.pids and 0 not in dataset.train.original_pids()
    everyone = make_dataset("mars", tmp_path, use_all=True, list_cache=False)
    assert sorted(everyone.train.identities) == [1, 2, 3]
    assert len({path for path, *_ in everyone.train}) == len(everyone.train)


def mars_with(tmp_path, name: str, variable: str, values) -> str:
    place = MINIATURES["mars"].build(tmp_path)
    savemat(place / "info" / name, {variable: np.array(values, float)})
    return message(make_dataset, "mars", tmp_path, list_cache=False).replace(str(place), "MARS")


def test_lists_that_do_not_fit_are_refused_in_one_line(tmp_path):
    assert mars_with(tmp_path, "query_IDX.mat", "query_IDX", [[9]]) == (
        "mars: MARS/info/query_IDX.mat: query 9 is no tracklet; there are 4, from 1"
    )
    assert mars_with(tmp_path, "tracks_train_info.mat", "track_train_info", [[3, 9, 1, 1]]) == (
        "mars: MARS/info/tracks_train_info.mat: tracklet 1 is images 3 to 9, and the list has 4"
    )
    assert mars_with(tmp_path, "tracks_train_info.mat", "track_train_info", [[1.5, 2, 1, 1]]) == (
        "mars: MARS/info/tracks_train_info.mat: track_train_info must hold whole numbers"
    )
    assert mars_with(tmp_path, "tracks_train_info.mat", "other", [[1]]) == (
        "mars: MARS/info/tracks_train_info.mat: has no variable 'track_train_info'"
    )
    (tmp_path / "MARS" / "info" / "tracks_train_info.mat").write_bytes(b"MATLAB 5.0 " + bytes(range(256)))
    line = message(make_dataset, "mars", tmp_path, list_cache=False)
    assert line.startswith(f"mars: {tmp_path}/MARS/info/tracks_train_info.mat: not a MATLAB file (")


def test_splits_are_those_of_the_files(tmp_path):
    MINIATURES["ilids_vid"].build(tmp_path)
    dataset = make_dataset("ilids_vid", tmp_path, split_id=1, list_cache=False)
    assert dataset.train.original_pids().tolist() == [7, 7, 9, 9] * 2 and dataset.query.pids.tolist() == [1, 1, 4, 4]
    assert message(make_dataset, "ilids_vid", tmp_path, split_id=2, list_cache=False) == (
        "DATASETS.SPLIT_ID: 2; ilids_vid has 2 splits, counted from 0"
    )


def test_prid_takes_the_persons_of_long_sequences_where_no_file_says_which(tmp_path):
    long, short = (f"multi_shot/cam_{{}}/person_{pid:04d}" for pid in (2, 5))
    people = {2: 28, 5: 27, 6: 28, 7: 28, 8: 28, 300: 28}
    write(tmp_path / "prid_2011", [
        f"multi_shot/cam_{view}/person_{pid:04d}/{frame:04d}.png"
        for view in "ab" for pid, count in people.items() for frame in range(1, count + 1)
    ])  # fmt: skip
    first = make_dataset("prid_video", tmp_path, list_cache=False)
    other = make_dataset("prid_video", tmp_path, split_id=3, list_cache=False)
    for dataset in (first, other):
        trained, tested = set(dataset.train.original_pids().tolist()), set(dataset.query.pids.tolist())
        assert len(trained) == len(tested) == 2 and trained | tested == {2, 6, 7, 8}
    assert first.query.pids.tolist() != other.query.pids.tolist() or len(first.query) != len(other.query)
    (tmp_path / "prid_2011" / "splits_prid2011.json").write_text(
        json.dumps([{"train": ["person_0002"], "test": ["person_0999"]}])
    )
    assert "person 999 is not in both views (1 in all)" in message(
        make_dataset, "prid_video", tmp_path, list_cache=False
    )


def test_lsvid_names_the_line_that_no_image_follows(tmp_path):
    place = MINIATURES["lsvid"].build(tmp_path)
    path = place / "list_sequence" / "list_seq_train.txt"
    path.write_text("tracklet_train/0000/0009_ 0\n")
    assert message(make_dataset, "lsvid", tmp_path, list_cache=False) == (
        f"lsvid: {path}, line 1: tracklet_train/0000/0009_: no image's name begins with it"
    )
    path.write_text("tracklet_train/0000/0000_\n")
    assert "line 1: expected the beginning of a path and an identity" in message(
        make_dataset, "lsvid", tmp_path, list_cache=False
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["f8", "i4", "u1", "f4", "i2"])
def test_matrices_are_scipys(kind, packed, tmp_path):
    rng = np.random.default_rng(0)
    wanted = {"first": rng.integers(0, 99, (7, 4)).astype(kind), "b": rng.integers(0, 99, (1, 9)).astype(kind)}
    others = {"text": "words", "cells": np.array([[1], ["a"]], object), "c": np.array([[1 + 2j]])}
    savemat(tmp_path / "a.mat", others | wanted, do_compression=packed)
    raw = (tmp_path / "a.mat").read_bytes()
    for name, values in wanted.items():
        np.testing.assert_array_equal(read_matrix(raw, name), values)
    assert read_matrix(raw, "c") is None and read_matrix(raw, "text") is None and read_matrix(raw, "cells") is None


def test_a_matrix_that_unpacks_to_too_much_or_is_cut_off_is_refused(tmp_path):
    savemat(tmp_path / "a.mat", {"a": np.zeros((3000, 3000))}, do_compression=True)
    raw = (tmp_path / "a.mat").read_bytes()
    with pytest.raises(ValueError, match="unpacks to more than 64 MB"):
        read_matrix(raw, "a")
    savemat(tmp_path / "b.mat", {"a": np.arange(12.0)})
    raw = (tmp_path / "b.mat").read_bytes()
    for length in range(130, len(raw) - 1, 8):
        with pytest.raises(ValueError, match="is cut off"):
            read_matrix(raw[:length] if length > 136 else raw[:150], "a")
