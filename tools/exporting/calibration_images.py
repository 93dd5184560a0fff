"""Training images from which the ranges of 8-bit activations follow."""

from __future__ import annotations

import numpy as np
from yacs.config import CfgNode

from datasets.joining import join_training
from datasets.loaders import Data, feature_loader
from datasets.options import names_of
from datasets.records import Records
from model.recipes import Feed
from utils.errors import UserError

LEAST = 32
"""Calibration images, at least: with fewer, single images decide the ranges."""


def drawn_over_cameras(camids: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns up to ``count`` rows, ascending, drawn at random from the cameras in turn. camids: (N,)."""
    order = np.random.default_rng(seed).permutation(len(camids))
    order = order[np.argsort(camids[order], kind="stable")]
    _, first, number = np.unique(camids[order], return_index=True, return_counts=True)
    turn = np.arange(len(order)) - np.repeat(first, number)
    return np.sort(order[np.argsort(turn, kind="stable")][:count])


def calibration_feeds(
    cfg: CfgNode, data: Data, sides: tuple[str, ...], count: int, batch: int
) -> list[Feed]:
    """Returns calibration images in batches, normalised as for testing, with the labels that the network takes.

    count: images to draw. batch: images of a feed, at most. Raises ``UserError`` if there are fewer than 32.
    """
    if count < LEAST:
        raise UserError(f"--calibration-images: {count} are too few for the ranges of activations, at least {LEAST}")
    names = names_of(cfg.DATASETS.NAMES)
    lists = [dataset.train for dataset in data.datasets if dataset.spec.name in names and len(dataset.train)]
    train = join_training(lists) if lists else Records.of([])
    if len(train) < LEAST:
        raise UserError(
            f"--precision int8: DATASETS.NAMES {', '.join(names)} has {len(train)} training images to calibrate with, "
            f"at least {LEAST} are needed; name a set with more, and what is tested in DATASETS.TARGETS"
        )
    rows = drawn_over_cameras(train.camids, count, cfg.SOLVER.SEED)
    feeds: list[Feed] = []
    for images in feature_loader(cfg, train.take(rows)):
        columns = {"cam_label": images.cam_labels, "view_label": images.view_labels}
        for at in range(0, len(images.images), batch):
            here = slice(at, at + batch)
            labels = {name: columns[name][here].numpy() for name in sides}
            feeds.append({"images": images.images[here].numpy(), **labels})
    return feeds
