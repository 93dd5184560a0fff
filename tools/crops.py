"""Cuts people out of video: ``python -m tools.crops --video FILE|FOLDER --boxes MOT.txt --out crops.csv``.

The boxes are a tracker's, a detector's or labelled ones: MOT-challenge's .txt, a .csv with ``frame, x1, y1, x2, y2``
and maybe ``seq`` and ``score``, CVAT's .xml, or COCO's .json. The result is a table with ``seq`` (the tracklet),
``frame``, ``time`` and ``camid``, which tools.extract reads and tools.identities needs. With --images the crops are
files; without, the table holds boxes in the frames of a folder or of a video file, which is searched for each of them.
Several cameras are several words behind --video and --boxes. Video files need PyAV. After a kill the same command
continues.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TextIO

from PIL import Image

from datasets.crop_quality import hidden_shares, image_quality, quality_weights
from datasets.readers.frame_boxes import FrameBox, read_frame_boxes
from datasets.readers.image_list import CUT
from datasets.readers.text_table import BOX
from datasets.storage.video import Frame, frame_files, frames_of
from datasets.storage.video_frames import frame_path
from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.files import sha256_of, write_lines

log = logging.getLogger("lineup")

COLUMNS = ("path", "pid", "camid", "split", "seq", "frame", "time")
QUALITY = 92
"""Of the crops' JPEG files."""
AHEAD = 16
"""Frames that wait for their crops to be written while others are decoded."""

Corners = tuple[int, int, int, int]


@dataclass(frozen=True)
class Clip:
    """One camera's video with its boxes. path: a video file or a folder of frames. boxes: frame -> its boxes."""

    path: Path
    camera: str
    boxes: dict[int, list[FrameBox]]
    digest: str


@dataclass
class Counts:
    """What was left out or changed: boxes cut at the frame's edges, boxes of which nothing is left, frames missing."""

    rows: int = 0
    clipped: int = 0
    outside: int = 0
    missing: list[int] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        """Adds the counts of a frame."""
        self.rows += other.rows
        self.clipped += other.clipped
        self.outside += other.outside

    def lines(self, clip: Clip) -> list[str]:
        """Returns a line for each kind that there is."""
        out = []
        if self.clipped:
            out.append(f"{clip.path}: {self.clipped:,} boxes were cut at the frame's edges")
        if self.outside:
            out.append(f"{clip.path}: {self.outside:,} boxes are outside of their frame or empty, and left out")
        if self.missing:
            boxes = sum(len(clip.boxes[frame]) for frame in self.missing)
            out.append(
                f"{clip.path}: {len(self.missing):,} frames with boxes are missing, the first is {self.missing[0]}; "
                f"their {boxes:,} boxes are left out"
            )
        return out


@dataclass(frozen=True)
class Cutting:
    """How boxes become rows. images: folder of the crops, None for boxes in frames. home: folder of the table.

    fps: see ``frames_of``. measured: add the quality of each crop. identities: numbers are persons. split: of the rows.
    """

    images: Path | None
    home: Path
    fps: float | None
    measured: bool
    identities: bool
    split: str

    def columns(self) -> list[str]:
        """Returns the columns of the table."""
        return [*COLUMNS, *(CUT if self.images else BOX), "score", *(["quality"] if self.measured else [])]


def clips_of(videos: list[Path], boxes: list[Path], cameras: list[str] | None, least: float) -> list[Clip]:
    """Returns the clips of the command line, their boxes read. least: score of the boxes that are kept.

    Raises ``UserError`` for lists of unequal length, videos that do not exist and cameras of one name.
    """
    if len(videos) != len(boxes):
        raise UserError(f"--boxes: {len(boxes)} files for {len(videos)} videos; name one for each, in the same order")
    names = cameras or [path.parent.name if path.name in ("img1", "frames") else path.stem for path in videos]
    if len(names) != len(videos):
        raise UserError(f"--camera: {len(names)} names for {len(videos)} videos; name one for each, in the same order")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--camera: two videos are of camera {name!r}, so their tracklets would share numbers")
        if not name or "/" in name or name in (".", ".."):
            raise UserError(f"--camera: {name!r} cannot be the name of a folder")
    clips = []
    for video, file, name in zip(videos, boxes, names, strict=True):
        if not video.exists():
            raise UserError(f"{video}: no such video file or folder of frames")
        kept = [box for box in read_frame_boxes(file) if box.score >= least]
        if not kept:
            raise UserError(f"{file}: no box has a score of {least:g} or more (--least)")
        by_frame = {frame: list(group) for frame, group in groupby(kept, key=lambda box: box.frame)}
        clips.append(Clip(video, name, by_frame, sha256_of(file).hex()))
    return clips


