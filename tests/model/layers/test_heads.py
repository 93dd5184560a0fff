"""Classifiers with a margin against their table in loops, at the ends of the cosine, and the necks."""

from __future__ import annotations

import math

import pytest
import torch

from model.layers.heads import CLASSIFIERS, make_head, make_neck
from utils.errors import UserError

SCALE, MARGIN = 30.0, 0.5


def slow_logits(kind: str, feat, weight, labels, s: float, m: float):
    """The table of section 2.2, an entry at a time. feat: (B, D), weight: (C, D)."""
    rows = []
    for x, y in zip(feat, labels.tolist(), strict=True):
        row = []
        for j, w in enumerate(weight):
            if kind == "softmax":
                row.append((x * w).sum())
                continue
            c = (x * w).sum() / (x.norm() * w.norm())
            held = c.detach()
            if kind == "circle":
                own = max(1 + m - held, 0) * (c - (1 - m))
                other = max(held + m, 0) * (c - m)
            else:
                own, other = c - m, c
            if kind == "arcface":
                if c > math.cos(math.pi - m):
                    own = c * math.cos(m) - (1 - c * c).clamp(min=0).sqrt() * math.sin(m)
                else:
                    own = c - m * math.sin(math.pi - m)
            row.append(s * (own if j == y else other))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def case(kind: str, margin: float = MARGIN):
    torch.manual_seed(0)
    head = make_head(kind, 6, 5, SCALE, margin)
    feat = torch.randn(8, 6)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    with torch.no_grad():  # cosines on both sides of every branch: far from the label, near it
        feat[5] = -head.weight[0] * 3 + 0.05 * torch.randn(6)
        feat[6] = head.weight[1] * 3 + 0.05 * torch.randn(6)
    return head, feat.requires_grad_(), labels


@pytest.mark.parametrize("margin", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("kind", sorted(CLASSIFIERS))
def test_logits_are_those_of_the_table_in_value_and_gradient(kind, margin):
    head, feat, labels = case(kind, margin)
    ours = head(feat, labels)
    theirs = slow_logits(kind, feat, head.weight, labels, SCALE, margin)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    inputs = [feat, *head.parameters()]
    mix = torch.randn(8, 5)
    for one, two in zip(*(torch.autograd.grad((x * mix).sum(), inputs) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, two, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", sorted(set(CLASSIFIERS) - {"softmax"}))
def test_without_labels_logits_are_scaled_cosines(kind):
    head, feat, labels = case(kind)
    weight = head.weight.detach()
    cosines = torch.stack([torch.stack([torch.cosine_similarity(x, w, 0) for w in weight]) for x in feat])
    torch.testing.assert_close(head(feat), SCALE * cosines)
    assert (head(feat, labels) < head(feat)).gather(1, labels[:, None])[:, 0].sum() >= 6  # the margin makes it harder


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("kind", sorted(CLASSIFIERS))
def test_gradients_are_finite_at_cosine_exactly_one_and_minus_one(kind, sign):
    head = make_head(kind, 4, 3, SCALE, MARGIN)
    with torch.no_grad():
        (head.W.t() if kind == "amsoftmax" else head.weight)[:] = torch.eye(3, 4)
    feat = (sign * torch.eye(3, 4)).requires_grad_()
    logits = head(feat, torch.arange(3))
    if kind != "softmax":
        assert (head(feat).diagonal() == sign * SCALE).all()
    torch.nn.functional.cross_entropy(logits, torch.arange(3)).backward()
    assert logits.isfinite().all() and feat.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("kind", sorted(CLASSIFIERS))
def test_a_feature_of_zeros_gives_finite_logits_and_gradients(kind):
    head, feat = make_head(kind, 4, 3), torch.zeros(2, 4, requires_grad=True)
    logits = head(feat, torch.tensor([0, 2]))
    logits.logsumexp(1).sum().backward()
    assert logits.isfinite().all() and feat.grad.isfinite().all()


def test_cosines_keep_float32_under_autocast():
    head, feat, labels = case("arcface")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(head(feat, labels), head(feat.float(), labels))
        assert head(feat.bfloat16(), labels).dtype == torch.float32


def test_weights_lie_as_in_the_published_files():
    for kind in CLASSIFIERS:
        shapes = [(name, tuple(p.shape)) for name, p in make_head(kind, 6, 5).named_parameters()]
        assert shapes == ([("W", (6, 5))] if kind == "amsoftmax" else [("weight", (5, 6))])


def test_initial_weights_follow_the_published_rules():
    torch.manual_seed(0)
    bound = {"arcface": (6 / 600) ** 0.5, "cosface": (6 / 600) ** 0.5, "circle": 1 / 200**0.5}
    for kind, limit in bound.items():  # uniform
        weight = make_head(kind, 200, 400).weight
        assert 0.97 * limit < weight.abs().max() <= limit and abs(weight.std() * 3**0.5 / limit - 1) < 0.02
    assert abs(make_head("softmax", 200, 400).weight.std() / 0.001 - 1) < 0.02
    assert abs(make_head("amsoftmax", 200, 400).W.std() / (2 / 600) ** 0.5 - 1) < 0.02


def test_a_neck_normalises_and_its_shift_is_frozen():
    neck = make_neck(4)
    assert not neck.bias.requires_grad and not neck.bias.any() and neck.weight.requires_grad
    assert (neck.eps, neck.momentum, (neck.weight == 1).all()) == (1e-5, 0.1, True)
    neck(torch.randn(6, 4)).square().sum().backward()
    assert neck.bias.grad is None and neck.weight.grad is not None


def test_an_unknown_head_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="MODEL.ID_LOSS_TYPE: unknown 'arcfase', did you mean 'arcface'"):
        make_head("arcfase", 4, 3)
