"""Transforms, samplers and loaders: what an image becomes, which images make a batch, and what a bad image does."""

from __future__ import annotations

import multiprocessing
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from configs import load_config
from datasets import build_transforms, make_dataloader, make_dataset
from datasets.batches import TestLoader, TrainLoader
from datasets.catalogue import CATALOGUE
from datasets.dataset import ReIDDataset
from datasets.images import ImageList
from datasets.joining import hold_out, join_training, label_as_trained
from datasets.records import Records, join
from datasets.samplers import (
    RULES,
    EpochSampler,
    check_identities,
    identity_batches,
    make_sampler,
    once_per_identity,
    repeated_passes,
    shuffled,
    two_platforms,
)
from datasets.transforms.imagenet import make_mixup
from datasets.transforms.pipelines import CONST_FILL, PadAndCrop, RandomErasing, ToNormalized, turned
from tests.tiny import config, write_market
from utils.errors import UserError
from utils.methods import METHODS, register_method

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(1, 255, (height, width, 3), np.uint8))


def settings(root=Path("."), **changes):
    return config(root, Path("unused"), **{"INPUT__PIXEL_MEAN": MEAN, "INPUT__PIXEL_STD": STD, **changes})


# ---------------------------------------------------------------- transforms


@pytest.mark.parametrize("shape", [(57, 23), (16, 8), (32, 16)])
def test_evaluation_equals_torchvisions_bilinear_resize_and_normalisation(shape):
    image = photo(*shape)
    ours = build_transforms(settings(), is_train=False)(image)
    resized = tv.resize(image, [32, 16], tv.InterpolationMode.BILINEAR)
    torch.testing.assert_close(ours, tv.normalize(tv.to_tensor(resized), MEAN, STD), rtol=0, atol=1e-6)
    assert ours.dtype == torch.float32


@pytest.mark.parametrize("flip", [0, 1])
def test_training_without_its_random_parts_is_a_bicubic_resize_mirrored_or_not(flip):
    cfg = settings(INPUT__PROB=flip, INPUT__RE_PROB=0, INPUT__PADDING=0)
    image = photo(57, 23)
    ours = build_transforms(cfg, is_train=True)(image)
    off = {mode: grey_levels_off(ours.flip(2) if flip else ours, image, mode) for mode in tv.InterpolationMode}
    bicubic = off.pop(tv.InterpolationMode.BICUBIC)
    assert bicubic.max() <= 8 and bicubic.mean() < 0.5  # noise is the worst case: rounded in another order
    assert bicubic.mean() < 0.1 * min(o.mean() for o in off.values())
    same_size = build_transforms(cfg, is_train=True)(photo(32, 16))
    assert grey_levels_off(same_size.flip(2) if flip else same_size, photo(32, 16)).max() < 1e-3


def grey_levels_off(ours, image: Image.Image, mode=tv.InterpolationMode.BICUBIC) -> torch.Tensor:
    """How far a normalised image is from Pillow's resize, in levels of 255."""
    wanted = tv.to_tensor(tv.resize(image, [32, 16], mode))
    return 255 * (ours * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1) - wanted).abs()


