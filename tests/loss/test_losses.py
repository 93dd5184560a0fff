"""Each loss against its definition in loops, its gradient numerically, its limits; and the composition of a YAML."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from loss import center, cross_entropy, make_loss, part_weights, triplet
from loss.triplet import hardest_pairs, pairwise_distances
from tests.loss.draws import LABELS, draw, same_value_and_gradient
from tests.tiny import config
from utils.errors import UserError

# ---------------------------------------------------------------- triplet


def slow_triplet(feats, labels, margin, normalize):
    if normalize:
        feats = torch.stack([f / f.square().sum().sqrt() for f in feats])
    losses = []
    for a in range(len(feats)):
        dist = [(feats[a] - f).square().sum().clamp(min=1e-12).sqrt() for f in feats]
        positive = max(d for d, y in zip(dist, labels, strict=True) if y == labels[a])
        gap = positive - min(d for d, y in zip(dist, labels, strict=True) if y != labels[a])
        losses.append((1 + gap.exp()).log() if margin is None else (gap + margin).clamp(min=0))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("labels", LABELS.values(), ids=list(LABELS))
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("margin", [None, 0.0, 0.3, 5.0])
def test_triplet_is_its_definition_in_value_and_gradient(margin, normalize, labels):
    feats = draw()
    same_value_and_gradient(
        triplet(feats, labels, margin, normalize), slow_triplet(feats, labels, margin, normalize), feats
    )


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("margin", [None, 5.0])
def test_triplet_passes_gradcheck(margin, normalize):
    assert torch.autograd.gradcheck(lambda f: triplet(f, LABELS["unequal"], margin, normalize), draw(seed=1))


def test_triplet_does_not_change_with_the_order_of_the_batch_a_shift_or_a_turn_of_all_features():
    feats, labels = draw(), LABELS["unequal"]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(draw(5, 5, seed=3).detach())[0]
    value = triplet(feats, labels)
    torch.testing.assert_close(triplet(feats[order], labels[order]), value)
    torch.testing.assert_close(triplet(feats + 7, labels), value)
    torch.testing.assert_close(triplet(feats @ turn, labels), value)
    torch.testing.assert_close(triplet(feats, labels + 40), value)
    torch.testing.assert_close(triplet(3 * feats, labels, 0.9), 3 * value)
    torch.testing.assert_close(triplet(3 * feats, labels, normalize=True), triplet(feats, labels, normalize=True))


@pytest.mark.parametrize("margin", [None, 0.3])
@pytest.mark.parametrize(
    ("feats", "labels", "value"),
    [
        ([[1.0, 2.0]], [0], 0.0),  # no negative: infinitely far
        ([[1.0, 2.0], [3.0, 4.0]], [5, 5], 0.0),
        ([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [0, 1, 1], "gap 0"),  # all equal
        ([[3.0, 0.0], [0.0, 4.0]], [0, 1], "gap -5"),  # an image alone is its own positive, at 1e-6
    ],
    ids=["one image", "no negative", "equal features", "single images"],
)
def test_limits_of_triplet_have_the_expected_value_and_finite_gradients(feats, labels, value, margin):
    feats = torch.tensor(feats, requires_grad=True)
    loss = triplet(feats, torch.tensor(labels), margin)
    if isinstance(value, str):
        gap = float(value.split()[1])
        value = math.log(1 + math.exp(gap)) if margin is None else max(gap + margin, 0)
    assert loss.item() == pytest.approx(value, abs=1e-5)
    loss.backward()
    assert feats.grad.isfinite().all()


def test_distances_keep_float32_under_autocast_and_their_root_stays_differentiable():
    feats = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)) + 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pairwise_distances(feats, feats)
    off = ~torch.eye(6, dtype=torch.bool)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[off], torch.cdist(feats, feats)[off], atol=1e-3, rtol=1e-4)
    assert found.diagonal().max() < 0.05 and found.min() >= 1e-6
    positive, negative = hardest_pairs(torch.zeros(3, 2), torch.tensor([0, 0, 1]))
    assert positive.tolist() == pytest.approx([1e-6] * 3) and negative.tolist() == pytest.approx([1e-6] * 3)


# ---------------------------------------------------------------- center, cross-entropy


def slow_center(feats, labels, centers):
    terms = [
        sum((f - c) ** 2 for f, c in zip(x, centers[y], strict=True))
        for x, y in zip(feats, labels.tolist(), strict=True)
    ]
    return sum(t.clamp(1e-12, 1e12) for t in terms) / len(terms)


def test_center_is_its_definition_in_value_and_gradient():
    feats, centers, labels = draw(), draw(4, 5, seed=2), LABELS["unequal"]
    same_value_and_gradient(center(feats, labels, centers), slow_center(feats, labels, centers), feats, centers)
    assert torch.autograd.gradcheck(lambda f, c: center(f, labels, c), (feats, centers))


def test_center_at_and_far_from_the_centers_has_finite_gradients():
    centers = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    for feat, value in (([1.0, 2.0], 1e-12), ([1e8, 0.0], 1e12)):
        feats = torch.tensor([feat], requires_grad=True)
        loss = center(feats, torch.tensor([0]), centers)
        loss.backward()
        assert loss.item() == pytest.approx(value) and feats.grad.isfinite().all()


def slow_cross_entropy(scores, labels, epsilon):
    losses = []
    for row, y in zip(scores, labels.tolist(), strict=True):
        log_p = row - row.exp().sum().log()
        targets = [(1 - epsilon) * (j == y) + epsilon / len(row) for j in range(len(row))]
        losses.append(-sum(t * p for t, p in zip(targets, log_p, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_cross_entropy_is_its_definition_in_value_and_gradient(epsilon):
    scores, labels = draw(8, 4), LABELS["unequal"]
    ours, theirs = cross_entropy(scores, labels, epsilon), slow_cross_entropy(scores, labels, epsilon)
    same_value_and_gradient(ours, theirs, scores)
    assert torch.autograd.gradcheck(lambda s: cross_entropy(s, labels, epsilon), scores)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_cross_entropy_ignores_a_shift_of_a_row_and_the_order_of_the_batch_and_stays_finite(epsilon):
    scores, labels = draw(8, 4), LABELS["unequal"]
    value = cross_entropy(scores, labels, epsilon)
    torch.testing.assert_close(cross_entropy(scores + torch.arange(8)[:, None], labels, epsilon), value)
    torch.testing.assert_close(cross_entropy(scores.flip(0), labels.flip(0), epsilon), value)
    extreme = torch.tensor([[1e4, -1e4]], requires_grad=True)
    cross_entropy(extreme, torch.tensor([1]), epsilon).backward()
    assert extreme.grad.isfinite().all()
    assert cross_entropy(torch.zeros(1, 7), torch.tensor([3]), epsilon).item() == pytest.approx(math.log(7))


def test_losses_of_half_precision_come_in_float32():
    half, labels = draw().detach().bfloat16(), LABELS["pairs"]
    losses = [triplet(half, labels), cross_entropy(half, labels % 5), center(half, labels, torch.zeros(4, 5))]
    assert {loss.dtype for loss in losses} == {torch.float32}


# ---------------------------------------------------------------- composition


def output(parts: int, seed: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        scores=[draw(8, 4, seed=10 * seed + i) for i in range(parts)],
        feats=[draw(8, 5, seed=10 * seed + 100 + i) for i in range(parts)],
    )


def compose(**changes):
    return make_loss(config(Path("none"), Path("none"), **changes), 4)


def test_one_part_counts_fully_and_five_as_half_the_whole_and_half_the_mean_of_the_rest():
    assert part_weights(1) == [1.0]
    assert part_weights(5) == [0.5, 0.125, 0.125, 0.125, 0.125]
    assert part_weights(2) == [0.5, 0.5]
    assert all(sum(part_weights(n)) == pytest.approx(1) for n in range(1, 9))


@pytest.mark.parametrize("parts", [1, 5])
@pytest.mark.parametrize("no_margin", [True, False])
@pytest.mark.parametrize("smooth", ["on", "off"])
def test_the_terms_are_weighted_sums_over_the_parts(parts, no_margin, smooth):
    out, labels = output(parts), LABELS["unequal"]
    function = compose(
        MODEL__ID_LOSS_WEIGHT=0.7, MODEL__TRIPLET_LOSS_WEIGHT=2.0, MODEL__NO_MARGIN=no_margin, SOLVER__MARGIN=0.4,
        MODEL__IF_LABELSMOOTH=smooth,
    )  # fmt: skip
    ids = [slow_cross_entropy(s, labels, 0.1 if smooth == "on" else 0.0) for s in out.scores]
    triplets = [slow_triplet(f, labels, None if no_margin else 0.4, False) for f in out.feats]

    def joined(terms):
        return terms[0] if len(terms) == 1 else 0.5 * terms[0] + 0.5 * sum(terms[1:]) / len(terms[1:])

    terms = function(out, labels)
    assert terms.keys() == {"id", "triplet"}
    same_value_and_gradient(terms["id"], 0.7 * joined(ids), *out.scores)
    same_value_and_gradient(terms["triplet"], 2.0 * joined(triplets), *out.feats)


def test_unit_features_are_used_for_one_part_only():
    labels = LABELS["pairs"]
    for parts in (1, 5):
        out = output(parts)
        plain, unit = (compose(SOLVER__TRP_L2=on)(out, labels)["triplet"] for on in (False, True))
        assert torch.equal(plain, unit) == (parts == 5)
    torch.testing.assert_close(
        compose(SOLVER__TRP_L2=True)(output(1), labels)["triplet"], slow_triplet(output(1).feats[0], labels, None, True)
    )


@pytest.mark.parametrize("sampler", ["softmax", "softmax_triplet"])
@pytest.mark.parametrize(("id_weight", "triplet_weight"), [(1.0, 1.0), (0.5, 2.0), (1.0, 0.0)])
@pytest.mark.parametrize("unit", [True, False])
def test_msvits_total_is_the_weighted_mean_of_all_terms(sampler, id_weight, triplet_weight, unit):
    out, labels = output(5), LABELS["unequal"]
    out.feats = out.feats[:3]
    terms = compose(
        MODEL__NAME="msvit_s", MODEL__ID_LOSS_WEIGHT=id_weight, MODEL__TRIPLET_LOSS_WEIGHT=triplet_weight,
        MODEL__IF_LABELSMOOTH="off", SOLVER__TRP_L2=unit, DATALOADER__SAMPLER=sampler,
    )(out, labels)  # fmt: skip
    ids = [id_weight * slow_cross_entropy(s, labels, 0.0) for s in out.scores]
    triplets = [triplet_weight * slow_triplet(f, labels, None, unit) for f in out.feats]
    total = sum(ids + triplets) / (5 * id_weight + 3 * triplet_weight)
    same_value_and_gradient(sum(terms.values()), total, *out.scores, *(out.feats if triplet_weight else []))
    assert ("triplet" in terms) == bool(triplet_weight)


def test_a_plain_neck_on_msvit_has_the_usual_composition():
    out, labels = output(1), LABELS["pairs"]
    plain = compose()(out, labels)
    assert compose(MODEL__NAME="msvit_s", MODEL__MSVIT__HEAD="bnneck")(out, labels) == plain


def test_soft_labels_are_shares_of_the_classes():
    scores, labels = draw(8, 4), LABELS["unequal"] % 4
    soft = F.one_hot(labels, 4).double()
    torch.testing.assert_close(cross_entropy(scores, soft), cross_entropy(scores, labels))
    mixed = 0.3 * soft + 0.7 * soft.flip(0)
    wanted = 0.3 * cross_entropy(scores, labels) + 0.7 * cross_entropy(scores, labels.flip(0))
    torch.testing.assert_close(cross_entropy(scores, mixed), wanted)


@pytest.mark.parametrize("sampler", ["softmax", "id"])
def test_samplers_without_pairs_give_the_plain_cross_entropy_whatever_the_weights(sampler):
    out, labels = output(5), LABELS["pairs"]
    terms = compose(
        DATALOADER__SAMPLER=sampler,
        MODEL__ID_LOSS_WEIGHT=3.0,
        MODEL__TRIPLET_LOSS_WEIGHT=2.0,
        MODEL__IF_LABELSMOOTH="on",
    )(out, labels)
    plain = [F.cross_entropy(s, labels) for s in out.scores]
    assert terms.keys() == {"id"}
    torch.testing.assert_close(terms["id"], 0.5 * plain[0] + 0.125 * sum(plain[1:]))


@pytest.mark.parametrize(("kind", "names"), [("triplet", 2), ("triplet_center", 2), ("center", 1)])
def test_the_metric_loss_type_decides_about_the_triplet_term(kind, names):
    terms = compose(MODEL__METRIC_LOSS_TYPE=kind)(output(1), LABELS["pairs"])
    assert len(terms) == names and "id" in terms  # the center term is the stage's


def test_a_weight_of_0_leaves_the_triplet_term_out():
    assert compose(MODEL__TRIPLET_LOSS_WEIGHT=0.0)(output(1), LABELS["pairs"]).keys() == {"id"}


def test_unknown_words_are_refused_with_their_key():
    with pytest.raises(UserError, match="MODEL.METRIC_LOSS_TYPE: unknown 'triplets', did you mean 'triplet'"):
        compose(MODEL__METRIC_LOSS_TYPE="triplets")
    with pytest.raises(UserError, match="MODEL.IF_LABELSMOOTH: 'maybe' is not a switch"):
        compose(MODEL__IF_LABELSMOOTH="maybe")
