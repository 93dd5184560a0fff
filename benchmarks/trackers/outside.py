"""Runs exported networks in ultralytics, boxmot and Roboflow's trackers: ``python outside.py JOB.json``.

``make trackers`` starts it in an environment that has these packages. It imports nothing of this project, and nothing
of this project imports it or them (two are under the AGPL). The job's JSON has

ultralytics, boxmot   the exported files
crops                 an .npz with ``frame`` (N,), numbers of ``frames``, and ``boxes`` (N, 4), x1, y1, x2, y2 in pixels
frames                the pictures that ``crops`` counts
cameras               {name: {"frames": [...], "det": a MOT-challenge file, "gt": another}}
out                   a folder for ``features.npz``, a MOT-challenge file per tracker and camera, and ``scores.json``
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("YOLO_OFFLINE", "True")

import boxmot
import cv2
import numpy as np
import supervision
import trackers
from boxmot.trackers.config import load_tracker_config
from trackers.eval import evaluate_mot_sequences
from ultralytics.trackers.bot_sort import BOTSORT
from ultralytics.trackers.deep_oc_sort import DeepOCSORT
from ultralytics.trackers.utils.reid import ReID
from ultralytics.utils import ROOT, YAML

Update = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes a frame, (H, W, 3) BGR, and boxes (N, 5): x1, y1, x2, y2, score; returns (M, 5): x1, y1, x2, y2, number."""

BOXMOT = {"botsort": boxmot.BotSort, "deepocsort": boxmot.DeepOcSort}
ULTRALYTICS = {"botsort": BOTSORT, "deepocsort": DeepOCSORT}


