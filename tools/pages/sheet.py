"""A picture of a dataset: some identities, a row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from datasets.checks import same_images
from datasets.dataset import ReIDDataset
from datasets.records import Records
from datasets.storage.pillow_decoding import BadImage, load_image
from datasets.storage.pixels import PLAIN, PixelRules
from utils.errors import UserError

CELL, GAP, LABEL = (64, 96), 4, 12
COLOURS = {"train": (70, 110, 200), "query": (200, 60, 60), "gallery": (70, 150, 90)}


@dataclass(frozen=True)
class Cell:
    """An image of a list. caption: what stands below it; empty: its camera."""

    split: str
    records: Records
    row: int
    caption: str = ""

    @property
    def path(self) -> str:
        return self.records.paths[self.row]

    def captioned(self, caption: str) -> Cell:
        """Returns the same image with a caption."""
        return replace(self, caption=caption)


def chosen_rows(records: Records, count: int) -> list[int]:
    """Returns up to ``count`` rows, taken from the cameras in turn."""
    order = np.lexsort((np.arange(len(records)), records.camids))
    turn = np.zeros(len(order), int)
    for camera in np.unique(records.camids):
        of_camera = records.camids[order] == camera
        turn[of_camera] = np.arange(of_camera.sum())
    first = np.sort(order[np.argsort(turn, kind="stable")][:count])
    return first[np.argsort(records.camids[first], kind="stable")].tolist()


def some_identities(records: Records, count: int) -> list[tuple[object, np.ndarray]]:
    """Returns (identity as the dataset spells it, its rows) for up to ``count`` identities, evenly spaced."""
    ids, names = np.unique(records.pids), records.original_pids()
    chosen = ids[np.unique(np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int))]
    rows = [np.flatnonzero(records.pids == pid) for pid in chosen]
    return [(names[own[0]], own) for own in rows]


def cells(dataset: ReIDDataset, rows: int, columns: int) -> list[tuple[str, list[Cell]]]:
    """Returns (title, images) of each row: some training identities, then some queries with their matches."""
    shown = []
    for name, own in some_identities(dataset.train, rows):
        own = own[chosen_rows(dataset.train.take(own), columns)]
        shown.append((f"train {name}", [Cell("train", dataset.train, i) for i in own.tolist()]))
    for name, own in some_identities(dataset.query, rows):
        queries = own[: max(1, columns // 3)]
        matches = np.flatnonzero(dataset.gallery.pids == dataset.query.pids[own[0]])
        if dataset.same_list or same_images(dataset.query, dataset.gallery):
            matches = matches[matches != queries[0]]
        matches = matches[chosen_rows(dataset.gallery.take(matches), columns - len(queries))]
        row = [Cell("query", dataset.query, i) for i in queries.tolist()]
        shown.append((f"test {name}", row + [Cell("gallery", dataset.gallery, i) for i in matches.tolist()]))
    return shown


def contact_sheet(
    dataset: ReIDDataset,
    path: Path,
    rows: int = 6,
    columns: int = 10,
    extra: Mapping[str, Sequence[Cell]] | None = None,
    rules: PixelRules = PLAIN,
) -> bool:
    """Writes the picture and returns True, or returns False when there is nothing to show.

    Blue: training, red: queries, green: gallery. An image that cannot be read is an empty frame with a cross. Below
    each image: its camera, or its caption. extra: title -> further images, of which a row is shown. rules: how files
    become pixels.
    """
    shown = cells(dataset, rows, columns)
    shown += [(title, list(images[:columns])) for title, images in (extra or {}).items() if images]
    if not shown:
        return False
    (width, height), left = CELL, 64
    sheet = Image.new("RGB", (left + columns * (width + GAP) + GAP, len(shown) * (height + LABEL + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (title, images) in enumerate(shown):
        top = GAP + i * (height + LABEL + GAP)
        pen.text((GAP, top + height // 2), title, fill="black")
        for j, cell in enumerate(images):
            draw_cell(sheet, cell, left + j * (width + GAP), top, rules)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, "PNG")
    except OSError as error:
        raise UserError(f"{path}: the contact sheet cannot be written ({error.strerror or error})") from None
    return True


def draw_cell(sheet: Image.Image, cell: Cell, x: int, top: int, rules: PixelRules) -> None:
    """Draws one image with its frame and caption at (x, top)."""
    (width, height), pen = CELL, ImageDraw.Draw(sheet)
    records = cell.records
    box = None if records.boxes is None else records.boxes[cell.row]
    try:
        image = load_image(cell.path, box, rules)
        image.thumbnail((width - 4, height - 4))
        sheet.paste(image, (x + (width - image.width) // 2, top + (height - image.height) // 2))
    except BadImage:
        pen.line((x, top, x + width, top + height), fill="red")
        pen.line((x + width, top, x, top + height), fill="red")
    pen.rectangle((x, top, x + width - 1, top + height - 1), outline=COLOURS[cell.split], width=2)
    caption = cell.caption or f"camera {records.take([cell.row]).original_camids()[0]}"
    pen.text((x + 2, top + height), caption, fill="gray")
