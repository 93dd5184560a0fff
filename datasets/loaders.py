"""From the configuration to the data of a run: what is trained on, what is tested, and the counts the model needs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from yacs.config import CfgNode

from configs.conflicts import refuse_training_conflicts
from datasets.batches import TestLoader, TrainLoader
from datasets.catalogue import CATALOGUE
from datasets.checks import (
    filter_line,
    log_findings,
    log_kinds,
    refuse_hopeless,
    refuse_missing,
    refuse_trained_targets,
    refuse_unlabelled,
)
from datasets.crop_quality import image_quality
from datasets.dataset import ReIDDataset, make_dataset
from datasets.fingerprint import Fingerprint, fingerprint_of
from datasets.joining import hold_out, join_training, label_as_trained
from datasets.options import dataset_options, names_of, refuse_unknown_options
from datasets.readers.filter_list import keep_listed, listed_names
from datasets.records import SPLITS, Records, join
from datasets.samplers import EpochSampler, check_identities, make_sampler, multiple_gallery_nocam
from datasets.storage.decoding import make_decoder
from datasets.storage.pixels import PixelRules
from datasets.tracklets import TestTracklets, tracklets_of_test
from datasets.transforms.multi_crop import make_multi_crop_transform
from datasets.transforms.pipelines import WithViews, build_transforms, weak_and_strong, with_views
from utils.distributed import rank, world_size
from utils.errors import UserError, conflict
from utils.methods import Method, method_of
from utils.scoring.camera_norm import LEAST, drawn_of_each
from utils.workers import usable_cores

log = logging.getLogger("lineup")


@dataclass
class TestSet:
    """One set to be searched: ``loader`` runs over query and then gallery (the query alone when they are one list).

    ks, also: see ``DatasetSpec``. in_mean: False for the source of an adaptation, which is shown beside the targets'
    mean. reference: images of the same cameras that TEST.CAMERA_NORM is fitted on without labels; None where it is off.
    tracklets: what is searched in place of images; None: images are.
    """

    name: str
    protocol: str
    query: Records
    gallery: Records
    loader: TestLoader
    same_list: bool = False
    ks: tuple[int | str, ...] = (1, 2, 4, 8)
    also: tuple[str, ...] = ("NMI",)
    in_mean: bool = True
    reference: TestLoader | None = None
    tracklets: TestTracklets | None = None

    __test__ = False  # not a test class, whatever its name says to pytest


@dataclass
class Source:
    """One of several training sets that are kept apart, its labels dense from 0.

    views: a loader whose batches hold the weak view and, as ``views``, the strong one; or a loader for each, drawn
    apart; one loader for methods with one view. plain: its images in order under the test transform.
    """

    name: str
    num_classes: int
    views: list[TrainLoader]
    plain: TestLoader


@dataclass
class Data:
    """The data of a run, as the traits of its method ask for them (``utils.methods.Method``).

    train: None when only testing, and where the sources are kept apart. num_*: of the training list.
    targets: training loaders of the targets, whose labels are not for training; plain_targets: their images in order
    under the test transform. plain: the training images in order under the test transform. sources: the training sets
    by themselves. fingerprint: what identifies the lists that are trained on.
    """

    train: TrainLoader | None
    tests: list[TestSet]
    num_classes: int
    num_cameras: int
    num_views: int
    kind: str = "person"
    datasets: list[ReIDDataset] = field(default_factory=list)
    validation: TestSet | None = None
    targets: list[TrainLoader] = field(default_factory=list)
    plain: TestLoader | None = None
    sources: list[Source] = field(default_factory=list)
    plain_targets: list[TestLoader] = field(default_factory=list)
    fingerprint: Fingerprint = field(default_factory=dict)

    @property
    def held_out_only(self) -> bool:
        """Whether the identities held out of training are all that is evaluated."""
        return len(self.tests) == 1 and self.tests[0] is self.validation


# ---------------------------------------------------------------- the way of the data


def make_dataloader(cfg: CfgNode, training: bool = True) -> Data:
    """Returns the data that the configuration names: datasets are read and checked, then loaders are made.

    training: False leaves out the training loaders (the training lists are still read for their counts when they are
    there). Raises ``UserError`` with one line for whatever is wrong with the data.
    """
    method = method_of(cfg)
    if training:
        refuse_training_conflicts(cfg, method)
    sets = read_sets(cfg, method, training)
    check_sets(cfg, method, sets, training)
    train = training_list(cfg, method, sets, training)
    refuse_untested(cfg, method, sets)
    num_cameras, num_views = len(np.unique(train.camids)), len(np.unique(train.viewids))
    fingerprint = fingerprint_of(trained_lists(method, sets, train), cfg.DATASETS.IMAGE_DIR) if training else {}
    validation = None
    if training and cfg.DATASETS.VAL_SHARE:
        train, query, gallery = hold_out(train, cfg.DATASETS.VAL_SHARE, cfg.SOLVER.SEED)
        validation = make_test_set(cfg, "validation", "market1501", query, gallery)
        validation.reference = reference_loader(cfg, validation, train)
    data = Data(
        train=None,
        tests=make_tests(cfg, sets, num_cameras),
        num_classes=train.counts()[0],
        num_cameras=num_cameras,
        num_views=num_views,
        kind=sets.all[0].spec.kind or "person",
        datasets=sets.all,
        validation=validation,
        fingerprint=fingerprint,
    )
    if training:
        add_training(cfg, method, data, train, sets)
    return data


@dataclass
class Sets:
    """The datasets of a run. all: each once, in the order in which they were named. tested: those to be searched.

    beside: of ``tested``, those that do not count in the mean.
    """

    all: list[ReIDDataset]
    sources: list[ReIDDataset]
    targets: list[ReIDDataset]
    tested: list[ReIDDataset]
    beside: list[ReIDDataset]


def read_sets(cfg: CfgNode, method: Method, training: bool) -> Sets:
    """Returns the datasets of the run, read. Raises ``UserError`` for names that do not fit the method."""
    sources, targets = names_of(cfg.DATASETS.NAMES), names_of(cfg.DATASETS.TARGETS)
    adapts = training and method.targets
    if not sources:
        raise UserError(f"DATASETS.NAMES is empty. Known: {', '.join(sorted(CATALOGUE))}")
    if adapts and not targets:
        raise UserError(f"DATASETS.TARGETS is empty, and PROCESSOR.NAME {method.name!r} adapts to targets")
    if adapts or method.sources_apart:
        refuse_trained_targets(cfg)
    refuse_unknown_options(cfg, sources, targets)
    if method.sources_apart and targets and not training:
        sources = []  # its network knows neither classes nor cameras: the sources need not be there
    root = cfg.DATASETS.ROOT_DIR
    read = {n: make_dataset(n, root, **dataset_options(cfg, n)) for n in dict.fromkeys([*sources, *targets])}
    for dataset in read.values():
        for line in dataset.statistics():
            log.info(line)
    trained, adapted = [read[name] for name in sources], [read[name] for name in targets]
    tested = [d for d in trained if len(d.query) and len(d.gallery) and not d.use_all]
    beside = tested if adapts else []
    return Sets(list(read.values()), trained, adapted, tested=[*(adapted or tested), *beside], beside=beside)


def check_sets(cfg: CfgNode, method: Method, sets: Sets, training: bool) -> None:
    """Logs what looks wrong with the lists; raises ``UserError`` for what cannot be trained or tested on."""
    trained = [*sets.sources, *(sets.targets if method.targets else [])] if training else []
    for dataset in trained:
        if not len(dataset.train):
            raise UserError(f"{dataset.spec.name}: no training images in {dataset.folder}")
    for dataset in sets.all:
        log_findings(dataset)
        is_trained, is_tested = any(dataset is d for d in trained), any(dataset is d for d in sets.tested)
        used = {"train": is_trained, "query": is_tested, "gallery": is_tested}
        splits = tuple(split for split in SPLITS if used[split])
        refuse_missing(dataset, splits, skip=cfg.DATALOADER.BAD_IMAGES == "skip")
        for split in splits[:1] if training else splits:
            log_kinds(dataset.spec.name, split, dataset.split(split).paths)


def training_list(cfg: CfgNode, method: Method, sets: Sets, training: bool) -> Records:
    """Returns the joined training list of the sources, after DATASETS.FILTER_PATH."""
    if not sets.sources:
        return Records.of([])
    train = join_training([dataset.train for dataset in sets.sources])
    if training:
        train = filtered(cfg, method, train, sets.sources)
        refuse_unlabelled(cfg, method, train)
    return train


def trained_lists(method: Method, sets: Sets, train: Records) -> dict[str, tuple[ReIDDataset, Records]]:
    """Returns name -> (dataset, list) for all that is trained on. train: the joined training list of the sources."""
    lists = {d.spec.name: (d, d.train) for d in sets.targets} if method.targets else {}
    for i, dataset in enumerate(sets.sources):
        lists[dataset.spec.name] = dataset, train.take(train.domain == i) if len(sets.sources) > 1 else train
    return lists


def refuse_untested(cfg: CfgNode, method: Method, sets: Sets) -> None:
    """Raises ``UserError`` where nothing can be tested on and the method wants to be tested."""
    if sets.tested:
        return
    names = ", ".join(names_of(cfg.DATASETS.NAMES))
    if any(dataset.use_all for dataset in sets.sources):
        raise UserError(f"DATASETS.USE_ALL: {names} train on their test images; name other sets in DATASETS.TARGETS")
    if method.tests:
        raise UserError(f"{names}: no query and gallery images to test on; set DATASETS.TARGETS")


def filtered(cfg: CfgNode, method: Method, train: Records, sources: list[ReIDDataset]) -> Records:
    """Returns the training images that DATASETS.FILTER_PATH keeps, unless the datasets' own readers did that."""
    path, by_reader = cfg.DATASETS.FILTER_PATH, ["filter_path" in source.spec.options for source in sources]
    if not path or all(by_reader):
        return train
    if any(by_reader):
        raise UserError(
            f"DATASETS.FILTER_PATH: {', '.join(source.spec.name for source in sources)} cannot share a list; filter "
            "one of them by DATASETS.OPTIONS, such as ['luperson.filter_path', 'list.txt']"
        )
    if method.labels:
        raise conflict(
            "DATASETS.FILTER_PATH",
            f"PROCESSOR.NAME {method.name!r}",
            "a list leaves identities out, and only methods without labels, such as pre-training and clustering, allow "
            "that",
        )
    return keep_listed(train, listed_names(path, cfg.DATASETS.KEEP_NUM), cfg.DATASETS.ROOT_DIR)


