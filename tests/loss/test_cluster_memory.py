"""The class memory against a loop over images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from loss.cluster_memory import ClusterMemory, class_means


def slow_update(rows, feats, labels, momentum, rule):
    rows, feats = rows.clone(), F.normalize(feats)
    if rule == "hard":
        chosen = {}
        for f, y in zip(feats, labels.tolist(), strict=True):
            if y not in chosen or f @ rows[y] < chosen[y] @ rows[y]:
                chosen[y] = f
        pairs = [(f, y) for y, f in chosen.items()]
    else:
        pairs = list(zip(feats, labels.tolist(), strict=True))
    for f, y in pairs:
        rows[y] = F.normalize(momentum * rows[y] + (1 - momentum) * f, dim=0)
    return rows


@pytest.mark.parametrize("rule", ["mean", "hard"])
def test_updates_equal_the_loop(rule):
    torch.manual_seed(1)
    rows, feats, labels = F.normalize(torch.randn(5, 8)), torch.randn(20, 8), torch.randint(5, (20,))
    memory = ClusterMemory(rows, momentum=0.3, update=rule)
    memory.update(feats, labels)
    torch.testing.assert_close(memory.features, slow_update(rows, feats, labels, 0.3, rule))


def test_the_loss_is_cross_entropy_of_cosines_and_leaves_the_memory_alone():
    rows, feats = F.normalize(torch.randn(4, 6)), torch.randn(3, 6, requires_grad=True)
    labels, memory = torch.tensor([0, 3, 1]), ClusterMemory(rows, temperature=0.1)
    value = memory(feats, labels)
    torch.testing.assert_close(value, F.cross_entropy(F.normalize(feats) @ rows.t() / 0.1, labels))
    value.backward()
    assert torch.equal(memory.features, rows) and feats.grad.abs().sum() > 0


def test_means_leave_outliers_out():
    feats = torch.tensor([[1.0, 0], [0, 1], [0, 3], [5, 5]])
    found = class_means(feats, torch.tensor([0, 1, 1, -1]), 2)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0], [0, 1]]))


def test_an_unknown_update_is_refused():
    with pytest.raises(ValueError, match="update: unknown 'soft'. Known: mean, hard"):
        ClusterMemory(torch.eye(2), update="soft")
