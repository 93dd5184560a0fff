"""The jigsaw patch module against the text of its definition in index loops."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from model.backbones.vit import ViT, ViTSpec
from model.layers.heads import make_head
from model.layers.jpm import jigsaw_features, jigsaw_pieces, rearrange
from model.networks.reid import ReIDModel


def slow_rearrange(patches: list, shift: int, groups: int) -> list:
    """Rotated left by shift - 1, filled up with the last but one, then patch k of each group in turn."""
    count = len(patches)
    shifted = [patches[(i + shift - 1) % count] for i in range(count)] if 0 < shift <= count else list(patches)
    while len(shifted) % groups:
        shifted.append(shifted[-2] if len(shifted) == count else shifted[-1])
    each = len(shifted) // groups
    new = [None] * len(shifted)
    for g in range(groups):
        for k in range(each):
            new[k * groups + g] = shifted[g * each + k]
    return new


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shift", [0, 1, 2, 5, 8, 9, 10, 40])
@pytest.mark.parametrize("count", [8, 9, 10])
def test_patches_are_shifted_and_shuffled_as_written(count, shift, groups):
    found = rearrange(torch.arange(count).view(1, -1, 1), shift, groups).flatten().tolist()
    assert found == slow_rearrange(list(range(count)), shift, groups)
    assert set(found) == set(range(count))


def test_the_worked_example_of_ten_patches():
    found = rearrange(torch.arange(10).view(1, -1, 1), 5, 2).flatten().tolist()
    assert found == [4, 9, 5, 0, 6, 1, 7, 2, 8, 3]
    odd = rearrange(torch.arange(9).view(1, -1, 1), 5, 2).flatten().tolist()  # 4..8, 0..3, and 2 once more
    assert odd == [4, 0, 5, 1, 6, 2, 7, 3, 8, 2]


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize(("count", "divide"), [(8, 4), (9, 4), (10, 4), (10, 5), (10, 3), (9, 2), (5, 1), (9, 9)])
def test_pieces_are_quarters_with_the_class_token_in_front(count, divide, shuffled):
    tokens = torch.arange(1 + count).view(1, -1, 1) + 100  # the class token is 100
    found = [p.flatten().tolist() for p in jigsaw_pieces(tokens, 5, 2, divide, shuffled)]
    patches = list(range(101, 101 + count))
    q = slow_rearrange(patches, 5, 2) if shuffled else patches
    n = count // divide
    assert found == [[100, *q[(i - 1) * n : i * n]] for i in (1, 2, 3, 4)]


def tokens_and_branches(count: int = 9):
    torch.manual_seed(0)
    model = ViT(ViTSpec(16, 2, 2, mlp_ratio=2.0, patch=8), (8 * count, 8), (8, 8)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokens = torch.randn(3, 1 + count, 16, dtype=torch.double, requires_grad=True)
    return model, tokens


@pytest.mark.parametrize("divide", [4, 5, 3, 2])
@pytest.mark.parametrize("shuffled", [True, False])
def test_the_batched_pass_equals_a_pass_per_piece_in_value_and_gradient(divide, shuffled):
    model, tokens = tokens_and_branches()
    whole, local = model.blocks[0], torch.nn.Sequential(model.blocks[1], model.norm)
    layout = {"shift": 5, "groups": 2, "divide": divide, "shuffled": shuffled}
    ours = jigsaw_features(tokens, whole, local, model.pool_tokens, **layout)
    pieces = jigsaw_pieces(tokens, **layout)
    theirs = [whole(tokens)[:, 0], *(local(piece)[:, 0] for piece in pieces)]
    weights = torch.randn(5, 3, 16, dtype=torch.double)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two)
    inputs = [tokens, *model.blocks.parameters(), *model.norm.parameters()]
    grads = [torch.autograd.grad((torch.stack(list(f)) * weights).sum(), inputs) for f in (ours, theirs)]
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


def jpm_model(neck_feat: str = "after", **vit_options) -> ReIDModel:
    torch.manual_seed(1)
    base = ViT(ViTSpec(16, 3, 2, mlp_ratio=2.0, patch=8), (32, 16), (8, 8), **vit_options)
    layout = {"shift": 5, "groups": 2, "divide": 4, "shuffled": True}
    return ReIDModel(base, lambda width: make_head("softmax", width, 7), neck_feat, jigsaw=layout)


@pytest.mark.parametrize("neck_feat", ["before", "after"])
def test_the_model_gives_five_parts_and_joins_them_with_the_locals_over_four(neck_feat):
    model = jpm_model(neck_feat).eval()
    for suffix in model.suffixes:  # necks that do something
        neck = model.get_submodule(f"bottleneck{suffix}")
        torch.nn.init.uniform_(neck.running_mean)
        torch.nn.init.uniform_(neck.running_var, 0.5, 2)
    images = torch.randn(3, 3, 32, 16)
    h = model.base.tokens(images, blocks=-1)
    pieces = jigsaw_pieces(h, 5, 2, 4)
    feats = [model.b1(h)[:, 0], *(model.b2(piece)[:, 0] for piece in pieces)]
    necked = [getattr(model, f"bottleneck{s}")(f) for s, f in zip(("", "_1", "_2", "_3", "_4"), feats, strict=True)]
    g, *parts = necked if neck_feat == "after" else feats
    torch.testing.assert_close(model(images), torch.cat([g, *(p / 4 for p in parts)], 1))
    assert model(images).shape == (3, 5 * 16)
    model.train()
    out = model(images, label=torch.tensor([0, 1, 2]))
    assert len(out.scores) == len(out.feats) == 5
    assert {tuple(s.shape) for s in out.scores} == {(3, 7)} and {tuple(f.shape) for f in out.feats} == {(3, 16)}


def test_training_scores_are_each_parts_classifier_after_its_own_neck():
    model = jpm_model(drop_path=0.0).train()
    out = model(torch.randn(4, 3, 32, 16), label=torch.arange(4))
    for suffix, feat, score in zip(model.suffixes, out.feats, out.scores, strict=True):
        normal = (feat - feat.mean(0)) / (feat.var(0, unbiased=False) + 1e-5).sqrt()
        torch.testing.assert_close(
            score, normal @ getattr(model, f"classifier{suffix}").weight.t(), atol=1e-5, rtol=1e-4
        )


def test_the_two_branches_are_copies_that_train_and_the_original_stays_unused():
    model = jpm_model(drop_path=0.3)
    last = model.base.last_stage().state_dict()
    for branch in (model.b1, model.b2):
        assert all(torch.equal(branch.state_dict()[k], v) for k, v in last.items())
        assert branch[0] is not model.base.blocks[-1] and branch[0].drop_path1.drop_prob == pytest.approx(0.3)
        assert all(p.requires_grad for p in branch.parameters())
    assert model.b1[0] is not model.b2[0]
    assert not any(p.requires_grad for p in model.base.last_stage().parameters())
    sum(s.sum() for s in model.train()(torch.randn(4, 3, 32, 16), label=torch.arange(4)).feats).backward()
    assert all(p.grad is not None for branch in (model.b1, model.b2) for p in branch.parameters())
    assert all(p.grad is None for p in model.base.last_stage().parameters())
    names = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert {n.split(".")[0].rstrip("_1234") for n in names} <= {"classifier", "bottleneck"}


def test_layout_is_passed_to_a_head_per_part():
    build = partial(make_head, "arcface", num_class=7)
    base = ViT(ViTSpec(16, 2, 2, patch=8), (32, 16), (8, 8))
    model = ReIDModel(base, lambda w: build(width=w), jigsaw={"shift": 0, "groups": 1, "divide": 4}, reduce_dim=6)
    out = model.train()(torch.randn(3, 3, 32, 16), label=torch.tensor([0, 1, 6]))
    assert {tuple(f.shape) for f in out.feats} == {(3, 6)} and len(out.scores) == 5
