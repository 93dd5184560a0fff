"""Labels from and for other tools: CVAT's Market-1501 layout, Label Studio's JSON, FiftyOne's JSON.

What is read are names of images, which become decisions; no file outside the one that is named is opened. What is
written follows from the table.
"""

from __future__ import annotations

import json
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from datasets.identifiers import JUNK, canonical
from tools.labelling.session import Images
from utils.errors import UserError, cut
from utils.files import write_csv, write_json, write_lines

MARKET = re.compile(r"^(-?\d{1,9})_c(\d{1,6})(?:s(\d+)_(\d+)_(\d+))?(.*)$", re.DOTALL)
"""CVAT's file names: identity, camera, and behind the numbers the name that the image had before, if any."""
BEGINNINGS, QUERY = "bounding_box_", "query"
LISTS = re.compile(r"images_.+\.txt")
LARGEST = 256 * 2**20
MOST_FILES = 2_000_000
UPLOAD = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""
FORMATS = ("cvat", "labelstudio", "fiftyone")

Found = list[tuple[str, str]]
"""File names, as far as they are known, and identities."""

DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, LookupError, OSError, EOFError, RuntimeError,
    ArithmeticError, ValueError,
)  # fmt: skip
"""What a damaged .zip raises when it is read."""


def read_labels(path: Path) -> Found:
    """Returns the labels in a file or folder of another tool. Raises ``UserError`` for what is none."""
    if path.is_dir():
        return market_labels(
            path, (str(p.relative_to(path)) for p in path.rglob("*")), lambda name: (path / name).read_bytes()
        )
    if not path.is_file():
        raise UserError(f"--read: {path} does not exist")
    if zipfile.is_zipfile(path):
        return zipped_labels(path)
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"--read: {path} is larger than {LARGEST >> 20} MB")
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise UserError(
            f"--read: {path} is neither JSON of Label Studio or FiftyOne nor CVAT's Market-1501 (a folder or .zip)"
        ) from None
    if isinstance(content, list):
        return label_studio_labels(path, content)
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):
        return fiftyone_labels(path, content)
    raise UserError(f"--read: {path}: expected Label Studio's list of tasks, or FiftyOne's classes and labels")


def zipped_labels(path: Path) -> Found:
    """Returns the labels in a .zip of CVAT: its names are read, its images are not."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}

            def content(name: str) -> bytes:
                if sizes[name] > LARGEST:
                    raise UserError(f"--read: {path}: {name} is larger than {LARGEST >> 20} MB")
                with archive.open(name) as handle:
                    return handle.read(LARGEST)

            return market_labels(path, sizes, content)
    except DAMAGED as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--read: {path}: a damaged .zip ({cut(str(error), 80)})") from None


def market_labels(path: Path, names: Iterable[str], content: Callable[[str], bytes]) -> Found:
    """Returns the labels that the names in CVAT's folders or lists hold. content: the bytes of a list."""
    found: Found = []
    for i, name in enumerate(names):
        if i > MOST_FILES:
            raise UserError(f"--read: {path}: more than {MOST_FILES:,} files")
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if parts and LISTS.fullmatch(parts[-1]):
            lines = content(name).decode("utf-8", "replace").splitlines()
            found += [entry for line in lines if (entry := market_label(line.strip()))]
        elif any(part == QUERY or part.startswith(BEGINNINGS) for part in parts[:-1]):
            entry = market_label(name)
            found += [entry] if entry else []
    if not found:
        raise UserError(
            f"--read: {path}: no image in a folder bounding_box_... or query whose name begins like 0001_c1, and no "
            "list images_....txt with any"
        )
    return found


def market_label(name: str) -> tuple[str, str] | None:
    """Returns the image's own name and its identity. ``7_c1s1_000000_00door.jpg`` is ``door.jpg``."""
    match = MARKET.match(PurePosixPath(name.replace("\\", "/")).name)
    if match is None:
        return None
    rest = match[6]
    own = rest if match[3] and PurePosixPath(rest).stem.strip(".") and not rest.startswith(".") else match[0]
    return own, str(int(match[1]))


def label_studio_labels(path: Path, tasks: list) -> Found:
    """Returns the labels of a list of tasks: the choice or the text of each one's last annotation."""
    found: Found = []
    for i, task in enumerate(tasks):
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise UserError(f"--read: {path}: task {i + 1} has no data; export as JSON, not JSON-MIN")
        names = [value for value in task["data"].values() if isinstance(value, str)]
        image = task["data"].get("image", names[0] if names else None)
        if not isinstance(image, str):
            raise UserError(f"--read: {path}: task {i + 1} names no image")
        annotations = task.get("annotations")
        for annotation in reversed(annotations if isinstance(annotations, list) else []):
            word = chosen_word(annotation)
            if word:
                found.append((file_of(image), word))
                break
    return found


def chosen_word(annotation: Any) -> str:
    """Returns the choice or text of an annotation, '' if it has none."""
    if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
        return ""
    results = annotation.get("result")
    for result in results if isinstance(results, list) else []:
        value = result.get("value") if isinstance(result, dict) else None
        for kind in ("choices", "text"):
            words = value.get(kind) if isinstance(value, dict) else None
            words = [words] if isinstance(words, str) else words
            if isinstance(words, list) and words and isinstance(words[0], str) and words[0].strip():
                return words[0]
    return ""


