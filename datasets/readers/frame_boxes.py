"""Boxes in the frames of a video, from the files that trackers, detectors and labelling tools write.

=======  ==============================================================================================================
``.txt``   MOT-challenge: ``frame, number, left, top, width, height`` and, if there are more, a confidence
``.csv``   a header with ``frame, x1, y1, x2, y2`` and, if known, ``seq`` (or ``id``) and ``score``
``.xml``   CVAT for video: tracks of boxes
``.json``  COCO: ``images`` and ``annotations`` with ``bbox`` and, if known, ``track_id``; a frame's number is
           ``frame_id``, or stands at the end of ``file_name``
=======  ==============================================================================================================

Frames are numbered from 1 in all that is returned. CVAT and COCO's ``frame_id`` count from 0.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.readers.text_table import text_of
from utils.errors import UserError

MOST_GB = 0.5
"""Size of a file of boxes at most."""
NOBODY = ("", "-1", "-1.0")
"""Numbers of boxes that no tracker has numbered."""


@dataclass(frozen=True, slots=True)
class FrameBox:
    """A box in a frame. frame: from 1. number: the tracker's, '' for none. score: the detector's confidence, or 1.

    left, top, right, bottom: pixels, which may lie outside of the frame.
    """

    frame: int
    number: str
    left: float
    top: float
    right: float
    bottom: float
    score: float = 1.0


def read_frame_boxes(path: Path) -> list[FrameBox]:
    """Returns the boxes of a file in the order of their frames.

    Raises ``UserError`` that names the file and the line for what is no such file, and for a number that stands twice
    in a frame.
    """
    readers: dict[str, Callable[[Path, str], Iterable[FrameBox]]] = {
        ".txt": mot_boxes, ".csv": csv_boxes, ".xml": cvat_boxes, ".json": coco_boxes,
    }  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path}: expected boxes in a .txt (MOT-challenge), .csv, .xml (CVAT) or .json file (COCO), not "
            f"{path.suffix or 'a name without an ending'}"
        )
    boxes = sorted(reader(path, text_of(path, MOST_GB)), key=lambda box: box.frame)
    if not boxes:
        raise UserError(f"{path}: no boxes in it")
    seen = set()
    for box in boxes:
        if box.number and (box.frame, box.number) in seen:
            raise UserError(f"{path}: number {box.number} stands twice in frame {box.frame}")
        seen.add((box.frame, box.number))
    return boxes


def number_of(value: object, what: str, where: str) -> float:
    """Returns a finite number. Raises ``UserError`` for anything else."""
    try:
        number = float(value)  # pyright: ignore[reportArgumentType] - TypeError below
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or abs(number) >= 2**31:
        raise UserError(f"{where}: {what} must be a number, got {str(value)[:40]!r}")
    return number


def frame_number(value: object, where: str, first: int = 1) -> int:
    """Returns a frame's number, from 1. first: what the file calls the first frame."""
    number = number_of(value, "frame", where)
    if number != int(number) or number < first:
        raise UserError(f"{where}: frame must be a whole number of at least {first}, got {str(value)[:40]!r}")
    return int(number) + 1 - first


def sized(frame: int, number: str, values: Iterable[object], score: object, where: str) -> FrameBox:
    """Returns a box of left, top, width and height."""
    left, top, width, height = (number_of(value, "a box", where) for value in values)
    return FrameBox(frame, number, left, top, left + width, top + height, number_of(score, "score", where))


def name_of(number: object) -> str:
    """Returns a tracker's number as text, '' for none; 3.0 is 3."""
    text = "" if number is None else str(number).strip()
    return "" if text in NOBODY else re.sub(r"\.0+$", "", text)


