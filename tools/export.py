"""Exports a trained model for other programs, with the resize and normalisation that they do not do inside.

``python -m tools.export --config_file F --out FOLDER [--for LAYOUT] TEST.WEIGHT W`` writes ``model.onnx`` (or
OpenVINO's ``model.xml`` and ``model.bin``, or ``model.torchscript``), ``model.json`` (what a program needs to know of
it), ``verdict.html`` (what the file keeps, and how fast it is) and ``model.safetensors`` (the weights, which
TEST.WEIGHT reads). LAYOUT ``raw``, ``openvino`` and ``torchscript`` take whole images: ``images``, uint8, RGB, (batch,
height, width, 3), of any number and size. ``ultralytics``, ``boxmot`` and ``deepstream`` take what those trackers feed:
float32, RGB, (batch, 3, H, W), of the size of the test. ``cam_label`` and ``view_label``, int64 (batch,), where the
model uses side information; output ``features``, float32.

First the file runs on the configuration's test sets. In fp32, nothing is written if a feature, the resize or a first
rank differs; with ``--precision``, if it loses more than ``--max-loss`` on any set. ``int8`` tries several recipes,
calibrated on training images, and keeps the fastest that does not. ``--verify REFERENCE FEATURES`` compares what
another machine made of the images in ``reference.npz`` (``--reference``); exit code 1 if it differs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from configs import load_config
from datasets.loaders import Data, make_dataloader
from model.deployed import Preprocess, make_deployed
from model.half_precision import refuse_without_bfloat16
from model.layers.lora import merge_adapters
from model.layouts import LAYOUTS, PRECISIONS, refuse_precision
from processor.evaluate import Settings
from processor.extractor import hash_of_tested
from processor.trained import tested_model
from tools.exporting.calibration_images import LEAST, calibration_feeds
from tools.exporting.card import calibration_of, model_card, tracker_config
from tools.exporting.differences import FEATURE_LIMIT, refuse_differences
from tools.exporting.eight_bits import refuse_missing_quantiser, write_int8
from tools.exporting.feeding import fed, whole
from tools.exporting.files import FileWriter, write_traced
from tools.exporting.judging import Candidate, Judge, refuse_changed_ranks, refuse_loss, scores
from tools.exporting.reference import verify, write_reference
from tools.exporting.search import Trial
from tools.exporting.verdict import Verdict, eager_megabytes, eager_results
from tools.pages.page import write_page
from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.files import copy_files, write_json, write_text
from utils.processor_flags import processor_flags
from utils.weight_files import write_tensors

CALIBRATION_BATCH = 8
"""Calibration images of a feed: onnxruntime holds all activations of one."""


def refuse_options(out: Path, layout: str, precision: str, max_loss: float, calibration: int) -> None:
    """Raises ``UserError`` for options that cannot be met, before any work starts."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file, not a folder")
    refuse_precision(layout, precision)
    if not 0 <= max_loss <= 100:
        raise UserError(f"--max-loss: expected points of mAP from 0 to 100, got {max_loss:g}")
    if precision == "bf16":
        refuse_without_bfloat16()
    if precision == "int8":
        if calibration < LEAST:
            raise UserError(f"--calibration-images: expected at least {LEAST}, got {calibration}")
        refuse_missing_quantiser(layout)


def export(cfg: CfgNode, out: Path, layout: str = "raw", precision: str = "fp32", **options: Any) -> dict[str, Any]:
    """Judges and writes the files; returns what ``model.json`` holds of the check. See ``export_judged``."""
    return export_judged(cfg, out, layout, precision, **options)[0]


