"""Tracklets of a list: what is one, what is refused, and one feature for each, against loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from datasets import make_dataloader
from datasets.crop_quality import LEAST, hidden_in_frames, hidden_shares, image_quality, quality_weights
from datasets.records import Records
from datasets.tracklets import tracklets_of, tracklets_of_test
from model import make_model
from processor.evaluate import Settings, evaluate, extract_features, features_of_test
from processor.tracklet_features import TrackletSums
from tests.datasets.every import OPTIONS, drawn_tracks
from tests.datasets.miniatures import message
from tests.tiny import config, write_market


def listed(seqs, pids=None, cams=None, **columns) -> Records:
    paths = [f"{i}.jpg" for i in range(len(seqs))]
    zeros = [0] * len(seqs)
    return Records.of(paths, pids or zeros, cams or zeros, seqs=np.array(seqs), **columns)


def test_tracklets_are_numbered_by_their_first_image_and_stand_for_their_first_frame():
    records = listed([7, 2, 7, 5, 2], [1, 2, 1, 3, 2], frames=np.array([9, 1, 3, 1, 2]))
    found = tracklets_of(records, "set")
    assert found.of_image.tolist() == [0, 1, 0, 2, 1] and len(found) == 3
    assert list(found.records.paths) == ["2.jpg", "1.jpg", "3.jpg"] and found.records.pids.tolist() == [1, 2, 3]


def test_random_tracklets_against_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(20):
        seqs, frames = rng.integers(0, 6, 30), rng.permutation(30)
        found = tracklets_of(listed(seqs.tolist(), frames=frames), "set")
        names = list(dict.fromkeys(seqs.tolist()))
        assert found.of_image.tolist() == [names.index(seq) for seq in seqs]
        firsts = [min((i for i in range(30) if seqs[i] == seq), key=lambda i: frames[i]) for seq in names]
        assert list(found.records.paths) == [f"{i}.jpg" for i in firsts]


@pytest.mark.parametrize(("records", "line"), [
    (Records.of(["0.jpg"]),
     "set: TEST.TRACKLETS needs tracklets, and this set names none; in a table the column 'seq' does"),
    (listed([1, 2, 1], cams=[0, 1, 1]),
     "set: a tracklet (seq) spans cameras 0 and 1: 0.jpg and 2.jpg; a tracklet is one person without a break under one "
     "camera, so number them apart"),
    (listed([1, 2, 1], pids=[4, 1, 5]),
     "set: a tracklet (seq) spans identities 4 and 5: 0.jpg and 2.jpg; a tracklet is one person without a break under "
     "one camera, so number them apart"),
    (listed([1, 1, 1], frames=np.array([3, 4, 3])),
     "set: two images of one tracklet (seq) are of frame 3, the one is 0.jpg; two tracklets have one number, so number "
     "them apart"),
    (listed([1, 1], frames=np.array([3, 4]), times=np.array([0.5, 0.25])),
     "set: time runs backwards in a tracklet, from 0.5 s in frame 3 to 0.25 s in frame 4 (1.jpg)"),
])  # fmt: skip
def test_what_is_no_tracklet_is_refused(records, line):
    assert message(tracklets_of, records, "set") == line


def test_unknown_frames_and_times_are_no_order():
    unknown = listed([1, 1], frames=np.array([-1, -1]), times=np.array([np.nan, 0.5]))
    assert tracklets_of(unknown, "set").of_image.tolist() == [0, 0]


# ---------------------------------------------------------------- features


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_sums_are_weighted_means_whatever_the_batches(unit, weighted):
    rng = torch.Generator().manual_seed(0)
    feats, weights = torch.randn(40, 6, generator=rng), torch.rand(40, generator=rng).double() + 0.1
    owners = torch.randint(0, 5, (40,), generator=rng)
    slow = []
    for tracklet in range(5):
        total, share = torch.zeros(6).double(), 0.0
        for i in range(40):
            if owners[i] == tracklet:
                weight = float(weights[i]) if weighted else 1.0
                feat = feats[i] / feats[i].norm() if unit else feats[i]
                total, share = total + weight * feat.double(), share + weight
        slow.append(total / share)
    for size in (1, 7, 40):
        sums = TrackletSums(owners.numpy(), 5, unit)
        for rows in torch.randperm(40, generator=rng).split(size):
            sums.add(rows, feats[rows], weights[rows] if weighted else None)
        torch.testing.assert_close(sums.features().double(), torch.stack(slow), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def tracks(tmp_path_factory):
    """Settings for the drawn video and a network of chance."""
    size = {f"DATASETS__SYNTHETIC__{k.upper()}": v for k, v in OPTIONS["synthetic_tracks"].items()}
    out = tmp_path_factory.mktemp("out")

    def settings(**changes):
        return config(drawn_tracks().parent, out, DATASETS__NAMES="synthetic_tracks", **size, **changes)

    torch.manual_seed(0)
    return settings, make_model(settings(), 2)


@pytest.mark.parametrize("kind", ["mean", "quality"])
def test_a_set_of_tracklets_is_scored_as_its_means_by_hand(tracks, kind):
    settings, model = tracks
    cfg, cpu = settings(TEST__TRACKLETS=kind), torch.device("cpu")
    (test,) = make_dataloader(cfg, training=False).tests
    of_images = torch.nn.functional.normalize(extract_features(model, test.loader, cpu)).double()
    _, feats = features_of_test(model, test, cpu, Settings.from_cfg(cfg))
    records, count = test.loader.records, len(test.query)
    weights = np.ones(len(records))
    if kind == "quality":
        images = [test.loader.loader.dataset.image(i) for i in range(len(records))]
        lists = [test.query, test.gallery]
        hidden = np.concatenate([hidden_in_frames(r.boxes, r.camids, r.frames) for r in lists])
        weights = quality_weights(np.array([image_quality(image) for image in images]), hidden)
        assert weights.std() > 0.01
    seqs = [("query", s) for s in test.query.seqs] + [("gallery", s) for s in test.gallery.seqs]
    slow, names = [], list(dict.fromkeys(seqs))
    for name in names:
        rows = [i for i, seq in enumerate(seqs) if seq == name]
        slow.append(sum(of_images[i] * weights[i] for i in rows) / sum(weights[i] for i in rows))
    torch.testing.assert_close(feats.double(), torch.stack(slow), rtol=1e-5, atol=1e-6)

    # the protocol: a match is another tracklet of the person under another camera
    q = [name for name in names if name[0] == "query"]
    row_of = {name: seqs.index(name) for name in names}
    pid = {name: int((test.query if row_of[name] < count else test.gallery).pids[row_of[name] % count
           if row_of[name] < count else row_of[name] - count]) for name in names}  # fmt: skip
    cam = {name: int(records.camids[row_of[name]]) for name in names}
    unit = torch.nn.functional.normalize(torch.stack(slow))
    precisions = []
    for query in q:
        gallery = [g for g in names if g[0] == "gallery" and not (pid[g] == pid[query] and cam[g] == cam[query])]
        distance = {g: float((unit[names.index(query)] - unit[names.index(g)]).norm()) for g in gallery}
        hits, found = 0, []
        for rank, g in enumerate(sorted(gallery, key=lambda g: distance[g]), 1):
            if pid[g] == pid[query]:
                hits += 1
                found.append(hits / rank)
        if found:
            precisions.append(sum(found) / len(found))
    results = evaluate(model, [test], Settings.from_cfg(cfg), cpu)["synthetic_tracks"]
    assert results["queries"] == len(q) and results["valid_queries"] == len(precisions) > 0
    assert results["mAP"] == pytest.approx(np.mean(precisions), abs=1e-6)


def test_what_cannot_go_together_is_refused(tracks, tmp_path):
    settings, _ = tracks
    line = message(make_dataloader, settings(TEST__TRACKLETS="mean", TEST__CAMERA_NORM="mean"), False)
    assert line.startswith("TEST.TRACKLETS 'mean' and TEST.CAMERA_NORM 'mean' cannot go together")
    line = message(make_dataloader, settings(TEST__TRACKLETS="mean", TEST__PROTOCOL="retrieval"), False)
    assert line.startswith("TEST.TRACKLETS 'mean' and TEST.PROTOCOL 'retrieval' cannot go together")
    plain = config(write_market(tmp_path), tmp_path, TEST__TRACKLETS="mean")
    assert message(make_dataloader, plain, False).startswith("market1501: TEST.TRACKLETS needs tracklets")


# ---------------------------------------------------------------- quality


def test_quality_falls_with_blur_size_and_exposure():
    rng = np.random.default_rng(0)
    sharp = Image.fromarray(rng.integers(60, 200, (32, 16, 3), np.uint8)).resize((64, 128), Image.Resampling.NEAREST)
    best = image_quality(sharp)
    assert 0.3 < best <= 1
    assert image_quality(sharp.filter(ImageFilter.GaussianBlur(4))) < 0.8 * best
    assert image_quality(sharp.resize((16, 32), Image.Resampling.NEAREST)) < 0.8 * best
    assert image_quality(sharp.point(lambda v: min(255, v * 3))) < 0.8 * best
    assert image_quality(Image.new("RGB", (64, 128), (90, 90, 90))) == LEAST


def test_the_nearer_of_two_hides_the_other():
    boxes = [(0, 0, 10, 20), (5, 10, 15, 30), (40, 0, 50, 20)]
    assert hidden_shares(boxes).tolist() == [0.25, 0, 0] and len(hidden_shares([])) == 0
    two = np.array([*boxes, *boxes, boxes[0]], np.int32)
    cams, frames = np.array([0, 0, 0, 1, 1, 1, 0]), np.array([4, 4, 4, 4, 5, 4, -1])
    assert hidden_in_frames(two, cams, frames).tolist() == [0.25, 0, 0, 0, 0, 0, 0]


def test_joined_lists_keep_frames_and_times():
    from datasets.records import join

    records = listed([0, 0], frames=np.array([1, 2]), times=np.array([0.0, 0.5]))
    both = join([records, records])
    assert both.frames.tolist() == [1, 2, 1, 2] and both.times.tolist() == [0, 0.5, 0, 0.5]
    assert both.seqs.tolist() == [0, 0, 1, 1] and both.take([3]).frames.tolist() == [2]
    assert join([records, replace(records, frames=None)]).frames is None


def test_query_and_gallery_of_one_list_are_not_doubled():
    records = listed([3, 3, 4])
    found = tracklets_of_test(records, records, True, "set")
    assert found.of_image.tolist() == [0, 0, 1] and found.query is found.gallery
    apart = tracklets_of_test(records, records, False, "set")
    assert apart.of_image.tolist() == [0, 0, 1, 2, 2, 3]
