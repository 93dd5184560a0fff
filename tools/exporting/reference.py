"""Inputs with the network's own features, to compare with what another machine's runtime makes of them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datasets.loaders import TestSet
from datasets.transforms.resizing import make_resizer
from model.deployed import Deployed, Preprocess
from tools.exporting.differences import unit
from tools.exporting.feeding import Feed, photos
from utils.errors import UserError, reason_of
from utils.files import write_atomically
from utils.safe_zip import check_archive

IMAGES = 8
"""Images of a reference."""


@torch.no_grad()
def write_reference(path: Path, reference: Deployed, feed: Feed, tests: list[TestSet], resize: str) -> None:
    """Writes some test images as the file takes them, their labels and the network's features, as ``.npz``.

    reference: the network that takes whole images. feed: of the file's layout. resize: a word of INPUT.RESIZE.
    """
    pre, resize_image = reference.preprocess, make_resizer(resize, is_train=False)
    margin = pre.margin if isinstance(pre, Preprocess) else 0
    size = pre.size[0] + margin, pre.size[1] + margin
    inputs, features = [], []
    columns: dict[str, list[np.ndarray]] = {name: [] for name in reference.sides}
    for photo in photos(tests[0], reference.sides, IMAGES):
        pixels = resize_image(Image.fromarray(photo.image), size).permute(1, 2, 0).contiguous()
        labels = (torch.from_numpy(photo.labels[name]) for name in reference.sides)
        features.append(reference(pixels[None], *labels).numpy())
        inputs.append(feed(pixels.numpy()))
        for name, value in photo.labels.items():
            columns[name].append(value)
    arrays = {"images": inputs, "features": features, **columns}
    joined: dict[str, Any] = {name: np.concatenate(values) for name, values in arrays.items()}
    write_atomically(path, lambda handle: np.savez_compressed(handle, **joined))


def read_features(path: Path) -> np.ndarray:
    """Returns features (N, D): ``features`` of an ``.npz``, an ``.npy``, or trtexec's ``--exportOutput`` (.json).

    Raises ``UserError`` if the file is missing, damaged or holds something else.
    """
    if not path.is_file():
        raise UserError(f"--verify: {path}: no such file")
    try:
        if path.suffix == ".json":
            outputs = json.loads(path.read_text(encoding="utf-8"))
            chosen = next(output for output in outputs if output["name"] == "features")
            shape = [int(side) for side in str(chosen["dimensions"]).split("x")]
            values = np.array(chosen["values"], np.float32).reshape(shape)
        elif path.suffix == ".npz":
            check_archive(path)
            with np.load(path, allow_pickle=False) as stored:
                values = stored["features"]
        else:
            values = np.load(path, allow_pickle=False)
        values = np.asarray(values, np.float32)
    except UserError:
        raise
    except StopIteration:
        raise UserError(f"--verify: {path}: holds no output 'features'") from None
    except KeyError as error:
        raise UserError(f"--verify: {path}: holds no {error}") from None
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"--verify: {path}: cannot be read ({reason_of(error)})") from None
    values = values.reshape(len(values), -1) if values.ndim > 2 else values
    if values.ndim != 2 or not np.isfinite(values).all():
        raise UserError(f"--verify: {path}: expected finite features (images, width), got shape {values.shape}")
    return values


def verify(ours: Path, theirs: Path) -> tuple[float, np.ndarray]:
    """Returns the largest difference of a unit feature's entry, and each image's cosine (N,).

    ours: a reference that ``tools.export --reference`` wrote. theirs: the features of its images, in order. Raises
    ``UserError`` if they are of other images.
    """
    expected, found = read_features(ours), read_features(theirs)
    if expected.shape != found.shape:
        raise UserError(
            f"--verify: {theirs} has features of shape {found.shape}, {ours} of {expected.shape}; feed the file the "
            "'images' of the reference, in order"
        )
    one, two = unit(expected), unit(found)
    return float(np.abs(one - two).max()), (one * two).sum(1)
