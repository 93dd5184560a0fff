"""Evaluates a model on test sets: extracts features once, then computes distances, ranks and metrics."""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from yacs.config import CfgNode

from datasets.checks import same_images
from datasets.crop_quality import quality_weights
from datasets.images import Batch
from datasets.loaders import TestLoader, TestSet
from datasets.readers.folders import draw_one_each
from datasets.records import Records
from datasets.storage.files import own_name
from datasets.tracklets import TestTracklets
from model import RetrievalModel
from processor.metrics_files import COUNTS, Results
from processor.query_files import PER_QUERY, RANKED, Ranked, file_name
from processor.rankings import RankingRecorder
from processor.tracklet_features import TrackletSums
from utils import switch
from utils.distributed import gather_objects, is_main
from utils.errors import UserError, conflict
from utils.features import mean_with_mirrored
from utils.files import write_atomically
from utils.metrics import evaluate_features, evaluate_retrieval, evaluate_roc
from utils.reranking import neighbour_centralisation, query_expansion
from utils.scoring.blocks import free_memory
from utils.scoring.camera_norm import CameraReference
from utils.scoring.matching import PairBlock
from utils.scoring.open_set import NearestImage, drawn_out, open_set
from utils.scoring.watching import Watcher

log = logging.getLogger("lineup")

SHOWN_RANKS = (1, 5, 10)
SHOWN_OF_TARGETS = ("mAP", "Rank-1")
PROTOCOLS = ("market1501", "cuhk03", "vehicleid", "retrieval")


@dataclass(frozen=True)
class Settings:
    """How features are scored; fields are the keys of the same names under ``TEST``. max_memory: bytes.

    report: record what a report shows of the rankings. open_share: share of the queries' identities that is taken out
    of the gallery for open-set figures; 0: those of identities that are absent by themselves. centralisation: k1 and k2
    of neighbour feature centralisation, None for none; centralised: the lists it changes, both, query or gallery.
    """

    flip: bool = False
    normalize: bool = True
    metric: str = "euclidean"
    rerank: tuple[int, int, float] | None = None
    expansion: tuple = ()
    centralisation: tuple[int, int] | None = None
    centralised: str = "both"
    roc: bool = False
    ap: str = "rectangle"
    max_rank: int = 50
    repeats: int = 10
    seed: int = 0
    max_memory: int | None = None
    report: bool = False
    open_share: float = 0.0
    camera_norm: str = "off"

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> Settings:
        if cfg.TEST.MAX_MEMORY_GB < 0:
            raise UserError(f"TEST.MAX_MEMORY_GB: {cfg.TEST.MAX_MEMORY_GB} is negative; 0 is a quarter of what is free")
        k1, k2, weight = cfg.TEST.RERANK
        if k1 < 1 or k2 < 1 or not 0 <= weight <= 1:
            raise UserError(f"TEST.RERANK: k1 and k2 must be 1 or more and lambda 0 to 1, not {cfg.TEST.RERANK}")
        expansion = tuple(cfg.TEST.QUERY_EXPANSION)
        if expansion and (len(expansion) != 3 or min(expansion[:2]) < 1 or expansion[2] < 0):
            raise UserError(f"TEST.QUERY_EXPANSION: expected () or (times, k, alpha), not {expansion}")
        if cfg.TEST.CAMERA_NORM == "pair" and cfg.TEST.RE_RANKING:
            raise conflict("TEST.CAMERA_NORM 'pair'", "TEST.RE_RANKING", "re-ranking has a distance of its own")
        return cls(
            flip=cfg.TEST.FLIP,
            normalize=switch("TEST.FEAT_NORM", cfg.TEST.FEAT_NORM),
            metric=cfg.TEST.METRIC,
            rerank=(int(k1), int(k2), float(weight)) if cfg.TEST.RE_RANKING else None,
            expansion=expansion,
            centralisation=(cfg.TEST.NFC_K[0], cfg.TEST.NFC_K[1]) if cfg.TEST.NFC else None,
            centralised=cfg.TEST.NFC_OF,
            roc=cfg.TEST.ROC,
            ap=cfg.TEST.AP,
            max_rank=max(cfg.TEST.MAX_RANK, max(SHOWN_RANKS)),
            repeats=cfg.TEST.REPEATS,
            seed=cfg.DATASETS.SEED,
            max_memory=int(cfg.TEST.MAX_MEMORY_GB * 1e9) or None,
            report=cfg.TEST.REPORT,
            open_share=cfg.TEST.OPEN_SHARE if cfg.TEST.OPEN_SET else 0.0,
            camera_norm=cfg.TEST.CAMERA_NORM,
        )


