"""``synthetic_tracks``: video of drawn pedestrians who walk through several cameras, with what is needed to track them.

The folder of a set holds, for each camera ``c1``, ``c2``, ...:

===================  ==================================================================================================
``c1/img1``          the frames, ``000001.jpg`` on, at 5 a second
``c1/seqinfo.ini``   MOT-challenge's description of a sequence
``c1/gt/gt.txt``     ground truth in MOT-challenge's columns; a number is one person in all cameras
``c1/det/det.txt``   what a detector would find: missed people, false boxes, unsteady edges; number -1
``c1/trk/trk.txt``   the detections as a tracker of one camera would number them: it loses people and starts again
``c1.mp4``           the frames as a video, with the option ``mp4``
===================  ==================================================================================================

and ``travel.csv``, the shortest time between two cameras, and ``dataset.csv``, a table of the ground truth's boxes: a
tracklet (``seq``) is one crossing of a camera's view. The first half of the identities trains. Of the others, the first
tracklet in each camera is a query, and all are the gallery.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from datasets.readers.table import read_table
from datasets.records import RawSplits
from datasets.storage.video import write_video
from datasets.synthetic.detector import Tracker, detect, within
from datasets.synthetic.person import Person
from datasets.synthetic.sets import checked, domain_of, identity_of
from datasets.synthetic.street import HEIGHT, WIDTH, draw_frame, street_of
from datasets.synthetic.walks import FPS, KEY, SHORTEST, Visit, plan, travel_frames
from datasets.synthetic.whole_folder import made_whole
from utils.errors import UserError
from utils.files import write_csv

if TYPE_CHECKING:
    from datasets.catalogue.spec import DatasetSpec

FORMAT_VERSION = 1  # raise it when any pixel, box or file name changes: data written before is then left alone
LOOKS = "synthetic"
"""The set whose pedestrians and cameras these are."""
QUALITY = 88
LEAST_VISIBLE = 0.2
"""Boxes of which less can be seen are in the ground truth of tracking, but no images of the dataset."""
COLUMNS = ("path", "pid", "camid", "split", "seq", "frame", "time", "x1", "y1", "x2", "y2", "visible")


def people_of(ids: int, seed: int) -> dict[int, Person]:
    """Returns the pedestrians by identity, 1..ids."""
    people = {}
    for pid in range(1, ids + 1):
        person = identity_of(LOOKS, pid, seed)
        assert isinstance(person, Person)
        people[pid] = person
    return people


def mot_row(number: int, frame: int, box: tuple[int, int, int, int], *rest: object) -> str:
    """Returns a line in MOT-challenge's columns: frame and number from 1, left, top, width, height, and the rest."""
    left, top, right, bottom = box
    return ",".join(map(str, (frame + 1, number, left, top, right - left, bottom - top, *rest))) + "\n"


