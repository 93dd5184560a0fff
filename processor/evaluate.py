"""From a model and test sets to metrics: features once, then distances, ranks and scores."""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets.loaders import TestSet
from datasets.readers.folders import draw_one_each
from datasets.records import Records
from datasets.storage.files import own_name
from model import RetrievalModel
from processor.finished import Ranked, Watch, file_name
from utils import switch
from utils.distributed import gather_objects, is_main
from utils.errors import UserError
from utils.features import mean_with_mirrored
from utils.files import write_atomically
from utils.metrics import evaluate_features, evaluate_retrieval, evaluate_roc
from utils.reranking import query_expansion
from utils.scoring.blocks import free_memory

log = logging.getLogger("lineup")

SHOWN_RANKS = (1, 5, 10)
PROTOCOLS = ("market1501", "cuhk03", "vehicleid", "retrieval")


@dataclass(frozen=True)
class Settings:
    """How features become scores; fields are the keys of the same names under ``TEST``. max_memory: bytes.

    report: keep of the rankings what a report shows.
    """

    flip: bool = False
    normalize: bool = True
    metric: str = "euclidean"
    rerank: tuple[int, int, float] | None = None
    expansion: tuple = ()
    roc: bool = False
    ap: str = "rectangle"
    max_rank: int = 50
    repeats: int = 10
    seed: int = 0
    max_memory: int | None = None
    report: bool = False

    @classmethod
    def from_cfg(cls, cfg) -> Settings:
        if cfg.TEST.MAX_MEMORY_GB < 0:
            raise UserError(f"TEST.MAX_MEMORY_GB: {cfg.TEST.MAX_MEMORY_GB} is negative; 0 is a quarter of what is free")
        k1, k2, weight = cfg.TEST.RERANK
        if k1 < 1 or k2 < 1 or not 0 <= weight <= 1:
            raise UserError(f"TEST.RERANK: k1 and k2 must be 1 or more and lambda 0 to 1, not {cfg.TEST.RERANK}")
        expansion = tuple(cfg.TEST.QUERY_EXPANSION)
        if expansion and (len(expansion) != 3 or min(expansion[:2]) < 1 or expansion[2] < 0):
            raise UserError(f"TEST.QUERY_EXPANSION: expected () or (times, k, alpha), not {expansion}")
        return cls(
            flip=cfg.TEST.FLIP,
            normalize=switch("TEST.FEAT_NORM", cfg.TEST.FEAT_NORM),
            metric=cfg.TEST.METRIC,
            rerank=(int(k1), int(k2), float(weight)) if cfg.TEST.RE_RANKING else None,
            expansion=expansion,
            roc=cfg.TEST.ROC,
            ap=cfg.TEST.AP,
            max_rank=max(cfg.TEST.MAX_RANK, max(SHOWN_RANKS)),
            repeats=cfg.TEST.REPEATS,
            seed=cfg.DATASETS.SEED,
            max_memory=int(cfg.TEST.MAX_MEMORY_GB * 1e9) or None,
            report=cfg.TEST.REPORT,
        )