def make_tests(cfg: CfgNode, sets: Sets, num_cameras: int) -> list[TestSet]:
    """Returns the sets to be searched, their cameras labelled as the network knows them."""
    trained = {dataset.spec.name: dataset.train for dataset in sets.sources}
    tests = []
    for dataset in sets.tested:
        name, spec = dataset.spec.name, dataset.spec
        query, gallery = (label_as_trained(r, name, trained) for r in (dataset.query, dataset.gallery))
        unknown = int((query.cam_labels >= num_cameras).sum() + (gallery.cam_labels >= num_cameras).sum())
        if cfg.MODEL.SIE_CAMERA and unknown:
            log.warning("%s: %d images of cameras without training images; no camera is embedded", name, unknown)
        test = make_test_set(cfg, name, dataset.protocol, query, gallery, dataset.same_list)
        test.ks = tuple(int(k) if k >= 1 else f"{100 * k:g}%" for k in cfg.TEST.RECALL_KS) or spec.ks
        test.also = spec.also
        if cfg.TEST.NMI is not None:
            test.also = tuple(n for n in spec.also if n != "NMI") + (("NMI",) if cfg.TEST.NMI else ())
        test.in_mean = not any(dataset is source for source in sets.beside)
        test.reference = reference_loader(cfg, test, label_as_trained(dataset.train, name, trained))
        tests.append(test)
    return tests