@torch.no_grad()
def extract_features(
    model: nn.Module,
    loader: TestLoader,
    device: torch.device,
    flip: bool = False,
    call: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Returns the retrieval features of a list in its order, (N, D) float32 on the CPU, the same on every rank.

    flip: average with the mirrored image's features. call: computes the features, by default the model itself. Raises
    ``UserError`` naming images whose features are not finite.
    """
    rows, feats = [], []
    for batch, features in feature_batches(model, loader, device, flip, call):
        rows.append(batch.rows.cpu())
        feats.append(features)
    gathered = gather_objects((torch.cat(rows), torch.cat(feats)) if rows else None)
    by_rank = [of_rank for of_rank in gathered if of_rank is not None]
    values = torch.cat([feats for _, feats in by_rank])
    out = torch.empty_like(values)
    out[torch.cat([rows for rows, _ in by_rank])] = values  # in the list's order, not in that of the processes
    refuse_infinite(out, np.arange(len(out)), loader)
    return out


def feature_batches(
    model: nn.Module, loader: TestLoader, device: torch.device, flip: bool, call: Callable[..., Tensor] | None = None
) -> Iterator[tuple[Batch, Tensor]]:
    """Yields this process's batches, and their features (B, D) float32 on the CPU; see ``extract_features``."""
    training, call = model.training, call or model
    model.eval()
    for batch in tqdm(loader, desc="features", leave=False, disable=not (is_main() and sys.stderr.isatty())):
        batch = batch.to(device)
        labels = {"cam_label": batch.cam_labels, "view_label": batch.view_labels}
        features = mean_with_mirrored(call, batch.images, **labels) if flip else call(batch.images, **labels)
        yield batch, features.float().cpu()
    model.train(training)


def refuse_infinite(feats: Tensor, rows: np.ndarray, loader: TestLoader) -> None:
    """Raises ``UserError`` naming images whose features (B, D) are not finite. rows: (B,) of the loader's list."""
    bad = (~feats.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(loader.records.paths[int(rows[i])] for i in bad[:2])
        raise UserError(f"features of {len(bad)} images are not finite ({names}, ...): the weights are damaged")


@torch.no_grad()
def extract_tracklets(
    model: nn.Module, loader: TestLoader, device: torch.device, settings: Settings, tracklets: TestTracklets
) -> Tensor:
    """Returns a feature for each tracklet of a set, queries first, (T, D) float32; see ``TrackletSums``."""
    count = 1 + int(tracklets.of_image.max(initial=-1))
    sums = TrackletSums(tracklets.of_image, count, settings.normalize)
    for batch, features in feature_batches(model, loader, device, settings.flip):
        rows = batch.rows.cpu()
        refuse_infinite(features, rows.numpy(), loader)
        weights = None
        if tracklets.hidden is not None:
            assert batch.qualities is not None, "the loader measures them"
            hidden = tracklets.hidden[rows.numpy()]
            weights = torch.from_numpy(quality_weights(batch.qualities.cpu().numpy(), hidden))
        sums.add(rows, features, weights)
    return sums.features()


def features_of_test(
    model: nn.Module, test: TestSet, device: torch.device, settings: Settings
) -> tuple[TestSet, Tensor]:
    """Extracts the features of a set to be searched, queries first; returns them with the set whose rows they are of.

    Where tracklets are searched, that is the set of their rows.
    """
    if test.tracklets is None:
        return test, extract_features(model, test.loader, device, settings.flip)
    feats = extract_tracklets(model, test.loader, device, settings, test.tracklets)
    return replace(test, query=test.tracklets.query, gallery=test.tracklets.gallery, tracklets=None), feats


@dataclass(frozen=True)
class Scored:
    """The scores of one test set.

    metrics: shares of 1 by name. query: the queries. per_query: ``AP``, ``INP`` (not for retrieval) and
    ``first_match_rank`` of each, (Q,), -1 for a query without a match. ranked: what a report shows of the rankings,
    None if it was not asked for or there are none.
    """

    metrics: dict[str, float]
    query: Records
    per_query: dict[str, np.ndarray]
    ranked: Ranked | None = None


def camera_reference(
    model: nn.Module, test: TestSet, device: torch.device, settings: Settings
) -> CameraReference | None:
    """Extracts what TEST.CAMERA_NORM is fitted on, None where it is off."""
    if settings.camera_norm == "off":
        return None
    assert test.reference is not None, "datasets.loaders makes one wherever the key is set"
    camids = test.reference.records.camids
    names = f"{len(camids):,} training images of {len(np.unique(camids))} cameras"
    log.info("%s: TEST.CAMERA_NORM %s, fitted on %s without labels", test.name, settings.camera_norm, names)
    feats = extract_features(model, test.reference, device, settings.flip)
    return CameraReference(settings.camera_norm, feats, camids)


def score(test: TestSet, feats: Tensor, settings: Settings, reference: CameraReference | None = None) -> Scored:
    """Scores one set from the features of its loader's list. reference: what a camera norm is fitted on."""
    if test.protocol not in PROTOCOLS:
        raise UserError(f"TEST.PROTOCOL: unknown {test.protocol!r}. Known: {', '.join(PROTOCOLS)}")
    if settings.max_memory is None:
        settings = replace(settings, max_memory=free_memory() // 4)
    if test.protocol == "vehicleid":
        return drawn_gallery(test, feats, settings)
    count = len(test.query)
    qf, gf = feats[:count], feats if test.same_list else feats[count:]
    if test.protocol == "retrieval":
        return retrieval(test, qf, gf, settings)
    return ranking(test, qf, gf, settings, test.query, test.gallery, reference)


def centralise(qf: Tensor, gf: Tensor, settings: Settings, one_list: bool) -> tuple[Tensor, Tensor]:
    """Returns query and gallery features after neighbour feature centralisation, if it is set.

    Each list is changed by itself; where query and gallery are one list, that one is.
    """
    if settings.centralisation is None:
        return qf, gf
    k1, k2 = settings.centralisation

    def changed(feats: Tensor) -> Tensor:
        return torch.as_tensor(neighbour_centralisation(feats, k1, k2, settings.normalize, settings.max_memory))

    if one_list:
        feats = changed(gf)
        return feats, feats
    of_query, of_gallery = (settings.centralised in ("both", name) for name in ("query", "gallery"))
    return changed(qf) if of_query else qf, changed(gf) if of_gallery else gf


def ranking(
    test: TestSet,
    qf: Tensor,
    gf: Tensor,
    settings: Settings,
    query: Records,
    gallery: Records,
    reference: CameraReference | None = None,
) -> Scored:
    """Returns CMC, mAP and mINP of query against gallery.

    Camera norm, neighbour feature centralisation, query expansion and re-ranking come first, in this order, if they are
    set.
    """
    if reference is not None:
        qf = reference.centred(qf, query.camids, settings.normalize)
        gf = reference.centred(gf, gallery.camids, settings.normalize)
    one_list = test.same_list or same_images(query, gallery)
    qf, gf = centralise(qf, gf, settings, one_list)
    if settings.expansion:
        times, k, alpha = settings.expansion
        expanded = query_expansion(qf, gf, int(times), int(k), float(alpha), one_list=one_list)
        qf, gf = (torch.as_tensor(feats) for feats in expanded)
    labels = (query.pids, gallery.pids, query.camids, gallery.camids)
    q_seqs, g_seqs = (None, None) if query.seqs is None or gallery.seqs is None else (query.seqs, gallery.seqs)
    watch = RankingRecorder(query, gallery, test.same_list, settings.ap) if settings.report else None
    nearest = open_set_watcher(query, gallery, settings)
    result = evaluate_features(
        qf, gf, *labels, metric=settings.metric, normalize=settings.normalize, rerank=settings.rerank, ap=settings.ap,
        protocol="cuhk03" if test.protocol == "cuhk03" else "market1501", max_rank=settings.max_rank,
        seed=settings.seed, repeats=settings.repeats, q_seqs=q_seqs, g_seqs=g_seqs, same_list=test.same_list,
        max_memory=settings.max_memory, watch=together(watch, nearest),
        one_list=one_list, camera_pairs=reference and reference.pairs(settings.metric, settings.normalize),
    )  # fmt: skip
    metrics = {"mAP": float(result.mAP), "mINP": float(result.mINP)}
    metrics |= {f"Rank-{k}": float(result.cmc[k - 1]) for k in SHOWN_RANKS}
    metrics |= {"queries": int(len(query)), "valid_queries": int(result.num_valid_q)}
    if settings.roc:
        tars = evaluate_roc(
            qf, gf, *labels, same_list=test.same_list, max_memory=settings.max_memory,
            camera_pairs=reference and reference.pairs("cosine", True),
        )  # fmt: skip
        metrics |= {f"TAR@FAR={far:g}": float(tar) for far, tar in tars.items()}
    found = open_set(nearest) if nearest is not None else None
    if found is not None:
        metrics |= {f"DIR@FPIR={fpir:g}": rate for fpir, rate in found.rates.items()} | {"AUROC": found.auroc}
        metrics |= {"absent_queries": found.absent}
    ranked = watch.ranked(qf, gf, result.cmc, found and found.curve) if watch else None
    return Scored(metrics, query, result.per_query, ranked)


def open_set_watcher(query: Records, gallery: Records, settings: Settings) -> NearestImage | None:
    """Returns what records the nearest images; None where all queries are in the gallery and none is taken out."""
    if settings.open_share:
        out = drawn_out(query.pids, gallery.pids, settings.open_share, settings.seed)
    elif np.isin(query.pids, gallery.pids).all():
        return None
    else:
        out = np.zeros(len(gallery), bool)
    return NearestImage(len(query), out)


def together(*watchers: Watcher | None) -> Watcher | None:
    """Returns one watcher in place of several; None for none."""
    used = [watcher for watcher in watchers if watcher is not None]

    def watch(start: int, block: Tensor, pairs: PairBlock) -> None:
        for watcher in used:
            watcher(start, block, pairs)

    return watch if used else None


def drawn_gallery(test: TestSet, feats: Tensor, settings: Settings) -> Scored:
    """Scores VehicleID's protocol: one drawn image per vehicle is the gallery; mean and deviation over the draws.

    The scores of single queries are those of the first draw.
    """
    pids = np.concatenate([test.query.pids, test.gallery.pids])
    paths = [*test.query.paths, *test.gallery.paths]
    names = np.array([own_name(path) for path in paths])  # in shards as in folders
    order = np.argsort(names, kind="stable")  # a draw must not depend on how an earlier one split the list
    results = []
    for trial in range(settings.repeats):
        chosen = np.zeros(len(order), bool)
        chosen[list(draw_one_each(pids[order].tolist(), settings.seed + trial))] = True
        g, q = order[chosen], order[~chosen]
        query = Records.of([paths[i] for i in q], pids[q])
        gallery = Records.of([paths[i] for i in g], pids[g], np.ones(len(g)))  # no camera in common
        of_trial = replace(settings, report=settings.report and trial == 0)
        results.append(ranking(test, feats[q], feats[g], of_trial, query, gallery))
    rows = [result.metrics for result in results]
    out = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
    out |= {f"{k} std": float(np.std([row[k] for row in rows])) for k in ("mAP", "Rank-1", "Rank-5")}
    return replace(results[0], metrics=out)


def retrieval(test: TestSet, qf: Tensor, gf: Tensor, settings: Settings) -> Scored:
    """Returns Recall@K and, if the set has them, NMI and mAP; images of one list are never their own match.

    A share of the gallery as K is rounded to whole images, at least one.
    """
    qf, gf = centralise(qf, gf, settings, test.same_list)
    ks = [k if isinstance(k, int) else max(1, round(len(gf) * float(k.rstrip("%")) / 100)) for k in test.ks]
    watch = RankingRecorder(test.query, test.gallery, test.same_list) if settings.report else None
    gallery = (None, None) if test.same_list else (gf, test.gallery.pids)
    result = evaluate_retrieval(
        qf, test.query.pids, *gallery, ks=ks, nmi="NMI" in test.also, max_memory=settings.max_memory, watch=watch
    )
    metrics = {f"Recall@{name}": float(result.recall[k]) for name, k in zip(test.ks, ks, strict=True)}
    if result.nmi is not None:
        metrics["NMI"] = float(result.nmi)
    if "mAP" in test.also:
        pids = (test.query.pids, test.gallery.pids)
        ranked = evaluate_features(
            qf, gf, *pids, metric="cosine", ap=settings.ap, same_list=test.same_list, max_memory=settings.max_memory
        )
        metrics["mAP"] = float(ranked.mAP)
    per_query = {"first_match_rank": result.first_match_rank}
    return Scored(metrics, test.query, per_query, watch.ranked(qf, gf) if watch else None)


def classification(test: TestSet, scores: Tensor) -> Scored:
    """Returns the shares of images whose class is among the 1 and 5 with the highest scores. scores: (N, classes)."""
    labels = torch.from_numpy(test.query.pids)
    of_label = scores.gather(1, labels[:, None])
    rank = 1 + (scores > of_label).sum(1)
    metrics = {f"Top-{k}": float((rank <= k).double().mean()) for k in (1, 5)}
    return Scored(metrics, test.query, {"first_match_rank": rank.numpy()})


def evaluate(
    model: RetrievalModel, tests: list[TestSet], settings: Settings, device: torch.device, folder: Path | None = None
) -> dict[str, dict[str, float]]:
    """Returns the metrics of each test set by its name, the same on every rank, and logs a table.

    folder: where the first process writes ``per_query.csv`` (``per_query_NAME.csv`` with several sets), and with
    ``settings.report`` ``ranked.npz``; None: nowhere.
    """
    results = {}
    settings = replace(
        settings,
        report=settings.report and folder is not None and is_main(),
        flip=settings.flip and not model.averages_mirrored,
    )
    counted = [test.name for test in tests if test.in_mean]
    for test in tests:
        model.use_domain(counted.index(test.name) if test.in_mean else 0)
        if test.protocol == "classification":
            scored = classification(test, extract_features(model, test.loader, device, call=model.class_scores))
        else:
            test, feats = features_of_test(model, test, device, settings)
            reference = camera_reference(model, test, device, settings)
            scored = score(test, feats.to(device) if fits(feats, device) else feats, settings, reference)
        results[test.name] = scored.metrics
        if folder is not None and is_main():
            write_evidence(Path(folder), test.name, len(tests) > 1, scored)
    for line in metrics_table(results, counted):
        log.info(line)
    return results


def write_evidence(folder: Path, name: str, several: bool, scored: Scored) -> None:
    """Writes the files of one test set, and removes those of an earlier evaluation that these do not replace."""
    rows = per_query_csv(scored)
    write_atomically(folder / file_name(PER_QUERY, name, several), lambda handle: handle.write(rows))
    path = folder / file_name(RANKED, name, several)
    if scored.ranked is None:
        path.unlink(missing_ok=True)
    else:
        scored.ranked.save(path)


def fits(feats: Tensor, device: torch.device) -> bool:
    """Returns whether ``device`` is an accelerator with room for four times the features and blocks of distances."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return 4 * feats.nbytes + 2**30 < free


def per_query_csv(scored: Scored) -> bytes:
    """Returns a CSV file with a row per query in the list's order; scores are empty for a query without a match."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "pid", "camid", "AP", "INP", "first_match_rank", "valid"])
    first = scored.per_query["first_match_rank"]
    shares = [scored.per_query.get(name) for name in ("AP", "INP")]
    pids, camids = scored.query.original_pids(), scored.query.original_camids()
    for i, path in enumerate(scored.query.paths):
        valid = bool(first[i] > 0)
        scores = ["" if share is None or not valid else f"{share[i]:.6f}" for share in shares]
        row = [path, pids[i], camids[i], *scores, first[i] if valid else "", int(valid)]
        writer.writerow(row)
    return text.getvalue().encode()


def means(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """Returns the mean over test sets of the figures that all of them have; of one set, its figures."""
    first, *others = results.values()
    shared = [k for k in first if all(k in r for r in others)]
    return {k: float(np.mean([r[k] for r in results.values()])) for k in shared}


def mean_of(tests: list[TestSet], results: dict[str, dict[str, float]]) -> dict[str, float]:
    """Returns ``means`` over the sets that count: all but the source of an adaptation."""
    return means({test.name: results[test.name] for test in tests if test.in_mean})


def metrics_table(results: dict[str, dict[str, Any]], counted: list[str] | None = None) -> list[str]:
    """Returns the lines of a table, in percent. counted: the sets whose mean is the last line; None: all."""
    columns = [k for k in means(results) if k not in COUNTS]
    counted = list(results) if counted is None else counted
    rows = {**results, **({"mean": means({name: results[name] for name in counted})} if len(counted) > 1 else {})}
    width = max(len("dataset"), *(len(name) for name in rows))
    lines = [f"{'dataset':{width}s} " + " ".join(f"{c:>8s}" for c in columns)]
    for name, row in rows.items():
        lines.append(f"{name:{width}s} " + " ".join(f"{100 * row[c]:8.1f}" for c in columns))
    return lines


def generalisation_report(sources: list[str], results: Results) -> dict[str, Any]:
    """Reports how well a network does on data sets that it was not trained on: mAP and Rank-1 of each, and their mean.

    sources: names of the training sets. results: metrics by the target's name, as ``evaluate`` returns them; a target
    of another protocol has the figures that its protocol has. Logs the report in one line.
    """
    targets = {name: {k: row[k] for k in SHOWN_OF_TARGETS if k in row} for name, row in results.items()}
    report = {"sources": sources, "targets": targets, "mean": means(targets)}
    rows = {**targets, **({"mean": report["mean"]} if len(targets) > 1 else {})}
    line = "; ".join(f"{name} {' '.join(f'{k} {100 * v:.1f}' for k, v in row.items())}" for name, row in rows.items())
    log.info("generalisation from %s: %s", " + ".join(sources), line)
    return report
