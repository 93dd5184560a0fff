"""Colours, rotation, learned policy and occlusion: ranges, what is drawn from the seed, mistakes, and the two views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from configs import ConfigError, load_config
from datasets.images import seeded
from datasets.transforms.augmentations import RandomOcclusion, make_augmentations
from datasets.transforms.pipelines import WithViews, build_transforms, weak_and_strong
from utils.errors import UserError

JITTER = [[0.5, 2], [0.5, 2], [0.5, 2], [-0.1, 0.1]]
ALL = ["INPUT.ROTATION", 5, "INPUT.COLOR_JITTER", JITTER, "INPUT.AUTOAUGMENT", "imagenet", "INPUT.OCCLUSION_MAX", 0.8]
PLAIN = ["INPUT.SIZE_TRAIN", [64, 32], "INPUT.RE_PROB", 0.0, "INPUT.PADDING", 4]


def picture(height: int = 64, width: int = 32) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 200, (height, width, 3), dtype=np.uint8))


def pixels(height: int = 64, width: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.array(picture(height, width))).permute(2, 0, 1)


def test_an_occlusion_is_one_white_square_within_its_bounds():
    occlude, given = RandomOcclusion(0.1, 0.8), pixels()
    sides = set()
    with seeded(0):
        for _ in range(300):
            white = (occlude(given) == 255).all(0)
            rows, columns = white.any(1).nonzero().flatten(), white.any(0).nonzero().flatten()
            side = len(rows)
            assert side == len(columns) and int(white.sum()) == side**2
            assert rows[-1] < 63 and columns[-1] < 31, "the last row and column are spared, as published"
            sides.add(side)
    assert (min(sides), max(sides)) == (3, 24)
    assert not (given == 255).any(), "the picture that was given is left alone"


def test_a_square_of_no_pixel_is_none():
    given = pixels()
    assert RandomOcclusion(0.0, 0.05)(given) is given


def test_nothing_is_made_of_the_default_keys():
    assert make_augmentations(load_config(opts=PLAIN)) is None


@pytest.mark.parametrize("change", [ALL[:2], ALL[2:4], ALL[4:6], ALL[6:]], ids=lambda c: c[0])
def test_each_key_changes_the_image_by_the_seed_alone(change):
    plain, changed = (build_transforms(load_config(opts=[*PLAIN, *more]), True) for more in ([], change))
    found = []
    for transform, seed in ((plain, 5), (changed, 5), (changed, 5), (changed, 6)):
        with seeded(seed):
            found.append(transform(picture()))
    assert found[0].shape == found[1].shape == (3, 64, 32)
    assert torch.equal(found[1], found[2]) and not torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])


def test_rotation_leaves_black_corners_and_keeps_the_centre():
    turn, grey = make_augmentations(load_config(opts=["INPUT.ROTATION", 45])), torch.full((3, 64, 32), 90)
    with seeded(1):
        out = turn(grey.to(torch.uint8))
    assert set(out.unique().tolist()) == {0, 90} and int(out[0, 32, 16]) == 90


def test_views_come_of_one_image_and_only_the_strong_one_knows_the_policy():
    cfg = load_config(opts=[*PLAIN, *ALL])
    weak, strong = weak_and_strong(cfg)
    assert [len(t.recolour.steps) for t in (weak, strong)] == [2, 3]
    with seeded(3):
        both = WithViews(weak, strong)(picture())
    with seeded(3):
        alone = weak(picture())
    assert [view.shape for view in both] == [(3, 64, 32)] * 2
    assert torch.equal(both[0], alone) and not torch.equal(both[0], both[1])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["INPUT.COLOR_JITTER", [[0.5, 2]]], "INPUT.COLOR_JITTER: expected four pairs"),
        (["INPUT.COLOR_JITTER", [*JITTER[:3], [-0.7, 0.1]]], "INPUT.COLOR_JITTER: expected four pairs"),
        (["INPUT.COLOR_JITTER", [2, 2, 2, 0.1]], "INPUT.COLOR_JITTER: expected four pairs"),
        (["INPUT.OCCLUSION_MIN", 0.5], "INPUT.OCCLUSION_MIN 0.5 and INPUT.OCCLUSION_MAX 0.0 cannot go together"),
        (["INPUT.AUTOAUGMENT", "cifar"], "INPUT.AUTOAUGMENT: unknown 'cifar'. Known: '', imagenet"),
        (["INPUT.OCCLUSION_MAX", 1.5], "must be at most 1"),
    ],
)
def test_mistakes_are_one_line(change, line):
    with pytest.raises((UserError, ConfigError), match=line):
        build_transforms(load_config(opts=[*PLAIN, *change]), True)
