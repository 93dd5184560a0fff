"""Times networks in torch, onnxruntime and OpenVINO: ``python -m benchmarks.runtimes [--threads 1 2] [--precisions]``.

A row per network and number of threads: images per second at 256 x 128 (the best of some rounds in which the runtimes
take turns, so that other load falls on all of them), and the largest difference of a unit feature's entry from torch's.
The weights are random, which changes neither. With ``--precisions``, the network follows in fp16 and in 8 bits, as the
first recipes of ``tools.export`` write it, without preprocessing. With ``--extract N``, ``tools.extract`` follows on N
drawn images, with ``--runtime torch`` and ``--runtime auto``: images per second of the extraction, decoding included,
what auto took, and the seconds that it took to choose.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.export import ARCHITECTURES
from configs import load_config
from model import RetrievalModel, make_model
from model.half_precision import write_float16
from model.quantising_onnx import OnnxQuantiser
from model.quantising_openvino import OpenVinoQuantiser
from model.recipes import Recipe
from processor.runtime_network import exported_network, open_network
from processor.runtimes import RUNTIMES, TORCH
from tools.extract import extract_to_folder
from utils.errors import UserError
from utils.feature_files import RUNTIME
from utils.provenance import machine

SIZE = (256, 128)
RECIPE = Recipe("minmax", True)
PRECISIONS = {"fp16, onnxruntime": "half.onnx", "int8, onnxruntime": "int8.onnx", "int8, openvino": "int8.xml"}
"""Files of other precisions, by precision and runtime."""
NETWORKS = {
    "OSNet x0.25": {"MODEL.NAME": "torchreid_osnet_x0_25", "MODEL.FC_DIM": 512},
    "OSNet x1.0": ARCHITECTURES["OSNet x1.0"],
    "ResNet-50": ARCHITECTURES["ResNet-50"],
    "ViT-S/16 (DeiT-S, TransReID)": ARCHITECTURES["DeiT-S/16"],
    "ViT-B/16 (TransReID)": ARCHITECTURES["ViT-B/16"],
    "MSViT-S": ARCHITECTURES["MSViT-S"],
}


def words(settings: dict, weight: Path, batch: int, workers: int) -> list:
    """Returns the settings of a network as KEY, VALUE, ..."""
    common = {
        "INPUT.SIZE_TRAIN": list(SIZE), "INPUT.SIZE_TEST": list(SIZE), "MODEL.PRETRAIN_CHOICE": "no",
        "MODEL.DEVICE": "cpu", "DATALOADER.NUM_WORKERS": workers, "TEST.IMS_PER_BATCH": batch,
        "TEST.WEIGHT": str(weight),
    }  # fmt: skip
    return [word for pair in (common | settings).items() for word in pair]


def in_turns(works: dict[str, Callable[[], object]], count: int, rounds: int) -> dict[str, float]:
    """Returns the images per second of each, the best of some rounds. count: images that each computes."""
    best = dict.fromkeys(works, 0.0)
    for _ in range(rounds):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            best[name] = max(best[name], count / (time.perf_counter() - began))
    return best


@torch.inference_mode()
def speeds(model: RetrievalModel, threads: int, path: Path, images: torch.Tensor, rounds: int) -> list[str]:
    """Returns the cells of a row: images per second of each runtime, and the largest difference or why there is none.

    path: of the exported network.
    """
    torch.set_num_threads(threads)
    networks, differences, reference = {TORCH: model}, [], torch.nn.functional.normalize(model(images))
    for name in RUNTIMES:
        try:
            networks[name] = open_network(path, name, SIZE, ())
        except UserError as error:
            differences.append(f"{name}: {error}")
            continue
        found = torch.nn.functional.normalize(networks[name](images))
        differences.append(f"{float((found - reference).abs().max()):.1e}")
    best = in_turns({name: partial(network, images) for name, network in networks.items()}, len(images), rounds)
    shown = [f"{best[name]:.1f}" if name in best else "-" for name in (TORCH, *RUNTIMES)]
    ratio = max(best.values()) / best[TORCH]
    return [*shown, f"{ratio:.2f}", ", ".join(differences)]


def write_precisions(path: Path, images: torch.Tensor, folder: Path) -> dict[str, Path]:
    """Writes a network in fp16 and in 8 bits, and returns the files by precision and runtime.

    path: of the network in fp32. images: (B, 3, H, W) float32, on which the ranges of activations are measured.
    """
    files = {name: folder / file for name, file in PRECISIONS.items()}
    half, whole, nncf = files.values()
    write_float16(path, half)
    OnnxQuantiser(path, [{"images": images.numpy()}], folder).write(RECIPE, whole)
    OpenVinoQuantiser(path, [{"images": image[None].numpy()} for image in images]).write(RECIPE, nncf)
    return files


@torch.inference_mode()
def precision_speeds(
    model: RetrievalModel, threads: int, files: dict[str, Path], images: torch.Tensor, rounds: int
) -> list[str]:
    """Returns the cells of a row: images per second of torch in fp32 and of each file, and the best beside torch."""
    torch.set_num_threads(threads)
    works: dict[str, Callable[[], object]] = {TORCH: partial(model, images)}
    for name, file in files.items():
        works[name] = partial(RUNTIMES[name.split(", ")[1]](file), images=images.numpy())
    in_turns(works, len(images), 1)
    best = in_turns(works, len(images), rounds)
    return [*(f"{speed:.1f}" for speed in best.values()), f"{max(best.values()) / best[TORCH]:.2f}"]


def write_images(folder: Path, count: int) -> Path:
    """Writes JPEG files of noise on colours, and returns their folder."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        pixels = rng.integers(0, 256, (1, 1, 3)) + rng.integers(-60, 60, (*SIZE, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:06d}.jpg")
    return folder


