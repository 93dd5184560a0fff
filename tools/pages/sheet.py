"""A picture of a dataset: some identities, a row each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from datasets.dataset import ReIDDataset
from datasets.records import Records
from datasets.storage.decoding import BadImage, load_image
from utils.errors import UserError

CELL, GAP, LABEL = (64, 96), 4, 12
COLOURS = {"train": (70, 110, 200), "query": (200, 60, 60), "gallery": (70, 150, 90)}


def chosen_rows(records: Records, count: int) -> list[int]:
    """Up to ``count`` rows, one camera after another."""
    order = np.lexsort((np.arange(len(records)), records.camids))
    turn = np.zeros(len(order), int)
    for camera in np.unique(records.camids):
        mine = records.camids[order] == camera
        turn[mine] = np.arange(mine.sum())
    first = np.sort(order[np.argsort(turn, kind="stable")][:count])
    return first[np.argsort(records.camids[first], kind="stable")].tolist()


def cells(dataset: ReIDDataset, rows: int, columns: int) -> list[tuple[str, list[tuple[str, Records, int]]]]:
    """(identity, [(split, records, row)]): evenly spaced training identities, then queries with their matches."""
    found = []
    ids = np.unique(dataset.train.pids)
    for pid in ids[np.unique(np.linspace(0, len(ids) - 1, min(rows, len(ids))).astype(int))]:
        own = np.flatnonzero(dataset.train.pids == pid)
        own = own[chosen_rows(dataset.train.take(own), columns)]
        found.append((f"train {pid}", [("train", dataset.train, i) for i in own]))
    ids = np.unique(dataset.query.pids)
    for pid in ids[np.unique(np.linspace(0, len(ids) - 1, min(rows, len(ids))).astype(int))]:
        query = np.flatnonzero(dataset.query.pids == pid)[: max(1, columns // 3)]
        match = np.flatnonzero(dataset.gallery.pids == pid)
        if dataset.same_list:
            match = match[match != query[0]]
        match = match[chosen_rows(dataset.gallery.take(match), columns - len(query))]
        row = [("query", dataset.query, i) for i in query] + [("gallery", dataset.gallery, i) for i in match]
        found.append((f"test {pid}", row))
    return found


def contact_sheet(dataset: ReIDDataset, path: Path, rows: int = 6, columns: int = 10) -> bool:
    """Writes the picture; False when there is nothing to show. Blue: training, red: queries, green: their matches.

    An image that cannot be read is an empty frame with a cross. Below each image: its camera.
    """
    shown = cells(dataset, rows, columns)
    if not shown:
        return False
    (width, height), left = CELL, 64
    sheet = Image.new("RGB", (left + columns * (width + GAP) + GAP, len(shown) * (height + LABEL + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (title, row) in enumerate(shown):
        top = GAP + i * (height + LABEL + GAP)
        pen.text((GAP, top + height // 2), title, fill="black")
        for j, (split, records, k) in enumerate(row):
            x = left + j * (width + GAP)
            box = None if records.boxes is None else records.boxes[k]
            try:
                image = load_image(records.paths[k], box)
                image.thumbnail((width - 4, height - 4))
                sheet.paste(image, (x + (width - image.width) // 2, top + (height - image.height) // 2))
            except BadImage:
                pen.line((x, top, x + width, top + height), fill="red")
                pen.line((x + width, top, x, top + height), fill="red")
            pen.rectangle((x, top, x + width - 1, top + height - 1), outline=COLOURS[split], width=2)
            pen.text((x + 2, top + height), f"camera {records.camids[k]}", fill="gray")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, "PNG")
    except OSError as error:
        raise UserError(f"{path}: the contact sheet cannot be written ({error.strerror or error})") from None
    return True
