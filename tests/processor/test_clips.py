"""Training on clips: which frames make a batch, how they are pooled, and that one frame a clip is an image."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from datasets import make_dataloader
from datasets.records import Records
from datasets.samplers import clip, make_sampler, tracklet_clips
from loss import make_loss
from model import make_model
from model.layers.temporal import POOLINGS, TemporalPooling
from processor.methods.supervised import Supervised
from tests.datasets.every import OPTIONS, drawn_tracks
from tests.datasets.miniatures import message
from tests.tiny import config, write_market


def test_a_batch_is_identities_by_tracklets_by_frames():
    rng = np.random.default_rng(0)
    seqs = np.repeat(np.arange(12), [9, 3, 7, 5, 4, 8, 2, 6, 5, 9, 1, 4])
    owner = rng.permutation(np.repeat(np.arange(4), 3))  # three tracklets of each identity
    pids = owner[seqs]
    batches = tracklet_clips(pids, 2 * 2 * 4, 2, rng, seqs, frames=4)
    assert batches
    for batch in batches:
        clips = batch.reshape(4, 4)
        assert all(len(set(seqs[rows])) == 1 and (np.diff(rows) >= 0).all() for rows in clips)
        people = [pids[rows[0]] for rows in clips]
        assert people[0] == people[1] != people[2] == people[3]
        assert all(seqs[clips[i][0]] != seqs[clips[i + 1][0]] for i in (0, 2))


def test_frames_are_of_equal_stretches_and_of_a_short_tracklet_some_twice():
    rng, rows = np.random.default_rng(0), np.arange(100, 110)
    drawn = np.array([clip(rows, 3, rng) for _ in range(300)])
    assert [sorted(set(column)) for column in drawn.T.tolist()] == [
        [100, 101, 102], [103, 104, 105], [106, 107, 108, 109]
    ]  # fmt: skip
    assert clip(rows[:2], 4, rng).shape == (4,) and set(clip(rows[:1], 3, rng)) == {100}


@pytest.mark.parametrize("kind", POOLINGS)
def test_pooling_against_a_loop_and_with_one_frame_it_is_nothing(kind):
    feats = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    slow = []
    for a, b, c in feats.view(2, 3, 5):
        frames, mean = (a, b, c), (a + b + c) / 3
        if kind == "mean":
            slow.append(mean)
        elif kind == "max":
            slow.append(torch.maximum(torch.maximum(a, b), c))
        elif kind == "gem":
            cubes = sum(frame**3 for frame in frames) / 3
            slow.append(cubes.sign() * cubes.abs() ** (1 / 3))
        else:
            weights = torch.stack([torch.exp(5 * (f @ mean) / (f.norm() * mean.norm())) for f in frames])
            slow.append(sum(w * f for w, f in zip(weights / weights.sum(), frames, strict=True)))
    pool = TemporalPooling(kind, 3).double()
    torch.testing.assert_close(pool(feats), torch.stack(slow))
    assert torch.autograd.gradcheck(pool, (feats.requires_grad_(),))
    assert TemporalPooling(kind, 1)(feats) is feats


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    size = {f"DATASETS__SYNTHETIC__{k.upper()}": v for k, v in OPTIONS["synthetic_tracks"].items()}
    out = tmp_path_factory.mktemp("out")

    def make(**changes):
        clips = {"DATALOADER__SAMPLER": "tracklets", "DATALOADER__NUM_INSTANCE": 2, "SOLVER__IMS_PER_BATCH": 4}
        return config(drawn_tracks().parent, out, DATASETS__NAMES="synthetic_tracks", **size, **(clips | changes))

    return make


def gradients(cfg, model, batch, frames: int) -> tuple[list, list]:
    """The terms of one step and the gradients of all parameters."""
    stage = Supervised(model, 1, loader=None, loss_function=make_loss(cfg, 2), make_solver=None, frames=frames)
    model.train()
    torch.manual_seed(0)
    terms = stage.losses(batch)
    sum(terms.values()).backward()
    return list(terms.values()), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", POOLINGS)
def test_the_step_of_clips_of_one_frame_is_that_of_images_bit_for_bit(kind, settings):
    cfg = settings()
    data = make_dataloader(cfg)
    batch = next(iter(data.train.epoch(1)))
    torch.manual_seed(0)
    plain = make_model(cfg, 2)
    pooled = copy.deepcopy(plain)
    pooled.temporal = TemporalPooling(kind, 1)
    for one, other in zip(*(gradients(cfg, model, batch, 1) for model in (plain, pooled)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("jigsaw", [False, True])
def test_a_step_of_clips_is_the_step_of_their_means(jigsaw, settings):
    """With the mean, what the losses see is the mean of the frames' features, and one label for each clip."""
    cfg = settings(DATALOADER__FRAMES=3, SOLVER__IMS_PER_BATCH=12, MODEL__JPM=jigsaw)
    data = make_dataloader(cfg)
    batch = next(iter(data.train.epoch(1)))
    torch.manual_seed(0)
    model = make_model(cfg, 2).train()
    seen = {}
    stage = Supervised(
        model, 1, loader=None, make_solver=None, frames=3,
        loss_function=lambda out, labels: seen.update(out=out, labels=labels) or {"id": out.scores[0].sum()},
    )  # fmt: skip
    torch.manual_seed(1)
    stage.losses(batch)
    torch.manual_seed(1)
    feats, _ = model.part_features(batch.images, batch.cam_labels, batch.view_labels)
    assert seen["labels"].tolist() == batch.pids[::3].tolist() and len(seen["out"].feats) == len(feats)
    for got, raw in zip(seen["out"].feats, feats, strict=True):
        torch.testing.assert_close(got, raw.view(4, 3, -1).mean(1))
    model.eval()
    assert model(batch.images).shape[0] == 12  # in tests every image has a feature


