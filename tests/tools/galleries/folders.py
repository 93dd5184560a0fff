"""Folders of features as tools.extract leaves them, made without a network, and what a store must answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.feature_files import FeatureWriter

WIDTH = 48
HASH = "a1" * 32


def unit_features(count: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """Features of unit length around a few centres; every tenth is a copy of the one before."""
    rng = np.random.default_rng(seed)
    feats = rng.standard_normal((12, width))[rng.integers(0, 12, count)] + 0.6 * rng.standard_normal((count, width))
    feats[10::10] = feats[9:-1:10]
    return (feats / np.linalg.norm(feats, axis=1, keepdims=True)).astype(np.float32)


def write_features(folder: Path, feats: np.ndarray, model_hash: str = HASH, name: str = "img", **meta) -> Path:
    """``folder`` with features and a table of identities, cameras, times and tracklets."""
    plan = {"model_hash": model_hash, "list_hash": f"{name}{len(feats)}" * 4, "batch": 8}
    writer = FeatureWriter(folder, plan, len(feats), feats.shape[1])
    folder.mkdir(parents=True)
    writer.begin()
    writer.open()
    writer.write(np.arange(len(feats)), feats, np.empty(0, np.int64))
    rows = (
        (f"/images/{name}_{i}.jpg", f"p{i % 7}", f"c{i % 3}", f"{name}-{i // 4}", f"{10 * i}")
        for i in range(len(feats))
    )
    columns = ("path", "pid", "camid", "seq", "time")
    facts = {"space": "image", "unit_length": True, "distance": "euclidean", "settings": {}} | meta
    writer.finish(rows, columns, lambda row: "", **facts)
    return folder


def bytes_in(folder: Path, what: bytes) -> bool:
    """Whether any file below a folder holds these bytes."""
    return any(what in path.read_bytes() for path in folder.rglob("*") if path.is_file())