@torch.no_grad()
def extract_features(
    model: nn.Module, loader, device: torch.device, flip: bool = False, call: Callable[..., Tensor] | None = None
) -> Tensor:
    """Retrieval features of a list in its order, in full precision. (N, D) float32 on the CPU, alike on all processes.

    flip: the mean with the mirrored image's features. call: what gives them, by default the model itself.
    Raises ``UserError`` naming images whose features are not finite.
    """
    training, call = model.training, call or model
    model.eval()
    rows, feats = [], []
    for batch in tqdm(loader, desc="features", leave=False, disable=not (is_main() and sys.stderr.isatty())):
        batch = batch.to(device)
        labels = {"cam_label": batch.cam_labels, "view_label": batch.view_labels}
        feature = mean_with_mirrored(call, batch.images, **labels) if flip else call(batch.images, **labels)
        rows.append(batch.rows.cpu())
        feats.append(feature.float().cpu())
    model.train(training)
    parts = [p for p in gather_objects((torch.cat(rows), torch.cat(feats)) if rows else None) if p is not None]
    rows, feats = torch.cat([r for r, _ in parts]), torch.cat([f for _, f in parts])
    out = torch.empty_like(feats)
    out[rows] = feats  # features belong to rows of the list, not to the order in which they came
    bad = (~out.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(loader.records.paths[i] for i in bad[:2])
        raise UserError(f"features of {len(bad)} images are not finite ({names}, ...): the weights are damaged")
    return out


@dataclass(frozen=True)
class Scored:
    """metrics: shares of 1 by name. per_query: ``AP``, ``INP`` (not for retrieval) and ``first_match_rank``, (Q,) each,
    -1 for a query without a match; those queries are ``query``. ranked: what a report shows of the rankings, if it was
    asked for and there are any."""

    metrics: dict[str, float]
    query: Records
    per_query: dict[str, np.ndarray]
    ranked: Ranked | None = None


def score(test: TestSet, feats: Tensor, settings: Settings) -> Scored:
    """Metrics of one set from the features of its loader's list."""
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
    return ranking(test, qf, gf, settings, test.query, test.gallery)


def ranking(test: TestSet, qf: Tensor, gf: Tensor, settings: Settings, query: Records, gallery: Records) -> Scored:
    """CMC, mAP and mINP of query against gallery, after query expansion and with re-ranking where asked for."""
    if settings.expansion:
        times, k, alpha = settings.expansion
        qf, gf = query_expansion(qf, gf, int(times), int(k), float(alpha))
    where = (query.pids, gallery.pids, query.camids, gallery.camids)
    shared = {"same_list": test.same_list, "max_memory": settings.max_memory}
    seqs = {} if query.seqs is None or gallery.seqs is None else {"q_seqs": query.seqs, "g_seqs": gallery.seqs}
    watch = Watch(query, gallery, test.same_list, settings.ap) if settings.report else None
    result = evaluate_features(
        qf, gf, *where, metric=settings.metric, normalize=settings.normalize, rerank=settings.rerank, ap=settings.ap,
        protocol="cuhk03" if test.protocol == "cuhk03" else "market1501", max_rank=settings.max_rank,
        seed=settings.seed, repeats=settings.repeats, **shared, **seqs,
        watch=watch,
    )  # fmt: skip
    metrics = {"mAP": float(result.mAP), "mINP": float(result.mINP)}
    metrics |= {f"Rank-{k}": float(result.cmc[k - 1]) for k in SHOWN_RANKS}
    metrics |= {"queries": int(len(query)), "valid_queries": int(result.num_valid_q)}
    if settings.roc:
        metrics |= {f"TAR@FAR={far:g}": float(tar) for far, tar in evaluate_roc(qf, gf, *where, **shared).items()}
    return Scored(metrics, query, result.per_query, watch.ranked(qf, gf, result.cmc) if watch else None)


def drawn_gallery(test: TestSet, feats: Tensor, settings: Settings) -> Scored:
    """VehicleID's protocol: one drawn image per vehicle is the gallery; mean and spread over the draws.

    The scores of single queries are those of the first draw.
    """
    pids = np.concatenate([test.query.pids, test.gallery.pids])
    paths = np.array([*test.query.paths, *test.gallery.paths])
    names = np.array([own_name(path) for path in paths])  # in shards as in folders
    order = np.argsort(names, kind="stable")  # a draw must not depend on how an earlier one split the list
    results = []
    for trial in range(settings.repeats):
        chosen = np.zeros(len(order), bool)
        chosen[list(draw_one_each(pids[order].tolist(), settings.seed + trial))] = True
        g, q = order[chosen], order[~chosen]
        apart = Records.of(paths[q], pids[q]), Records.of(paths[g], pids[g], np.ones(len(g)))  # no camera in common
        shown = replace(settings, report=settings.report and trial == 0)
        results.append(ranking(test, feats[q], feats[g], shown, *apart))
    rows = [result.metrics for result in results]
    out = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
    out |= {f"{k} std": float(np.std([row[k] for row in rows])) for k in ("mAP", "Rank-1", "Rank-5")}
    return replace(results[0], metrics=out)


def retrieval(test: TestSet, qf: Tensor, gf: Tensor, settings: Settings) -> Scored:
    """Recall@K and, where the set's protocol has them, NMI and mAP; images of one list are never their own match.

    A share of the gallery as K is rounded to whole images, one at least.
    """
    gallery = () if test.same_list else (gf, test.gallery.pids)
    ks = [k if isinstance(k, int) else max(1, round(len(gf) * float(k.rstrip("%")) / 100)) for k in test.ks]
    shared = {"max_memory": settings.max_memory}
    watch = Watch(test.query, test.gallery, test.same_list) if settings.report else None
    result = evaluate_retrieval(qf, test.query.pids, *gallery, ks=ks, nmi="NMI" in test.also, watch=watch, **shared)
    metrics = {f"Recall@{name}": float(result.recall[k]) for name, k in zip(test.ks, ks, strict=True)}
    if "NMI" in test.also:
        metrics["NMI"] = float(result.nmi)
    if "mAP" in test.also:
        pids = (test.query.pids, test.gallery.pids)
        ranked = evaluate_features(qf, gf, *pids, metric="cosine", ap=settings.ap, same_list=test.same_list, **shared)
        metrics["mAP"] = float(ranked.mAP)
    per_query = {"first_match_rank": result.first_match_rank}
    return Scored(metrics, test.query, per_query, watch.ranked(qf, gf) if watch else None)


def classification(test: TestSet, scores: Tensor) -> Scored:
    """Shares of images whose class is among the 1 and 5 with the highest scores. scores: (N, classes)."""
    labels = torch.from_numpy(test.query.pids)
    own = scores.gather(1, labels[:, None])
    rank = 1 + (scores > own).sum(1)
    metrics = {f"Top-{k}": float((rank <= k).double().mean()) for k in (1, 5)}
    return Scored(metrics, test.query, {"first_match_rank": rank.numpy()})


def evaluate(
    model: RetrievalModel, tests: list[TestSet], settings: Settings, device: torch.device, folder: Path | None = None
) -> dict[str, dict[str, float]]:
    """Name of each test set -> its metrics; logs a table. Every process gets the same answer.

    folder: where the first process writes ``per_query.csv`` (``per_query_NAME.csv`` with several sets), and with
    ``settings.report`` ``ranked.npz``; None: nowhere.
    """
    results = {}
    settings = replace(settings, report=settings.report and folder is not None and is_main())
    counted = [test.name for test in tests if test.in_mean]
    for test in tests:
        model.use_domain(counted.index(test.name) if test.in_mean else 0)
        if test.protocol == "classification":
            scored = classification(test, extract_features(model, test.loader, device, call=model.class_scores))
        else:
            feats = extract_features(model, test.loader, device, settings.flip)
            scored = score(test, feats.to(device) if fits(feats, device) else feats, settings)
        results[test.name] = scored.metrics
        if folder is not None and is_main():
            write_evidence(Path(folder), test.name, len(tests) > 1, scored)
    for line in table(results, counted):
        log.info(line)
    return results


def write_evidence(folder: Path, name: str, several: bool, scored: Scored) -> None:
    """The files of one test set; of an earlier evaluation's, none stays that these do not replace."""
    table_of_queries = per_query_csv(scored)
    write_atomically(folder / file_name("per_query.csv", name, several), lambda handle: handle.write(table_of_queries))
    path = folder / file_name("ranked.npz", name, several)
    if scored.ranked is None:
        path.unlink(missing_ok=True)
    else:
        scored.ranked.save(path)


def fits(feats: Tensor, device: torch.device) -> bool:
    """Whether ``device`` is an accelerator with room for the features four times over and for blocks of distances."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return 4 * feats.nbytes + 2**30 < free


def per_query_csv(scored: Scored) -> bytes:
    """A row per query in the order of the list; scores are empty for a query without a match."""
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
    """The mean over test sets of the values that all of them have; the values themselves when there is one set."""
    first, *others = results.values()
    shared = [k for k in first if all(k in r for r in others)]
    return {k: float(np.mean([r[k] for r in results.values()])) for k in shared}


def mean_of(tests: list[TestSet], results: dict[str, dict[str, float]]) -> dict[str, float]:
    """``means`` over the sets that count: all but the source of an adaptation."""
    return means({test.name: results[test.name] for test in tests if test.in_mean})


def table(results: dict[str, dict[str, Any]], counted: list[str] | None = None) -> list[str]:
    """Lines of a table, in percent. counted: the sets whose mean is the last line; None: all."""
    columns = [k for k in means(results) if k not in ("queries", "valid_queries")]
    counted = list(results) if counted is None else counted
    rows = {**results, **({"mean": means({name: results[name] for name in counted})} if len(counted) > 1 else {})}
    width = max(len("dataset"), *(len(name) for name in rows))
    lines = [f"{'dataset':{width}s} " + " ".join(f"{c:>8s}" for c in columns)]
    for name, row in rows.items():
        lines.append(f"{name:{width}s} " + " ".join(f"{100 * row[c]:8.1f}" for c in columns))
    return lines