def corners_of(box: FrameBox, width: int, height: int, counts: Counts) -> Corners | None:
    """Returns the whole pixels of a box inside a frame; None, counted, if nothing is left."""
    left, top, right, bottom = (round(value) for value in (box.left, box.top, box.right, box.bottom))
    inside = max(0, left), max(0, top), min(width, right), min(height, bottom)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        counts.outside += 1
        return None
    counts.clipped += inside != (left, top, right, bottom)
    return inside


def rows_of_frame(
    clip: Clip, frame: Frame, source: Path, how: Cutting
) -> tuple[list[list[object]], Counts]:
    """Writes the crops of a frame and returns its rows and counts. source: where to read the frame again."""
    counts = Counts()
    cut = [
        (box, corners) for box in clip.boxes[frame.number]
        if (corners := corners_of(box, *frame.image.size, counts)) is not None
    ]  # fmt: skip
    hidden = hidden_shares([corners for _, corners in cut]) if how.measured and cut else [0.0] * len(cut)
    rows = []
    for i, ((box, corners), share) in enumerate(zip(cut, hidden, strict=True)):
        seq = f"{clip.camera}-{box.number}" if box.number else ""
        crop = frame.image.crop(corners) if how.images or how.measured else None
        path = source
        if how.images is not None and crop is not None:
            path = how.images / clip.camera / (box.number or "none") / f"{frame.number:06d}_{i:02d}.jpg"
            save(crop, path)
        quality = [] if crop is None or not how.measured else [quality_of(crop, share)]
        rows.append([
            Path(os.path.relpath(path, how.home)).as_posix(), box.number if how.identities else "", clip.camera,
            how.split, seq, frame.number, "" if frame.time is None else f"{frame.time:.3f}", *corners,
            f"{box.score:g}", *quality,
        ])  # fmt: skip
    counts.rows = len(rows)
    return rows, counts


def quality_of(crop: Image.Image, hidden: float) -> str:
    """Returns the quality of a crop as the table has it."""
    weights = quality_weights(image_quality(crop), hidden)  # pyright: ignore[reportArgumentType] - numbers do too
    return f"{float(weights):.4f}"