@pytest.mark.parametrize(("shape", "padding"), [((12, 6), 3), ((4, 3), 10)])
def test_padding_shows_a_shifted_image_on_black_and_every_shift_occurs(shape, padding):
    random.seed(0)
    pixels, seen = np.asarray(photo(*shape)), set()
    for _ in range(1200):
        out = PadAndCrop(padding)(torch.tensor(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        assert out.shape == pixels.shape
        fits = []
        for down in range(-padding, padding + 1):
            for right in range(-padding, padding + 1):
                wanted = np.zeros_like(pixels)
                for y in range(shape[0]):
                    if 0 <= y - down < shape[0]:
                        for x in range(max(0, right), min(shape[1], shape[1] + right)):
                            wanted[y, x] = pixels[y - down, x - right]
                if np.array_equal(out, wanted):
                    fits.append((down, right))
            if len(fits) > 1:
                break
        assert fits
        seen.add(fits[0] if len(fits) == 1 else "all black")
        if len(seen) > 20:
            break
    assert len(seen) > 20
    assert min(s[0] for s in seen if s != "all black") < 0 < max(s[0] for s in seen if s != "all black")
    assert min(s[1] for s in seen if s != "all black") < 0 < max(s[1] for s in seen if s != "all black")


def test_symmetric_padding_mirrors_the_edges_and_every_shift_occurs():
    random.seed(0)
    pixels = torch.tensor(np.asarray(photo(6, 5))).permute(2, 0, 1)
    padded = np.pad(pixels.numpy(), ((0, 0), (3, 3), (3, 3)), "symmetric")
    seen = set()
    for _ in range(600):
        out = PadAndCrop(3, "symmetric")(pixels).numpy()
        fits = [
            (y, x) for y in range(7) for x in range(7) if np.array_equal(out, padded[:, y : y + 6, x : x + 5])
        ]  # fmt: skip
        assert fits
        seen.add(fits[0])
    assert len(seen) == 49


def test_a_margin_is_cut_anywhere_in_training_and_all_round_in_test():
    random.seed(0)
    image = photo(20, 14)
    plain = {"INPUT__RESIZE": "cv2_bilinear", "INPUT__SIZE_TRAIN": [16, 10], "INPUT__SIZE_TEST": [16, 10]}
    plain |= {"INPUT__RESIZE_MARGIN": 4, "INPUT__PROB": 0, "INPUT__RE_PROB": 0, "INPUT__PADDING": 0}
    whole = ToNormalized(MEAN, STD)(torch.tensor(np.asarray(image)).permute(2, 0, 1))  # 20 x 14 already
    test, train = (build_transforms(settings(**plain), is_train=t) for t in (False, True))
    assert torch.equal(test(image), whole[:, 2:18, 2:12])
    seen = set()
    for _ in range(300):
        out = train(image)
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(out, whole[:, y : y + 16, x : x + 10])]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 25


def test_rotation_keeps_the_centre_and_blackens_the_corners():
    pixels = torch.full((3, 21, 21), 200, dtype=torch.uint8)
    found = turned(pixels, 45.0)
    assert (found[:, 8:13, 8:13] == 200).all() and (found[:, 0, 0] == 0).all()
    assert torch.equal(turned(pixels, 0.0), pixels)


def test_only_the_views_that_are_named_are_rotated(tmp_path):
    changes = {"INPUT__ROTATE": 180.0, "INPUT__ROTATE_VIEWS": [0], "INPUT__RE_PROB": 0}
    changes["INPUT__PADDING_MODE"] = "symmetric"
    transform = build_transforms(settings(INPUT__PIXEL_MEAN=[0] * 3, INPUT__PIXEL_STD=[1] * 3, **changes), True)
    assert transform.of_view(0).crop.rotation == 180 and transform.of_view(1).crop.rotation == 0
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for path in paths:
        Image.new("RGB", (16, 32), (255, 255, 255)).save(path)
    records = Records.of(paths, [0, 0], viewids=[0, 1])
    images = ImageList(records, transform)
    batch = images.__getitems__([(0, 5), (1, 5)])
    assert batch.images[0].min() == 0 and batch.images[1].min() == 1  # black corners, mirrored edges
    assert torch.equal(images[(0, 5)][0], batch.images[0])


def test_the_augmentation_of_imagenet_draws_from_the_images_seed_alone(tmp_path):
    cfg = settings(INPUT__PIPELINE="imagenet", INPUT__AUTO_AUGMENT="rand-m9-mstd0.5-inc1", INPUT__RE_PROB=0.25)
    photo(40, 50).save(tmp_path / "a.png")
    images = ImageList(Records.of([str(tmp_path / "a.png")], [0]), build_transforms(cfg, is_train=True))
    drawn = []
    for seed in (1, 2, 1):
        np.random.seed(len(drawn))
        before = np.random.get_state()[1].copy()
        drawn.append(images[(0, seed)][0])
        assert np.array_equal(np.random.get_state()[1], before)
    assert drawn[0].shape == (3, 32, 16) and torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    test = build_transforms(cfg, is_train=False)(photo(64, 64))
    assert test.shape == (3, 32, 16)
    with pytest.raises(UserError, match="INPUT.AUTO_AUGMENT: timm has no 'nonsense'"):
        build_transforms(settings(INPUT__PIPELINE="imagenet", INPUT__AUTO_AUGMENT="nonsense"), is_train=True)


def test_mixed_images_have_soft_labels_and_refuse_a_metric_loss():
    cfg = settings(INPUT__MIXUP=0.4, INPUT__CUTMIX=0.5, DATALOADER__SAMPLER="softmax")
    assert make_mixup(settings(), 5) is None
    mixup, labels = make_mixup(cfg, 5), torch.tensor([0, 1, 2, 3])
    images, targets = mixup(torch.rand(4, 3, 8, 8), labels)
    assert images.shape == (4, 3, 8, 8) and targets.shape == (4, 5)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    for changes in ({"DATALOADER__SAMPLER": "softmax_triplet"}, {"SOLVER__IMS_PER_BATCH": 5}):
        bad = {"INPUT__MIXUP": 0.4, "DATALOADER__SAMPLER": "softmax"} | changes
        with pytest.raises(UserError, match="|".join(key.replace("__", r"\.") for key in changes)):
            make_mixup(settings(**bad), 5)


def test_erased_rectangles_have_the_published_areas_shapes_and_frequency():
    random.seed(1)
    erase, (height, width) = RandomErasing(0.4), (256, 128)
    boxes = [erase.rectangle(height, width) for _ in range(4000)]
    found = np.array([b for b in boxes if b])
    assert abs(len(found) / len(boxes) - 0.4) < 0.03
    top, left, h, w = found.T
    assert (top >= 0).all() and (left >= 0).all() and (h < height).all() and (w < width).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    share, aspect = h * w / (height * width), h / w
    assert 0.019 < share.min() < 0.03 and 0.30 < share.max() < 1 / 3 + 0.005
    assert 0.28 < aspect.min() < 0.35 and 2.8 < aspect.max() < 1 / 0.28
    assert abs(share.mean() - (0.02 + 1 / 3) / 2) < 0.02  # uniform; the widest are refused a little more often
    assert {0, height - 1} & set(top.tolist()) and (top + h == height).any() and (left + w == width).any()


def test_erasing_fills_with_noise_or_a_constant_and_leaves_the_rest():
    random.seed(2)
    torch.manual_seed(2)
    values = []
    for _ in range(30):
        image = torch.full((3, 64, 32), 7.0)
        erased = RandomErasing(1.0)(image.clone())
        values.append(erased[erased != 7])
    noise = torch.cat(values)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    for _ in range(10):
        erased = RandomErasing(1.0, mode="const")(torch.full((3, 64, 32), 7.0))
        holes = erased != 7
        assert holes.any() and (holes == holes[0]).all()
        for channel, value in zip(erased, CONST_FILL, strict=True):
            torch.testing.assert_close(channel[channel != 7].unique(), torch.tensor([value]))


def test_erasing_never_or_always_and_gives_up_on_an_image_too_small():
    random.seed(3)
    assert not any(RandomErasing(0).rectangle(64, 32) for _ in range(200))
    assert all(RandomErasing(1).rectangle(64, 32) for _ in range(200))
    assert RandomErasing(1, (0.9, 1.0)).rectangle(1, 1) is None
    assert RandomErasing(1, (0.5, 0.5)).rectangle(200, 100)[2:] < (200, 100)


@pytest.mark.parametrize(("key", "value"), [
    ("INPUT.RE_PROB", 1.5), ("INPUT.RE_MODE", "zero"), ("INPUT.RE_MAX_AREA", 0.01), ("INPUT.RE_MAX_AREA", 1.2),
    ("INPUT.PADDING", -1), ("INPUT.PROB", 1.5),
])  # fmt: skip
def test_a_setting_out_of_its_range_names_its_key(key, value):
    with pytest.raises(UserError, match=key):
        settings(**{key.replace(".", "__"): value})


def test_means_and_deviations_that_do_not_fit_name_their_keys():
    with pytest.raises(UserError, match="INPUT.PIXEL_MEAN"):
        ToNormalized((0.5, 0.5), STD)
    with pytest.raises(UserError, match="INPUT.PIXEL_STD"):
        ToNormalized(MEAN, (0.1, 0.0, 0.1))


# ---------------------------------------------------------------- samplers

PIDS = np.random.default_rng(5).permutation(np.repeat(np.arange(9), [4, 4, 8, 3, 1, 5, 4, 11, 4]))

RECORDS = Records.of([str(i) for i in range(len(PIDS))], PIDS, camids=np.arange(len(PIDS)) % 3)

def groups_of(batches, pids, k: int):
    return [pids[batch[i : i + k]] for batch in batches for i in range(0, len(batch), k)]


def test_identity_batches_are_p_identities_with_k_images_each():
    batches = identity_batches(PIDS, 12, 4, np.random.default_rng(0))
    for batch in batches:
        found = [set(group) for group in groups_of([batch], PIDS, 4)]
        assert len(batch) == 12
        assert all(len(group) == 1 for group in found) and len(set.union(*found)) == 3


def test_no_image_comes_twice_in_an_epoch_and_small_identities_are_filled_up():
    for seed in range(20):
        rows = np.concatenate(identity_batches(PIDS, 12, 4, np.random.default_rng(seed)))
        times = Counter(rows.tolist())
        enough = [row for row in times if (PIDS[row] == PIDS).sum() >= 4]
        assert max(times[row] for row in enough) == 1
        for pid in (3, 4):  # three images and one: at most one group of four, drawn from these
            assert sum(times[row] for row in times if PIDS[row] == pid) in (0, 4)


def test_an_epoch_ends_when_fewer_than_p_identities_are_left():
    for seed in range(20):
        batches = identity_batches(PIDS, 12, 4, np.random.default_rng(seed))
        used = Counter(int(group[0]) for group in groups_of(batches, PIDS, 4))
        has = {pid: max(int((pid == PIDS).sum()), 4) // 4 for pid in range(9)}
        assert all(used[pid] <= has[pid] for pid in has)
        assert sum(used[pid] < has[pid] for pid in has) < 3


def test_every_identity_is_drawn_about_equally_often_first():
    firsts = Counter(
        int(PIDS[i]) for seed in range(600) for i in identity_batches(PIDS, 12, 4, np.random.default_rng(seed))[0][::4]
    )
    assert min(firsts.values()) > 140 and max(firsts.values()) < 260  # 200 expected


def test_id_triplet_takes_each_identity_once_and_repeats_only_where_it_must():
    batches = once_per_identity(PIDS, 12, 4, np.random.default_rng(0))
    assert [len(b) for b in batches] == [12, 12, 12]
    owners = [set(group) for group in groups_of(batches, PIDS, 4)]
    assert all(len(o) == 1 for o in owners)
    assert len(set.union(*owners)) == 9
    for batch in batches:
        for i in range(0, 12, 4):
            rows = batch[i : i + 4]
            assert len(set(rows.tolist())) == 4 or (PIDS[rows[0]] == PIDS).sum() < 4


def test_softmax_takes_every_image_at_most_once_and_drops_the_rest():
    batches = shuffled(PIDS, 12, 4, np.random.default_rng(0))
    rows = np.concatenate(batches).tolist()
    assert [len(b) for b in batches] == [12, 12, 12]
    assert len(set(rows)) == 36
    assert rows != sorted(rows)


@pytest.mark.parametrize("k", [1, 4, 6])
def test_repeat_iter_fills_as_many_passes_as_the_images_do_with_k_images_each(k):
    batches = repeated_passes(PIDS, 3 * k, k, np.random.default_rng(0))
    passes = max(len(PIDS) // (9 * k), 1)
    assert len(batches) == passes * 9 // 3
    groups = groups_of(batches, PIDS, k)
    for start in range(0, len(groups), 9):  # every pass has every identity once
        assert sorted(int(group[0]) for group in groups[start : start + 9]) == list(range(9))
    for group in np.concatenate(batches).reshape(-1, k):
        pid = PIDS[group[0]]
        assert (PIDS[group] == pid).all()
        assert len(set(group.tolist())) == k or (pid == PIDS).sum() < k


def test_repeat_iter_says_so_where_an_epoch_must_repeat_images(caplog):
    cfg = settings(DATALOADER__SAMPLER="repeat_iter", DATALOADER__NUM_INSTANCE=6, SOLVER__IMS_PER_BATCH=12)
    sampler = make_sampler(cfg, RECORDS, 0, 1)
    assert len(sampler) == 4 and "fewer than 6 images per identity" in caplog.text


def test_two_platforms_give_a_buildings_first_satellite_image_and_drone_images():
    pids = np.repeat(np.arange(4), 8)
    views = np.tile([1, 1, 0, 1, 0, 1, 2, 1], 4)  # drone, two satellite images, one of the street
    batches = two_platforms(pids, 6, 3, np.random.default_rng(0), views)
    assert len(batches) == (28 // 12) * 12 // 6
    for group in np.concatenate(batches).reshape(-1, 3):
        assert len(set(pids[group])) == 1
        assert group[0] % 8 == 2 and (views[group[1:]] == 1).all() and group[1] != group[2]
    with pytest.raises(UserError, match="1 identities lack one"):
        two_platforms(pids, 6, 3, np.random.default_rng(0), np.where(pids == 3, 1, views))


def test_university_1652_trains_on_two_platforms_and_rotates_one_of_them(tmp_path):
    university = tmp_path / "University-Release"
    for platform, count in (("satellite", 1), ("drone", 5), ("street", 1)):
        for building in ("0839", "0842"):
            names = [f"train/{platform}/{building}/{i}.png" for i in range(count)]
            names += [f"test/{split}_{platform}/{building}/t.png" for split in ("query", "gallery")]
            for name in names:
                (university / name).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (255, 255, 255)).save(university / name)
    yaml = Path(__file__).resolve().parents[2] / "configs" / "msvit" / "university1652_s.yml"
    words = ["DATASETS.ROOT_DIR", str(tmp_path), "SOLVER.IMS_PER_BATCH", 8, "DATALOADER.NUM_WORKERS", 0]
    data = make_dataloader(load_config(yaml, [*words, "INPUT.SIZE_TRAIN", [64, 64], "INPUT.SIZE_TEST", [64, 64]]))
    batches = list(data.train.epoch(1))
    assert [len(batch) for batch in batches] == [8]  # 12 images of two buildings: one pass of four each
    (batch,) = batches
    assert batch.view_labels.tolist() == [0, 1, 1, 1] * 2
    assert len(set(batch.pids[:4].tolist())) == len(set(batch.pids[4:].tolist())) == 1
    dark = (batch.images == 0).flatten(1).any(1)
    assert dark[batch.view_labels == 0].any() and not dark[batch.view_labels == 1].any()  # rotated corners
    assert data.tests[0].ks == (1, 5, 10, "1%") and data.tests[0].also == ("mAP",)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_two_processes_share_one_list_of_batches_in_turn(rule):
    def sampler(rank, world, batch):
        return EpochSampler(RULES[rule], PIDS, batch, 2, seed=3, rank=rank, world=world)

    for epoch in (1, 2):
        ranks = [sampler(rank, 2, 8) for rank in (0, 1)]
        alone = sampler(0, 1, 4)
        for s in (*ranks, alone):
            s.set_epoch(epoch)
        one, two = (list(s) for s in ranks)
        assert len(one) == len(two) == len(ranks[0]) > 0
        rows = [[[row for row, _ in batch] for batch in s] for s in (one, two, list(alone))]
        assert [b for pair in zip(rows[0], rows[1], strict=True) for b in pair] == rows[2][: 2 * len(one)]
        assert all(len(batch) == 4 for batch in one + two)
        big = {row for row in range(len(PIDS)) if (PIDS[row] == PIDS).sum() >= 2}
        if rule != "repeat_iter":  # whose passes show images again
            assert not {r for b in rows[0] for r in b} & {r for b in rows[1] for r in b} & big


def test_epochs_differ_and_come_back():
    sampler = EpochSampler(identity_batches, PIDS, 12, 4, seed=3)
    epochs = []
    for epoch in (1, 2, 1):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert epochs[0] == epochs[2] != epochs[1]
    sampler = EpochSampler(identity_batches, PIDS, 12, 4, seed=4)
    assert list(sampler) != epochs[0]
    seeds = [seed for batch in epochs[0] for _, seed in batch]
    assert len(set(seeds)) == len(seeds)


def test_batches_that_cannot_be_made_name_the_key():
    with pytest.raises(UserError, match="not a multiple of DATALOADER.NUM_INSTANCE 4"):
        check_identities(10, 4, 50)
    with pytest.raises(UserError, match="needs 3 identities .* has 2"):
        check_identities(12, 4, 2)
    for changes, words, world in (
        ({"DATALOADER__SAMPLER": "sofmax"}, "DATALOADER.SAMPLER: unknown 'sofmax'", 1),
        ({"SOLVER__IMS_PER_BATCH": 9}, "cannot be shared equally by 2 processes", 2),
        ({"SOLVER__IMS_PER_BATCH": 2, "DATALOADER__SAMPLER": "softmax"}, "leaves a process one image", 2),
        ({"SOLVER__IMS_PER_BATCH": 64, "DATALOADER__SAMPLER": "softmax"}, "44 training images give no batch of 64", 1),
        ({"DATALOADER__NUM_INSTANCE": 0}, "NUM_INSTANCE:? 0", 1),
    ):
        with pytest.raises(UserError, match=words):
            make_sampler(settings(**changes), RECORDS, 0, world)


@pytest.mark.parametrize("name", [*RULES, "softmax_triplet_extra"])
def test_every_sampler_name_gives_batches_of_the_size(name):
    sampler = make_sampler(settings(DATALOADER__SAMPLER=name), RECORDS, 0, 1)
    assert len(sampler) and {len(batch) for batch in sampler} == {4}


# ---------------------------------------------------------------- loaders


def training_loader(root, workers: int, **changes) -> TrainLoader:
    cfg = settings(root, **changes)
    records = make_dataset("market1501", root).train
    sampler = make_sampler(cfg, records, 0, 1)
    return TrainLoader(records, build_transforms(cfg, is_train=True), sampler, workers, cfg.DATALOADER.BAD_IMAGES)


def content(loader: TrainLoader, epoch: int) -> list[tuple]:
    return [(b.images, b.pids, b.cam_labels, b.view_labels, b.rows) for b in loader.epoch(epoch)]


def same(one: list[tuple], two: list[tuple]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(x, y) for a, b in zip(one, two, strict=True) for x, y in zip(a, b, strict=True)
    )


def test_batches_depend_on_seed_and_epoch_alone_and_not_on_workers(market):
    alone, shared = training_loader(market, 0), training_loader(market, 2)
    first = content(alone, 1)
    assert len(first) == len(alone.epoch(1)) > 1
    assert same(first, content(shared, 1))
    assert same(content(alone, 2), content(shared, 2))
    assert same(first, content(alone, 1))
    assert not same(first, content(alone, 2))
    assert not same(first, content(training_loader(market, 0, SOLVER__SEED=99), 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_images_held_in_memory_and_draft_decoding_of_small_ones_change_no_batch(market, workers):
    plain = content(training_loader(market, 0), 1)
    for more in ({"DATALOADER__DRAFT": True}, {"DATALOADER__CACHE": "pixels"}):
        changes = {"DATALOADER__CACHE_GB": 0.000005, "DATALOADER__NUM_WORKERS": workers, **more}
        loader = make_dataloader(settings(market, **changes)).train
        held = loader.loader.dataset.store
        assert 0 < len(held) < len(loader.records) and len(held.block) <= 5_000
        assert same(content(loader, 1), plain)


def test_a_batch_holds_what_the_list_says(market):
    loader = training_loader(market, 0, INPUT__PROB=0, INPUT__RE_PROB=0, INPUT__PADDING=0)
    for batch in loader.epoch(1):
        for i, row in enumerate(batch.rows.tolist()):
            path, *ids = loader.records[row]
            assert [batch.pids[i], batch.cam_labels[i], batch.view_labels[i]] == ids
            with Image.open(path) as image:
                assert grey_levels_off(batch.images[i], image).max() <= 8


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_random_state_alone(market, workers):
    loader = training_loader(market, workers)
    tests = make_dataloader(settings(market, DATALOADER__NUM_WORKERS=workers), training=False).tests[0].loader
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    content(loader, 1)
    assert len(list(tests)) == len(tests)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after


def test_the_test_loader_goes_through_query_and_gallery_in_order(market):
    test = make_dataloader(settings(market, TEST__IMS_PER_BATCH=3), training=False).tests[0]
    rows = torch.cat([batch.rows for batch in test.loader])
    assert rows.tolist() == list(range(len(test.query) + len(test.gallery)))
    assert torch.cat([b.pids for b in test.loader]).tolist() == [*test.query.pids, *test.gallery.pids]


def damage(path: str, how: str) -> None:
    whole = Path(path).read_bytes()
    if how == "missing":
        Path(path).unlink()
    else:
        Path(path).write_bytes({"damaged": whole[: len(whole) // 2], "empty": b"", "text": b"<html>"}[how])


BAD = {"missing": "is missing", "damaged": "cannot be read", "empty": "empty file", "text": "cannot be read"}


@pytest.mark.parametrize(("how", "workers"), [*((how, 0) for how in BAD), ("missing", 2), ("damaged", 2)])
def test_a_bad_image_stops_training_and_testing_with_its_path_in_one_line(tmp_path, how, workers):
    loader = training_loader(write_market(tmp_path), workers, DATALOADER__SAMPLER="softmax")
    path = loader.records.paths[3]
    damage(path, how)
    transform = build_transforms(settings(), is_train=False)
    for run in (lambda: content(loader, 1), lambda: list(TestLoader(loader.records, transform, 4, workers))):
        before = len(multiprocessing.active_children())
        with pytest.raises(UserError) as caught:
            run()
        assert len(multiprocessing.active_children()) == before  # workers end with the error, not ten seconds later
        line = str(caught.value)
        assert line.startswith(f"{path}: the image") and BAD[how] in line and "\n" not in line


@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_of_the_identity_stands_in_for_a_bad_one_on_request(tmp_path, workers, caplog):
    skip = {"DATALOADER__SAMPLER": "softmax", "DATALOADER__BAD_IMAGES": "skip"}
    loader = training_loader(write_market(tmp_path), workers, **skip)
    records = loader.records
    assert records.pids.tolist() == [i // 4 for i in range(16)]
    whole = content(loader, 1)
    for path, how in zip(records.paths[:5], ("missing", "empty", "damaged", "text", "missing"), strict=True):
        damage(path, how)
    batches = content(loader, 1)
    instead = {**{row: row for row in range(16)}, **dict.fromkeys(range(4), 5), 4: 5}  # identity 0 has none left
    assert sum("5 images could not be read" in record.message for record in caplog.records) == 1
    assert len(batches) == len(whole) == 4
    for (images, pids, _, _, rows), (images_whole, _, _, _, rows_whole) in zip(batches, whole, strict=True):
        assert rows.tolist() == [instead[row] for row in rows_whole.tolist()] and len(images) == 4
        assert pids.tolist() == records.pids[rows].tolist()
        kept = rows == rows_whole
        assert torch.equal(images[kept], images_whole[kept])


def test_when_no_image_at_all_can_be_read_training_stops(tmp_path):
    loader = training_loader(write_market(tmp_path), 0, DATALOADER__BAD_IMAGES="skip")
    for path in loader.records.paths:
        Path(path).unlink()
    with pytest.raises(UserError, match="is missing; nor can any other of the 16 images be read"):
        list(loader.epoch(1))
    with pytest.raises(UserError, match="DATALOADER.BAD_IMAGES: unknown 'ignore'. Known: raise, skip"):
        settings(DATALOADER__BAD_IMAGES="ignore")


def test_images_that_stand_in_do_so_for_transforms_of_any_shape_too(tmp_path):
    place = write_market(tmp_path) / "market1501/bounding_box_train"
    paths = [str(path) for path in sorted(place.iterdir())[:6]]
    records = Records.of(paths, [7, 8, 7, 8, 7, 7])
    damage(paths[4], "missing"), damage(paths[5], "text")
    images = ImageList(records, np.asarray, stand_in=True)
    found = [(row, len(broken)) for _, row, broken in (images[i] for i in range(6))]
    assert found == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 2), (0, 1)]
    damage(paths[1], "missing"), damage(paths[3], "missing")
    assert [images[i][1] for i in (1, 3)] == [2, 0]  # no image of 8 is left: the next of anyone
    assert list(images.candidates(2))[:4] == [2, 4, 5, 0]


# ---------------------------------------------------------------- several sets, validation


def dataset(name: str, pids, camids, viewids=None, test_cams=()) -> ReIDDataset:
    def rows(split, pids, camids, viewids=None):
        return Records.of([f"{name}/{split}{i}" for i in range(len(pids))], pids, camids, viewids)

    test = rows("q", np.arange(len(test_cams)), test_cams)
    return ReIDDataset(CATALOGUE[name], Path(name), rows("t", pids, camids, viewids), test, test)


PARTS = [
    dataset("market1501", [0, 1, 1], [0, 1, 2], [0, 0, 0], test_cams=[0, 2, 3]),
    dataset("vehicleid", [0, 0, 1], [0, 0, 0], [0, 0, 0], test_cams=[0, 1]),
    dataset("veri", [1, 0], [1, 0], [1, 0], test_cams=[1, 0, 2]),
]


def test_joined_training_sets_number_identities_cameras_and_views_one_after_another():
    joined = join_training([part.train for part in PARTS])
    assert joined.pids.tolist() == [0, 1, 1, 2, 2, 3, 5, 4]
    assert joined.camids.tolist() == [0, 1, 2, 3, 3, 3, 5, 4]  # one camera for the set without cameras
    assert joined.viewids.tolist() == [0, 0, 0, 1, 1, 1, 3, 2]
    assert joined.domain.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert joined.paths == [p for part in PARTS for p in part.train.paths]


def test_tests_are_labelled_as_in_joined_training_and_keep_their_own_cameras():
    sources = {part.spec.name: part.train for part in PARTS}
    tests = [label_as_trained(part.query, part.spec.name, sources) for part in PARTS]
    cameras = [test.cam_labels.tolist() for test in tests]
    assert cameras == [[0, 2, 6], [3, 6], [5, 4, 6]]  # unknown ones come after all others
    assert [test.camids.tolist() for test in tests] == [part.query.camids.tolist() for part in PARTS]
    joined = join_training(list(sources.values()))
    trained = set(joined.cam_labels.tolist())
    assert trained == set(joined.camids.tolist())
    assert [[cam in trained for cam in part] for part in cameras] == [[1, 1, 0], [1, 0], [1, 1, 0]]
    elsewhere = label_as_trained(PARTS[0].query, "dukemtmc", sources)
    assert not trained & set(elsewhere.cam_labels.tolist())
    assert not {0, 1, 2, 3} & set(elsewhere.view_labels.tolist())
    alone = label_as_trained(PARTS[0].query, "market1501", {"market1501": PARTS[0].train})
    assert list(alone.cam_labels) == [0, 2, 3]


def test_original_ids_come_along_when_lists_are_joined_taken_and_held_out():
    names = np.array(["door east", "door west"])
    one = Records.of(["a", "b"], [0, 1], [1, 0], identities=np.array(["ann", "rex"]), cameras=names)
    two = Records.of(["c"], [0], [0])
    joined = join_training([one, two])
    assert joined.original_pids().tolist() == ["ann", "rex", "0"]
    assert joined.original_camids().tolist() == ["door west", "door east", "0"]
    assert joined.take([1]).original_camids().tolist() == ["door east"]
    assert joined.take([1, 2]).relabelled().original_pids().tolist() == ["rex", "0"]
    assert join([one, one]).original_camids().tolist() == ["door west", "door east"] * 2
    assert join([one, two]).cameras is None
    unknown = Records.of(["d"], [0], [-1], cameras=names)
    assert unknown.original_camids().tolist() == ["-1"]


def test_several_sets_train_together_and_are_tested_apart(tmp_path):
    write_market(tmp_path)
    table = ["path,pid,split,camid"]
    for path in sorted((tmp_path / "market1501").rglob("*.jpg")):
        split = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}[path.parent.name]
        table.append(f"{path},{path.name[:4]},{split},{path.name[6]}")
    (tmp_path / "dataset.csv").write_text("\n".join(table))
    data = make_dataloader(settings(tmp_path, DATASETS__NAMES=["market1501", "csv"]))
    assert (data.num_classes, data.num_cameras, data.num_views) == (8, 4, 2)
    assert [t.name for t in data.tests] == ["market1501", "csv"]
    assert [sorted(set(t.query.cam_labels.tolist())) for t in data.tests] == [[0, 1], [2, 3]]
    assert [sorted(set(t.query.camids.tolist())) for t in data.tests] == [[0, 1], [0, 1]]
    assert [sorted(set(t.query.original_camids().tolist())) for t in data.tests] == [[1, 2], [1, 2]]
    assert {int(b.pids.max()) for e in (1, 2, 3) for b in data.train.epoch(e)} & {4, 5, 6, 7}
    target = make_dataloader(settings(tmp_path, DATASETS__NAMES="market1501", DATASETS__TARGETS=["csv"]), False)
    assert [t.name for t in target.tests] == ["csv"] and target.train is None
    assert min(target.tests[0].query.cam_labels) >= target.num_cameras
    assert min(target.tests[0].query.camids) == 0


def test_unknown_cameras_are_told_where_cameras_are_embedded(tmp_path, caplog):
    place = write_market(tmp_path) / "market1501"
    old = next((place / "query").glob("*_c1*"))
    old.rename(old.with_name(old.name.replace("_c1", "_c9")))
    make_dataloader(settings(tmp_path), False)
    assert not [r for r in caplog.records if "without training images" in r.message]
    make_dataloader(settings(tmp_path, MODEL__SIE_CAMERA=True), False)
    assert [r for r in caplog.records if "1 images of cameras without training images" in r.message]


def test_held_out_identities_leave_training_and_are_searched_among_themselves():
    pids = np.repeat(np.arange(10), 6)
    records = Records.of([str(i) for i in range(60)], pids, np.tile([0, 0, 1, 1, 1, 2], 10))
    train, query, gallery = hold_out(records, 0.3, seed=1)
    held = set(query.pids.tolist())
    assert len(held) == 3 and held == set(gallery.pids.tolist())
    assert set(train.pids.tolist()) == set(range(7))
    assert {pids[int(p)] for p in train.paths} == set(range(10)) - held
    assert not set(train.paths) & {*query.paths, *gallery.paths} and not set(query.paths) & set(gallery.paths)
    assert len(train) + len(query) + len(gallery) == 60
    assert len(query) == 9 and len({(p, c) for _, p, c, _ in query}) == 9  # one of each identity and camera
    again = hold_out(records, 0.3, seed=1)
    assert list(again[0]) == list(train) and list(hold_out(records, 0.3, seed=2)[1]) != list(query)
    for share in (0, 1, -0.5):
        with pytest.raises(UserError, match="DATASETS.VAL_SHARE"):
            hold_out(records, share, 0)


def test_holding_out_of_images_without_cameras_filters_nothing():
    records = Records.of([str(i) for i in range(12)], np.arange(12) // 3)
    _, query, gallery = hold_out(records, 0.5, seed=0)
    assert set(query.camids) == {0} and set(gallery.camids) == {1} and len(gallery) == 4


def test_holding_out_keeps_the_numbers_of_cameras(tmp_path):
    place = write_market(tmp_path, cameras=3) / "market1501" / "bounding_box_train"
    for path in place.glob("000[234]_c2*"):
        path.unlink()  # camera 2 saw identity 1 alone, who may be held out
    counts = {
        make_dataloader(settings(tmp_path, DATASETS__VAL_SHARE=0.25, SOLVER__SEED=seed)).num_cameras
        for seed in range(8)
    }
    assert counts == {3}


def test_a_run_without_training_or_test_images_or_with_an_option_of_another_set_is_refused(tmp_path):
    table = "path,pid,split\na,1,{}\nb,2,{}\n"
    (tmp_path / "dataset.csv").write_text(table.format("query", "gallery"))
    with pytest.raises(UserError, match="no training images"):
        make_dataloader(settings(tmp_path, DATASETS__NAMES="csv"))
    (tmp_path / "dataset.csv").write_text(table.format("train", "train"))
    with pytest.raises(UserError, match="set DATASETS.TARGETS"):
        make_dataloader(settings(tmp_path, DATASETS__NAMES="csv"), training=False)
    with pytest.raises(UserError, match="DATASETS.TEST_SIZE: no dataset of this run"):
        make_dataloader(settings(tmp_path, DATASETS__NAMES="csv", DATASETS__TEST_SIZE=800))


# ---------------------------------------------------------------- methods from outside


@pytest.fixture
def table_of_methods(monkeypatch):
    """A copy of the table, so that what a test registers is gone after it."""
    monkeypatch.setattr("utils.methods.METHODS", dict(METHODS))


def test_a_registered_method_gets_the_data_that_its_traits_ask_for(tmp_path, table_of_methods):
    cfg = settings(write_market(tmp_path), PROCESSOR__NAME="mine", CLUSTER__ITERS=3, DATASETS__TARGETS=["folder"])
    with pytest.raises(UserError, match="PROCESSOR.NAME: unknown 'mine'"):
        make_dataloader(cfg)
    register_method("mine")(lambda cfg, data, model: [])
    plain = make_dataloader(settings(tmp_path, PROCESSOR__NAME="mine"))
    assert plain.plain is None and plain.targets == [] and plain.plain_targets == [] and plain.sources == []
    target = tmp_path / "people"
    write_market(target, ids=2)
    words = {"DATASETS__TARGETS": ["csv"], "DATASETS__FILE": str(tmp_path / "target.csv")}
    lines = [f"{path},{path.name[:4]},{'train' if 'train' in str(path.parent) else 'test'},{path.name[6]}"
             for path in sorted(target.rglob("*.jpg"))]  # fmt: skip
    (tmp_path / "target.csv").write_text("\n".join(["path,pid,split,camid", *lines]))
    register_method("mine", labels=False, in_order=True, network="cluster_encoder", targets=True)(lambda *given: [])
    cfg = settings(tmp_path, PROCESSOR__NAME="mine", CLUSTER__ITERS=3, **words)
    data = make_dataloader(cfg)
    assert [test.name for test in data.tests] == ["csv", "market1501"]
    assert data.plain.records.paths == data.train.records.paths
    assert torch.cat([batch.rows for batch in data.plain]).tolist() == list(range(16))
    assert len(data.targets) == 1 and len(data.targets[0].records) == 8 and data.plain_targets == []
    assert len(data.train.epoch(1)) == len(data.targets[0].epoch(1)) == 3  # pseudo-labels: CLUSTER.ITERS steps
    data.train.relabel(np.where(np.arange(16) < 8, np.arange(16) // 4, -1))
    assert max(int(batch.rows.max()) for batch in data.train.epoch(2)) < 8
    with pytest.raises(UserError, match="DATALOADER.BAD_IMAGES 'skip' and PROCESSOR.NAME 'mine' cannot go together"):
        make_dataloader(settings(tmp_path, PROCESSOR__NAME="mine", DATALOADER__BAD_IMAGES="skip", **words))
    with pytest.raises(UserError, match="DATASETS.TARGETS is empty, and PROCESSOR.NAME 'mine' adapts"):
        make_dataloader(settings(tmp_path, PROCESSOR__NAME="mine"))


def test_a_registered_method_gets_targets_in_order_sources_apart_and_further_views(tmp_path, table_of_methods):
    write_market(tmp_path)
    (tmp_path / "other").mkdir()
    table = [f"{p},{p.name[:4]},{'train' if 'train' in str(p.parent) else 'test'},{p.name[6]}"
             for p in sorted(tmp_path.rglob("*.jpg"))]  # fmt: skip
    (tmp_path / "other.csv").write_text("\n".join(["path,pid,split,camid", *table]))
    register_method("mine", targets=True, targets_in_order=True, views="weak_strong")(lambda *given: [])
    words = {"PROCESSOR__NAME": "mine", "DATASETS__FILE": str(tmp_path / "other.csv")}
    data = make_dataloader(settings(tmp_path, DATASETS__TARGETS=["csv"], **words))
    assert data.plain is None and len(data.targets) == len(data.plain_targets) == 1
    assert data.plain_targets[0].records.paths == data.targets[0].records.paths
    assert len(next(iter(data.train.epoch(1))).views) == 1
    register_method("mine", sources_apart=True)(lambda *given: [])
    apart = {**words, "DATASETS__NAMES": ["market1501", "csv"], "DATALOADER__SAMPLER": "multiple_gallery_nocam"}
    data = make_dataloader(settings(tmp_path, SSD__ITERS=2, **apart))
    assert data.train is None and [source.name for source in data.sources] == ["market1501", "csv"]
    assert [source.num_classes for source in data.sources] == [4, 4]
    assert all(len(source.views) == 1 and len(source.views[0].epoch(1)) == 2 for source in data.sources)
    assert [len(source.plain.records) for source in data.sources] == [16, 16]
    with pytest.raises(UserError, match="DATALOADER.SAMPLER 'id' and PROCESSOR.NAME 'mine' cannot go together"):
        make_dataloader(settings(tmp_path, **{**apart, "DATALOADER__SAMPLER": "id"}))


def test_a_method_without_any_labels_takes_unlabelled_images_and_shuffles(tmp_path, table_of_methods):
    write_market(tmp_path)
    register_method("mine", labels=False, tests=False)(lambda *given: [])
    words = {"PROCESSOR__NAME": "mine", "DATASETS__NAMES": "images"}
    with pytest.raises(UserError, match="DATALOADER.SAMPLER 'softmax_triplet' and PROCESSOR.NAME 'mine' cannot go"):
        make_dataloader(settings(tmp_path, **words))
    data = make_dataloader(settings(tmp_path, DATALOADER__SAMPLER="softmax", **words))
    assert (data.train.records.pids == -1).all() and data.tests == [] and len(data.train.epoch(1)) == 8
