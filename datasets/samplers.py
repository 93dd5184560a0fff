"""Which images make a batch. A sampler draws an epoch's batches from (seed, epoch) alone, the same on every rank."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from torch.utils.data import Sampler
from yacs.config import CfgNode

from datasets.records import Records
from utils.errors import UserError
from utils.methods import method_of

log = logging.getLogger("lineup")

Batches = list[np.ndarray]


def identity_batches(pids: np.ndarray, batch_size: int, num_instances: int, rng: np.random.Generator) -> Batches:
    """P x K batches (RandomIdentitySampler, Hermans et al.): P identities, K images of each, until fewer than P remain.

    An identity with fewer than K images is filled up by drawing with replacement; its images are shuffled and cut into
    groups of K, what is left over is dropped. Each batch takes one group of P identities that still have any.
    """
    groups: dict[int, list[np.ndarray]] = {}
    for pid, rows in rows_by_identity(pids):
        rows = rng.permutation(rows) if len(rows) >= num_instances else rng.choice(rows, num_instances)
        whole = len(rows) // num_instances * num_instances
        groups[pid] = list(rows[:whole].reshape(-1, num_instances))
    left, batches = list(groups), []
    while len(left) >= batch_size // num_instances:
        chosen = rng.choice(len(left), batch_size // num_instances, replace=False)
        batches.append(np.concatenate([groups[left[i]].pop() for i in chosen]))
        left = [pid for pid in left if groups[pid]]
    return batches


def once_per_identity(pids: np.ndarray, batch_size: int, num_instances: int, rng: np.random.Generator) -> Batches:
    """Each identity once per epoch in random order, K of its images; an incomplete last batch is dropped."""
    groups = [rows for _, rows in rows_by_identity(pids)]
    return whole_batches(np.concatenate(one_pass_of_groups(groups, num_instances, rng)), batch_size)


def one_pass_of_groups(groups: list[np.ndarray], num_instances: int, rng: np.random.Generator) -> Batches:
    """Returns K rows of each group, the groups in random order; a smaller group is drawn from with replacement."""
    return [
        rng.choice(groups[i], num_instances, replace=len(groups[i]) < num_instances)
        for i in rng.permutation(len(groups))
    ]


def shuffled(pids: np.ndarray, batch_size: int, num_instances: int, rng: np.random.Generator) -> Batches:
    """Every image once in random order; an incomplete last batch is dropped."""
    return whole_batches(rng.permutation(len(pids)), batch_size)


def repeated_passes(pids: np.ndarray, batch_size: int, num_instances: int, rng: np.random.Generator) -> Batches:
    """MSViT's: as many passes over the shuffled identities, K images of each, as the images fill; at least one.

    An identity with fewer than K images is drawn from with replacement. The passes are cut into batches in order, so
    that where two meet an identity may be in a batch twice.
    """
    groups = [rows for _, rows in rows_by_identity(pids)]
    rows: Batches = []
    for _ in range(passes(len(pids), len(groups), num_instances)):
        rows += one_pass_of_groups(groups, num_instances, rng)
    return whole_batches(np.concatenate(rows), batch_size)


def multiple_gallery(
    pids: np.ndarray, batch_size: int, num_instances: int, rng: np.random.Generator, cams: np.ndarray
) -> Batches:
    """RandomMultipleGallerySampler of Cluster Contrast: each identity once in random order, K images over the cameras.

    One image at random, then K - 1 others of its identity: from other cameras where it has such images, else from its
    own; without replacement where there are at least K to draw from. An image that is all its identity has stays alone,
    and what follows moves up, as published. cams: (N,) cameras.
    """
    groups, rows = [rows for _, rows in rows_by_identity(pids)], []
    for i in rng.permutation(len(groups)):
        group = groups[i]
        first = rng.integers(len(group))
        elsewhere = group[cams[group] != cams[group[first]]]
        others = elsewhere if len(elsewhere) else np.delete(group, first)
        rows.append(group[[first]])
        if len(others):
            rows.append(rng.choice(others, num_instances - 1, replace=len(others) < num_instances))
    return whole_batches(np.concatenate(rows), batch_size)


def passes(images: int, identities: int, num_instances: int) -> int:
    """Returns how many passes of K images per identity the images fill, at least one."""
    return max(images // (identities * num_instances), 1)


def two_platforms(
    pids: np.ndarray, batch_size: int, num_instances: int, rng: np.random.Generator, views: np.ndarray
) -> Batches:
    """``repeated_passes`` for University-1652: of each building its first satellite image and K - 1 drone images.

    views: (N,) 0 for satellite, 1 for drone; other platforms are left out.
    """
    platforms = [np.flatnonzero(views == view) for view in (0, 1)]
    satellite, drone = ({pid: p[rows] for pid, rows in rows_by_identity(pids[p])} for p in platforms)
    if satellite.keys() != drone.keys() or not satellite:
        odd = sorted(satellite.keys() ^ drone.keys())
        raise UserError(
            "DATALOADER.SAMPLER: 'two_platforms' needs satellite (view 0) and drone images (view 1) of every identity; "
            f"{len(odd) or 'all'} identities lack one"
        )
    ids, rows = np.array(list(satellite)), []
    for _ in range(passes(sum(map(len, platforms)), len(ids), num_instances)):
        for pid in rng.permutation(ids):
            images = drone[pid]
            others = rng.choice(images, num_instances - 1, replace=len(images) < num_instances - 1)
            rows += [satellite[pid][:1], others]
    return whole_batches(np.concatenate(rows), batch_size)


def tracklet_clips(
    pids: np.ndarray, batch_size: int, num_instances: int, rng: np.random.Generator, seqs: np.ndarray, frames: int = 1
) -> Batches:
    """P x K x T: P identities, K tracklets of each, T frames of each tracklet side by side, in order.

    Tracklets are drawn as ``identity_batches`` draws images. Frames are one of each T-th of the tracklet, or drawn with
    replacement from a shorter one. seqs: (N,) tracklets. batch_size: images.
    """
    _, first, owner = np.unique(seqs, return_index=True, return_inverse=True)
    order = np.argsort(owner.reshape(-1), kind="stable")
    tracklets = np.split(order, np.cumsum(np.bincount(owner.reshape(-1)))[:-1])
    batches = []
    for batch in identity_batches(pids[first], batch_size // frames, num_instances, rng):
        batches.append(np.concatenate([clip(tracklets[number], frames, rng) for number in batch]))
    return batches


def clip(rows: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Returns one row of each of ``frames`` equal stretches of a tracklet; of a shorter one, in order, some twice."""
    if len(rows) < frames:
        return np.sort(rng.choice(rows, frames))
    edges = np.arange(frames + 1) * len(rows) // frames
    return rows[rng.integers(edges[:-1], edges[1:])]


