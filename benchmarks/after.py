"""What a report costs after an evaluation (time, memory, size, beside the evaluation itself), and extraction's speed.

    python -m benchmarks.after [--size small|market|msmt17] [--threads 2]
    python -m benchmarks.after --extract 512 [--threads 1] [--workers 1]

Features have the structure of real ones (``benchmarks.evaluation``), images are made up, a file for each. Keeping is
what the evaluation takes longer for the first places of every query, the scores by camera and the map; then files are
written and a page is made of them. Each in a process of its own. Extraction of so many images stands beside the bare
forward of the same network on as many batches that are in memory, in turns. Search: ``benchmarks.search``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.evaluation import SIZES, features, forget_peak, resident_mib

RUNS = ("evaluation", "keeping", "page")


def make_images(folder: Path, count: int, different: int = 200) -> list[str]:
    """``count`` JPEG files of pedestrians' size, of ``different`` contents."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(different):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)).resize((128, 256))
        noisy = np.asarray(coarse, np.int16) + rng.integers(-20, 20, (256, 128, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"of_{i}.jpg", quality=90)
    paths = [str(folder / f"{i:06d}_c1s1_000451_00.jpg") for i in range(count)]
    for i, path in enumerate(paths):
        os.link(folder / f"of_{i % different}.jpg", path)
    return paths


def records(paths: list[str], pids: np.ndarray, camids: np.ndarray):
    from datasets.records import Records

    return Records.of(paths, pids, camids)


def evaluated(size: str, folder: Path, report: bool) -> dict[str, float]:
    """Seconds of an evaluation, and of writing its files where it is for a report."""
    import torch

    from datasets.loaders import TestSet
    from processor.evaluate import Settings, score, write_evidence

    qf, gf, q_pids, g_pids, q_cams, g_cams = features(size)
    paths = [str(folder / "images" / f"{i:06d}_c1s1_000451_00.jpg") for i in range(len(qf) + len(gf))]
    query, gallery = records(paths[: len(qf)], q_pids, q_cams), records(paths[len(qf) :], g_pids, g_cams)
    feats = torch.from_numpy(np.concatenate([qf, gf]))
    del qf, gf
    forget_peak()
    before, start, cpu = resident_mib("VmRSS"), time.perf_counter(), time.process_time()
    scored = score(TestSet("made_up", "market1501", query, gallery, None), feats, Settings(report=report))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if report:
        write_evidence(folder, "made_up", False, scored)
        (folder / "metrics.json").write_text(json.dumps({"results": {"made_up": scored.metrics}, "history": []}))
    files = time.perf_counter() - start - seconds
    return {"seconds": seconds, "cpu": cpu, "files": files, "mib": resident_mib() - before}


def paged(folder: Path) -> dict[str, float]:
    """Seconds of writing the page."""
    from tools.report import write_report

    forget_peak()
    start, cpu = time.perf_counter(), time.process_time()
    page = write_report(folder)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "mib": resident_mib(), "mb": page.stat().st_size / 1e6}