def mot_boxes(path: Path, text: str) -> Iterator[FrameBox]:
    """Yields the boxes of a MOT-challenge file; ground truth whose confidence is 0 does not count."""
    for i, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where, words = f"{path}, line {i}", [word.strip() for word in re.split(r"[,\s]\s*", line.strip())]
        if len(words) < 6:
            raise UserError(f"{where}: expected frame, number, left, top, width, height, got {line.strip()[:60]!r}")
        number_of(words[1], "number", where)
        score = words[6] if len(words) > 6 else 1
        box = sized(frame_number(words[0], where), name_of(words[1]), words[2:6], score, where)
        if score == 1 or box.score != 0:
            yield box


def csv_boxes(path: Path, text: str) -> Iterator[FrameBox]:
    """Yields the boxes of a table with a header."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    names = {str(name).strip().lower(): name for name in reader.fieldnames or ()}
    missing = [name for name in ("frame", "x1", "y1", "x2", "y2") if name not in names]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; a header with frame, x1, y1, x2, y2 is needed")
    number = names.get("seq") or names.get("id")
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            left, top, right, bottom = (number_of(row[names[name]], name, where) for name in ("x1", "y1", "x2", "y2"))
            score = number_of(row[names["score"]], "score", where) if "score" in names else 1.0
            frame = frame_number(row[names["frame"]], where)
            yield FrameBox(frame, name_of(row[number]) if number else "", left, top, right, bottom, score)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not a row of a table ({error})") from None


def cvat_boxes(path: Path, text: str) -> Iterator[FrameBox]:
    """Yields the boxes of the tracks in CVAT's XML for video; those that are ``outside`` are not there."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path}: declares entities, which no file of CVAT does")
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:
        raise UserError(f"{path}: not XML ({error})") from None
    if root.tag != "annotations":
        raise UserError(f"{path}: expected CVAT's XML for video, whose outermost element is 'annotations'")
    for track in root.iter("track"):
        number = name_of(track.get("id"))
        for box in track.iter("box"):
            where = f"{path}, track {number or '?'}, frame {str(box.get('frame'))[:20]}"
            if box.get("outside") == "1":
                continue
            left, top, right, bottom = (number_of(box.get(name), name, where) for name in ("xtl", "ytl", "xbr", "ybr"))
            yield FrameBox(frame_number(box.get("frame"), where, first=0), number, left, top, right, bottom)


def coco_boxes(path: Path, text: str) -> Iterator[FrameBox]:
    """Yields the boxes of COCO's JSON."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not JSON") from None
    images, annotations = (objects_in(content, name, path) for name in ("images", "annotations"))
    frames = {str(image.get("id")): frame_of_image(image, f"{path}, image {i}") for i, image in enumerate(images)}
    for i, annotation in enumerate(annotations):
        where, box = f"{path}, annotation {i}", annotation.get("bbox")
        if str(annotation.get("image_id")) not in frames:
            raise UserError(f"{where}: no image has its image_id")
        if not isinstance(box, list) or len(box) != 4:
            raise UserError(f"{where}: bbox must be left, top, width and height")
        number = annotation.get("track_id", annotation.get("instance_id"))
        frame = frames[str(annotation["image_id"])]
        yield sized(frame, name_of(number), box, annotation.get("score", 1), where)


def objects_in(content: Any, name: str, path: Path) -> list[dict[str, Any]]:
    """Returns one of the lists of COCO's JSON. Raises ``UserError`` if it is missing or holds something else."""
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: expected COCO's JSON, an object with the lists 'images' and 'annotations'")
    return entries


def frame_of_image(image: dict[str, Any], where: str) -> int:
    """Returns the number of a frame in COCO's list of images."""
    if image.get("frame_id") is not None:
        return frame_number(image["frame_id"], where, first=0)
    digits = re.search(r"(\d{1,12})\.[^.]+$", str(image.get("file_name", "")))
    if not digits:
        raise UserError(f"{where}: has no frame_id, and its file_name no number at its end")
    return frame_number(digits[1], where, first=0 if int(digits[1]) == 0 else 1)
