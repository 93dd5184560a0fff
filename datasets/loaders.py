"""From the configuration to loaders: what is trained on, what is tested, and the counts the model needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from datasets.catalogue import CATALOGUE
from datasets.checks import (
    refuse_hopeless,
    refuse_missing,
    refuse_skipping,
    refuse_trained_targets,
    refuse_unlabelled,
    tell_findings,
)
from datasets.dataset import ReIDDataset, make_dataset
from datasets.images import Batch, ImageList
from datasets.joining import as_trained, hold_out, join_training
from datasets.options import dataset_options, names_of, refuse_unknown_options
from datasets.readers.filter_list import keep_listed, listed_names
from datasets.records import SPLITS, Records, join
from datasets.samplers import EpochSampler, check_identities, make_sampler, multiple_gallery_nocam
from datasets.storage.decoding import DECODERS
from datasets.storage.stores import ByteStore, PixelStore
from datasets.transforms.multi_crop import make_multi_crop_transform
from datasets.transforms.pipelines import WithViews, build_transforms, weak_and_strong, with_views
from utils.distributed import gather_objects, rank, world_size
from utils.errors import UserError

log = logging.getLogger("lineup")


@dataclass
class TestSet:
    """One set to be searched: ``loader`` runs over query and then gallery (the query alone when they are one list).

    ks, also: see ``DatasetSpec``. in_mean: False for the source of an adaptation, which is shown beside the targets'
    mean.
    """

    name: str
    protocol: str
    query: Records
    gallery: Records
    loader: Any
    same_list: bool = False
    ks: tuple[int | str, ...] = (1, 2, 4, 8)
    also: tuple[str, ...] = ("NMI",)
    in_mean: bool = True

    __test__ = False  # not a test class, whatever its name says to pytest


@dataclass
class Source:
    """One of several training sets that are kept apart, its labels dense from 0.

    views: a loader whose batches hold the weak view and, as ``views``, the strong one; or a loader for each, drawn
    apart. plain: its images in order under the test transform.
    """

    name: str
    num_classes: int
    views: list[TrainLoader]
    plain: TestLoader


@dataclass
class Data:
    """What ``make_dataloader`` returns. train: None when only testing. num_*: of the training split.

    targets: training loaders of the targets, for methods that adapt to them; their labels are not for training.
    plain: the training images in order under the test transform, where a method needs them. sources: the training sets
    by themselves, for methods that keep them apart; ``train`` is None then.
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


class TrainLoader:
    """Batches of one epoch after another. on_bad: at an image that cannot be read, ``raise`` stops; ``skip`` counts and
    takes another image of its identity, so that batches keep their length.

    cache: bytes of memory for the first images, held as ``files`` or as ``pixels``. decoder: ``pillow`` or
    ``torchvision``. at_least: size that Pillow may decode JPEG files down to.
    """

    def __init__(
        self, records: Records, transform, sampler, workers: int, on_bad: str = "raise", pin: bool = False,
        cache: int = 0, held: str = "files", decoder: str = "pillow", at_least: tuple[int, int] | None = None,
    ):  # fmt: skip
        if on_bad not in ("raise", "skip"):
            raise UserError(f"DATALOADER.BAD_IMAGES: {on_bad!r} is neither 'raise' nor 'skip'")
        self.records, self.sampler, self.on_bad = records, sampler, on_bad
        images = ImageList(records, transform, None, DECODERS[decoder], at_least, stand_in=on_bad == "skip")
        if cache:
            images.store = store = (
                PixelStore(images.images(), cache) if held == "pixels" else ByteStore(records.paths, cache)
            )
            size = len(store.block) / 1e9
            log.info("%s of %d of %d training images are in memory (%.2f GB)", held, len(store), len(records), size)
        self.make = partial(
            DataLoader, images, batch_sampler=sampler, num_workers=workers, collate_fn=images.collate,
            persistent_workers=workers > 0, pin_memory=pin, worker_init_fn=one_thread,
        )  # fmt: skip
        self.restart()

    def restart(self) -> None:
        """A loader without workers yet, in place of one whose workers end with it.

        Left to the garbage collector, they would not: it closes their queues first, and the word to stop is lost.
        """
        self.loader = self.make(generator=torch.Generator())

    def relabel(self, pids: np.ndarray) -> None:
        """Draws batches by other classes from the next epoch on. pids: (N,), -1 for an image to leave out."""
        self.sampler.relabel(pids)

    def epoch(self, number: int) -> EpochBatches:
        """The batches of an epoch, counted from 1: the same for the same seed, whatever the number of workers."""
        self.sampler.set_epoch(number)
        return EpochBatches(self)


