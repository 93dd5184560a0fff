"""PASS: the four leading tokens, their fusion and necks, its files, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from configs import load_config
from model import make_model
from utils.checkpoint import load_pretrained, load_weights, require_complete
from utils.errors import UserError

WORDS = [
    "MODEL.NAME", "transformer", "MODEL.TRANSFORMER_TYPE", "vit_micro_patch8_TransReID", "MODEL.STRIDE_SIZE", [8, 8],
    "INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16],
]  # fmt: skip
IMAGES = torch.randn(3, 3, 32, 16, generator=torch.Generator().manual_seed(0))


def network(*words, part_tokens: bool = True):
    torch.manual_seed(0)
    return make_model(load_config(opts=[*WORDS, "MODEL.PART_TOKENS", part_tokens, *words]), 4).eval()


def drawn(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            nn.init.normal_(tensor, 1.0 if name.endswith("running_var") else 0.0, 0.1)
    return module.eval()


def by_hand(model, images):
    """The four tokens behind the final norm, from the tokens one by one."""
    base = model.base
    tokens = [base.cls_token + base.cls_pos, *(
        getattr(base, f"part_token{i}") + getattr(base, f"part{i}_pos") for i in (1, 2, 3)
    )]  # fmt: skip
    patches = base.patch_embed(images) + base.pos_embed
    x = torch.cat([*(token.expand(len(images), -1, -1) for token in tokens), patches], 1)
    for block in base.blocks:
        x = block(x)
    return base.norm(x)[:, :4].unbind(1)


@pytest.mark.parametrize("fusion", ["cat", "mean"])
@pytest.mark.parametrize("necks", [True, False])
def test_features_and_scores_are_those_of_the_tokens(fusion, necks):
    def fused(whole, parts):
        return torch.cat([whole, parts], 1) if fusion == "cat" else (whole + parts) / 2

    words = ["MODEL.FEAT_FUSION", fusion, "MODEL.MULTI_NECK", necks]
    model = drawn(network(*words))
    whole, *parts = by_hand(model, IMAGES)
    before = fused(whole, sum(parts) / 3)
    if necks:
        of_parts = [getattr(model, f"bottleneck_{i}")(part) for i, part in enumerate(parts, 1)]
        after = fused(model.bottleneck(whole), sum(of_parts) / 3)
    else:
        after = model.bottleneck(before)
    torch.testing.assert_close(model(IMAGES), after)
    torch.testing.assert_close(model.class_scores(IMAGES), after @ model.classifier.weight.T)
    earlier = network(*words, "TEST.NECK_FEAT", "before")
    earlier.load_state_dict(model.state_dict())
    torch.testing.assert_close(earlier(IMAGES), before)
    out = model.train()(IMAGES, label=torch.arange(3))
    assert (len(out.scores), len(out.feats)) == (1, 1) and out.scores[0].shape == (3, 4)
    assert model.width == before.shape[1] == (64 if fusion == "cat" else 32)


def test_its_files_load_in_the_published_layouts(tmp_path):
    model = drawn(network())
    backbone = {f"backbone.{k}": v for k, v in model.base.state_dict().items()}
    files = {
        "whole.pth": {"teacher": backbone | {"head.mlp.0.weight": torch.ones(2, 2)}, "epoch": 100},
        "bare.pth": dict(model.base.state_dict()),
    }
    for name, state in files.items():
        torch.save(state, tmp_path / name)
        other = network()
        assert not load_pretrained(other, tmp_path / name, hw_ratio=2).missing
        torch.testing.assert_close(other.base(IMAGES), model.base(IMAGES))
    unused = {"base.fc.weight": torch.ones(10, 32), "base.fc.bias": torch.ones(10)}
    torch.save({f"module.{k}": v for k, v in (dict(model.state_dict()) | unused).items()}, tmp_path / "reid.pth")
    other = network()
    report = load_weights(other, tmp_path / "reid.pth")
    assert not report.missing
    torch.testing.assert_close(other(IMAGES), model(IMAGES))


def test_positions_have_no_entry_of_the_class_token_when_they_are_resized():
    model, larger = drawn(network()), network("INPUT.SIZE_TRAIN", [64, 32], "INPUT.SIZE_TEST", [64, 32])
    report = load_pretrained(larger, dict(model.base.state_dict()), hw_ratio=2)
    assert report.resized == ["pos_embed"]
    grid = model.base.pos_embed.reshape(1, 4, 2, 32).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, size=(8, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(larger.base.pos_embed, expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("part_tokens", [True, False])
def test_a_plain_vits_file_and_a_pass_file_are_told_apart(part_tokens, tmp_path):
    ours, theirs = network(part_tokens=part_tokens), network(part_tokens=not part_tokens)
    words = f"MODEL.PART_TOKENS {not part_tokens}"
    torch.save({f"backbone.{k}": v for k, v in theirs.base.state_dict().items()}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=f"file.pth: it holds the weights of .*{words}"):
        load_pretrained(ours, tmp_path / "file.pth", hw_ratio=2)
    torch.save(theirs.state_dict(), tmp_path / "reid.pth")
    with pytest.raises(UserError, match=words):
        require_complete(ours, load_weights(ours, tmp_path / "reid.pth"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["MODEL.SIE_CAMERA", True], "MODEL.SIE_CAMERA and MODEL.PART_TOKENS"),
        (["MODEL.JPM", True], "MODEL.JPM and MODEL.PART_TOKENS"),
        (["MODEL.GEM_POOLING", True], "MODEL.GEM_POOLING and MODEL.PART_TOKENS"),
        (["MODEL.POOLING", "max"], "MODEL.POOLING 'max'"),
        (["MODEL.REDUCE_FEAT_DIM", True], "MODEL.REDUCE_FEAT_DIM and MODEL.MULTI_NECK"),
        (["MODEL.DROPOUT_RATE", 0.5], "MODEL.DROPOUT_RATE and MODEL.MULTI_NECK"),
        (["MODEL.NAME", "resnet10"], "MODEL.PART_TOKENS and MODEL.NAME 'resnet10'"),
        (["MODEL.TRANSFORMER_TYPE", "swin_micro_patch4"], "MODEL.PART_TOKENS and MODEL.NAME 'transformer'"),
        (["MODEL.FEAT_FUSION", "sum"], "MODEL.FEAT_FUSION: unknown 'sum'.* Known: cat, mean"),
    ],
)
def test_what_it_does_not_have_is_refused(words, line):
    with pytest.raises(UserError, match=line):
        network(*words)


def test_vit_small_is_the_one_that_pass_publishes():
    words = ["MODEL.NAME", "transformer", "MODEL.TRANSFORMER_TYPE", "vit_small_patch16_224_TransReID"]
    assert load_config(opts=[*words, "MODEL.PART_TOKENS", True]).MODEL.VIT_SMALL == "deit"
