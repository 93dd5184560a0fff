"""Measures how fast a finished run's network is here and how large: ``python -m tools.speed RUN [--batch 1]``.

Writes ``RUN/speed.json``: milliseconds per image of the eager network in PyTorch on the CPU, at the run's test size,
and in onnxruntime of an exported ``.onnx`` in the run's folder or in a folder of it; parameters and megabytes (10^6
bytes, as float32) of what retrieval needs, so without classifiers. ``tools.frontier`` draws it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from configs import load_config, with_traits
from model import make_model
from model.layers.lora import merge_adapters
from processor.finished import CONFIG, TEST_CONFIG, FinishedRun
from processor.runtimes import OnnxRuntime
from tools.frontier import SPEED
from utils.checkpoint import rules_of
from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.extra_modules import import_extras
from utils.files import write_json
from utils.provenance import machine

KINDS = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(float)": np.float32}
"""onnxruntime's names of element types."""


def milliseconds(work: Callable[[], object], batch: int, repeats: int) -> float:
    """Returns the median time per image. work: a pass over ``batch`` images; the first one is not counted."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[1:]) / batch


def network_of(folder: Path) -> tuple[nn.Module, tuple[int, int], dict[str, torch.Tensor]]:
    """Returns a run's network in evaluation mode with random weights, its test size and the labels that it takes.

    The weights change no time, so a run whose checkpoint is gone can be measured too. Raises ``UserError`` if the run
    has no YAML.
    """
    path = next((folder / name for name in (CONFIG, TEST_CONFIG) if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder}: no {CONFIG} or {TEST_CONFIG} says which network to measure")
    cfg = load_config(path)
    import_extras(cfg.EXTRA_MODULES)
    cfg = with_traits(cfg)
    kept = {"cam_label": cfg.MODEL.SIE_CAMERA, "view_label": cfg.MODEL.SIE_VIEW}
    model = make_model(cfg, 2, int(cfg.MODEL.SIE_CAMERA), int(cfg.MODEL.SIE_VIEW))
    labels = {name: torch.zeros(1, dtype=torch.int64) for name, needed in kept.items() if needed}
    return merge_adapters(model).eval(), (cfg.INPUT.SIZE_TEST[0], cfg.INPUT.SIZE_TEST[1]), labels


def size_of(model: nn.Module) -> tuple[int, float]:
    """Returns parameters, and megabytes of them and of the buffers as float32, without what retrieval does without."""
    optional = rules_of(model).optional_keys
    needed = {name: value.numel() for name, value in model.state_dict().items() if not name.startswith(optional)}
    parameters = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(optional))
    return parameters, 4 * sum(needed.values()) / 1e6


def exported_pass(path: Path, size: tuple[int, int], batch: int) -> Callable[[], object]:
    """Returns a pass of an exported file over ``batch`` images of a size (H, W)."""
    session, inputs = OnnxRuntime(path).session, {}
    for one in session.get_inputs():
        images = [*size, 3] if one.type == "tensor(uint8)" else one.shape[1:]  # of a tracker's layout the size is fixed
        inputs[one.name] = np.zeros([batch, *images], KINDS[one.type])
    return lambda: session.run(None, inputs)


@torch.no_grad()
def measure(folder: Path, batch: int = 1, repeats: int = 20) -> dict[str, Any]:
    """Returns the content of ``speed.json``. Raises ``UserError`` if the folder holds no finished run."""
    FinishedRun.load(folder)
    model, size, labels = network_of(folder)
    images = torch.zeros(batch, 3, *size)
    labels = {name: value.expand(batch) for name, value in labels.items()}
    times = {"torch": milliseconds(lambda: model(images, **labels), batch, repeats)}
    if exported := next(iter(sorted([*folder.glob("*.onnx"), *folder.glob("*/*.onnx")])), None):
        times["onnxruntime"] = milliseconds(exported_pass(exported, size, batch), batch, repeats)
    parameters, megabytes = size_of(model)
    return {
        "milliseconds": times, "parameters": parameters, "megabytes": megabytes, "size": list(size), "batch": batch,
        "machine": machine(torch.device("cpu")), "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser("python -m tools.speed", __doc__, "runs/quickstart", "runs/quickstart --batch 16")
    parser.add_argument("run", type=Path, metavar="RUN", help="OUTPUT_DIR of a finished run")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images per pass (default: 1)")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="passes to take the median of")
    args = parser.parse_args(argv)
    if min(args.batch, args.repeats) < 1:
        raise UserError("--batch and --repeats must be at least 1")
    content = measure(args.run, args.batch, args.repeats)
    write_json(args.run / SPEED, content)
    for runtime, value in content["milliseconds"].items():
        print(f"{runtime}: {value:.2f} ms per image, {1000 / value:.1f} images/s")


if __name__ == "__main__":
    run_command(main)
