"""D-MMD against slow loops over identities, and its gradients."""

from __future__ import annotations

import pytest
import torch

import loss
from loss.dmmd import SIGMAS, GaussianSum, distance_samples, squared_distances


def slow_mmd(x, y):
    def kernel(a, b):
        gaps = (a[:, None] - b[None]).square().sum(-1)
        return sum(torch.exp(-gaps / (2 * s)) for s in SIGMAS).mean()

    return kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)


def slow_samples(feats, k):
    groups = feats.split(k)
    gaps = lambda a, b: (a[:, None] - b[None]).square().sum(-1)  # noqa: E731
    within = torch.cat([gaps(g, g) for g in groups])
    between = [gaps(groups[0], groups[1])]
    for a in range(1, len(groups)):
        between += [gaps(groups[a], groups[b]) for b in range(len(groups)) if b != a]
    return within, torch.cat(between)


@pytest.mark.parametrize(("p", "k", "width"), [(2, 2, 3), (5, 4, 16), (3, 1, 7)])
def test_terms_equal_the_loops(p, k, width):
    torch.manual_seed(0)
    source, target = torch.randn(p * k, width, dtype=torch.double), torch.randn(p * k, width, dtype=torch.double)
    mine, slow = distance_samples(squared_distances(source, source), k), slow_samples(source, k)
    for actual, expected in zip(mine, slow, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-6)
    expected = [slow_mmd(a, b) for a, b in zip(slow_samples(source, k), slow_samples(target, k), strict=True)]
    expected.append(slow_mmd(source, target))
    for actual, value in zip(loss.dmmd(source, target, k), expected, strict=True):
        torch.testing.assert_close(actual.double(), value, rtol=1e-4, atol=1e-5)


def test_the_kernel_has_the_gradient_of_its_value():
    gaps = (torch.rand(4, 5, dtype=torch.double) * 10).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: GaussianSum.apply(d, (0.5, 2.0, 30.0)), gaps)


def test_distances_move_the_target_only_and_features_move_both():
    source, target = (torch.randn(8, 6, requires_grad=True) for _ in range(2))
    within, between, overall = loss.dmmd(source, target, 4)
    (within + between).backward(retain_graph=True)
    assert source.grad is None and target.grad.abs().sum() > 0
    overall.backward()
    assert source.grad.abs().sum() > 0


def test_equal_domains_have_no_discrepancy_and_far_ones_stay_finite():
    feats = torch.randn(12, 5)
    for value in loss.dmmd(feats, feats.clone(), 4):
        assert abs(float(value)) < 1e-5
    far = (100 * torch.randn(12, 5) + 1000).requires_grad_()
    total = sum(loss.dmmd(feats, far, 4))
    total.backward()
    assert total.isfinite() and far.grad.isfinite().all()


def test_duplicates_in_a_batch_have_finite_gradients():
    feats = torch.randn(4, 5).repeat_interleave(2, 0).requires_grad_()
    sum(loss.dmmd(torch.randn(8, 5), feats, 4)).backward()
    assert feats.grad.isfinite().all()


@pytest.mark.parametrize(("rows", "k"), [(7, 4), (4, 4)])
def test_rows_that_are_not_whole_identities_are_refused(rows, k):
    with pytest.raises(ValueError, match="not two or more identities"):
        loss.dmmd(torch.randn(8, 3), torch.randn(rows, 3), k)
