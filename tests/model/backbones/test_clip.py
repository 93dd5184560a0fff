"""CLIP's towers: open_clip's numbers, the three features, overlapping patches, side information, JPM, names."""

from __future__ import annotations

import logging

import open_clip
import pytest
import torch
from torch import nn

from model.backbones.clip import CLIPResNet, CLIPViT, build_clip, clip_config, make_image_tower, openai_name
from tests.model.tiny_clip import build
from utils.errors import UserError

IMAGES = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4) // 2


def towers(name: str, size: tuple[int, int], stride: tuple[int, int] = (16, 16)) -> tuple[nn.Module, nn.Module]:
    """open_clip's tower and ours of another image size, with the same weights but for the positions."""
    torch.manual_seed(0)
    theirs = build_clip(name, clip_config(name), with_text=False).visual.eval()
    ours = make_image_tower(build_clip(name, clip_config(name), with_text=False).visual, 32, size, stride, False).eval()
    positions = "attnpool.positional_embedding" if name.startswith("RN") else "positional_embedding"
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k != positions}, strict=False)
    return theirs, ours


# ---------------------------------------------------------------- towers


def test_a_vits_features_are_open_clips():
    theirs, ours = towers("ViT-micro-8", (32, 32), (8, 8))
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        taps, wanted = ours(images), theirs.forward_intermediates(
            images, indices=[1, 2], output_fmt="NLC", output_extra_tokens=True
        )  # fmt: skip
        early, late = (prefix[:, 0] for prefix in wanted["image_intermediates_prefix"])
        torch.testing.assert_close(taps.early, early)
        torch.testing.assert_close(taps.late, theirs.ln_post(late))
        torch.testing.assert_close(taps.projected, wanted["image_features"])


def test_a_resnets_early_stages_are_open_clips_and_its_last_one_keeps_the_map():
    theirs, ours = towers("RN-micro", (64, 32))
    with torch.no_grad():
        taps = ours(IMAGES)
        early = theirs.layer3(theirs.layer2(theirs.layer1(theirs.stem(IMAGES))))
        last = theirs.layer4[0]
        last.avgpool = last.downsample[0] = nn.Identity()
        torch.testing.assert_close(taps.early, early.mean((2, 3)))
        late = theirs.layer4(early)
        assert late.shape[2:] == (4, 2) == ours.grid
        torch.testing.assert_close(taps.late, late.mean((2, 3)))
        theirs.attnpool.positional_embedding = ours.attnpool.positional_embedding
        torch.testing.assert_close(taps.projected, theirs.attnpool(late))


def test_overlapping_patches_and_both_strides_are_honoured():
    tower = towers("ViT-micro-8", (64, 32), (6, 4))[1]
    assert tower.grid == (10, 7) and len(tower.positional_embedding) == 71
    assert tower(IMAGES).tokens.shape == (4, 71, 32)


