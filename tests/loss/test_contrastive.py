"""The contrastive losses against their definitions in loops, numeric gradients, limits; and CLIP's composition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from configs import load_config
from loss import cross_entropy, make_loss, simclr, simsiam, supervised_contrastive, triplet
from loss.make_loss import clip_part_weights
from model import ReIDOutput
from tests.loss.draws import LABELS, draw, same_value_and_gradient
from utils.errors import UserError

# ---------------------------------------------------------------- supervised contrast


def slow_contrast(anchors, contrasts, anchor_labels, contrast_labels, temperature):
    losses = []
    for a, y in zip(anchors, anchor_labels, strict=True):
        logits = torch.stack([(a * c).sum() / temperature for c in contrasts])
        shares = [z - logits.exp().sum().log() for z in logits]
        positives = [s for s, other in zip(shares, contrast_labels, strict=True) if other == y]
        if positives:
            losses.append(-sum(positives) / len(positives))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("labels", LABELS.values(), ids=list(LABELS))
def test_supervised_contrast_is_its_definition_in_value_and_gradient(labels, temperature):
    anchors, contrasts = draw(), draw(6, seed=1)
    theirs = torch.tensor([3, 0, 0, 1, 5, 3])  # no 2: its anchors have no positive; 5: nobody's positive
    arguments = (anchors, contrasts, labels, theirs, temperature)
    same_value_and_gradient(supervised_contrastive(*arguments), slow_contrast(*arguments), anchors, contrasts)


def test_supervised_contrast_passes_gradcheck_and_does_not_change_with_the_order_of_either_side():
    anchors, contrasts, labels = draw(), draw(seed=1), LABELS["unequal"]
    assert torch.autograd.gradcheck(lambda a, c: supervised_contrastive(a, c, labels, labels), (anchors, contrasts))
    value, order = supervised_contrastive(anchors, contrasts, labels, labels), torch.arange(7, -1, -1)
    torch.testing.assert_close(supervised_contrastive(anchors[order], contrasts, labels[order], labels), value)
    torch.testing.assert_close(supervised_contrastive(anchors, contrasts[order], labels, labels[order]), value)


def test_supervised_contrast_at_its_limits():
    feats = draw(3)
    apart = torch.tensor([7, 8, 9])
    value = supervised_contrastive(feats, draw(3, seed=1), torch.arange(3), apart)
    assert value == 0  # no anchor has a positive
    assert torch.autograd.grad(value, feats)[0].eq(0).all()
    one = draw(1)
    assert supervised_contrastive(one, one, apart[:1], apart[:1]) == 0  # a batch of one has nothing to tell apart
    half = (100 * torch.ones(2, 4)).half()
    assert supervised_contrastive(half, half, torch.zeros(2), torch.zeros(2)).item() == pytest.approx(math.log(2))


# ---------------------------------------------------------------- SimCLR


def slow_simclr(view1, view2, temperature):
    rows = [r / r.norm() for r in (*view1, *view2)]
    count, losses = len(view1), []
    for i, row in enumerate(rows):
        others = [j for j in range(2 * count) if j != i]
        logits = torch.stack([(row * rows[j]).sum() / temperature for j in others])
        losses.append(-logits.log_softmax(0)[others.index((i + count) % (2 * count))])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_simclr_is_its_definition_in_value_and_gradient(count, temperature):
    views = draw(count), draw(count, seed=1)
    same_value_and_gradient(simclr(*views, temperature), slow_simclr(*views, temperature), *views)


def test_simclr_passes_gradcheck_and_knows_no_lengths_no_order_and_no_first_view():
    one, two = draw(4), draw(4, seed=1)
    assert torch.autograd.gradcheck(lambda a, b: simclr(a, b, 0.5), (one, two))
    value = simclr(one, two)
    torch.testing.assert_close(simclr(3 * one, 0.2 * two), value)
    torch.testing.assert_close(simclr(two, one), value)
    torch.testing.assert_close(simclr(one.flip(0), two.flip(0)), value)
    assert simclr(one[:1], two[:1]) == 0
    assert simclr(one, one) < value  # views that agree cost less


# ---------------------------------------------------------------- SimSiam


def test_simsiam_is_its_definition_and_stops_at_the_projections():
    preds, projs = (draw(), draw(seed=1)), (draw(seed=2), draw(seed=3))
    value = simsiam(*preds, *projs)
    cosines = [(a * b).sum() / a.norm() / b.norm() for p, z in zip(preds, projs[::-1], strict=True)
               for a, b in zip(p, z.detach(), strict=True)]  # fmt: skip
    torch.testing.assert_close(value, -sum(cosines) / len(cosines))
    gradients = torch.autograd.grad(value, (*preds, *projs), allow_unused=True)
    assert gradients[2:] == (None, None) and all(g.abs().sum() > 0 for g in gradients[:2])
    torch.testing.assert_close(simsiam(*preds, *preds[::-1]), torch.tensor(-1.0, dtype=torch.double))


@pytest.mark.parametrize("temperature_free", [simclr, lambda a, b: simsiam(a, b, a, b)], ids=["simclr", "simsiam"])
def test_half_precision_inputs_are_compared_in_full_precision(temperature_free):
    one, two = draw(4).float().detach(), draw(4, seed=1).float().detach()
    actual = temperature_free(one.half(), two.half())
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, temperature_free(one.half().float(), two.half().float()))


# ---------------------------------------------------------------- composition


def settings(**changes):
    words = {"MODEL.NAME": "ViT-B-16", "DATALOADER.SAMPLER": "softmax_triplet"}
    words |= {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(opts=[word for pair in words.items() for word in pair])


def output(parts: int = 0, **more) -> ReIDOutput:
    scores, feats = [draw(8, 6, seed=i) for i in range(2 + parts)], [draw(8, 5, seed=9 + i) for i in range(3 + parts)]
    return ReIDOutput(scores, feats, **more)


@pytest.mark.parametrize("local", [0, 4])
def test_clips_parts_are_summed_and_jpms_share_one_weight(local):
    out, labels = output(local), LABELS["pairs"]
    terms = make_loss(settings(MODEL__ID_LOSS_WEIGHT=0.25, MODEL__TRIPLET_LOSS_WEIGHT=2.0), 6)(out, labels)
    ids, triplets = [cross_entropy(s, labels, 0.1) for s in out.scores], [triplet(f, labels, 0.3) for f in out.feats]
    torch.testing.assert_close(terms["id"], 0.25 * (sum(ids[:2]) + sum(ids[2:]) / 4))
    torch.testing.assert_close(terms["triplet"], 2 * (sum(triplets[:3]) + sum(triplets[3:]) / 4))
    assert set(terms) == {"id", "triplet"}
    assert clip_part_weights(6, 2) == [1, 1, 0.25, 0.25, 0.25, 0.25]
    assert clip_part_weights(3, 3) == [1, 1, 1]


def test_text_and_views_join_if_the_output_has_them():
    labels, logits, heads, tokens = LABELS["pairs"], draw(8, 6, 20), [draw(seed=21), draw(seed=22)], [draw(), draw()]
    out = output(i2t_logits=logits, heads=heads, tokens=tokens)
    weights = {"MODEL__I2T_LOSS_WEIGHT": 0.5, "SOLVER__STAGE2__SSL_LOSS_WEIGHT": 0.8}
    terms = make_loss(settings(**weights), 6)(out, labels)
    torch.testing.assert_close(terms["i2t"], 0.5 * F.cross_entropy(logits, labels, label_smoothing=0.1))
    torch.testing.assert_close(terms["ssl"], 0.8 * simclr(*heads))
    siam = make_loss(settings(MODEL__SSL_TYPE="SIMSIAM", **weights), 6)(out, labels)
    torch.testing.assert_close(siam["ssl"], 0.8 * simsiam(*heads, *tokens))


def test_without_pairs_in_a_batch_there_is_no_metric_term():
    assert set(make_loss(settings(DATALOADER__SAMPLER="softmax"), 6)(output(), LABELS["pairs"])) == {"id"}


def test_a_center_loss_is_refused():
    with pytest.raises(UserError, match="MODEL.METRIC_LOSS_TYPE 'triplet_center' and MODEL.NAME 'ViT-B-16' cannot go"):
        make_loss(settings(MODEL__METRIC_LOSS_TYPE="triplet_center"), 6)