def save(crop: Image.Image, path: Path) -> None:
    """Writes a crop. Raises ``UserError`` if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        crop.save(path, "JPEG", quality=QUALITY)
    except OSError as error:
        raise UserError(f"{path}: the crop cannot be written ({error.strerror or error})") from None


def cut_clip(clip: Clip, how: Cutting, done: int, part: TextIO, pool: ThreadPoolExecutor) -> Counts:
    """Appends the rows of a clip to the unfinished table, frame by frame. done: frames that it has already."""
    counts, writer = Counts(), csv.writer(part, lineterminator="\n")
    files = frame_files(clip.path) if clip.path.is_dir() else {}
    wanted = {number for number in clip.boxes if number > done}
    seen: set[int] = set()
    ahead = []

    def put(rows: list[list[object]], of_frame: Counts) -> None:
        writer.writerows(rows)
        part.flush()
        counts.add(of_frame)

    for frame in frames_of(clip.path, how.fps, wanted):
        seen.add(frame.number)
        if how.fps is None and frame.time is None:
            raise UserError(f"{clip.path}: its frames have no time; name their number per second, such as --fps 25")
        source = files.get(frame.number) or frame_path(clip.path, frame.number)
        ahead.append(pool.submit(rows_of_frame, clip, frame, source, how))
        if len(ahead) >= AHEAD:
            put(*ahead.pop(0).result())
    for job in ahead:
        put(*job.result())
    counts.missing = sorted(wanted - seen)
    return counts


def plan_of(clips: list[Clip], how: Cutting, least: float) -> str:
    """Returns a line that says what is cut and how: an unfinished table continues only under the same."""
    what = [[str(clip.path), clip.path.stat().st_size, clip.camera, clip.digest] for clip in clips]
    ways = [str(how.images), how.fps, how.measured, how.identities, how.split, least]
    return hashlib.sha256(json.dumps([what, ways]).encode()).hexdigest() + "\n"


def lines_before(part: Path, plan: str) -> tuple[list[list[str]], tuple[str, int]]:
    """Returns the rows of an unfinished table that are certain, and the camera and frame that they end with.

    The last frame may lack rows, so it is cut again. Raises ``UserError`` for the table of another command.
    """
    if not part.exists():
        return [], ("", 0)
    first, _, text = part.read_text(encoding="utf-8").partition("\n")
    if first + "\n" != plan:
        raise UserError(f"{part}: is the unfinished table of another command; remove it to start again")
    rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    if not rows:
        return [], ("", 0)
    camera, frame = rows[-1][2], rows[-1][5]
    kept = [row for row in rows if (row[2], row[5]) != (camera, frame)]
    before = max((int(row[5]) for row in kept if row[2] == camera), default=0)
    return kept, (camera, before)


def make_table(clips: list[Clip], how: Cutting, out: Path, least: float) -> int:
    """Writes the table, or continues it; returns the number of its rows."""
    part, plan = out.with_name(f"{out.name}.part"), plan_of(clips, how, least)
    rows, (camera, frame) = lines_before(part, plan)
    finished = [clip.camera for clip in clips].index(camera) if camera else -1
    with open(part, "w", encoding="utf-8", newline="") as handle, ThreadPoolExecutor(2) as pool:
        handle.write(plan)
        csv.writer(handle, lineterminator="\n").writerows(rows)
        for i, clip in enumerate(clips):
            if i < finished:
                continue
            counts = cut_clip(clip, how, frame if i == finished else 0, handle, pool)
            for line in counts.lines(clip):
                log.warning(line)
    text = part.read_text(encoding="utf-8").partition("\n")[2]
    if not text:
        part.unlink()
        raise UserError(f"{clips[0].path}: none of the boxes is inside a frame that is there; no table was written")
    write_lines(out, [",".join(how.columns()) + "\n", text])
    part.unlink()
    return text.count("\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser(
        "python -m tools.crops", __doc__, "--video gate.mp4 --boxes gate.txt --images crops --out crops.csv",
        "--video c1/img1 c2/img1 --boxes c1/trk/trk.txt c2/trk/trk.txt --camera gate yard --fps 5 --out crops.csv",
    )  # fmt: skip
    parser.add_argument("--video", type=Path, nargs="+", required=True, metavar="FILE|FOLDER", help="one per camera")
    parser.add_argument("--boxes", type=Path, nargs="+", required=True, metavar="FILE", help="one for each video")
    parser.add_argument("--camera", nargs="+", metavar="NAME", help="one for each video (the video's name)")
    parser.add_argument("--out", type=Path, required=True, metavar="TABLE.csv")
    parser.add_argument("--images", type=Path, metavar="DIR", help="write the crops as files into this folder")
    parser.add_argument("--fps", type=float, metavar="N", help="frames per second (a video file's own)")
    parser.add_argument("--least", type=float, default=0.0, metavar="SCORE", help="of the boxes that are kept (0)")
    parser.add_argument("--quality", action="store_true", help="add a column with the quality of each crop")
    parser.add_argument("--identities", action="store_true", help="the boxes' numbers are persons: fill pid")
    parser.add_argument("--split", default="ignore", help="what the table's column split says (ignore)")
    args = parser.parse_args(argv)
    if args.out.suffix != ".csv":
        raise UserError(f"--out: expected a name that ends in .csv, got {args.out}")
    if args.out.exists():
        raise UserError(f"--out: {args.out} exists; remove it, or name another table")
    if args.fps is not None and not 0 < args.fps < 10_000:
        raise UserError(f"--fps: must be above 0, got {args.fps:g}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    how = Cutting(args.images, args.out.parent, args.fps, args.quality, args.identities, args.split)
    clips = clips_of(args.video, args.boxes, args.camera, args.least)
    rows = make_table(clips, how, args.out, args.least)
    print(f"{args.out}: {rows:,} crops of {len(clips)} cameras")


if __name__ == "__main__":
    run_command(main)