def test_checkpointing_changes_no_gradient():
    grads = []
    for checkpointing in (False, True):
        model = build(MODEL__GRAD_CHECKPOINT=checkpointing).train()
        out = model(IMAGES, label=LABELS)
        (sum(f.square().sum() for f in out.feats)).backward()
        grads.append({n: p.grad for n, p in model.image_encoder.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


@pytest.mark.parametrize(
    "name", ["ViT-L-14", "RN101", "open_clip:ViT-B-32", "open_clip:convnext_tiny", "open_clip:EVA02-B-16"]
)
def test_other_architectures_of_open_clip_give_three_features(name):
    stride = {"ViT-L-14": [14, 14]}.get(name, [16, 16])
    size = {"INPUT__SIZE_TRAIN": [128, 64], "MODEL__STRIDE_SIZE": stride}
    with torch.device("meta"):
        model = build(MODEL__NAME=name, PROCESSOR__NAME="supervised", **size).train()
        out = model(torch.empty(2, 3, 128, 64), label=torch.zeros(2, dtype=torch.long))
    assert [f.shape[1] for f in out.feats[1:]] == [model.image_encoder.width, model.image_encoder.embed_dim]
    assert [tuple(s.shape) for s in out.scores] == [(2, 5)] * 2
    assert clip_config(name).get("quick_gelu", False) == (not name.startswith("open_clip:"))


def test_bare_names_have_quick_gelu_and_the_librarys_own_names_what_it_says():
    assert openai_name("ViT-B-16") == "ViT-B-16-quickgelu" and openai_name("ViT-H-15") == ""
    quick = open_clip.transformer.QuickGELU
    for name, kind in (("open_clip:ViT-S-32-alt", nn.GELU), ("ViT-B-32", quick), ("ViT-micro-8", quick)):
        with torch.device("meta"):
            clip = build_clip(name, clip_config(name), with_text=False)
        assert type(clip.visual.transformer.resblocks[0].mlp.gelu) is kind


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"MODEL__NAME": "ViT-B-61"}, "MODEL.NAME: unknown 'ViT-B-61', did you mean 'ViT-B-16'"),
        ({"MODEL__NAME": "open_clip:ViT-B-61"}, "open_clip has no architecture 'ViT-B-61', did you mean"),
        ({"MODEL__NAME": "open_clip:coca_ViT-B-32"}, "pools its image tokens by queries"),
        ({"MODEL__NAME": "open_clip:ViT-B-16-SigLIP"}, "text tower of 'open_clip:ViT-B-16-SigLIP' is not CLIP's own"),
        ({"MODEL__NAME": "open_clip:roberta-ViT-B-32"}, "not CLIP's own"),
        ({"MODEL__NAME": "resnet10"}, "PROCESSOR.NAME 'prompt' and MODEL.NAME 'resnet10' cannot go together"),
        ({"MODEL__STRIDE_SIZE": [16, 8]}, "leaves out pixels"),
        ({"MODEL__NAME": "RN-micro", "MODEL__STRIDE_SIZE": [12, 12]}, "MODEL.STRIDE_SIZE"),
        ({"MODEL__NAME": "RN-micro", "MODEL__STRIDE_SIZE": [16, 16], "INPUT__SIZE_TRAIN": [60, 32]}, "multiples of 16"),
        ({"MODEL__NAME": "RN-micro", "MODEL__STRIDE_SIZE": [16, 16], "MODEL__JPM": True}, "MODEL.JPM and MODEL.NAME"),
        (
            {"MODEL__NAME": "RN-micro", "MODEL__STRIDE_SIZE": [16, 16], "MODEL__GRAD_CHECKPOINT": True},
            "MODEL.GRAD_CHECKPOINT",
        ),
        (
            {"MODEL__REDUCE_FEAT_DIM": True},
            "MODEL.REDUCE_FEAT_DIM True and MODEL.NAME 'ViT-micro-8' cannot go together",
        ),
        ({"MODEL__DROPOUT_RATE": 0.5}, "MODEL.DROPOUT_RATE"),
        ({"TEST__NECK_FEAT": "beside"}, "TEST.NECK_FEAT"),
        ({"INPUT__SIZE_TRAIN": [4, 4]}, "smaller than one patch"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(changes, line):
    with pytest.raises(UserError, match=line):
        build(**changes)


@pytest.mark.parametrize("changes", [{}, {"MODEL__NAME": "RN-micro", "MODEL__STRIDE_SIZE": [16, 16]}])
def test_images_of_another_size_are_refused_with_both_sizes(changes):
    with pytest.raises(UserError, match=r"\(32, 32\).*\(64, 32\).*INPUT.SIZE_TEST"):
        build(**changes)(IMAGES[:, :, :32])


# ---------------------------------------------------------------- the model


def test_features_before_and_after_the_necks():
    before, after = build(TEST__NECK_FEAT="before").eval(), build(TEST__NECK_FEAT="after").eval()
    for model in (before, after):
        nn.init.constant_(model.bottleneck.running_mean, 0.5)
    with torch.no_grad():
        taps = before.image_encoder(IMAGES)
        torch.testing.assert_close(before(IMAGES), torch.cat([taps.late, taps.projected], 1))
        necks = [after.bottleneck(taps.late), after.bottleneck_proj(taps.projected)]
        torch.testing.assert_close(after(IMAGES), torch.cat(necks, 1))
    assert not before.bottleneck.bias.requires_grad


SIDES = {"camera": (True, False, 3), "view": (False, True, 2), "both": (True, True, 6), "none": (False, False, 0)}


@pytest.mark.parametrize("side", SIDES)
def test_side_information_moves_the_class_token_alone(side):
    camera, view, rows = SIDES[side]
    model = build(MODEL__SIE_CAMERA=camera, MODEL__SIE_VIEW=view, MODEL__SIE_COE=2.0).eval()
    assert model.side.rows == rows and hasattr(model, "cv_embed") == bool(rows)
    if not rows:
        return
    seen = []
    model.image_encoder.ln_pre.register_forward_hook(lambda module, given, out: seen.append(given[0].detach()))
    cams, views = torch.tensor([0, 1, 2, 1]), torch.tensor([1, 0, 1, 1])
    with torch.no_grad():
        model(IMAGES, cam_label=cams, view_label=views)
        plain = model(IMAGES)  # no labels: nothing is added
        unseen = model(IMAGES, cam_label=cams + 40, view_label=views + 40)
    torch.testing.assert_close(unseen, plain, rtol=0, atol=0)
    row = {"camera": cams, "view": views, "both": cams * 2 + views}[side]
    moved = seen[0] - seen[1]
    torch.testing.assert_close(moved[:, 0], 2.0 * model.cv_embed[row].detach(), rtol=1e-4, atol=1e-6)
    assert moved[:, 1:].eq(0).all()


def test_side_information_with_nothing_to_embed_says_so_in_a_line(caplog):
    caplog.set_level(logging.INFO, "lineup")
    model = build(camera_num=1, view_num=0, MODEL__SIE_CAMERA=True, MODEL__SIE_VIEW=True)
    assert not hasattr(model, "cv_embed")
    assert [m.split(" does")[0] for m in caplog.messages] == ["MODEL.SIE_CAMERA", "MODEL.SIE_VIEW"]
    caplog.clear()
    resnet = build(MODEL__NAME="RN-micro", MODEL__STRIDE_SIZE=[16, 16], MODEL__SIE_CAMERA=True)
    assert not hasattr(resnet, "cv_embed") and "no class token" in caplog.messages[0]


def test_jpm_adds_four_local_parts_and_leaves_clips_own_alone():
    plain, jpm = build(), build(MODEL__JPM=True, MODEL__SHIFT_NUM=2)
    jpm.load_state_dict(plain.state_dict(), strict=False)
    jpm.sync_copies()
    plain.eval(), jpm.eval()
    with torch.no_grad():
        feat, wanted = jpm(IMAGES), plain(IMAGES)
        torch.testing.assert_close(feat[:, : wanted.shape[1]], wanted)
        assert feat.shape[1] == wanted.shape[1] + 4 * 32
    out = jpm.train()(IMAGES, label=LABELS)
    assert (len(out.scores), len(out.feats)) == (6, 7)
    sum(s.square().sum() for s in out.scores[2:]).backward()
    assert all(p.grad is not None for p in jpm.jigsaw_branch.parameters())


def test_the_baseline_has_no_text_side_and_the_prompt_model_only_the_heads_it_was_asked_for():
    heads = {
        "neither": ({}, []),
        "vision": ({"MODEL__USE_SSL": True, "MODEL__USE_SSL_STAGE1": False}, ["image_mlp"]),
        "language": ({"MODEL__USE_SSL_STAGE1": True}, ["text_mlp"]),
        "both": ({"MODEL__USE_SSL": True}, ["image_mlp", "text_mlp"]),
    }
    for changes, wanted in heads.values():
        assert [n for n, _ in build(**changes).named_children() if n.endswith("mlp")] == wanted
    baseline = {name for name, _ in build(PROCESSOR__NAME="supervised").named_children()}
    assert baseline == {
        "image_encoder",
        "side",
        "dropout",
        "classifier",
        "bottleneck",
        "classifier_proj",
        "bottleneck_proj",
    }


@pytest.mark.parametrize("kind", ["SIMCLR", "SIMSIAM"])
@pytest.mark.parametrize("name", ["ViT-micro-8", "RN-micro"])
def test_views_pass_by_themselves_without_side_information(name, kind):
    stride = [8, 8] if name.startswith("ViT") else [16, 16]
    model = build(
        MODEL__NAME=name, MODEL__STRIDE_SIZE=stride, MODEL__USE_SSL=True, MODEL__SSL_TYPE=kind, MODEL__SIE_CAMERA=True
    ).train()
    views = IMAGES.flip(3), IMAGES.flip(2)
    before = int(model.image_mlp.bn1.num_batches_tracked)
    out = model(IMAGES, label=LABELS, cam_label=LABELS, views=views)
    assert int(model.image_mlp.bn1.num_batches_tracked) == before + 2
    torch.testing.assert_close(out.tokens[1], model.image_encoder(views[1]).late)
    assert [tuple(h.shape) for h in out.heads] == [(4, 256 if kind == "SIMCLR" else model.width)] * 2
    assert isinstance(model.image_encoder, CLIPViT if name.startswith("ViT") else CLIPResNet)