def add_training(cfg: CfgNode, method: Method, data: Data, train: Records, sets: Sets) -> None:
    """Makes the loaders that the method's traits ask for. train: the joined training list."""
    if method.in_order:
        data.plain = feature_loader(cfg, train)
    if method.sources_apart:
        data.sources = make_sources(cfg, method, train, [dataset.spec.name for dataset in sets.sources])
    else:
        data.train = make_train_loader(cfg, train)
    if method.targets:
        lists = target_lists(cfg, method, sets.targets)
        data.targets = [make_train_loader(cfg, records) for records in lists]
        if method.targets_in_order:
            data.plain_targets = [feature_loader(cfg, records) for records in lists]


# ---------------------------------------------------------------- loaders by the keys


def make_train_transform(cfg: CfgNode) -> Callable[..., Any]:
    """Returns the method's transform of training images, with further views of each where the method wants them."""
    views = method_of(cfg).views
    if views == "crops":
        return make_multi_crop_transform(cfg)
    if views == "weak_strong":
        return WithViews(*weak_and_strong(cfg))
    if views == "paired" and cfg.MODEL.USE_SSL:
        return with_views(cfg)
    return build_transforms(cfg, is_train=True)


def make_train_loader(cfg: CfgNode, records: Records) -> TrainLoader:
    """Returns the loader of a training list, batches drawn as DATALOADER.SAMPLER says."""
    return loader_of(cfg, records, make_train_transform(cfg), make_sampler(cfg, records, rank(), world_size()))


