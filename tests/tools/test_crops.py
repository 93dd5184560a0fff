"""Crops from video: the table, the files, what is counted, and that a kill costs nothing."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from datasets import make_dataset
from datasets.readers.frame_boxes import read_frame_boxes
from datasets.readers.image_list import read_image_list
from datasets.storage import video
from datasets.storage.files import image_exists
from datasets.storage.pillow_decoding import load_image
from datasets.storage.video import frame_files, frames_of, write_video
from datasets.storage.video_frames import frame_path
from tests.datasets.every import drawn_tracks
from tests.datasets.miniatures import message
from tools import crops
from utils.errors import UserError

BOXES = """1,3,10,5,20,40,0.9
1,4,-8,5,20,40,0.5
3,3,12,5,20,40,0.9
3,9,90,5,20,40,0.9
4,3,12,5,0,40,0.9
9,3,1,1,5,5,1
"""


@pytest.fixture
def clip(tmp_path):
    """Five frames of 64 x 48 without the second, a value for each, and boxes of which some are odd."""
    frames = tmp_path / "gate"
    frames.mkdir()
    for i in (1, 3, 4, 5):
        Image.new("RGB", (64, 48), (10 * i, 0, 0)).save(frames / f"{i:06d}.png")
    (tmp_path / "boxes.txt").write_text(BOXES)
    return frames


def run(clip, *more: str) -> list[dict[str, str]]:
    out = clip.parent / "out.csv"
    crops.main(["--video", str(clip), "--boxes", str(clip.parent / "boxes.txt"), "--out", str(out), *more])
    with open(out, newline="") as handle:
        return list(csv.DictReader(handle))


def test_the_table_names_boxes_in_frames_and_counts_what_is_odd(clip, caplog):
    rows = run(clip, "--fps", "10")
    assert [(r["path"], r["camid"], r["seq"], r["frame"], r["time"]) for r in rows] == [
        ("gate/000001.png", "gate", "gate-3", "1", "0.000"), ("gate/000001.png", "gate", "gate-4", "1", "0.000"),
        ("gate/000003.png", "gate", "gate-3", "3", "0.200"),
    ]  # fmt: skip
    boxes = [" ".join(r[k] for k in ("x1", "y1", "x2", "y2")) for r in rows[:2]]
    assert boxes == ["10 5 30 45", "0 5 12 45"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{clip}: 1 boxes were cut at the frame's edges",
        f"{clip}: 2 boxes are outside of their frame or empty, and left out",
        f"{clip}: 1 frames with boxes are missing, the first is 9; their 1 boxes are left out",
    ]
    records, carried = read_image_list(clip.parent / "out.csv")
    assert carried["seq"] == ["gate-3", "gate-4", "gate-3"] and records.boxes[0].tolist() == [10, 5, 30, 45]


def test_crops_are_files_with_their_place_and_quality(clip):
    more = ("--images", str(clip.parent / "crops"), "--quality", "--identities", "--least", "0.6")
    rows = run(clip, "--fps", "10", *more)
    assert [r["seq"] for r in rows] == ["gate-3", "gate-3"] and {r["pid"] for r in rows} == {"3"}
    assert all("x1" not in r and r["left"] and 0 < float(r["quality"]) <= 1 for r in rows)
    image = np.asarray(Image.open(clip.parent / rows[1]["path"]))
    assert image.shape == (40, 20, 3) and abs(int(image[..., 0].mean()) - 30) < 3


def test_a_stopped_command_continues_to_the_same_bytes(clip, monkeypatch):
    (clip.parent / "boxes.txt").write_text("".join(f"{i},{n},{n},5,20,40,1\n" for i in (1, 3, 4, 5) for n in (1, 2)))
    run(clip, "--fps", "5")
    whole = (clip.parent / "out.csv").read_bytes()
    (clip.parent / "out.csv").unlink()
    made, original = [], crops.rows_of_frame

    def failing(clip, frame, *rest):
        made.append(frame.number)
        if frame.number == 4:
            raise KeyboardInterrupt
        return original(clip, frame, *rest)

    monkeypatch.setattr(crops, "rows_of_frame", failing)
    with pytest.raises(KeyboardInterrupt):
        run(clip, "--fps", "5")
    part = clip.parent / "out.csv.part"
    part.write_bytes(part.read_bytes()[:-7])  # half a line, as a kill leaves it
    assert not (clip.parent / "out.csv").exists()
    made.clear()

    def noting(clip, frame, *rest):
        made.append(frame.number)
        return original(clip, frame, *rest)

    monkeypatch.setattr(crops, "rows_of_frame", noting)
    run(clip, "--fps", "5")
    assert (clip.parent / "out.csv").read_bytes() == whole and 1 not in made and not part.exists()
    (clip.parent / "out.csv").rename(part)
    line = f"{part}: is the unfinished table of another command; remove it to start again"
    assert message(run, clip, "--fps", "5") == line


@pytest.mark.parametrize(("words", "line"), [
    ((), "{clip}: its frames have no time; name their number per second, such as --fps 25"),
    (("--fps", "0"), "--fps: must be above 0, got 0"),
    (("--fps", "5", "--least", "2"), "{folder}/boxes.txt: no box has a score of 2 or more (--least)"),
    (("--fps", "5", "--camera", "a", "b"), "--camera: 2 names for 1 videos; name one for each, in the same order"),
    (("--fps", "5", "--camera", "../x"), "--camera: '../x' cannot be the name of a folder"),
])  # fmt: skip
def test_mistakes_end_in_one_line(words, line, clip):
    assert message(run, clip, *words) == line.format(clip=clip, folder=clip.parent)
    assert not (clip.parent / "out.csv").exists()


def test_two_videos_of_one_camera_and_an_existing_table_are_refused(clip):
    boxes, out = str(clip.parent / "boxes.txt"), str(clip.parent / "out.csv")
    twice = ["--video", str(clip), str(clip), "--boxes", boxes, boxes, "--out", out]
    assert message(crops.main, twice).startswith("--camera: two videos are of camera 'gate'")
    (clip.parent / "out.csv").touch()
    assert message(run, clip, "--fps", "5") == f"--out: {out} exists; remove it, or name another table"


def test_frames_that_share_or_lack_a_number_are_refused(tmp_path):
    for name in ("a_1.png", "b_1.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert message(frame_files, tmp_path) == f"{tmp_path}: a_1.png and b_1.png are both frame 1"
    (tmp_path / "a_1.png").rename(tmp_path / "a.png")
    assert "the name has no frame number at its end" in message(frame_files, tmp_path)
    assert "no images of frames in it" in message(frame_files, drawn_tracks())


# ---------------------------------------------------------------- video files


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Twelve frames, each of its own grey, as MP4."""
    pytest.importorskip("av", reason="requirements-dev.txt has it")
    path = tmp_path_factory.mktemp("film") / "gate.mp4"
    write_video(path, (Image.new("RGB", (64, 48), (20 * i,) * 3) for i in range(12)), 5)
    return path