def extraction(folder: Path, count: int, workers: int, network: str, repeats: int) -> None:
    """Prints images/s of the network alone and of ``tools.extract``'s loop over files, the best of some turns."""
    import torch

    from configs import load_config
    from datasets.readers.image_list import read_image_list
    from model import make_model
    from processor.extractor import make_extractor
    from tools.extract import fill
    from utils.feature_files import FeatureWriter

    make_images(folder / "images", count)
    settings = {
        "MODEL.NAME": "transformer", "MODEL.TRANSFORMER_TYPE": network, "MODEL.STRIDE_SIZE": [16, 16],
        "MODEL.PRETRAIN_CHOICE": "no", "INPUT.SIZE_TRAIN": [256, 128], "INPUT.SIZE_TEST": [256, 128],
        "TEST.IMS_PER_BATCH": 32, "TEST.WEIGHT": str(folder / "weights.pth"), "DATALOADER.NUM_WORKERS": workers,
    }  # fmt: skip
    cfg = load_config("", [word for pair in settings.items() for word in pair])
    torch.save(make_model(cfg, 2).state_dict(), cfg.TEST.WEIGHT)
    extractor, (records, _) = make_extractor(cfg), read_image_list(folder / "images")
    records = records.take(np.arange(count))  # without the files that are linked to
    batch = torch.randn(extractor.batch_size, 3, 256, 128, device=extractor.device)
    batches, rates = count // extractor.batch_size, {"bare": [], "extract": []}
    for turn in range(repeats + 1):
        start = time.perf_counter()
        with torch.inference_mode():
            for _ in range(batches):
                extractor.model(batch)
            if extractor.device.type == "cuda":
                torch.cuda.synchronize()
        rates["bare"].append(batches * len(batch) / (time.perf_counter() - start))
        out = folder / f"turn_{turn}"
        out.mkdir()
        writer = FeatureWriter(out, {"model_hash": "", "list_hash": "", "batch": 0}, count, extractor.width)
        writer.begin()
        writer.open()
        done, seconds = fill(writer, records, extractor, workers, extractor.device.type == "cuda")
        rates["extract"].append(done / seconds)
    bare, ours = (max(values[1:]) for values in rates.values())  # the first warms up
    print(f"{network}, {count} images of 256 x 128, {torch.get_num_threads()} threads, {workers} workers")
    print(f"bare forward {bare:.1f} images/s, extraction {ours:.1f} images/s: {ours / bare:.3f} of it")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "market", "msmt17"), default="small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2, help="the best of so many, in turns (2)")
    parser.add_argument("--extract", type=int, metavar="N", help="measure the extraction of N images instead")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode, for --extract (1)")
    parser.add_argument("--network", default="deit_small_patch16_224_TransReID", help="for --extract")
    parser.add_argument("--run", choices=RUNS, help="measure this in this process and print it as JSON")
    parser.add_argument("--folder", type=Path, help="where --run finds the images and leaves its files")
    args = parser.parse_args()
    if args.run:
        page = args.run == "page"
        print(json.dumps(paged(args.folder) if page else evaluated(args.size, args.folder, args.run == "keeping")))
        return
    if args.extract:
        import torch

        torch.set_num_threads(args.threads)
        with tempfile.TemporaryDirectory() as name:
            extraction(Path(name), args.extract, args.workers, args.network, args.repeats)
        return
    num_q, num_g, *_ = SIZES[args.size]
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OPENBLAS_NUM_THREADS": str(args.threads)}
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), {}
        make_images(folder / "images", num_q + num_g)
        for run in RUNS * args.repeats:
            words = [sys.executable, "-m", "benchmarks.after", "--size", args.size, "--run", run, "--folder", name]
            done = json.loads(subprocess.run(words, env=env, check=True, stdout=subprocess.PIPE).stdout)
            found[run] = min(found.get(run, done), done, key=lambda row: row["seconds"])
        stored = sum(p.stat().st_size for p in (folder / "per_query.csv", folder / "ranked.npz")) / 1e6
    alone, kept, page = (found[run] for run in RUNS)
    print(f"{args.size}: {num_q} queries, {num_g} gallery images, {args.threads} threads")
    keeping, cpu = kept["seconds"] - alone["seconds"], kept["cpu"] - alone["cpu"]
    total = keeping + kept["files"] + page["seconds"]
    print(f"evaluation alone       {alone['seconds']:6.1f} s {alone['cpu']:6.1f} cpu {alone['mib']:5.0f} MiB more")
    print(f"keeping what is shown  {keeping:6.1f} s {cpu:6.1f} cpu {kept['mib']:5.0f} MiB more, both together")
    print(f"files                  {kept['files']:6.1f} s {stored:6.1f} MB")
    print(
        f"page                   {page['seconds']:6.1f} s {page['cpu']:6.1f} cpu {page['mib']:5.0f} MiB in all", end=""
    )
    print(f", {page['mb']:.1f} MB")
    print(f"the report in all      {total:6.1f} s, {total / alone['seconds']:.2f} x the evaluation")


if __name__ == "__main__":
    main()