class EpochBatches:
    """One pass over a ``TrainLoader``."""

    def __init__(self, owner: TrainLoader):
        self.owner = owner

    def __len__(self) -> int:
        return len(self.owner.sampler)

    def __iter__(self) -> Iterator[Batch]:
        skipped: set[str] = set()
        try:
            for batch in self.owner.loader:
                self._refuse(batch)
                skipped |= set(batch.broken)
                yield batch
        except Exception:
            self.owner.restart()
            raise
        if self.owner.on_bad == "skip":
            skipped = set().union(*gather_objects(skipped))
        if skipped:
            log.warning("%d images could not be read in this epoch; others of their identity stood in", len(skipped))

    def _refuse(self, batch: Batch) -> None:
        if batch.broken and self.owner.on_bad == "raise":
            raise UserError(f"{batch.broken[0]}; DATALOADER.BAD_IMAGES 'skip' trains without such images")
        if not len(batch):
            raise UserError(f"{batch.broken[0]}; nor can any other of the {len(self.owner.records)} images be read")


# Every loader has a generator of its own: starting workers must not draw from the one that training resumes.


def one_thread(worker: int) -> None:
    """Workers share the cores with the training process: one thread each."""
    torch.set_num_threads(1)


class TestLoader:
    """Batches of a list in order; each of several processes sees its share of the rows."""

    __test__ = False

    def __init__(self, records: Records, transform, batch_size: int, workers: int, pin: bool = False):
        images = ImageList(records, transform)
        self.records = records
        mine = np.array_split(np.arange(len(records)), world_size())[rank()].tolist()
        self.loader = DataLoader(
            images, sampler=mine, batch_size=batch_size, num_workers=workers, collate_fn=images.collate,
            pin_memory=pin, worker_init_fn=one_thread, generator=torch.Generator(),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if batch.broken:
                raise UserError(batch.broken[0])
            yield batch


def make_train_transform(cfg) -> Callable:
    """The method's transform of training images: with further views of each where it learns from them."""
    if cfg.PROCESSOR.NAME == "dino":
        return make_multi_crop_transform(cfg)
    if cfg.PROCESSOR.NAME == "prompt" and cfg.MODEL.USE_SSL:
        return with_views(cfg)
    return build_transforms(cfg, is_train=True)


def make_train_loader(cfg, records: Records) -> TrainLoader:
    """The loader of a training list, batches drawn as DATALOADER.SAMPLER says."""
    return loader_of(cfg, records, make_train_transform(cfg), make_sampler(cfg, records, rank(), world_size()))


def loader_of(cfg, records: Records, transform, sampler, loaders: int = 1) -> TrainLoader:
    """A training loader by the keys; ``loaders`` at a time share workers and memory."""
    workers = cfg.DATALOADER.NUM_WORKERS
    return TrainLoader(
        records,
        transform,
        sampler,
        max(workers // loaders, min(workers, 1)),
        cfg.DATALOADER.BAD_IMAGES,
        pinned(cfg),
        cache=int(cfg.DATALOADER.CACHE_GB * 1e9 / loaders),
        held=cfg.DATALOADER.CACHE,
        decoder=cfg.DATALOADER.DECODER,
        at_least=tuple(cfg.INPUT.SIZE_TRAIN) if cfg.DATALOADER.DRAFT else None,
    )


def make_sources(cfg, train: Records, names: list[str]) -> list[Source]:
    """Each training set by itself, with the two views' loaders. train: the sets joined; names: of its domains.

    Raises ``UserError`` for another sampler, and naming the set that does not fill a batch.
    """
    if cfg.DATALOADER.SAMPLER != "multiple_gallery_nocam":
        raise UserError(
            f"DATALOADER.SAMPLER {cfg.DATALOADER.SAMPLER!r} and PROCESSOR.NAME 'self_distill' cannot go together; use "
            "'multiple_gallery_nocam'"
        )
    weak, strong = weak_and_strong(cfg)
    transforms = [WithViews(weak, strong)] if cfg.SSD.PAIRED_VIEWS else [weak, strong]
    sources = []
    for i, name in enumerate(names):
        records = train.take(train.domain == i)
        records = replace(records, pids=np.unique(records.pids, return_inverse=True)[1])
        views = [
            loader_of(
                cfg, records, transform, make_gallery_sampler(cfg, records.pids, name, stream=len(transforms) * i + j),
                loaders=len(transforms) * len(names),
            )
            for j, transform in enumerate(transforms)
        ]  # fmt: skip
        sources.append(Source(name, records.counts()[0], views, feature_loader(cfg, records)))
    return sources


def make_gallery_sampler(cfg, pids: np.ndarray, name: str, stream: int) -> EpochSampler:
    """The sampler of one view of the training set ``name``; one for each ``stream``."""
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


def feature_loader(cfg, records: Records) -> TestLoader:
    """The loader for features of a list in its order, with evaluation's transform."""
    transform = build_transforms(cfg, is_train=False)
    return TestLoader(records, transform, cfg.TEST.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS, pin=pinned(cfg))


def adapts(cfg) -> bool:
    """Whether the method trains on the targets' training images."""
    return cfg.PROCESSOR.NAME in ("dmmd", "mtda_kd")


def make_target_loaders(cfg, targets: list[ReIDDataset]) -> list[TrainLoader]:
    """A training loader per target, or one over all of them with DMMD.BLEND."""
    refuse_trained_targets(cfg)
    if not targets:
        raise UserError(f"DATASETS.TARGETS is empty, and PROCESSOR.NAME {cfg.PROCESSOR.NAME!r} adapts to targets")
    for dataset in targets:
        if not len(dataset.train):
            raise UserError(f"{dataset.spec.name}: no training images to adapt to in {dataset.folder}")
    groups = [targets] if cfg.DMMD.BLEND and cfg.PROCESSOR.NAME == "dmmd" else [[d] for d in targets]
    return [make_train_loader(cfg, join_training(group)) for group in groups]


def filtered(cfg, train: Records, sources: list[ReIDDataset]) -> Records:
    """The training images that DATASETS.FILTER_PATH keeps, where the datasets' own readers have not done it already."""
    path, own = cfg.DATASETS.FILTER_PATH, ["filter_path" in source.spec.options for source in sources]
    if not path or all(own):
        return train
    if any(own):
        raise UserError(
            f"DATASETS.FILTER_PATH: {', '.join(source.spec.name for source in sources)} cannot share a list; filter "
            "one of them by DATASETS.OPTIONS, such as ['luperson.filter_path', 'list.txt']"
        )
    if cfg.PROCESSOR.NAME not in ("dino", "cluster"):
        raise UserError(
            f"DATASETS.FILTER_PATH and PROCESSOR.NAME {cfg.PROCESSOR.NAME!r} cannot go together: a list leaves "
            "identities out, and only pre-training and clustering do without them"
        )
    return keep_listed(train, listed_names(path, cfg.DATASETS.KEEP_NUM), cfg.DATASETS.ROOT_DIR)


def make_test_set(cfg, name: str, protocol: str, query: Records, gallery: Records, **more) -> TestSet:
    records = query if more.get("same_list") else join([query, gallery])
    if protocol != "classification":
        refuse_hopeless(name, query, gallery, more.get("same_list", False))
    loader = feature_loader(cfg, records)
    return TestSet(name, cfg.TEST.PROTOCOL or protocol, query, gallery, loader, **more)


def pinned(cfg) -> bool:
    return torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu"


def make_dataloader(cfg, training: bool = True) -> Data:
    """Reads the datasets that the configuration names and makes their loaders.

    training: False leaves out the training loader (the training lists are still read for their counts when they are
    there). Raises ``UserError`` with one line for whatever is wrong with the data.
    """
    names = names_of(cfg.DATASETS.NAMES)
    targets = names_of(cfg.DATASETS.TARGETS) if cfg.DATASETS.TARGETS else []
    if not names:
        raise UserError(f"DATASETS.NAMES is empty. Known: {', '.join(sorted(CATALOGUE))}")
    apart = cfg.PROCESSOR.NAME == "self_distill"
    if apart:
        refuse_trained_targets(cfg)
    if apart and targets and not training:
        names = []  # its network knows neither classes nor cameras: the sources need not be there
    refuse_unknown_options(cfg, names_of(cfg.DATASETS.NAMES), targets)
    read = {
        n: make_dataset(n, cfg.DATASETS.ROOT_DIR, **dataset_options(cfg, n)) for n in dict.fromkeys([*names, *targets])
    }
    sources = [read[n] for n in names]
    for dataset in read.values():
        for line in dataset.statistics():
            log.info(line)
    empty = [d for d in sources if not len(d.train)]
    if empty and training:
        raise UserError(f"{empty[0].spec.name}: no training images in {empty[0].folder}")
    own = [d for d in sources if len(d.query) and len(d.gallery) and not d.use_all]
    tested = [read[n] for n in targets] or own
    beside = own if training and adapts(cfg) else []
    searched = [*tested, *beside]
    for dataset in read.values():
        tell_findings(dataset)
        trained_on = training and (dataset in sources or adapts(cfg))
        wanted = {"train": trained_on, "query": dataset in searched, "gallery": dataset in searched}
        splits = tuple(split for split in SPLITS if wanted[split])
        refuse_missing(dataset, splits, skip=cfg.DATALOADER.BAD_IMAGES == "skip")
    train, validation = join_training(sources) if sources else Records.of([], []), None
    if training:
        train = filtered(cfg, train, sources)
        refuse_unlabelled(cfg, train)
    num_cameras, num_views = len(np.unique(train.camids)), len(np.unique(train.viewids))
    if cfg.DATASETS.VAL_SHARE and training:
        train, query, gallery = hold_out(train, cfg.DATASETS.VAL_SHARE, cfg.SOLVER.SEED)
        validation = make_test_set(cfg, "validation", "market1501", query, gallery)
    loader, plain = None, None
    if training and cfg.DATALOADER.DRAFT and cfg.DATALOADER.DECODER == "torchvision":
        raise UserError(
            "DATALOADER.DRAFT and DATALOADER.DECODER 'torchvision' cannot go together: torchvision decodes whole images"
        )
    if training and cfg.PROCESSOR.NAME in ("prompt", "cluster"):
        refuse_skipping(cfg)
        plain = feature_loader(cfg, train)
    kept_apart = make_sources(cfg, train, [d.spec.name for d in sources]) if training and apart else []
    if training and not apart:
        loader = make_train_loader(cfg, train)
    adapted = make_target_loaders(cfg, [read[n] for n in targets]) if training and adapts(cfg) else []
    tests = []
    for d in searched:
        query, gallery = (as_trained(part, d.spec.name, sources) for part in (d.query, d.gallery))
        unknown = int((query.camids >= num_cameras).sum() + (gallery.camids >= num_cameras).sum())
        if cfg.MODEL.SIE_CAMERA and unknown:
            log.warning("%s: %d images of cameras without training images; no camera is embedded", d.spec.name, unknown)
        ks = tuple(int(k) if k >= 1 else f"{100 * k:g}%" for k in cfg.TEST.RECALL_KS) or d.spec.ks
        also = d.spec.also
        if cfg.TEST.NMI is not None:
            also = tuple(name for name in also if name != "NMI") + (("NMI",) if cfg.TEST.NMI else ())
        tests.append(
            make_test_set(
                cfg, d.spec.name, d.protocol, query, gallery, same_list=d.same_list, ks=ks, also=also,
                in_mean=not any(d is source for source in beside),
            )  # fmt: skip
        )
    if not tests and any(d.use_all for d in sources):
        raise UserError(
            f"DATASETS.USE_ALL: {', '.join(names)} train on their test images; name other sets in DATASETS.TARGETS"
        )
    if not tests and cfg.PROCESSOR.NAME != "dino":
        raise UserError(f"{', '.join(names)}: no query and gallery images to test on; set DATASETS.TARGETS")
    return Data(
        train=loader,
        tests=tests,
        num_classes=train.counts()[0],
        num_cameras=num_cameras,
        num_views=num_views,
        kind=next(iter(read.values())).spec.kind or "person",
        datasets=list(read.values()),
        validation=validation,
        targets=adapted,
        plain=plain,
        sources=kept_apart,
    )