def test_a_video_file_gives_its_frames_with_their_times(film):
    frames = list(frames_of(film))
    assert [f.number for f in frames] == list(range(1, 13))
    np.testing.assert_allclose([f.time for f in frames], np.arange(12) / 5)
    assert all(abs(int(np.asarray(f.image).mean()) - 20 * (f.number - 1)) < 5 for f in frames)
    assert [(f.number, f.time) for f in frames_of(film, fps=10, wanted={3, 4})] == [(3, 0.2), (4, 0.3)]


def test_crops_of_a_video_file_are_files(film, tmp_path):
    (tmp_path / "boxes.txt").write_text("2,1,0,0,20,40,1\n99,1,0,0,20,40,1\n")
    words = ["--video", str(film), "--boxes", str(tmp_path / "boxes.txt"), "--out", str(tmp_path / "t.csv")]
    crops.main([*words, "--images", str(tmp_path / "crops")])
    (row,) = csv.DictReader((tmp_path / "t.csv").read_text().splitlines())
    assert (row["camid"], row["frame"], row["time"]) == ("gate", "2", "0.200")
    assert abs(int(np.asarray(Image.open(tmp_path / row["path"])).mean()) - 20) < 5


def test_boxes_in_a_video_file_are_read_by_seeking(film, tmp_path):
    (tmp_path / "boxes.txt").write_text("9,1,0,0,20,40,1\n2,1,4,0,20,40,1\n")
    words = ["--video", str(film), "--boxes", str(tmp_path / "boxes.txt"), "--out", str(tmp_path / "t.csv")]
    crops.main(words)
    records, carried = read_image_list(tmp_path / "t.csv")
    assert carried["frame"] == ["2", "9"] and all(image_exists(path) for path in records.paths)
    second, ninth = (load_image(records.paths[i], records.boxes[i]) for i in (0, 1))
    frames = {frame.number: frame.image for frame in frames_of(film)}
    assert np.array_equal(second, frames[2].crop((4, 0, 24, 40)))
    assert np.array_equal(ninth, frames[9].crop((0, 0, 20, 40)))