def export_judged(
    cfg: CfgNode,
    out: Path,
    layout: str = "raw",
    precision: str = "fp32",
    *,
    max_loss: float = 1.0,
    calibration: int = 256,
    reference: bool = False,
) -> tuple[dict[str, Any], Verdict]:
    """Judges and writes the files; returns what ``model.json`` holds of the check, and the verdict.

    layout: of ``LAYOUTS``. precision: of ``PRECISIONS``. max_loss: points of mAP that a file of another precision than
    fp32 may lose on each test set. calibration: training images to draw for int8. reference: write ``reference.npz``.
    Raises ``UserError`` for a network that cannot be traced or that the layout has no inputs for, and for a file whose
    results differ too much; then nothing is written.
    """
    refuse_options(out, layout, precision, max_loss, calibration)
    decisions, given = calibration_of(cfg), LAYOUTS[layout].given
    data = data_for_the_check(cfg)
    tests = [test for test in data.tests if test.protocol != "classification"]
    model = tested_model(cfg, data)
    decisions |= {"model_hash": hash_of_tested(cfg, model)}
    model = merge_adapters(model)
    settings = replace(Settings.from_cfg(cfg), camera_norm="off", centralisation=None)  # features alone
    deployed, original = make_deployed(cfg, model, given), make_deployed(cfg, model)
    per_feed = 1 if layout == "openvino" else CALIBRATION_BATCH  # NNCF counts feeds, not images
    feeds = calibration_feeds(cfg, data, deployed.sides, calibration, per_feed) if precision == "int8" else []
    size = deployed.preprocess.size
    feed = whole if given is None else fed(given, size, cfg.INPUT.RESIZE)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as parts:
        folder, scratch = Path(name), Path(parts)
        path, plain = (place / f"model.{LAYOUTS[layout].ending}" for place in (folder, scratch))
        eager = eager_results(model, tests, settings)
        judge, before = Judge(deployed, tests, settings, feed, eager), scores(eager)
        trials: list[Trial] = []
        if layout == "torchscript":
            runtime, resizer = write_traced(deployed, path, scratch)
            candidates = [Candidate(precision, path, {runtime.name: lambda: runtime})]
        else:
            writer = FileWriter(deployed, layout, scratch)
            resizer = writer.resize() if isinstance(deployed.preprocess, Preprocess) else None
            if precision == "int8":
                trials = write_int8(writer, judge, feeds, path, max_loss, before)
            else:
                writer.write(precision, path)
            runtime = writer.open(path)
            candidates = [Candidate(precision, path, writer.openers(path))]
            if precision != "fp32":
                writer.write("fp32", plain)
                candidates.insert(0, Candidate("fp32", plain, writer.openers(plain)))
        report = judge.differences(original, runtime, resizer, cfg.INPUT.RESIZE)
        refuse_differences(report, FEATURE_LIMIT if precision == "fp32" else None, LAYOUTS[layout].pixel_limit)
        results = judge.results(runtime)
        after = scores(results)
        if precision == "fp32":
            refuse_changed_ranks(before, after)
        else:
            refuse_loss(precision, judge.losses(results), before, max_loss)
        rows = judge.rows(candidates, {(precision, runtime.name): results}, eager_megabytes(model))
        recipes = [trial.content() for trial in trials]
        verdict = Verdict(precision, runtime.name, rows, max_loss, recipes, processor_flags())
        report |= {"pytorch": before, runtime.name: after, "runtime": runtime.name}
        report["speed_ratio"] = verdict.chosen.fastest / rows[0].fastest
        if given is not None:
            report["with_its_resize"] = scores(judge.results(runtime, fed(given, size, given.resize)))
        report["verdict"] = verdict.content()
        inputs = np.concatenate([feed(np.zeros((8, 8, 3), np.uint8))] * 2)
        width = runtime(inputs, **{side: np.zeros(2, np.int64) for side in deployed.sides}).shape[1]
        write_tensors(folder / "model.safetensors", deployed.model.state_dict())
        if layout == "deepstream":
            write_text(folder / "config_tracker.yml", tracker_config(size, width))
        if reference:
            write_reference(folder / "reference.npz", original, feed, tests, cfg.INPUT.RESIZE)
        card = model_card(cfg, deployed, layout, precision, width, folder)
        title = f"{card['model']} in {precision}, for {layout}"
        write_page(folder / "verdict.html", "verdict.html", title=title, **verdict.shown())
        write_json(folder / "model.json", card | decisions | report)
        copy_files(folder, out, "model.json")
    return report, verdict


