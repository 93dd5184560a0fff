"""Self distillation in both readings: against loops, gradients, limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from loss.self_distillation import entry_distillation, identity_distillation, soft_share, softened

OPTIONS = {"alpha": 0.4, "temperature": 2.0, "weight": 0.7}


def random_views(rows: int = 5, width: int = 6):
    torch.manual_seed(0)
    feats = [torch.randn(rows, width, dtype=torch.double, requires_grad=True) for _ in range(3)]
    return feats, torch.tensor([0, 3, 5, 9, 1])[:rows], torch.tensor([2, 2, 7, 0, 4])[:rows]


def slow_softened(feat: torch.Tensor, label: int, alpha: float) -> list[torch.Tensor]:
    total = sum(math.e**x for x in feat)
    hard = min(label, len(feat) - 1)
    return [(1 - alpha) * (i == hard) + alpha * math.e**x / total for i, x in enumerate(feat)]


def slow_divergence(p: list, q: list) -> torch.Tensor:
    return sum(a * (torch.log(a) - torch.log(b)) for a, b in zip(p, q, strict=True))


def test_the_published_terms_match_the_slow_version_in_value_and_gradient():
    (f, rb, aug), labels, others = random_views()
    actual, by_view = entry_distillation(f, rb, aug, labels, others, **OPTIONS)
    scale = 0.7 * 4 / (5 * 6)
    rows = range(5)
    weak = [slow_softened(f[b], int(labels[b]), 0.4) for b in rows]
    expected = scale * sum(slow_divergence(weak[b], slow_softened(rb[b], int(labels[b]), 0.4)) for b in rows)
    seen = scale * sum(slow_divergence(weak[b], slow_softened(aug[b], int(others[b]), 0.4)) for b in rows)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(by_view.double(), seen, rtol=1e-6, atol=0)
    for ours, theirs in zip(*(torch.autograd.grad(x, (f, rb)) for x in (actual, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert not by_view.requires_grad


def test_labels_beyond_the_width_fall_on_the_last_entry_and_rows_sum_to_one():
    mixed = softened(torch.zeros(2, 4), torch.tensor([3, 700]), 0.5)
    assert torch.equal(mixed[0], mixed[1]) and torch.equal(mixed.sum(1), torch.ones(2, dtype=torch.double))


def test_flat_features_leave_next_to_no_gradient_in_the_published_reading():
    """Features of unit length: what the method's page says of the published terms."""
    torch.manual_seed(0)
    f, rb = (F.normalize(torch.randn(8, 768)).requires_grad_() for _ in range(2))
    labels = torch.arange(8)
    term, _ = entry_distillation(f, rb, f, labels, labels, alpha=0.48, temperature=3.0, weight=0.7)
    (grad,) = torch.autograd.grad(term, rb)
    assert 0 < float(grad.abs().max()) < 1e-6 and 0 < float(term.detach()) < 1e-5


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_equal_answers_diverge_by_nothing(alpha):
    feats, labels = torch.randn(4, 6), torch.arange(4)
    by_block, by_view = entry_distillation(feats, feats, feats, labels, labels, **OPTIONS | {"alpha": alpha})
    assert float(by_block) == float(by_view) == 0


def test_distillation_over_identities_matches_the_slow_version_and_is_a_gradient():
    (z, other, _), labels = random_views()[0], torch.tensor([0, 3, 5, 2, 1])
    actual = identity_distillation(z, other, labels, **OPTIONS)
    expected = 0.0
    for b in range(5):
        p, q = (z[b] / 2).softmax(0).tolist(), (other[b] / 2).softmax(0).tolist()
        target = [0.6 * (i == int(labels[b])) + 0.4 * p[i] for i in range(6)]
        expected += 0.7 * 4 / 5 * sum(t * (math.log(t) - math.log(q[i])) for i, t in enumerate(target))
    assert float(actual.detach()) == pytest.approx(expected, rel=1e-5)
    (grad,) = torch.autograd.grad(actual, other)
    target = 0.6 * F.one_hot(labels, 6) + 0.4 * (z / 2).softmax(1)
    torch.testing.assert_close(grad, 0.7 * 2 / 5 * ((other / 2).softmax(1) - target), rtol=1e-4, atol=1e-6)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(identity_distillation(z, other, labels, **OPTIONS), z)


def test_the_target_is_the_label_at_first_and_the_answer_at_last():
    z, labels = torch.randn(4, 6), torch.arange(4)
    options = {"temperature": 1.0, "weight": 1.0}
    hard = identity_distillation(z, z, labels, alpha=0.0, **options)
    torch.testing.assert_close(hard, F.cross_entropy(z, labels))
    assert float(identity_distillation(z, z, labels, alpha=1.0, **options)) == pytest.approx(0, abs=1e-6)


def test_the_share_grows_to_its_last_value_and_stays():
    shares = [soft_share(e, 4, 0.8) for e in (1, 2, 4, 6)]
    assert shares == pytest.approx([0.2, 0.4, 0.8, 0.8])