def loader_of(
    cfg: CfgNode, records: Records, transform: Callable[..., Any], sampler: EpochSampler, loaders: int = 1
) -> TrainLoader:
    """Returns a training loader by the keys. loaders: how many of them share the workers and the memory."""
    workers = num_workers(cfg)
    height, width = cfg.INPUT.SIZE_TRAIN
    return TrainLoader(
        records,
        transform,
        sampler,
        workers=max(workers // loaders, min(workers, 1)),
        on_bad=cfg.DATALOADER.BAD_IMAGES,
        pin=pinned(cfg),
        cache=int(cfg.DATALOADER.CACHE_GB * 1e9 / loaders),
        cached=cfg.DATALOADER.CACHE,
        decoder=make_decoder(PixelRules.from_cfg(cfg), cfg.DATALOADER.DECODER),
        at_least=(height, width) if cfg.DATALOADER.DRAFT else None,
        timeout=cfg.DATALOADER.TIMEOUT,
    )


def make_sources(cfg: CfgNode, method: Method, train: Records, names: list[str]) -> list[Source]:
    """Returns each training set by itself, with a loader for its views. train: the sets joined; names: of its domains.

    Raises ``UserError`` naming the set that does not fill a batch.
    """
    if method.views == "weak_strong" and not cfg.SSD.PAIRED_VIEWS:
        transforms = list(weak_and_strong(cfg))
    else:
        transforms = [make_train_transform(cfg)]
    sources = []
    for i, name in enumerate(names):
        records = train.take(train.domain == i).relabelled()
        views = []
        for j, transform in enumerate(transforms):
            sampler = make_gallery_sampler(cfg, records.pids, name, stream=len(transforms) * i + j)
            views.append(loader_of(cfg, records, transform, sampler, loaders=len(transforms) * len(names)))
        sources.append(Source(name, records.counts()[0], views, feature_loader(cfg, records)))
    return sources


def make_gallery_sampler(cfg: CfgNode, pids: np.ndarray, name: str, stream: int) -> EpochSampler:
    """Returns the sampler of one view of the training set ``name``. stream: number of the loader, drawn apart."""
    batch, k, world = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE, world_size()
    if batch % world or batch // world < 2:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH: {batch} images cannot be shared by {world} processes, two or more to each"
        )
    check_identities(batch // world, k, len(np.unique(pids)), source=name)
    seed = cfg.SOLVER.SEED, stream
    sampler = EpochSampler(multiple_gallery_nocam, pids, batch, k, seed, rank(), world, steps=cfg.SSD.ITERS)
    if not len(sampler):
        raise UserError(f"SOLVER.IMS_PER_BATCH: a pass over {name} gives no batch of {batch}; many have one image only")
    return sampler


def target_lists(cfg: CfgNode, method: Method, targets: list[ReIDDataset]) -> list[Records]:
    """Returns the training list of each target, or one of all of them with DMMD.BLEND."""
    groups = [targets] if method.blends_targets and cfg.DMMD.BLEND else [[dataset] for dataset in targets]
    return [join_training([dataset.train for dataset in group]) for group in groups]


def feature_loader(
    cfg: CfgNode, records: Records, measure: Callable[[Image], float] | None = None
) -> TestLoader:
    """Returns the loader for features of a list in its order, with evaluation's transform.

    measure: see ``ImageList``.
    """
    transform = build_transforms(cfg, is_train=False)
    decoder = make_decoder(PixelRules.from_cfg(cfg))
    return TestLoader(
        records, transform, cfg.TEST.IMS_PER_BATCH, num_workers(cfg), pinned(cfg), decoder, cfg.DATALOADER.TIMEOUT,
        measure,
    )  # fmt: skip


def make_test_set(
    cfg: CfgNode, name: str, protocol: str, query: Records, gallery: Records, same_list: bool = False
) -> TestSet:
    """Returns a set to be searched and logs which images its filter leaves out."""
    records = query if same_list else join([query, gallery])
    tracklets = make_tracklets(cfg, name, cfg.TEST.PROTOCOL or protocol, query, gallery, same_list)
    searched = (query, gallery) if tracklets is None else (tracklets.query, tracklets.gallery)
    if protocol != "classification":
        refuse_hopeless(name, *searched, same_list)
    protocol = cfg.TEST.PROTOCOL or protocol
    log.info(filter_line(name, protocol, *searched, same_list))
    measure = image_quality if tracklets is not None and tracklets.hidden is not None else None
    loader = feature_loader(cfg, records, measure)
    return TestSet(name, protocol, query, gallery, loader, same_list, tracklets=tracklets)


def make_tracklets(
    cfg: CfgNode, name: str, protocol: str, query: Records, gallery: Records, same_list: bool
) -> TestTracklets | None:
    """Returns the tracklets that are searched, None where images are. Raises ``UserError`` for a set without them."""
    if cfg.TEST.TRACKLETS == "off":
        return None
    key = f"TEST.TRACKLETS {cfg.TEST.TRACKLETS!r}"
    if protocol not in ("market1501", "cuhk03"):
        raise conflict(key, f"TEST.PROTOCOL {protocol!r}", "it compares single images")
    if cfg.TEST.CAMERA_NORM != "off":
        raise conflict(key, f"TEST.CAMERA_NORM {cfg.TEST.CAMERA_NORM!r}", "it is fitted on single images")
    tracklets = tracklets_of_test(query, gallery, same_list, name, cfg.TEST.TRACKLETS == "quality")
    log.info(
        "%s: %d images of queries are %d tracklets, %d of the gallery are %d", name, len(query), len(tracklets.query),
        len(gallery), len(tracklets.gallery),
    )  # fmt: skip
    return tracklets


def reference_loader(cfg: CfgNode, test: TestSet, train: Records) -> TestLoader | None:
    """Returns the loader of the images that TEST.CAMERA_NORM is fitted on, None where it is off.

    train: the training images of the tested set, whose labels are not used. Raises ``UserError`` where there are no
    cameras to tell apart, or no such images.
    """
    if cfg.TEST.CAMERA_NORM == "off":
        return None
    key = f"TEST.CAMERA_NORM {cfg.TEST.CAMERA_NORM!r}"
    if test.protocol not in ("market1501", "cuhk03"):
        raise conflict(key, f"TEST.PROTOCOL {test.protocol!r}", "it compares images without cameras")
    if not len(train):
        raise UserError(
            f"{key}: {test.name} has no training images to fit it on; images of its cameras without identities do, in "
            "a table (DATASETS.FILE) with the split 'train'"
        )
    tested = np.unique(np.concatenate([test.query.camids, test.gallery.camids]))
    cameras, count = np.unique(train.camids, return_counts=True)
    if min(len(tested), len(cameras)) == 1:
        raise UserError(f"{key}: {test.name} has no cameras, or its training or its test images are of one only")
    for camera in tested:
        images = int(count[cameras == camera].sum())
        if images < LEAST:
            name = camera if test.gallery.cameras is None else test.gallery.cameras[camera]
            raise UserError(f"{key}: {test.name} has {images} training images of camera {name}; it needs {LEAST}")
    return feature_loader(cfg, train.take(drawn_of_each(train.camids, cfg.DATASETS.SEED)))


def num_workers(cfg: CfgNode) -> int:
    """Returns how many processes load images for one loader: DATALOADER.NUM_WORKERS, but no more than cores."""
    return min(cfg.DATALOADER.NUM_WORKERS, usable_cores(int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def pinned(cfg: CfgNode) -> bool:
    """Returns whether batches are put into pinned memory, from which a GPU copies faster."""
    return torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu"