def write_camera(
    folder: Path, ids: int, cameras: int, frames: int, seed: int, mp4: bool, camid: int
) -> list[tuple[Any, ...]]:
    """Writes the files of one camera and returns its rows of ``dataset.csv``."""
    visits, people = plan(ids, cameras, frames, seed)[camid], people_of(ids, seed)
    street, home = street_of(domain_of(LOOKS).climate, camid, seed), folder / f"c{camid}"
    for name in ("img1", "gt", "det", "trk"):
        (home / name).mkdir(parents=True)
    first = {}
    for visit in visits:
        first.setdefault(visit.pid, visit)
    rows: list[tuple[Any, ...]] = []
    tracker, lines = Tracker(camid, seed), {"gt": [], "det": [], "trk": []}
    for frame in range(frames):
        picture, shown = draw_frame(street, visits, people, camid, frame, seed)
        path = home / "img1" / f"{frame + 1:06d}.jpg"
        Image.fromarray(picture).save(path, quality=QUALITY)
        for one in shown:
            box = within(one.box)
            if box is None:
                continue
            lines["gt"].append(mot_row(one.visit.pid, frame, one.box, 1, 1, f"{one.visible:.3f}"))
            if one.visible >= LEAST_VISIBLE:
                rows += rows_of(one.visit, path.relative_to(folder), box, frame, one.visible, ids // 2, first)
        found = detect(shown, camid, frame, seed)
        lines["det"] += [mot_row(-1, frame, d.box, f"{d.score / 100:.2f}", -1, -1, -1) for d in found]
        for number, d in tracker.number(found, frame):
            lines["trk"].append(mot_row(number, frame, d.box, f"{d.score / 100:.2f}", -1, -1, -1))
    for name, content in lines.items():
        (home / name / f"{name}.txt").write_text("".join(content))
    (home / "seqinfo.ini").write_text(
        f"[Sequence]\nname=c{camid}\nimDir=img1\nframeRate={FPS}\nseqLength={frames}\nimWidth={WIDTH}\n"
        f"imHeight={HEIGHT}\nimExt=.jpg\n"
    )
    if mp4:
        write_video(folder / f"c{camid}.mp4", pictures_in(home / "img1"), FPS)
    return rows


def rows_of(
    visit: Visit, path: Path, box: tuple[int, int, int, int], frame: int, visible: float, trained: int,
    first: dict[int, Visit],
) -> list[tuple[Any, ...]]:  # fmt: skip
    """Returns the rows of one box: one in training, or one in the gallery and maybe one among the queries.

    trained: identities up to this one train. first: the first visit of each identity to the camera.
    """
    splits = ["train"] if visit.pid <= trained else ["gallery"]
    if visit.pid > trained and first[visit.pid] is visit:
        splits.insert(0, "query")
    seq = f"c{visit.camid}p{visit.pid}v{visit.number}"
    return [
        (path.as_posix(), visit.pid, visit.camid, split, seq, frame + 1, f"{frame / FPS:.2f}", *box, f"{visible:.3f}")
        for split in splits
    ]


def pictures_in(folder: Path) -> Iterator[Image.Image]:
    """Yields the frames in a folder, in order."""
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as picture:
            yield picture.convert("RGB")


def write_set(
    folder: Path, ids: int, cameras: int, frames: int, seed: int, mp4: bool = False, workers: int = 1
) -> None:
    """Fills an empty folder with a set. workers: processes that draw, a camera each."""
    job = functools.partial(write_camera, folder, ids, cameras, frames, seed, mp4)
    numbers = range(1, cameras + 1)
    if workers == 1:
        of_camera = [job(camid) for camid in numbers]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            of_camera = list(pool.map(job, numbers))
    rows = [row for rows in of_camera for row in rows]
    for split in ("train", "query"):
        if not any(row[3] == split for row in rows):
            raise UserError(
                f"synthetic_tracks: nobody of the {split} identities can be seen in {frames} frames; raise "
                "DATASETS.SYNTHETIC.FRAMES or IDS"
            )
    write_csv(folder / "dataset.csv", COLUMNS, rows)
    pairs = [(a, b) for a in numbers for b in numbers if a < b]
    ways = [(a, b, f"{travel_frames(a, b, seed) / FPS:.2f}") for a, b in pairs]
    write_csv(folder / "travel.csv", ("camera_a", "camera_b", "seconds"), ways)


def ensure_tracks(
    name: str,
    root: str | Path,
    ids: int = 64,
    cameras: int = 4,
    frames: int = 240,
    seed: int = 0,
    mp4: bool = False,
    workers: int = 1,
) -> Path:
    """Returns the folder of the set below ``root``, writing it first if it is not there.

    ids: identities in all, at least 4; the first half trains. cameras: 2 to 8. frames: of each camera, at 5 a second,
    at least 30. mp4: write a video of each camera too. workers: processes that draw. The folder is
    ``<root>/synthetic_tracks_<hash8>`` and appears whole or not at all. Raises ``UserError`` for wrong sizes and for a
    root that cannot be written.
    """
    ids, cameras, frames = checked("IDS", ids, 4), checked("CAMERAS", cameras, 2), checked("FRAMES", frames, 30)
    seed = checked("SEED", seed, 0)
    if cameras > 8:
        raise UserError(f"DATASETS.SYNTHETIC.CAMERAS: synthetic_tracks has at most 8 cameras, got {cameras}")
    contents = (KEY, ids, cameras, frames, seed, bool(mp4), SHORTEST, FORMAT_VERSION)
    tag = hashlib.sha256(repr(contents).encode()).hexdigest()[:8]
    return made_whole(
        name, Path(root) / f"{name}_{tag}", lambda draft: write_set(draft, ids, cameras, frames, seed, mp4, workers)
    )


def read_tracks(spec: DatasetSpec, folder: Path) -> RawSplits:
    """Reads the table of a set: boxes in its frames."""
    raw = read_table(spec, folder / "dataset.csv")
    raw.notes = []  # of columns that nothing reads: ours
    return raw
