"""Prompts: token positions, nouns, what the text tower reads of them, and their augmentation."""

from __future__ import annotations

import open_clip
import pytest
import torch

from configs import load_config
from model.backbones.clip import build_clip, clip_config
from model.layers.prompt_augment import AUGMENTATIONS, draw, mask, mix, swap
from model.layers.prompt_learner import PromptLearner, prompt_tokens
from model.make_clip import noun_of
from tests.model.tiny_clip import build
from utils.errors import UserError

SHAPE = (6, 77, 32)


def prompts_of(shape=SHAPE, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- template


def test_the_template_is_a_photo_of_a_noun():
    row = prompt_tokens("person")[0].tolist()
    assert row[:12] == [49406, 320, 1125, 539, 320, 343, 343, 343, 343, 2533, 269, 49407] and not any(row[12:])


@pytest.mark.parametrize("noun", ["product", "mountain bike", "BIRD", "x-ray", "Übergröße"])
def test_any_word_may_be_the_noun(noun):
    ids = prompt_tokens(noun)
    learner = PromptLearner(3, ids, torch.randn(49408, 8))
    assert learner.end == int((ids[0] == 49407).nonzero()[0]) >= 11
    assert learner(torch.tensor([2, 0])).shape == (2, 77, 8)


@pytest.mark.parametrize("noun", ["  ", "<end_of_text>", "car <start_of_text>", "word " * 80])
def test_a_noun_that_breaks_the_positions_is_refused(noun):
    with pytest.raises(UserError, match="MODEL.PROMPT_NOUN"):
        prompt_tokens(noun)


@pytest.mark.parametrize(
    ("words", "kind", "noun"),
    [
        (["DATASETS.NAMES", "veri"], "", "vehicle"),
        (["DATASETS.NAMES", ["VehicleID", "market1501"]], "", "vehicle"),
        (["DATASETS.NAMES", "market1501"], "", "person"),
        (["DATASETS.NAMES", "veri"], "car", "car"),
        (["MODEL.PROMPT_NOUN", "zebra"], "person", "zebra"),
    ],
)
def test_the_noun_is_the_keys_else_the_datas(words, kind, noun):
    assert noun_of(load_config(opts=words), kind) == noun


def test_prompts_are_fixed_vectors_around_the_identitys_own():
    table, ids = torch.randn(49408, 8), prompt_tokens("vehicle")
    learner = PromptLearner(4, ids, table)
    found = learner(torch.tensor([3, 3, 1]))
    plain = table[ids[0]]
    for position in [*range(5), *range(9, 77)]:
        assert torch.equal(found[:, position], plain[position].expand(3, -1))
    assert torch.equal(found[:, 5:9], learner.cls_ctx[torch.tensor([3, 3, 1])])
    assert {name for name, _ in learner.named_parameters()} == {"cls_ctx"}


@pytest.mark.parametrize("table", [torch.randn(30522, 8), torch.randn(49408, 6), torch.randn(49408)])
def test_a_table_of_another_vocabulary_is_refused(table):
    learner = PromptLearner(4, prompt_tokens("person"), torch.randn(49408, 8))
    with pytest.raises(UserError, match=r"token embedding of .*49408 rows or more of width 8"):
        learner.fixed_parts(table)


# ---------------------------------------------------------------- text tower


def test_the_text_tower_reads_what_open_clip_reads_and_computes_no_padding():
    torch.manual_seed(0)
    model = build()
    clip = build_clip("ViT-micro-8", clip_config("ViT-micro-8"), with_text=True)
    text = {k.removeprefix("text_encoder."): v for k, v in model.state_dict().items() if k.startswith("text_encoder")}
    clip.load_state_dict(text, strict=False)
    sentences = ["a red car", "two people on a bridge at night"]
    ids = open_clip.tokenize(sentences)
    with torch.no_grad():
        wanted = clip.eval().encode_text(ids)
        found = model.eval().text_encoder(clip.token_embedding(ids), ids.argmax(1))
        torch.testing.assert_close(found, wanted)
        lengths = []
        model.text_encoder.transformer.register_forward_hook(lambda m, given, out: lengths.append(given[0].shape[1]))
        model.text_features(torch.arange(3))
    assert lengths == [12]  # of 77: attention is causal


def test_text_features_take_gradient_to_the_prompts_alone():
    model = build()
    model.text_features(torch.tensor([1, 4])).sum().backward()
    grads = {name for name, p in model.named_parameters() if p.grad is not None}
    assert grads == {"prompt_learner.cls_ctx"}
    assert model.prompt_learner.cls_ctx.grad.flatten(1).abs().sum(1).gt(0).tolist() == [False, True, False, False, True]


# ---------------------------------------------------------------- augmentation


def slow(method: str, prompts: torch.Tensor, draws: dict, scale: float) -> torch.Tensor:
    """One prompt after the other, one position after the other."""
    out = prompts.clone()
    for b in range(len(prompts)):
        if method == "mask":
            out[b][draws["dropped"][b]] = 0
        elif method == "swap":
            for j, position in enumerate(draws["chosen"][b].tolist()):
                out[b, position] = prompts[b, draws["chosen"][b, draws["order"][b, j]]]
        else:
            out[b] = (1 - scale) * prompts[b] + scale * prompts[draws["partner"][b]]
    return out


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("method", AUGMENTATIONS)
def test_all_prompts_at_once_is_one_after_the_other(method, scale):
    prompts = prompts_of()
    augment = draw(method, SHAPE, scale, torch.Generator().manual_seed(1))
    torch.testing.assert_close(augment(prompts), slow(method, prompts, augment.keywords, scale))


@pytest.mark.parametrize("method", AUGMENTATIONS)
def test_gradient_flows_through_to_what_was_kept(method):
    prompts = prompts_of().requires_grad_()
    out = draw(method, SHAPE, 0.5, torch.Generator().manual_seed(1))(prompts)
    gradient = torch.autograd.grad(out.sum(), prompts)[0]
    torch.testing.assert_close(gradient.sum(), torch.tensor(float(out.ne(0).sum())), rtol=1e-4, atol=0.0)


def test_mask_removes_the_share_and_rescales_nothing():
    prompts = torch.ones(64, 77, 32)
    out = draw("mask", prompts.shape, 0.3, torch.Generator().manual_seed(0))(prompts)
    assert set(out.unique().tolist()) == {0.0, 1.0} and abs(float(out.mean()) - 0.7) < 0.005


def test_swap_moves_whole_tokens_and_loses_none():
    prompts = prompts_of()
    out = draw("swap", SHAPE, 0.5, torch.Generator().manual_seed(0))(prompts)
    assert not torch.equal(out, prompts)
    for one, other in zip(prompts, out, strict=True):
        assert sorted(map(tuple, one.tolist())) == sorted(map(tuple, other.tolist()))
        assert (one != other).any(1).sum() <= int(0.5 * 77)


def test_mix_takes_another_prompt_uniformly_and_never_itself():
    counts = torch.zeros(5, 5)
    for seed in range(400):
        partner = draw("mix", (5, 77, 32), 0.5, torch.Generator().manual_seed(seed)).keywords["partner"]
        counts[torch.arange(5), partner] += 1
    assert counts.diagonal().eq(0).all()
    off = counts[~torch.eye(5, dtype=torch.bool)]
    assert off.min() > 60 and off.max() < 140  # 100 expected, standard deviation 8.7
    alone = prompts_of((1, 77, 32))
    torch.testing.assert_close(draw("mix", alone.shape, 0.5, torch.Generator())(alone), alone)


def test_two_copies_differ_and_the_same_seed_gives_the_same():
    prompts = prompts_of()
    for method in AUGMENTATIONS:
        generator = torch.Generator().manual_seed(3)
        one, two = (draw(method, SHAPE, 0.5, generator)(prompts) for _ in range(2))
        again = draw(method, SHAPE, 0.5, torch.Generator().manual_seed(3))(prompts)
        assert not torch.equal(one, two) and torch.equal(one, again)


def test_given_draws_are_applied_as_they_are():
    prompts = torch.arange(12.0).view(2, 3, 2)
    assert mask(prompts, prompts > 4)[1].eq(0).all()
    chosen, order = torch.tensor([[0, 2], [1, 2]]), torch.tensor([[1, 0], [0, 1]])
    assert swap(prompts, chosen, order)[:, :, 0].tolist() == [[4, 2, 0], [6, 8, 10]]
    assert mix(prompts, torch.tensor([1, 0]), 0.25)[0, 0].tolist() == [1.5, 2.5]