def data_for_the_check(cfg: CfgNode) -> Data:
    """Returns the data of the configuration. Raises ``UserError`` that says what it is for, and what else will do."""
    try:
        return make_dataloader(cfg, training=False)
    except UserError as error:
        raise UserError(
            f"{error} - export needs images only to check its file: DATASETS.NAMES and DATASETS.ROOT_DIR may name any "
            "that are there, DATASETS.NAMES synthetic draws some"
        ) from None


def print_report(report: dict[str, Any], verdict: Verdict, layout: str, file: Path) -> None:
    """Prints what was found and where the file is."""
    runtime = report["runtime"]
    print(
        f"largest difference of a unit feature {report['feature_difference']:.1e}, of a resized pixel "
        f"{report['pixel_difference']:g} grey levels"
    )
    for name, before in report["pytorch"].items():
        print(f"{name}: {beside(before, report[runtime][name])} (PyTorch / {runtime})")
        if "with_its_resize" in report:
            after = report["with_its_resize"][name]
            print(f"{name}: {beside(before, after)} (PyTorch / {runtime}, resized as {layout} does)")
    print("\n".join(verdict.lines()))
    print(f"{runtime} is {report['speed_ratio']:.2f} times as fast as PyTorch here; {file}")
    print(f"{layout}: {LAYOUTS[layout].note}")


def beside(before: dict[str, float], after: dict[str, float]) -> str:
    """Returns two scores side by side, in percent."""
    shown = [key for key in ("mAP", "Rank-1") if key in before]
    return ", ".join(f"{key} {100 * before[key]:.2f} / {100 * after[key]:.2f}" for key in shown)


def compare(ours: Path, theirs: Path) -> None:
    """Prints how another machine's features differ from a reference's; exit code 1 if they do."""
    difference, cosines = verify(ours, theirs)
    print(
        f"{len(cosines)} images: largest difference of a unit feature {difference:.1e}, cosine {cosines.mean():.6f}, "
        f"least {cosines.min():.6f}"
    )
    if difference > FEATURE_LIMIT:
        print(f"different: above {FEATURE_LIMIT:g}, the limit of a file in fp32; judge other precisions by their mAP")
        sys.exit(1)
    print(f"the same: within {FEATURE_LIMIT:g}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    examples = (
        "--config_file configs/transreid/market1501.yml --out exported TEST.WEIGHT transformer_120.pth",
        "--config_file F --for openvino --precision int8 --out exported TEST.WEIGHT W",
        "--verify exported/reference.npz features.npz",
    )
    parser = make_parser("python -m tools.export", __doc__, *examples, settings=True)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go")
    parser.add_argument(
        "--for", dest="layout", choices=LAYOUTS, default="raw", metavar="LAYOUT",
        help=f"the program that reads the file: {', '.join(LAYOUTS)} (default: raw, for onnxruntime)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of weights, and in int8 of activations (default: fp32)"
    )
    parser.add_argument(
        "--max-loss", type=float, default=1.0, metavar="POINTS",
        help="points of mAP that another precision than fp32 may lose on each test set (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--calibration-images", type=int, default=256, metavar="N",
        help="training images, drawn over cameras, from which int8 takes its ranges (default: 256)",
    )  # fmt: skip
    parser.add_argument("--reference", action="store_true", help="write reference.npz, for --verify")
    parser.add_argument(
        "--verify", nargs=2, type=Path, metavar=("REFERENCE", "FEATURES"),
        help="compare features of the reference's images with its own: .npz, .npy, or trtexec's .json",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.verify:
        compare(*args.verify)
        return
    if args.out is None:
        parser.error("the following arguments are required: --out")
    report, verdict = export_judged(
        load_config(args.config_file, args.opts), args.out, args.layout, args.precision, max_loss=args.max_loss,
        calibration=args.calibration_images, reference=args.reference,
    )  # fmt: skip
    print_report(report, verdict, args.layout, args.out / f"model.{LAYOUTS[args.layout].ending}")


if __name__ == "__main__":
    run_command(main)