def extraction(settings: list, images: Path, out: Path, auto: bool) -> tuple[float, float, str]:
    """Extracts the images; returns images per second, the seconds of the whole, and the runtime."""
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # the log, of which a file is left
        meta = extract_to_folder(load_config("", settings), images, out, auto=auto)
    seconds = time.perf_counter() - began
    speed = re.search(r" s: ([\d.]+) images/s", (out / "extract_log.txt").read_text())
    assert speed is not None, "the log has a line of the speed"
    return float(speed[1]), seconds, meta[RUNTIME]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--extract", type=int, default=256, metavar="N", help="images to extract; 0: none")
    parser.add_argument("--precisions", action="store_true", help="time fp16 and int8 too")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("--only", default="", help="networks whose name holds this")
    args = parser.parse_args()
    chosen = {name: settings for name, settings in NETWORKS.items() if args.only.lower() in name.lower()}
    rows, precisions = [], []
    print(f"{machine(torch.device('cpu'))}, torch {torch.__version__}, float32, batches of {args.batch}\n")
    print(f"| network | threads | torch | {' | '.join(RUNTIMES)} | best / torch | difference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = write_images(folder / "images", args.extract) if args.extract else None
        for number, (title, settings) in enumerate(chosen.items()):
            weight = folder / f"{number}.pth"
            given = words(settings, weight, args.batch, args.workers)
            torch.manual_seed(0)
            model = make_model(load_config("", given), 2).eval()
            torch.save(model.state_dict(), weight)
            batch = torch.randn(args.batch, 3, *SIZE)
            with exported_network(model, SIZE, ()) as path:
                for threads in args.threads:
                    cells = speeds(model, threads, path, batch, args.rounds)
                    print(f"| {title} | {threads} | {' | '.join(cells)} |", flush=True)
                files = write_precisions(path, batch, folder) if args.precisions else {}
                for threads in args.threads if files else ():
                    cells = precision_speeds(model, threads, files, batch, args.rounds)
                    precisions.append(f"| {title} | {threads} | {' | '.join(cells)} |")
            for threads in args.threads if images is not None else ():
                torch.set_num_threads(threads)
                assert images is not None
                eager, plain_seconds, _ = extraction(given, images, folder / f"{number}_{threads}", auto=False)
                fast, seconds, runtime = extraction(given, images, folder / f"{number}_{threads}_auto", auto=True)
                choosing = max(seconds - plain_seconds + args.extract * (1 / eager - 1 / fast), 0.0)
                rows.append(
                    f"| {title} | {threads} | {eager:.1f} | {fast:.1f} | {fast / eager:.2f} | {runtime} | "
                    f"{choosing:.0f} |"
                )
    if precisions:
        print(f"\n| network | threads | torch | {' | '.join(PRECISIONS)} | best / torch |")
        print("\n".join(["| --- | --- | --- | --- | --- | --- | --- |", *precisions]))
    if rows:
        print(f"\n`tools.extract` on {args.extract} images, images per second:\n")
        print("| network | threads | torch | auto | ratio | taken | seconds to choose |")
        print("\n".join(["| --- | --- | --- | --- | --- | --- | --- |", *rows]))


if __name__ == "__main__":
    main()