def file_of(address: str) -> str:
    """Returns the file name in the address of an image."""
    parts = urlsplit(address)
    return parse_qs(parts.query)["d"][0] if "d=" in parts.query else unquote(parts.path)


def fiftyone_labels(path: Path, content: dict[str, Any]) -> Found:
    """Returns the labels of FiftyOne's classification JSON: paths or stems, and numbers of classes."""
    classes, found = content.get("classes"), []
    for name, value in content["labels"].items():
        if type(value) is int and isinstance(classes, list) and 0 <= value < len(classes):
            value = classes[value]
        if value is None:
            continue
        if not isinstance(value, str):
            raise UserError(f"--read: {path}: the label of {cut(name, 80)} is neither a name nor the number of a class")
        found.append((name, value))
    return found


def matched(found: Found, images: Images) -> tuple[list[list], list[str]]:
    """Returns ``name`` entries of decisions for the images that labels are of, and the names that match none.

    An image is found by its path, by its path from the folder, by its file name or by that without its ending, if only
    one image has it. Images of nobody and labels that are missing values are left out.
    """
    tables: list[dict[str, int]] = []
    keys: tuple[Callable[[int], str], ...] = (
        lambda row: images.paths[row],
        lambda row: images.names[row],
        lambda row: PurePosixPath(images.paths[row]).name,
        lambda row: PurePosixPath(images.paths[row]).stem,
    )
    for key in keys:
        table: dict[str, int] = {}
        for row in range(len(images)):
            word = key(row)
            table[word] = -1 if word in table else row
        tables.append(table)
    entries, unknown = {}, []
    for name, identity in found:
        name, base = name.replace("\\", "/"), PurePosixPath(name.replace("\\", "/")).name
        words = (
            name,
            name,
            base,
            PurePosixPath(base).stem,
            UPLOAD.sub("", base),
            PurePosixPath(UPLOAD.sub("", base)).stem,
        )
        places = (tables[0], tables[1], tables[2], tables[3], tables[2], tables[3])
        row = next((table[word] for table, word in zip(places, words, strict=True) if table.get(word, -1) >= 0), -1)
        if row < 0:
            unknown.append(name)
        elif canonical(identity) not in ("", JUNK):
            entries[row] = identity
    return [[row, identity] for row, identity in entries.items()], unknown


def write_labels(kind: str, path: Path, images: Images, pids: Sequence[str]) -> int:
    """Writes the labels for another tool, and returns of how many images. pids: (N,) as in the table."""
    labelled = [(row, pid) for row, pid in enumerate(pids) if pid not in ("", JUNK) and row not in images.bad]
    writers = {"cvat": write_market, "labelstudio": write_label_studio, "fiftyone": write_fiftyone}
    writers[kind](path, images, labelled)
    return len(labelled)


def write_market(path: Path, images: Images, labelled: Sequence[tuple[int, str]]) -> None:
    """Writes a folder with ``images_default.txt``, from which CVAT imports annotations of Market-1501.

    Its identities are numbers; ``identities.csv`` says whose they are where they were not.
    """
    numbers: dict[str, int] = {}
    taken = {int(pid) for _, pid in labelled if pid.isascii() and pid.isdecimal()}
    free = (number for number in range(1, 10**9) if number not in taken)
    for _, pid in labelled:
        if pid not in numbers:
            numbers[pid] = int(pid) if pid.isascii() and pid.isdecimal() else next(free)
    cameras = images.columns.get("camid", [])
    lines, first = [], int("0" in cameras)  # CVAT's files count cameras from 1
    for row, pid in labelled:
        word = cameras[row] if cameras else ""
        camera = int(word) if word.isascii() and word.isdecimal() else 1
        name = PurePosixPath(images.paths[row]).name
        lines.append(f"{BEGINNINGS}default/{numbers[pid]:04d}_c{camera + first}s1_000000_00{name}\n")
    write_lines(path / "images_default.txt", lines)
    write_csv(path / "identities.csv", ("number", "identity"), [(n, pid) for pid, n in numbers.items()])


def write_label_studio(path: Path, images: Images, labelled: Sequence[tuple[int, str]]) -> None:
    """Writes Label Studio's tasks, each with a choice named ``identity``."""
    tasks = [
        {
            "data": {"image": images.paths[row]},
            "annotations": [
                {
                    "result": [
                        {
                            "from_name": "identity", "to_name": "image", "type": "choices",
                            "value": {"choices": [pid]},
                        }
                    ]
                }
            ],
        }
        for row, pid in labelled
    ]  # fmt: skip
    write_json(path, tasks)


def write_fiftyone(path: Path, images: Images, labelled: Sequence[tuple[int, str]]) -> None:
    """Writes the JSON of FiftyOne's classification datasets: classes, and the class of each path."""
    classes = sorted({pid for _, pid in labelled})
    number = {pid: i for i, pid in enumerate(classes)}
    write_json(path, {"classes": classes, "labels": {images.paths[row]: number[pid] for row, pid in labelled}})
