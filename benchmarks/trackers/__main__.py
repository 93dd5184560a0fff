"""Runs exported files in real trackers: ``make trackers``.

    python -m benchmarks.trackers --config_file FILE --python TRACKERS_PYTHON [--crops 64] TEST.WEIGHT WEIGHT

Exports the model for ultralytics and for boxmot, draws ``synthetic_tracks``, and starts ``outside.py`` with another
environment's Python, in which ultralytics, boxmot and Roboflow's trackers are installed. Prints their versions; the
difference between the features of their own encoders and ``Extractor``'s for the same crops of the clip's frames; and
IDF1, HOTA and identity switches of their trackers over the clip's detections, without and with the file's features.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from yacs.config import CfgNode

from configs import load_config
from datasets import make_dataset
from datasets.transforms.resizing import to_pixels
from processor.extractor import Extractor, make_extractor
from tools.export import export
from utils.files import write_csv

OUTSIDE = Path(__file__).with_name("outside.py")
SCORES = ("IDF1", "HOTA", "MOTA")


def drawn_cameras(root: Path, cameras: int, ids: int, frames: int, seed: int) -> dict[str, dict]:
    """Draws the clip and returns of each camera its frames in order, its detections and its ground truth."""
    options = {"ids": ids, "cameras": cameras, "frames": frames, "seed": seed}
    made = make_dataset("synthetic_tracks", str(root), **options)
    folder = Path(made.gallery[0][0]).parents[2]
    return {
        camera.name: {
            "frames": sorted(map(str, (camera / "img1").glob("*.jpg"))),
            "det": str(camera / "det" / "det.txt"), "gt": str(camera / "gt" / "gt.txt"),
        }
        for camera in sorted(folder.glob("c*/"))
    }  # fmt: skip


def drawn_crops(cameras: dict[str, dict], count: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns frames, and boxes of the ground truth in them: frame (N,), x1, y1, x2, y2 in whole pixels (N, 4).

    Trackers round and clip boxes in ways of their own; of whole pixels inside the frame, all cut the same crop.
    """
    rng, frames, which, boxes = np.random.default_rng(seed), [], [], []
    for camera in cameras.values():
        width, height = Image.open(camera["frames"][0]).size
        rows = np.loadtxt(camera["gt"], delimiter=",", ndmin=2)[:, :6]
        rows[:, 4:6] += rows[:, 2:4]
        inside = (rows[:, 2:4] >= 1).all(1) & (rows[:, 4] < width) & (rows[:, 5] < height)
        large = (rows[:, 4] - rows[:, 2] >= 16) & (rows[:, 5] - rows[:, 3] >= 32)
        rows = rows[inside & large]
        for row in rows[rng.permutation(len(rows))[: -(-count // len(cameras))]].astype(int):
            frames.append(camera["frames"][row[0] - 1])
            which.append(len(frames) - 1)
            boxes.append(row[2:6])
    return frames, np.asarray(which), np.asarray(boxes)


def crop(frame: str, box: np.ndarray) -> Image.Image:
    """Returns the pixels of a box."""
    return Image.open(frame).convert("RGB").crop(tuple(map(int, box)))


def widened(frame: str, box: np.ndarray) -> np.ndarray:
    """Returns the box that ultralytics cuts out instead: 1.02 times as large and 10 pixels more, inside the frame."""
    x1, y1, x2, y2 = map(float, box)
    half_width, half_height = ((x2 - x1) * 1.02 + 10) / 2, ((y2 - y1) * 1.02 + 10) / 2
    middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
    width, height = Image.open(frame).size
    corners = [middle_x - half_width, middle_y - half_height, middle_x + half_width, middle_y + half_height]
    return np.clip(np.trunc(corners), 0, [width, height, width, height])


def unrounded_features(extractor: Extractor, cfg: CfgNode, crops: list[Image.Image]) -> np.ndarray:
    """Returns the same for pixels that are resized in torch without rounding to grey levels, as ultralytics does."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    images = []
    for image in crops:
        shares = to_pixels(image)[None].float() / 255
        resized = torch.nn.functional.interpolate(
            shares, size=tuple(cfg.INPUT.SIZE_TEST), mode="bilinear", align_corners=False
        )
        images.append((resized[0] - mean) / std)
    return torch.nn.functional.normalize(extractor.features(torch.stack(images))).numpy()


def difference(found: np.ndarray, expected: np.ndarray) -> str:
    """Returns how far features are apart once they have unit length."""
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    return f"{np.abs(unit - expected).max():.1e} | {(unit * expected).sum(1).min():.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", default="")
    parser.add_argument("--python", required=True, help="of the environment with the trackers")
    parser.add_argument("--crops", type=int, default=64)
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--ids", type=int, default=16)
    parser.add_argument("--frames", type=int, default=160, help="of each camera, 5 a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the scores as CSV too")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu", "INPUT.RESIZE", "cv2_bilinear"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for layout in ("ultralytics", "boxmot"):
            export(cfg, folder / layout, layout)
        named = folder / "boxmot" / "osnet_x0_25_exported.onnx"  # boxmot takes the kind of a network from the name
        (folder / "boxmot" / "model.onnx").rename(named)
        cameras = drawn_cameras(folder / "data", args.cameras, args.ids, args.frames, args.seed)
        frames, which, boxes = drawn_crops(cameras, args.crops, args.seed)
        np.savez(folder / "crops.npz", frame=which, boxes=boxes)
        job = {
            "ultralytics": str(folder / "ultralytics" / "model.onnx"), "boxmot": str(named), "frames": frames,
            "crops": str(folder / "crops.npz"), "cameras": cameras, "out": str(folder / "out"),
        }  # fmt: skip
        (folder / "out").mkdir()
        (folder / "job.json").write_text(json.dumps(job))
        subprocess.run([args.python, OUTSIDE, folder / "job.json"], check=True)
        theirs = dict(np.load(folder / "out" / "features.npz"))
        judged = json.loads((folder / "out" / "scores.json").read_text())
        crops = [crop(frame, box) for frame, box in zip(frames, boxes, strict=True)]
        wide_crops = [crop(frame, widened(frame, box)) for frame, box in zip(frames, boxes, strict=True)]
    extractor = make_extractor(cfg)
    print(", ".join(f"{name} {number}" for name, number in judged["versions"].items()))
    print(f"\n| encoder | the toolbox's crop | its resize | largest difference of {len(crops)} crops | least cosine |")
    print("| --- | --- | --- | --- | --- |")
    exact, rounded = "bilinear, not rounded to grey levels", "cv2_bilinear"
    rows = [
        ("boxmot", "the box", rounded, extractor(crops)),
        ("ultralytics", "the box", rounded, extractor(crops)),
        ("ultralytics", "widened as there", rounded, extractor(wide_crops)),
        ("ultralytics", "widened as there", exact, unrounded_features(extractor, cfg, wide_crops)),
    ]
    for package, cut, resize, feats in rows:
        print(f"| {package} | {cut} | {resize} | {difference(theirs[package], feats)} |")
    print(f"\n| package | tracker | features | {' | '.join(SCORES)} | switches |")
    print(f"| --- | --- | --- |{' --- |' * (len(SCORES) + 1)}")
    for row in judged["scores"]:
        cells = [f"{100 * row[score]:.1f}" for score in SCORES]
        given = "the file's" if row["features"] else "none"
        print(f"| {row['package']} | {row['tracker']} | {given} | {' | '.join(cells)} | {row['switches']} |")
    if args.out:
        rows = judged["scores"]
        write_csv(args.out, list(rows[0]), [[str(value) for value in row.values()] for row in rows])


if __name__ == "__main__":
    main()