def rows_by_identity(pids: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Returns (identity, its rows) in ascending order of both."""
    order = np.argsort(pids, kind="stable")
    ids, first = np.unique(pids[order], return_index=True)
    return list(zip(ids.tolist(), np.split(order, first[1:]), strict=True)) if len(ids) else []


def whole_batches(rows: np.ndarray, batch_size: int) -> Batches:
    """Cuts rows into batches in order; an incomplete last batch is dropped."""
    return [rows[i : i + batch_size] for i in range(0, len(rows) - batch_size + 1, batch_size)]


def multiple_gallery_nocam(pids: np.ndarray, batch_size: int, num_instances: int, rng: np.random.Generator) -> Batches:
    """``multiple_gallery`` as SSDViT has it: the others of an identity whatever their cameras."""
    return multiple_gallery(pids, batch_size, num_instances, rng, np.zeros_like(pids))


RULES = {
    "softmax_triplet": identity_batches,
    "img_triplet": identity_batches,
    "softmax": shuffled,
    "id": once_per_identity,
    "id_triplet": once_per_identity,
    "repeat_iter": repeated_passes,
    "multiple_gallery_nocam": multiple_gallery_nocam,
}
"""DATALOADER.SAMPLER -> function of (pids, batch size, K, generator) that gives a pass of batches."""

PLACED_RULES = {
    "two_platforms": (two_platforms, "viewids"), "multiple_gallery": (multiple_gallery, "camids"),
    "tracklets": (tracklet_clips, "seqs"),
}  # fmt: skip
"""The same for rules that depend on where images were taken, each with the column of ``Records`` that holds it."""


class EpochSampler(Sampler):
    """Batches of (row, seed) for a ``DataLoader``; ``set_epoch`` first. The seed is for the image's augmentation.

    rule: one of ``RULES`` or, with places, (N,), of ``PLACED_RULES``. batch_size: of all ranks together; each rank
    takes every world-th mini-batch of the one common list, and an incomplete round is dropped. seed: one number, or
    several for samplers that draw apart. steps: an epoch's length, by as many passes as it takes; None for one pass.

    ``first`` is the batch that iteration starts with, 0 after ``set_epoch``: later inside an epoch that is resumed.
    """

    def __init__(
        self,
        rule: Callable[..., Batches],
        pids: np.ndarray,
        batch_size: int,
        num_instances: int,
        seed: int | tuple[int, ...],
        rank: int = 0,
        world: int = 1,
        places: np.ndarray | None = None,
        steps: int | None = None,
    ):
        super().__init__()
        self.places, self.steps = places, steps
        self.rule, self.pids, self.num_instances, self.seed = rule, pids, num_instances, seed
        self.per_rank, self.rank, self.world = batch_size // world, rank, world
        self.rows = np.arange(len(pids))
        self.set_epoch(1)

    def relabel(self, pids: np.ndarray) -> None:
        """Draws by other classes from the next ``set_epoch`` on. pids: (N,), -1 for a row to leave out."""
        self.pids, self.rows = pids, np.flatnonzero(pids >= 0)

    def set_epoch(self, epoch: int) -> None:
        """Draws the batches of an epoch, counted from 1."""
        self.first = 0
        rng = np.random.default_rng([*np.atleast_1d(self.seed).tolist(), epoch])
        batches = self.one_pass(rng)
        while self.steps and batches and len(batches) < self.steps * self.world:
            batches += self.one_pass(rng)
        batches = batches[: (self.steps or len(batches) // self.world) * self.world]
        seeds = rng.integers(2**62, size=(len(batches), self.per_rank))
        self.batches, self.seeds = batches[self.rank :: self.world], seeds[self.rank :: self.world]

    def one_pass(self, rng: np.random.Generator) -> Batches:
        """Returns the batches of one application of the rule, as rows of the whole list."""
        places = () if self.places is None else (self.places[self.rows],)
        batches = self.rule(self.pids[self.rows], self.per_rank, self.num_instances, rng, *places)
        return [self.rows[batch] for batch in batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        remaining = zip(self.batches[self.first :], self.seeds[self.first :], strict=True)
        for rows, seeds in remaining:  # a pair per image would fill the memory
            yield list(zip(rows.tolist(), seeds.tolist(), strict=True))


def make_sampler(cfg: CfgNode, records: Records, rank: int, world: int) -> EpochSampler:
    """Returns the sampler that DATALOADER.SAMPLER names for a method's training list.

    Raises ``UserError`` for batch sizes that cannot be made.
    """
    method = method_of(cfg)
    pids, key = records.pids, method.batch_key
    name, k = cfg.DATALOADER.SAMPLER, cfg.DATALOADER.NUM_INSTANCE
    batch = {
        "SOLVER.IMS_PER_BATCH": cfg.SOLVER.IMS_PER_BATCH,
        "SOLVER.STAGE2.IMS_PER_BATCH": cfg.SOLVER.STAGE2.IMS_PER_BATCH,
    }[key]
    name = "softmax_triplet" if name not in RULES and "triplet" in name else name
    if name not in RULES | PLACED_RULES:
        raise UserError(f"DATALOADER.SAMPLER: unknown {name!r}. Known: {', '.join(RULES | PLACED_RULES)}")
    if name == "multiple_gallery" and k == 0:
        name = "softmax"  # as released
    rule, column = PLACED_RULES[name] if name in PLACED_RULES else (RULES[name], None)
    places = getattr(records, column) if column else None
    if batch % world:
        raise UserError(f"{key}: {batch} images cannot be shared equally by {world} processes")
    if batch // world < 2:
        raise UserError(f"{key}: {batch} leaves a process one image; batch norm needs at least two")
    if name == "tracklets":
        check_clips(records, batch // world, k, cfg.DATALOADER.FRAMES, key)
        rule = partial(tracklet_clips, frames=cfg.DATALOADER.FRAMES)
    sampler_of = partial(EpochSampler, rule, pids, batch, k, cfg.SOLVER.SEED, rank, world, places)
    if method.pseudo_labels:  # identities are not known yet, and an epoch has a fixed length
        if name != "softmax":
            check_batch(batch // world, k)
        return sampler_of(steps=cfg.CLUSTER.ITERS)
    if name != "softmax":
        frames = cfg.DATALOADER.FRAMES  # 1 but for clips
        check_identities(batch // world // frames, k, len(np.unique(pids)), key)
    if name == "repeat_iter" and len(pids) < k * len(np.unique(pids)):
        log.warning("fewer than %d images per identity: an epoch repeats some, to show every identity once", k)
    sampler = sampler_of()
    if not len(sampler):
        raise UserError(f"{key}: {len(pids)} training images give no batch of {batch} under sampler {name!r}")
    return sampler


def check_identities(
    batch: int, num_instances: int, identities: int, key: str = "SOLVER.IMS_PER_BATCH", source: str = "the training set"
) -> None:
    """Raises ``UserError`` unless a batch is P x K and there are P identities. key: names the batch size."""
    check_batch(batch, num_instances, key)
    if batch // num_instances > identities:
        raise UserError(
            f"{key}: a batch of {batch} needs {batch // num_instances} identities with {num_instances} "
            f"images each, {source} has {identities}; lower {key} or raise DATALOADER.NUM_INSTANCE"
        )


def check_clips(records: Records, batch: int, num_instances: int, frames: int, key: str) -> None:
    """Raises ``UserError`` unless the list has tracklets and a batch is P x K x T of them."""
    if records.seqs is None:
        raise UserError(
            "DATALOADER.SAMPLER: 'tracklets' needs tracklets, and the training list names none; in a table the column "
            "'seq' does"
        )
    if batch % (num_instances * frames):
        raise UserError(
            f"{key}: {batch} images per process is not a multiple of DATALOADER.NUM_INSTANCE {num_instances} x "
            f"DATALOADER.FRAMES {frames}; a batch is P identities x K tracklets x T frames"
        )


def check_batch(batch: int, num_instances: int, key: str = "SOLVER.IMS_PER_BATCH") -> None:
    """Raises ``UserError`` unless a batch is P x K."""
    if num_instances < 1 or batch % num_instances:
        raise UserError(
            f"{key}: {batch} images per process is not a multiple of DATALOADER.NUM_INSTANCE {num_instances}; a batch "
            "is P identities x K images"
        )