def test_mistakes_end_in_one_line(settings, tmp_path):
    def refused(**changes) -> str:
        return message(lambda: make_dataloader(settings(**changes)))

    assert refused(DATALOADER__FRAMES=3) == (
        "SOLVER.IMS_PER_BATCH: 4 images per process is not a multiple of DATALOADER.NUM_INSTANCE 2 x DATALOADER.FRAMES "
        "3; a batch is P identities x K tracklets x T frames"
    )
    assert refused(DATALOADER__FRAMES=2, DATALOADER__SAMPLER="softmax_triplet") == (
        "DATALOADER.FRAMES 2 and DATALOADER.SAMPLER 'softmax_triplet' cannot go together: frames of one tracklet are "
        "drawn together; use 'tracklets'"
    )
    assert "cannot go together: the method takes images by themselves" in refused(
        DATALOADER__FRAMES=2, PROCESSOR__NAME="cluster"
    )
    cfg = config(write_market(tmp_path), tmp_path, DATALOADER__SAMPLER="tracklets")
    assert message(make_dataloader, cfg).startswith("DATALOADER.SAMPLER: 'tracklets' needs tracklets")
    with pytest.raises(Exception, match="clips are pooled between a backbone and its neck"):
        make_model(settings(DATALOADER__FRAMES=2, MODEL__NAME="torchreid_osnet_x0_25"), 2)


def test_an_epoch_draws_every_rank_its_share():
    records = Records.of([f"{i}" for i in range(96)], np.repeat([0, 1], 48), seqs=np.repeat(np.arange(24), 4))
    from configs import load_config

    words = ["DATALOADER.SAMPLER", "tracklets", "DATALOADER.NUM_INSTANCE", 2, "DATALOADER.FRAMES", 2]
    cfg = load_config(opts=[*words, "SOLVER.IMS_PER_BATCH", 16])
    for rank in (0, 1):
        sampler = make_sampler(cfg, records, rank, 2)
        assert len(sampler) == 3 and all(len(batch) == 8 for batch in sampler)
