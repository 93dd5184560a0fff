"""Drawn video: who walks where, what the frames show, and what the files say about it."""

from __future__ import annotations

import csv
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from datasets import make_dataset
from datasets.readers.frame_boxes import read_frame_boxes
from datasets.synthetic.detector import within
from datasets.synthetic.sets import domain_of
from datasets.synthetic.street import HEIGHT, WIDTH, draw_frame, street_of, visible_share
from datasets.synthetic.tracks import LOOKS, ensure_tracks, people_of
from datasets.synthetic.walks import FPS, plan, travel_frames, visits_of
from tests.datasets.every import OPTIONS, drawn_tracks
from tests.datasets.miniatures import message


@pytest.fixture(scope="module")
def folder():
    return drawn_tracks()


def rows_of(folder) -> list[dict[str, str]]:
    with open(folder / "dataset.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def test_nobody_is_in_two_cameras_at_once_and_ways_take_their_time():
    assert travel_frames(1, 3, 0) == travel_frames(3, 1, 0) >= 8 and travel_frames(2, 2, 0) == 0
    back = elsewhere = 0
    for pid in range(1, 60):
        visits = visits_of(pid, 4, 240, 0)
        assert visits and all(v.start + v.frames <= 240 for v in visits)
        for before, after in zip(visits, visits[1:], strict=False):
            way = after.start - before.start - before.frames
            assert way >= travel_frames(before.camid, after.camid, 0) and way > 0
            back += before.camid == after.camid
            elsewhere += before.camid != after.camid
    assert 0.1 < back / (back + elsewhere) < 0.45


def test_a_plan_sorts_visits_by_camera_and_depends_on_the_seed():
    first, second = plan(6, 3, 60, 0), plan(6, 3, 60, 1)
    assert set(first) == {1, 2, 3} and first != second
    for camid, visits in first.items():
        assert {v.camid for v in visits} <= {camid}
        assert [v.start for v in visits] == sorted(v.start for v in visits)


def test_the_share_that_is_visible_is_counted():
    box = (10, 10, 30, 50)
    assert visible_share(box, []) == 1
    assert visible_share(box, [(0, 0, 20, 100)]) == 0.5
    assert visible_share(box, [(0, 0, 20, 100), (15, 30, 30, 50)]) == 0.25
    assert visible_share((-10, 10, 10, 50), []) == 0.5
    assert visible_share((WIDTH, 0, WIDTH + 5, 10), []) == 0


def test_frames_and_files_are_those_of_the_layout(folder):
    frames = OPTIONS["synthetic_tracks"]["frames"]
    for camera in ("c1", "c2"):
        images = sorted(path.name for path in (folder / camera / "img1").iterdir())
        assert images == [f"{i:06d}.jpg" for i in range(1, frames + 1)]
        with Image.open(folder / camera / "img1" / images[0]) as image:
            assert image.size == (WIDTH, HEIGHT)
        assert f"frameRate={FPS}\nseqLength={frames}" in (folder / camera / "seqinfo.ini").read_text()
    ways = (folder / "travel.csv").read_text().splitlines()
    assert ways[0] == "camera_a,camera_b,seconds" and ways[1] == f"1,2,{travel_frames(1, 2, 86) / FPS:.2f}"


def test_pedestrians_are_inside_of_their_boxes():
    """A frame differs from the same one without people inside of the boxes alone, and there in many pixels."""
    street, visits, people = street_of(domain_of(LOOKS).climate, 1, 0), plan(8, 2, 60, 0)[1], people_of(8, 0)
    seen = 0
    for frame in range(4, 60, 8):
        picture, shown = draw_frame(street, visits, people, 1, frame, 0)
        empty, nobody = draw_frame(street, [], {}, 1, frame, 0)
        assert nobody == [] and [one.visit.lane for one in shown] == sorted(one.visit.lane for one in shown)
        differs = np.abs(picture.astype(int) - empty).sum(2) > 0
        elsewhere = differs.copy()
        for one in shown:
            left, top, right, bottom = within(one.box) or (0, 0, 0, 0)
            elsewhere[max(0, top - 12) : bottom + 12, max(0, left - 12) : right + 12] = False
            if one.visible > 0.9:
                seen += 1
                assert differs[top:bottom, left:right].mean() > 0.3
        assert not elsewhere.any()
    assert seen > 3


def test_ground_truth_detections_and_tracks_agree(folder):
    for camera in ("c1", "c2"):
        truth, found, tracked = (
            read_frame_boxes(folder / camera / name / f"{name}.txt") for name in ("gt", "det", "trk")
        )
        assert {box.number for box in found} == {""} and len(found) >= len(tracked)
        assert len(tracked) < len(truth)  # some are missed
        of_truth = {(box.frame, box.number): box for box in truth}
        owners = defaultdict(set)
        for box in tracked:  # each near a true one, and a number belongs to one person
            near = [
                number for (frame, number), other in of_truth.items() if frame == box.frame
                and abs(other.left - box.left) + abs(other.right - box.right) < 20 or False
            ]  # fmt: skip
            clipped = box.left == 0 or box.right == WIDTH
            assert near or clipped
            if len(near) == 1:
                owners[box.number].add(near[0])
        assert all(len(people) == 1 for people in owners.values())


def test_tracklets_of_the_dataset_are_crossings(folder, tmp_path):
    dataset = make_dataset("synthetic_tracks", folder.parent, **OPTIONS["synthetic_tracks"])
    assert dataset.folder == folder and dataset.notes == []
    assert set(dataset.train.original_pids().tolist()) <= {1, 2} and dataset.train.boxes is not None
    assert set(dataset.query.pids.tolist()) <= {3, 4}
    query, gallery = dataset.query, dataset.gallery
    assert set(query.seqs.tolist()) <= set(gallery.seqs.tolist())
    first = {}
    for seq, pid, camid, frame in zip(gallery.seqs, gallery.pids, gallery.camids, gallery.frames, strict=True):
        key = int(pid), int(camid)
        if key not in first or frame < first[key][0]:
            first[key] = frame, seq
    assert set(query.seqs.tolist()) == {seq for _, seq in first.values()}
    np.testing.assert_allclose(gallery.times, (gallery.frames - 1) / FPS)


def test_sizes_are_checked(tmp_path):
    assert message(ensure_tracks, "synthetic_tracks", tmp_path, cameras=9) == (
        "DATASETS.SYNTHETIC.CAMERAS: synthetic_tracks has at most 8 cameras, got 9"
    )
    assert "FRAMES: must be a whole number of at least 30" in message(
        ensure_tracks, "synthetic_tracks", tmp_path, frames=10
    )
    assert list(tmp_path.iterdir()) == []