def ultralytics_features(weights: str, frames: list[str], crops: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the features (N, D) that ultralytics' own encoder has of the crops."""
    encoder, features = ReID(weights, device="cpu"), []
    for frame, box in zip(crops["frame"], crops["boxes"], strict=True):
        x1, y1, x2, y2 = box
        xywh = np.array([[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]], np.float32)
        features.extend(encoder(cv2.imread(frames[frame]), xywh))
    return np.stack(features)


def boxmot_features(weights: str, frames: list[str], crops: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the features (N, D) that boxmot's own encoder has of the crops."""
    from boxmot.reid.backends.onnx_backend import ONNXBackend

    encoder = ONNXBackend(Path(weights), "cpu", False)
    return np.concatenate([
        encoder.get_features(np.asarray(box, np.float32)[None], cv2.imread(frames[frame]))
        for frame, box in zip(crops["frame"], crops["boxes"], strict=True)
    ])  # fmt: skip


class Boxes:
    """Detections in the form that ultralytics' trackers read from a detector's results."""

    def __init__(self, rows: np.ndarray):
        self.rows, self.xyxy, self.conf, self.cls = rows, rows[:, :4], rows[:, 4], np.zeros(len(rows))
        self.xywh = np.column_stack([(rows[:, :2] + rows[:, 2:4]) / 2, rows[:, 2:4] - rows[:, :2]])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: np.ndarray) -> Boxes:
        return Boxes(self.rows[which])


def ultralytics_tracker(kind: str, weights: str) -> Update:
    """A tracker of ultralytics at its own settings, with the file's features if ``weights`` is not empty."""
    settings = YAML.load(ROOT / "cfg" / "trackers" / f"{kind}.yaml")
    settings |= {"with_reid": bool(weights), "model": weights or "auto", "device": "cpu"}
    tracker = ULTRALYTICS[kind](types.SimpleNamespace(**settings))

    def update(frame: np.ndarray, rows: np.ndarray) -> np.ndarray:
        found = tracker.update(Boxes(rows), frame)
        return np.asarray(found, np.float64).reshape(-1, 8)[:, :5] if len(found) else np.zeros((0, 5))

    return update


def boxmot_tracker(kind: str, weights: str) -> Update:
    """A tracker of boxmot at its own settings, with the file's features if ``weights`` is not empty."""
    settings = load_tracker_config(kind, None, {"use_embeddings": bool(weights)})
    tracker = BOXMOT[kind](**settings, reid_weights=Path(weights) if weights else None, device="cpu")

    def update(frame: np.ndarray, rows: np.ndarray) -> np.ndarray:
        found = tracker.update(np.column_stack([rows, np.zeros(len(rows))]).astype(np.float32), frame)
        return np.asarray(found, np.float64).reshape(-1, 8)[:, :5] if len(found) else np.zeros((0, 5))

    return update


def roboflow_tracker(kind: str, weights: str) -> Update:
    """A tracker of Roboflow's package, whose current version has no input for features."""
    assert not weights and kind == "botsort"
    tracker = trackers.BoTSORTTracker(enable_cmc=False)

    def update(frame: np.ndarray, rows: np.ndarray) -> np.ndarray:
        given = supervision.Detections(xyxy=rows[:, :4], confidence=rows[:, 4], class_id=np.zeros(len(rows), int))
        found = tracker.update(given, frame)
        numbers = np.asarray(found.tracker_id if found.tracker_id is not None else [], np.float64)
        return np.column_stack([found.xyxy, numbers])[numbers >= 0]

    return update


def detections(path: str) -> dict[int, np.ndarray]:
    """Returns the boxes of each frame (N, 5) of a MOT-challenge file."""
    rows = np.loadtxt(path, delimiter=",", ndmin=2)
    rows[:, 4:6] += rows[:, 2:4]
    return {int(frame): rows[rows[:, 0] == frame][:, 2:7] for frame in np.unique(rows[:, 0])}


def tracked(update: Update, frames: list[str], boxes: dict[int, np.ndarray]) -> Iterator[str]:
    """Yields the lines of a MOT-challenge file, frame by frame."""
    for number, path in enumerate(frames, 1):
        for x1, y1, x2, y2, track in update(cv2.imread(path), boxes.get(number, np.zeros((0, 5)))):
            yield f"{number},{int(track)},{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f},1,-1,-1,-1\n"


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    out, crops = Path(job["out"]), dict(np.load(job["crops"]))
    np.savez(
        out / "features.npz",
        ultralytics=ultralytics_features(job["ultralytics"], job["frames"], crops),
        boxmot=boxmot_features(job["boxmot"], job["frames"], crops),
    )
    with_and_without = ("", job["ultralytics"])
    runs = [("ultralytics", kind, ultralytics_tracker, weights) for kind in ULTRALYTICS for weights in with_and_without]
    runs += [("boxmot", kind, boxmot_tracker, weights) for kind in BOXMOT for weights in ("", job["boxmot"])]
    runs += [("trackers", "botsort", roboflow_tracker, "")]
    truth = out / "gt"
    for name, camera in job["cameras"].items():
        (truth / name / "gt").mkdir(parents=True)
        (truth / name / "gt" / "gt.txt").write_text(Path(camera["gt"]).read_text())
    scores = []
    for package, kind, make, weights in runs:
        folder = out / f"{package}_{kind}{'_features' if weights else ''}"
        folder.mkdir()
        for name, camera in job["cameras"].items():
            with open(folder / f"{name}.txt", "w") as file, contextlib.redirect_stdout(sys.stderr):
                file.writelines(tracked(make(kind, weights), camera["frames"], detections(camera["det"])))
        with contextlib.redirect_stdout(sys.stderr):
            total = evaluate_mot_sequences(truth, folder, metrics=["CLEAR", "HOTA", "Identity"]).aggregate
        scores.append({
            "package": package, "tracker": kind, "features": bool(weights), "IDF1": total.Identity.IDF1,
            "HOTA": total.HOTA.HOTA, "MOTA": total.CLEAR.MOTA, "switches": int(total.CLEAR.IDSW),
        })  # fmt: skip
    versions = {name: version(name) for name in ("ultralytics", "boxmot", "trackers", "onnxruntime")}
    (out / "scores.json").write_text(json.dumps({"versions": versions, "scores": scores}))


if __name__ == "__main__":
    main()
