"""The built-in data: same pixels everywhere, the Market-1501 layout, written whole or not at all, hard for colours."""

import hashlib
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.synthetic import person as person
from datasets.synthetic import raster as synthetic_raster
from datasets.synthetic import sets as synthetic
from datasets.synthetic import whole_folder
from datasets.synthetic.sets import FOLDERS, NAMES, PATTERN, contact_sheet, draw_image, ensure_synthetic, view_of
from utils.errors import UserError

REPOSITORY = Path(synthetic.__file__).parents[2]
SAMPLE = [(pid, camid, index) for pid in (1, 2, 37) for camid in (1, 2, 5) for index in (0, 3)]
# Of the pixels of SAMPLE. They change only together with FORMAT_VERSION.
CHECKSUMS = {
    "synthetic": "107b9baf0b8eea7f",
    "synthetic_b": "ebf8beafa0f3080b",
    "synthetic_c": "2277e3acb274bafe",
    "synthetic_occluded": "4ae22cb06024ac50",
    "synthetic_vehicle": "ce5179018ef5a41d",
}


CLOSE = {"synthetic": "5c27cfe48c7c6e7c", "synthetic_vehicle": "c29a9495fe194156"}  # the same at a camera gap of 25


def checksum(name: str, gap: int = 100) -> str:
    digest = hashlib.sha256()
    for pid, camid, index in SAMPLE:
        digest.update(draw_image(name, pid, camid, index, seed=3, gap=gap).tobytes())
    return digest.hexdigest()[:16]


def python(code: str, hash_seed: int = 0) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONHASHSEED": str(hash_seed),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=pipe, stderr=pipe, text=True)


