"""MSViT's networks: sizes, parts, freezing, files and the settings that no tensor's shape shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs import load_config
from model import ReIDOutput, make_model
from model.networks.msvit import MSViTClassifier, MSViTReID, part_rows, root_mean_square
from model.summary import count, summary
from tests.tiny import MSVIT, config
from utils.checkpoint import load_pretrained, load_weights, require_complete
from utils.errors import UserError


def build(num_class: int = 5, **changes):
    torch.manual_seed(0)
    return make_model(config(Path("none"), Path("none"), **(MSVIT | changes)), num_class)


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 64, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "millions", "billions"), [("msvit_s", 12.705, 1.777), ("msvit_l", 23.643, 3.675)])
def test_parameters_and_multiply_adds_are_the_published_networks(name, millions, billions):
    told = summary(make_model(load_config(opts=["MODEL.NAME", name]), 751), (384, 128))
    assert told.startswith(f"{millions:.3f} M parameters") and f"({billions:.3f} G with the classifiers)" in told


@pytest.mark.parametrize(("name", "parameters"), [("msvit_s", 7_715_624), ("msvit_l", 15_695_352)])
def test_the_classifier_has_the_parameters_of_the_published_training_log(name, parameters):
    opts = ["MODEL.NAME", name, "MODEL.MSVIT.HEAD", "classifier", "MODEL.MSVIT.SPLIT_SIZE", [4, 4]]
    model = make_model(load_config(opts=opts), 1000)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_training_gives_a_score_per_head_and_three_normed_features():
    model = build().train()
    out = model(images(), label=torch.tensor([0, 0, 1, 1]))
    assert isinstance(out, ReIDOutput)
    assert [s.shape for s in out.scores] == [(4, 5)] * 5 and [f.shape for f in out.feats] == [(4, 512)] * 3
    for feat in out.feats:  # behind batch norm
        torch.testing.assert_close(feat.mean(0), torch.zeros(512), atol=1e-5, rtol=0)
    assert model.eval()(images()).shape == (4, 512 * 5)
    assert build(MODEL__MSVIT__NUM_PART=3).eval()(images()).shape == (4, 512 * 6)


def test_the_feature_before_the_neck_is_that_of_the_linear_layers():
    after, before = build().eval(), build(TEST__NECK_FEAT="before").eval()
    before.load_state_dict(after.state_dict())
    for norm in after.bn_list:
        torch.nn.init.normal_(norm.running_mean), torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    with torch.no_grad():
        normed = [norm(f) for norm, f in zip(after.bn_list, before(images()).split(512, 1), strict=True)]
        torch.testing.assert_close(torch.cat(normed, 1), after(images()))


def test_parts_are_interleaved_rows_or_stripes():
    maps = torch.arange(24.0).view(1, 1, 24, 1)
    assert [p.flatten().tolist() for p in part_rows(maps[:, :, :7], 2, True)] == [[0, 2, 4, 6], [1, 3, 5]]
    assert [p.flatten().tolist() for p in part_rows(maps[:, :, :7], 2, False)] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [p.shape[2] for p in part_rows(maps, 5, False)] == [5, 5, 5, 5, 4]


def test_the_root_of_a_dark_channel_has_a_finite_gradient():
    maps = torch.zeros(1, 2, 3, 3, requires_grad=True)
    root_mean_square(maps).sum().backward()
    assert maps.grad.isfinite().all()
    torch.testing.assert_close(root_mean_square(torch.tensor([[[[3.0, 4.0]]]])), torch.tensor([[12.5**0.5]]))


def test_a_frozen_part_gets_no_gradient_and_goes_on_counting():
    model = build(MODEL__MSVIT__FREEZE=["stem", "layer1"]).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sum(s.sum() for s in model(images()).scores).backward()
    frozen = {n for n, p in model.named_parameters() if p.grad is None}
    assert {n for n in frozen if not n.startswith("bn_list")} == {
        n for n, _ in model.named_parameters() if n.startswith(("stem.", "layer1."))
    }
    assert {n for n in frozen if n.startswith("bn_list")} == {f"bn_list.{i}.bias" for i in (2, 3, 4)}
    moved = model.state_dict()["stem.norm.running_mean"]
    assert not torch.equal(moved, before["stem.norm.running_mean"])


@pytest.mark.parametrize(("head", "base"), [("bnneck", "base."), ("classifier", "")])
def test_the_plain_backbone_is_frozen_by_the_same_names(head, base):
    model = build(MODEL__MSVIT__HEAD=head, MODEL__MSVIT__FREEZE=["stem", "layer3"])
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad} - {"bottleneck.bias"}
    wanted = tuple(f"{base}{part}." for part in ("first_conv", "layer3"))
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(wanted)}


def test_the_branches_are_trained_apart_from_one_start():
    model = build()
    one, two = model.branch_1.state_dict(), model.branch_2.state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not {id(p) for p in model.branch_1.parameters()} & {id(p) for p in model.branch_2.parameters()}


def test_a_smaller_ratio_changes_the_feature_and_the_stride_its_map():
    dense, sparse = build(MODEL__MSVIT__SPARSE_RATIO=1.0).eval(), build(MODEL__MSVIT__SPARSE_RATIO=0.5).eval()
    with torch.no_grad():
        assert not torch.allclose(dense(images()), sparse(images()))
        assert build(MODEL__LAST_STRIDE=2).branches(images())[0].shape == (4, 512, 2, 1)


def test_drop_path_grows_over_the_blocks():
    model = build(MODEL__DROP_PATH=0.4)
    rates = [m.drop_path.drop_prob for n, m in model.named_modules() if hasattr(m, "main") and "branch_2" not in n]
    assert rates == pytest.approx([0.4 * i / 4 for i in range(5)])


@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_every_parameter_of_the_network_is_trained(act):
    model = build(MODEL__MSVIT__FREEZE=[], MODEL__MSVIT__ACT=act).train()
    out = model(images())
    (sum(s.square().sum() for s in out.scores) + sum(f.square().sum() for f in out.feats)).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


# ---------------------------------------------------------------- files


def test_an_imagenet_file_goes_into_both_branches_and_every_head():
    source = build(MODEL__MSVIT__HEAD="classifier", num_class=7)
    assert isinstance(source, MSViTClassifier)
    state = {f"module.{k}": torch.randn_like(v) if v.is_floating_point() else v for k, v in source.state_dict().items()}
    model = build()
    report = load_pretrained(model, state)
    assert all(k.startswith(("class_list", "settings")) for k in report.missing) and not report.mismatched
    own = model.state_dict()
    for ours, theirs in {
        "stem.conv.weight": "first_conv.conv.weight", "layer2.0.main.0.conv.weight": "layer2.0.main.0.conv.weight",
        "branch_1.0.0.skip.1.norm.bias": "layer4.0.skip.1.norm.bias", "branch_2.1.conv.weight": "conv_head.conv.weight",
        "feat_list.4.weight": "fc.weight", "bn_list.0.running_var": "norm.running_var",
    }.items():  # fmt: skip
        assert torch.equal(own[ours], state[f"module.{theirs}"]), ours


def test_the_plain_backbone_takes_the_same_file():
    source = build(MODEL__MSVIT__HEAD="classifier")
    model = build(MODEL__MSVIT__HEAD="bnneck")
    report = load_pretrained(model, source.state_dict())
    assert not report.missing
    assert torch.equal(model.base.conv_head.conv.weight, source.conv_head.conv.weight)


def test_a_published_reid_file_loads_and_a_file_of_ours_tells_its_settings():
    model = build()
    assert isinstance(model, MSViTReID)
    state = {k: v for k, v in model.state_dict().items() if k != "settings"}
    report = load_weights(build(num_class=9), {f"module.{k}": v for k, v in state.items()})
    require_complete(model, report)  # the classes differ, the rest is there
    load_weights(build(), model.state_dict())
    for changes, told in (
        ({"MODEL__LAST_STRIDE": 2}, "MODEL.LAST_STRIDE 1, now 2"),
        ({"MODEL__MSVIT__SPARSE_RATIO": 0.5}, "MODEL.MSVIT.SPARSE_RATIO 0.75, now 0.5"),
        ({"MODEL__MSVIT__SPLIT_SIZE": [4, 2]}, "rows) 2, now 4"),
        ({"MODEL__MSVIT__SPARSE_POOL": False}, "MODEL.MSVIT.SPARSE_POOL 1, now 0"),
    ):
        with pytest.raises(UserError, match="trained with other settings") as caught:
            load_weights(build(**changes), model.state_dict())
        assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_the_other_size_is_refused():
    other = build(MODEL__MSVIT__HEAD="classifier", MODEL__MSVIT__WIDTHS=[32, 32, 32, 32])
    with pytest.raises(UserError, match=r"MODEL\.PRETRAIN_PATH.*another size.*32 wide and the model's 16"):
        load_pretrained(build(), other.state_dict())
    with pytest.raises(UserError, match="another model or setting"):
        load_weights(build(), build(MODEL__MSVIT__WIDTHS=[32, 32, 32, 32]).state_dict())


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"INPUT__SIZE_TRAIN": [72, 32]}, r"INPUT\.SIZE_TRAIN: height 72 .*multiple of 32.*MODEL\.MSVIT\.SPLIT_SIZE"),
        ({"INPUT__SIZE_TEST": [64, 40]}, r"INPUT\.SIZE_TEST: width 40 .*multiple of 32.*MODEL\.MSVIT\.SPLIT_SIZE"),
        ({"MODEL__MSVIT__SPARSE_RATIO": 0.1}, r"MODEL\.MSVIT\.SPARSE_RATIO: 0.1 of 4 tokens"),
        ({"MODEL__MSVIT__NUM_PART": 5}, r"MODEL\.MSVIT\.NUM_PART: a map of 4 rows gives 4 parts, not 5"),
        ({"MODEL__MSVIT__NUM_PART": 3, "MODEL__MSVIT__SPARSE_POOL": False}, r"4 rows gives 2 parts, not 3"),
        ({"MODEL__LAST_STRIDE": 3}, r"MODEL\.LAST_STRIDE: 3"),
        ({"MODEL__JPM": True}, r"MODEL\.JPM and MODEL\.NAME 'msvit_s' cannot go together"),
        ({"MODEL__SIE_CAMERA": True}, r"MODEL\.SIE_CAMERA and MODEL\.NAME 'msvit_s' cannot go together"),
        ({"MODEL__REDUCE_FEAT_DIM": True}, r"MODEL\.REDUCE_FEAT_DIM and MODEL\.NAME 'msvit_s' cannot go together"),
        ({"MODEL__GRAD_CHECKPOINT": True}, r"MODEL\.GRAD_CHECKPOINT and MODEL\.NAME 'msvit_s' cannot go together"),
        ({"MODEL__MSVIT__WIDTHS": [16, 16, 16]}, r"MODEL\.MSVIT\.WIDTHS"),
        ({"MODEL__MSVIT__WIDTHS": [16, 20, 16, 16]}, r"MODEL\.MSVIT\.WIDTHS: .*multiples of 8"),
        ({"MODEL__MSVIT__BLOCKS": [1, 1]}, r"MODEL\.MSVIT\.BLOCKS"),
        ({"TEST__NECK_FEAT": "beside"}, r"TEST\.NECK_FEAT"),
    ],
)
def test_what_cannot_be_built_names_its_keys(changes, words):
    with pytest.raises(UserError, match=words) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)


def test_unknown_parts_to_freeze_are_refused():
    with pytest.raises(ValueError, match=r"MODEL\.MSVIT\.FREEZE: unknown 'layer9', did you mean 'layer3'"):
        load_config(opts=["MODEL.MSVIT.FREEZE", ["layer9"]])


def test_the_whole_network_can_be_exported():
    model = build().eval()
    with torch.no_grad():
        eager = model(images())
        exported = torch.export.export(model, (images(),)).module()(images())
    torch.testing.assert_close(exported, eager, rtol=0, atol=1e-4 * float(eager.abs().max()))


def test_counting_leaves_the_network_as_it_was():
    model = build().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count(model, (64, 32))
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