def test_frames_come_in_any_order(film):
    wanted = {frame.number: np.asarray(frame.image) for frame in frames_of(film)}
    for number in [12, 1, 2, 3, 7, 7, 4, 12, 1]:
        found = np.asarray(load_image(str(frame_path(film, number))))
        assert np.array_equal(found, wanted[number]), number


def test_frames_that_cannot_be_read_are_images_that_cannot(film, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    for path, reason in (
        (frame_path(film, 13), "the image cannot be read (has 12 frames, no frame 13)"),
        (frame_path(tmp_path / "a.mp4", 1), "the image cannot be read ("),
        (frame_path(tmp_path / "b.mp4", 1), "the image is missing"),
    ):
        assert message(load_image, str(path)).startswith(f"{path}: {reason}")
    assert not image_exists(str(frame_path(tmp_path / "b.mp4", 1)))


def test_videos_that_cannot_be_decoded_end_in_one_line(film, tmp_path, monkeypatch):
    raw = film.read_bytes()
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    assert message(lambda: list(frames_of(tmp_path / "a.mp4"))).startswith(
        f"{tmp_path / 'a.mp4'}: not a video that can be decoded ("
    )
    assert message(lambda: list(frames_of(tmp_path / "b.mp4"))) == (
        f"{tmp_path / 'b.mp4'}: no such video file or folder of frames"
    )
    for seed in range(40):  # damage ends in a line or is not noticed
        damaged, rng = bytearray(raw), np.random.default_rng(seed)
        for place in rng.integers(0, len(raw), 30):
            damaged[place] = rng.integers(256)
        (tmp_path / "c.mp4").write_bytes(damaged)
        try:
            list(frames_of(tmp_path / "c.mp4"))
        except UserError as error:
            assert str(error).startswith(str(tmp_path / "c.mp4"))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert message(lambda: list(frames_of(film))) == (
        "video files need PyAV, which is not installed: pip install -r requirements-extra.txt"
    )


def test_a_decoder_that_fails_names_the_frame(film, monkeypatch):
    av = video.pyav()

    class Container:
        def __init__(self, path):
            self.inner = av.open(path)
            self.streams = self.inner.streams

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.inner.close()

        def decode(self, stream):
            yield from list(self.inner.decode(stream))[:3]
            raise av.error.InvalidDataError(1, "damaged")

    class Module:
        FFmpegError = av.FFmpegError
        open = Container

    monkeypatch.setattr(video, "pyav", lambda: Module)
    assert message(lambda: list(frames_of(film))).startswith(f"{film}: frame 4 cannot be decoded (")


def test_ground_truth_of_drawn_video_becomes_a_dataset(tmp_path):
    folder = drawn_tracks()
    words = ["--video", *(str(folder / c / "img1") for c in ("c1", "c2")), "--boxes",
             *(str(folder / c / "gt" / "gt.txt") for c in ("c1", "c2")), "--fps", "5", "--out", str(tmp_path / "t.csv"),
             "--identities", "--split", "test"]  # fmt: skip
    crops.main(words)
    dataset = make_dataset("csv", tmp_path / "t.csv")
    truth = [box for c in ("c1", "c2") for box in read_frame_boxes(folder / c / "gt" / "gt.txt")]
    assert len(dataset.query) == len(truth) and len(np.unique(dataset.query.seqs)) == len({
        (c, box.number) for c in ("c1", "c2") for box in read_frame_boxes(folder / c / "gt" / "gt.txt")
    })