def finished(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


def read(folder: Path) -> dict[str, list[tuple[int, int, int]]]:
    """split -> (identity, camera, view) of its files, in the order of their names."""
    rows = {}
    for split in FOLDERS:
        matches = [re.match(PATTERN, path.name) for path in sorted((folder / split).iterdir())]
        rows[split] = [(int(m["pid"]), int(m["cam"]), int(m["view"] or 0)) for m in matches]
    return rows


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_the_stored_ones(name):
    assert checksum(name) == CHECKSUMS[name]


@pytest.mark.parametrize("name", CLOSE)
def test_pixels_of_closer_cameras_are_the_stored_ones(name):
    assert checksum(name, gap=25) == CLOSE[name]


def test_pixels_do_not_depend_on_the_process_or_its_hash_seed():
    code = "from datasets.synthetic.sets import *; print(hash('x'), sum(int(draw_image(n, p, 2, 1).sum())"
    code += " for n in NAMES for p in range(1, 9)))"
    other_hash, there = finished(python(code, hash_seed=123)).split()
    here = sum(int(draw_image(name, pid, 2, 1).sum()) for name in NAMES for pid in range(1, 9))
    assert int(other_hash) != hash("x")
    assert int(there) == here


def test_an_image_depends_on_its_own_key_alone(tmp_path):
    small = contents(ensure_synthetic("synthetic", tmp_path, 4, 2, 2))
    large = contents(ensure_synthetic("synthetic", tmp_path, 8, 3, 3))
    # The same images under another split: identities 3 and 4 test in the small set and train in the large one.
    by_name = {Path(path).name: data for path, data in large.items()}
    assert all(by_name[Path(path).name] == data for path, data in small.items())


@pytest.mark.parametrize("change", [{"pid": 2}, {"camid": 2}, {"index": 1}, {"seed": 1}, {"name": "synthetic_b"}])
def test_every_part_of_the_key_changes_the_picture(change):
    key = {"name": "synthetic", "pid": 1, "camid": 1, "index": 0, "seed": 0}
    assert (draw_image(**key) != draw_image(**{**key, **change})).mean() > 0.3


@pytest.mark.parametrize("name", NAMES)
def test_layout_counts_and_a_valid_match_for_every_query(name, tmp_path):
    ids, cameras, images = 5, 2, 3
    folder = ensure_synthetic(name, tmp_path, ids, cameras, images)
    assert re.fullmatch(name + r"_[0-9a-f]{8}", folder.name)
    train, query, gallery = read(folder).values()
    assert Counter(pid for pid, _, _ in train) == dict.fromkeys((1, 2), cameras * images)
    assert Counter(pid for pid, _, _ in query) == dict.fromkeys((3, 4, 5), cameras)
    assert Counter(pid for pid, _, _ in gallery) == dict.fromkeys((3, 4, 5), cameras * (images - 1))
    for pid, camid, _ in query:
        assert any(p == pid and c != camid for p, c, _ in gallery)
    size = (96, 96) if name == "synthetic_vehicle" else (64, 128)
    assert {Image.open(path).size for path in folder.rglob("*.jpg")} == {size}


def test_the_view_of_a_vehicle_is_in_its_name(tmp_path):
    folder = ensure_synthetic("synthetic_vehicle", tmp_path, 4, 2, 4)
    views = [row for rows in read(folder).values() for row in rows]
    assert {view for _, _, view in views} == set(range(8))
    path = next((folder / "query").iterdir())
    pid, camid, view = (int(re.match(PATTERN, path.name)[key]) for key in ("pid", "cam", "view"))
    assert view == view_of("synthetic_vehicle", pid, camid, 0)
    plain = ensure_synthetic("synthetic", tmp_path, 4, 2, 2)
    assert {view for rows in read(plain).values() for _, _, view in rows} == {0}


@pytest.mark.parametrize("name", [name for name in NAMES if "vehicle" not in name])
def test_a_wardrobe_holds_only_what_can_be_drawn(name):
    wardrobe = synthetic._DOMAINS[name].wardrobe
    assert {*wardrobe.tops, *wardrobe.bottoms} <= person.COLOURS.keys()
    assert wardrobe.garments.keys() <= person.TOPS.keys()
    assert wardrobe.legwear.keys() <= person.BOTTOMS.keys()
    assert wardrobe.hats.keys() <= set(person.HATS)
    assert wardrobe.bags.keys() <= set(person.BAGS)
    assert {*person.TOP_PATTERNS, *person.LEG_PATTERNS} - {"plain"} <= synthetic_raster.PATTERNS.keys()


def test_occluded_covers_every_query_and_some_of_the_rest():
    def differs(index):
        keys = [(pid, camid, index) for pid in range(1, 11) for camid in (1, 2)]
        return [(draw_image("synthetic", *key) != draw_image("synthetic_occluded", *key)).any() for key in keys]

    assert all(differs(0))
    assert 0.1 < np.mean(differs(1)) < 0.6


def test_written_once_and_the_same_with_several_workers(tmp_path):
    folder = ensure_synthetic("synthetic", tmp_path / "one", 4, 2, 2)
    before = folder.stat().st_mtime_ns
    assert ensure_synthetic("synthetic", str(tmp_path / "one"), 4, 2, 2) == folder
    assert folder.stat().st_mtime_ns == before
    assert contents(folder) == contents(ensure_synthetic("synthetic", tmp_path / "two", 4, 2, 2, workers=2))


def test_everything_that_changes_the_files_changes_the_folder(tmp_path, monkeypatch):
    base = ["synthetic", tmp_path, 4, 2, 2, 0]
    folders = [ensure_synthetic(*base), ensure_synthetic(*base[:5], 1)]
    for place, value in ((2, 5), (3, 3), (4, 3)):
        folders.append(ensure_synthetic(*base[:place], value, *base[place + 1 :]))
    folders.append(ensure_synthetic(*base, gap=50))
    assert ensure_synthetic(*base, gap=100) == folders[0]
    monkeypatch.setattr(synthetic, "FORMAT_VERSION", synthetic.FORMAT_VERSION + 1)
    folders.append(ensure_synthetic(*base))
    assert len(set(folders)) == 7


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing(error, tmp_path, monkeypatch):
    drawn = []

    def interrupted(*key):
        drawn.append(key)
        if len(drawn) == 9:
            raise error
        return draw_image(*key)

    monkeypatch.setattr(synthetic, "draw_image", interrupted)
    with pytest.raises(error):
        ensure_synthetic("synthetic", tmp_path, 4, 2, 2)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_write_the_same_set_at_once(tmp_path):
    code = f"from datasets.synthetic.sets import *; print(ensure_synthetic('synthetic', {str(tmp_path)!r}, 8, 2, 2))"
    folders = {finished(process) for process in [python(code), python(code)]}
    assert {str(path) for path in tmp_path.iterdir()} == folders
    assert len(contents(Path(folders.pop()))) == 32


def test_the_loser_of_a_race_deletes_its_copy(tmp_path, monkeypatch):
    # The other process finishes while ours is drawing its last image.
    place, winner = whole_folder._put_in_place, []

    def late(draft, folder):
        (folder / "query").mkdir(parents=True)
        (folder / "query" / "theirs.jpg").touch()
        winner.append(folder)
        place(draft, folder)

    monkeypatch.setattr(whole_folder, "_put_in_place", late)
    assert ensure_synthetic("synthetic", tmp_path, 4, 2, 2) == winner[0]
    assert list(tmp_path.iterdir()) == winner
    assert [path.name for path in winner[0].rglob("*.jpg")] == ["theirs.jpg"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ids": 3}, "DATASETS.SYNTHETIC.IDS"),
        ({"ids": "many"}, "DATASETS.SYNTHETIC.IDS"),
        ({"cameras": 1}, "DATASETS.SYNTHETIC.CAMERAS"),
        ({"images": 1}, "DATASETS.SYNTHETIC.IMAGES"),
        ({"images": 2.5}, "DATASETS.SYNTHETIC.IMAGES"),
        ({"seed": -1}, "DATASETS.SYNTHETIC.SEED"),
        ({"gap": 101}, "DATASETS.SYNTHETIC.CAMERA_GAP"),
        ({"gap": -1}, "DATASETS.SYNTHETIC.CAMERA_GAP"),
        ({"workers": True}, "DATASETS.SYNTHETIC.WORKERS"),
        ({"name": "syntetic_b"}, "did you mean 'synthetic_b'"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(change, says, tmp_path):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        ensure_synthetic(**{"name": "synthetic", "root": tmp_path, **change})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the built-in data") as caught:
        ensure_synthetic("synthetic", tmp_path / "file", 4, 2, 2)
    assert "\n" not in str(caught.value)


def test_contact_sheet(tmp_path):
    path = contact_sheet("synthetic", tmp_path / "sheet.png", ids=2, cameras=2, images=1)
    assert Image.open(path).size == (2 * 66, 2 * 130)


def mean_ap(features: np.ndarray, pids: np.ndarray, camids: np.ndarray, queries: np.ndarray) -> float:
    """Market-1501 protocol in percent: gallery images of the query's identity and camera do not count."""
    gallery = np.flatnonzero(~queries)
    precisions = []
    for q in np.flatnonzero(queries):
        valid = gallery[(pids[gallery] != pids[q]) | (camids[gallery] != camids[q])]
        ranked = valid[np.argsort(((features[valid] - features[q]) ** 2).sum(1), kind="stable")]
        hits = np.flatnonzero(pids[ranked] == pids[q])
        precisions.append(np.mean((np.arange(len(hits)) + 1) / (hits + 1)))
    return 100 * float(np.mean(precisions))


def histogram(image: np.ndarray, stripes: int) -> np.ndarray:
    """RGB histograms of horizontal stripes, 8x8x8 bins each; the root makes the distance Hellinger's."""
    parts = np.array_split((image >> 5).astype(int) @ [64, 8, 1], stripes)
    return np.sqrt(np.concatenate([np.bincount(part.ravel(), minlength=512) / part.size for part in parts]))


@pytest.mark.parametrize("name", NAMES)
def test_colours_and_pixels_alone_do_not_solve_it(name):
    keys = [(pid, camid, index) for pid in range(1, 13) for camid in (1, 2, 3, 4) for index in (0, 1)]
    images = [draw_image(name, *key) for key in keys]
    pids, camids, indices = np.array(keys).T
    pixels = np.stack([image.reshape(-1) / 255 for image in images])
    assert mean_ap(pixels, pids, camids, indices == 0) < 40
    for stripes in (1, 6):
        assert mean_ap(np.stack([histogram(image, stripes) for image in images]), pids, camids, indices == 0) < 40


@pytest.mark.parametrize("name", ["synthetic", "synthetic_c"])
def test_people_are_easier_to_find_the_closer_the_cameras_are(name):
    keys = [(pid, camid, index) for pid in range(1, 9) for camid in (1, 2, 3, 4) for index in (0, 1)]
    pids, camids, indices = np.array(keys).T

    def by_colour(gap):
        features = [histogram(draw_image(name, *key, gap=gap), 6) for key in keys]
        return mean_ap(np.stack(features), pids, camids, indices == 0)

    scores = [by_colour(gap) for gap in (100, 50, 0)]
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > scores[0] + 5


def test_without_a_gap_every_camera_is_the_same():
    first, *others = ([*vars(synthetic._camera("synthetic", camid, 0, gap=0)).values()] for camid in (1, 2, 3))
    assert all(np.array_equal(near, far) for other in others for near, far in zip(first, other, strict=True))


def test_sines_are_the_rounded_ones():
    assert [synthetic_raster.sine(k) for k in range(-80, 80)] == [
        round(256 * math.sin(math.radians(5 * k))) for k in range(-80, 80)
    ]


def slow(shape: str, *args) -> np.ndarray:
    """Which pixels of a canvas of 20x24 a shape covers, one pixel at a time."""
    canvas = np.zeros((20, 24), bool)
    for y, x in np.ndindex(canvas.shape):
        if shape == "ellipse":
            cx, cy, rx, ry = args
            canvas[y, x] = (x - cx) ** 2 * ry**2 + (y - cy) ** 2 * rx**2 <= rx**2 * ry**2
        else:
            (points,) = args
            ends = zip(points, [*points[1:], points[0]], strict=True)
            sides = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) for (ax, ay), (bx, by) in ends]
            canvas[y, x] = all(s >= 0 for s in sides) or all(s <= 0 for s in sides)
    return canvas


@pytest.mark.parametrize(
    ("shape", "args"),
    [
        ("polygon", ([(3, 2), (18, 5), (12, 17)],)),
        ("polygon", ([(12, 17), (18, 5), (3, 2)],)),
        ("polygon", ([(-9, 4), (30, -6), (40, 30), (5, 12)],)),
        ("ellipse", (10, 9, 7, 4)),
        ("ellipse", (22, -2, 9, 8)),
    ],
)
def test_shapes_cover_the_pixels_that_they_should(shape, args):
    canvas = np.zeros((20, 24, 3), np.uint8)
    getattr(synthetic_raster, shape)(canvas, *args, (255, 1, 7))
    np.testing.assert_array_equal(canvas[..., 0] == 255, slow(shape, *args))


def test_shapes_outside_the_canvas_draw_nothing():
    canvas = np.zeros((20, 24, 3), np.uint8)
    synthetic_raster.polygon(canvas, [(40, 40), (50, 40), (45, 60)], (9, 9, 9))
    synthetic_raster.rectangle(canvas, -9, -9, -1, 30, (9, 9, 9))
    synthetic_raster.limb(canvas, (5, -40), (9, -30), 4, 4, (9, 9, 9))
    assert not canvas.any()
