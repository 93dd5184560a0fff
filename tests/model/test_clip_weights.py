"""Weights of CLIP models: OpenAI's archives, open_clip's files, published ReID checkpoints, and wrong ones of each."""

from __future__ import annotations

import logging
import re
import warnings

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from configs import load_config
from model import make_model
from model.backbones.clip import build_clip, clip_config
from model.pretrained import load_initial_weights
from tests.tiny import CLIP, words
from utils.checkpoint import load_pretrained, load_weights, require_complete
from utils.errors import UserError


def settings(**changes):
    return load_config(opts=words(CLIP | {"MODEL__PRETRAIN_CHOICE": "imagenet"} | changes))


def build(num_class: int = 5, seed: int = 0, **changes) -> nn.Module:
    torch.manual_seed(seed)
    return make_model(settings(**changes), num_class, 3, 2)


def clip_state(name: str = "ViT-micro-8", seed: int = 7) -> dict[str, Tensor]:
    """A CLIP's weights as OpenAI gives them out: matrices in half precision, three numbers that are no weights."""
    torch.manual_seed(seed)
    clip = build_clip(name, clip_config(name), with_text=True)
    state = {k: v.half() if v.dim() > 1 and "embedding" not in k else v for k, v in clip.state_dict().items()}
    numbers = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    return state | {k: torch.tensor(v) for k, v in numbers.items()}


class Tree(nn.Module):
    """Nothing but named tensors, to be scripted into an archive."""

    def forward(self) -> int:
        return 0


def tree_of(state: dict[str, Tensor]) -> nn.Module:
    root = Tree()
    for key, value in state.items():
        *path, leaf = key.split(".")
        node = root
        for word in path:
            word = f"n{word}" if word.isdigit() else word
            if not hasattr(node, word):
                node.add_module(word, Tree())
            node = getattr(node, word)
        node.register_buffer(leaf, value)
    return root


def write_archive(path, state: dict[str, Tensor]) -> None:
    """A TorchScript archive; numbered modules, which TorchScript refuses in attributes, come as OpenAI's: by index."""
    root = tree_of(state)
    for _, module in list(root.named_modules()):
        numbered = [n for n in module._modules if re.fullmatch(r"n\d+", n)]
        for name in numbered:
            module._modules[name.removeprefix("n")] = module._modules.pop(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own format deprecated
        torch.jit.script(root).save(str(path))


@pytest.fixture(params=["archive", "state dict", "open_clip", "safetensors"])
def clip_file(request, tmp_path):
    state, path = clip_state(), tmp_path / "clip.pt"
    if request.param == "archive":
        write_archive(path, state)
    elif request.param == "state dict":
        torch.save(state, path)
    elif request.param == "open_clip":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items() if v.dim()}}, path)
    else:
        path = path.with_suffix(".safetensors")
        save_file({k: v.contiguous() for k, v in state.items() if v.dim()}, path)
    return path


def test_every_layout_of_a_clip_file_fills_both_towers_and_the_prompts(clip_file):
    model, state = build(), clip_state()
    report = load_pretrained(model, clip_file)
    assert report.resized == ["image_encoder.positional_embedding"]
    assert torch.equal(model.image_encoder.proj, state["visual.proj"].float())
    assert torch.equal(model.text_encoder.text_projection, state["text_projection"].float())
    table = state["token_embedding.weight"]
    assert torch.equal(model.prompt_learner.token_prefix[0], table[torch.tensor([49406, 320, 1125, 539, 320])])
    assert torch.equal(model.prompt_learner.token_suffix[0, :3], table[torch.tensor([2533, 269, 49407])])
    assert all(key.startswith(("classifier", "bottleneck", "prompt_learner.cls_ctx")) for key in report.missing)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_baseline_takes_the_image_tower_and_names_what_it_left(tmp_path):
    model = build(PROCESSOR__NAME="supervised")
    report = load_pretrained(model, clip_state())
    assert torch.equal(model.image_encoder.conv1.weight, clip_state()["visual.conv1.weight"].float())
    assert {"token_embedding.weight", "logit_scale", "ln_final.weight"} <= set(report.unexpected)


def test_a_resnets_attention_pool_is_resized_to_the_map():
    model = build(MODEL__NAME="RN-micro", MODEL__STRIDE_SIZE=[16, 16])
    report = load_pretrained(model, clip_state("RN-micro"))
    assert report.resized == ["image_encoder.attnpool.positional_embedding"]
    assert len(model.image_encoder.attnpool.positional_embedding) == 1 + 4 * 2


def test_jpms_branch_is_the_loaded_last_block():
    model = build(MODEL__JPM=True, MODEL__SHIFT_NUM=2)
    load_pretrained(model, clip_state())
    for one, other in zip(model.jigsaw_branch.parameters(), model.image_encoder.last_stage().parameters(), strict=True):
        assert torch.equal(one, other)


def without(state: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.startswith(prefixes)}


WRONG = {
    "another image tower": (lambda: clip_state("RN-micro"), r"image_encoder\.\S+ has shape|are not in it"),
    "a wider tower": (
        lambda: without(clip_state("ViT-mini-16"), "token_embedding"),
        r"has shape \(.*the model's is",
    ),
    "no text tower": (lambda: without(clip_state(), "transformer", "ln_final", "text_proj", "positional"), "not in it"),
    "no token embedding": (lambda: without(clip_state(), "token_embedding"), "prompt_learner.token_"),
    "half an image tower": (lambda: without(clip_state(), "visual.transformer.resblocks.2"), "12 of the backbone's"),
    "another vocabulary": (
        lambda: clip_state() | {"token_embedding.weight": torch.zeros(30522, 32)},
        r"token embedding of \(30522, 32\): the prompts need 49408 rows",
    ),
    "another text width": (
        lambda: clip_state() | {"token_embedding.weight": torch.zeros(49408, 64)},
        "rows or more of width 32",
    ),
    "no CLIP at all": (lambda: {"layer.weight": torch.zeros(3)}, "no tensor fits"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_refused_with_its_name(what, tmp_path):
    make, line = WRONG[what]
    path = tmp_path / "wrong.pt"
    torch.save(make(), path)
    with pytest.raises(UserError, match=line) as error:
        load_pretrained(build(), path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_truncated_archive_is_refused(tmp_path):
    path = tmp_path / "clip.pt"
    write_archive(path, clip_state())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="not a readable checkpoint: damaged"):
        load_pretrained(build(), path)


def test_openais_archive_on_an_architecture_without_quick_gelu_is_refused():
    model = build()
    model.quick_gelu = False
    with pytest.raises(UserError, match="QuickGELU"):
        load_pretrained(model, clip_state())


# ---------------------------------------------------------------- what is fetched


def test_weights_by_name_come_through_open_clip(tmp_path, monkeypatch):
    asked = []

    def download(found):
        asked.append(found)
        torch.save(clip_state(), tmp_path / "fetched.pt")
        return str(tmp_path / "fetched.pt")

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    monkeypatch.setattr("model.pretrained.openai_name", lambda name: "ViT-B-16-quickgelu")
    for path in ("", "open_clip:openai"):
        model = build(MODEL__PRETRAIN_PATH=path)
        load_initial_weights(settings(MODEL__PRETRAIN_PATH=path), model)
        assert torch.equal(model.image_encoder.proj, clip_state()["visual.proj"].float())
    assert asked == [open_clip.get_pretrained_cfg("ViT-B-16-quickgelu", "openai")] * 2


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"MODEL__PRETRAIN_PATH": "open_clip:laion9"}, "provides no 'laion9' weights .*it has open_clip:"),
        ({"MODEL__PRETRAIN_PATH": "open_clip:laion2b_s34b_b88k"}, "trained without QuickGELU"),
        ({"MODEL__PRETRAIN_PATH": "absent.pt"}, "absent.pt: no such file"),
        ({}, "could not be fetched through open_clip .*no route.*PRETRAIN_CHOICE 'no'"),
    ],
)
def test_what_cannot_be_fetched_is_told_with_the_way_out(changes, line, monkeypatch):
    def refuse(found):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    if "laion2b" in changes.get("MODEL__PRETRAIN_PATH", ""):
        monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: ["laion2b_s34b_b88k"])
        monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"quick_gelu": False})
    with pytest.raises(UserError, match=line):
        load_initial_weights(settings(**{"MODEL__NAME": "ViT-B-16"} | changes), nn.Identity())


# ---------------------------------------------------------------- whole models


def test_a_published_two_stage_file_loads_with_and_without_heads():
    published = {f"module.{k}": v for k, v in build(seed=3, MODEL__USE_SSL=True).state_dict().items()}
    plain = build()
    report = load_weights(plain, published)
    assert report.unexpected and all(re.match("(image|text)_mlp", key) for key in report.unexpected)
    require_complete(plain, report)
    headed = build(MODEL__USE_SSL=True)
    report = load_weights(headed, plain.state_dict())
    assert report.missing and all(re.match("(image|text)_mlp", key) for key in report.missing)
    require_complete(headed, report)


def test_another_number_of_identities_never_stops_a_test_and_both_numbers_are_said():
    theirs, ours = build(751, seed=3).eval(), build(5).eval()
    report = load_weights(ours, theirs.state_dict())
    require_complete(ours, report)
    assert "prompt_learner.cls_ctx (751, 4, 32) for (5, 4, 32)" in report.mismatched
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


def test_a_two_stage_file_serves_the_baseline_and_the_other_way_round():
    prompts, baseline = build(seed=3), build(PROCESSOR__NAME="supervised")
    require_complete(baseline, load_weights(baseline, prompts.state_dict()))
    require_complete(prompts, load_weights(prompts, baseline.state_dict()))


def test_a_whole_model_serves_as_a_pre_trained_one_whatever_it_was_trained_on():
    theirs, ours = build(751, seed=3), build(5, MODEL__JPM=True, MODEL__SHIFT_NUM=2)
    classifier = ours.classifier.weight.clone()
    load_pretrained(ours, theirs.state_dict())
    assert torch.equal(ours.image_encoder.proj, theirs.image_encoder.proj)
    assert torch.equal(ours.classifier.weight, classifier)


def test_side_information_that_the_file_lacks_stops_a_test():
    model = build(MODEL__SIE_CAMERA=True)
    with pytest.raises(UserError, match="cv_embed"):
        require_complete(model, load_weights(model, build().state_dict()))


# ---------------------------------------------------------------- starting from stage 1


def stage1_file(tmp_path, num_class: int = 5, **changes):
    path = tmp_path / "stage1.pth"
    torch.save(build(num_class, seed=3, **changes).state_dict(), path)
    return path


def test_a_stage_1_checkpoint_stands_in_for_pre_trained_weights(tmp_path, caplog):
    caplog.set_level(logging.INFO, "lineup")
    path = stage1_file(tmp_path)
    cfg, model = settings(SOLVER__STAGE1__WEIGHT=str(path), MODEL__PRETRAIN_PATH="absent.pt"), build()
    load_initial_weights(cfg, model)
    assert torch.equal(model.prompt_learner.cls_ctx, build(seed=3).prompt_learner.cls_ctx)
    assert str(path) in caplog.text


def test_a_stage_1_checkpoint_that_does_not_fit_is_refused(tmp_path):
    def start(path) -> None:
        load_initial_weights(settings(SOLVER__STAGE1__WEIGHT=str(path)), build())

    with pytest.raises(UserError, match="holds prompts of 751 identities, the training data have 5"):
        start(stage1_file(tmp_path, 751))
    with pytest.raises(UserError, match="has shape .* the model's is"):
        start(stage1_file(tmp_path, MODEL__NAME="ViT-mini-16", MODEL__STRIDE_SIZE=[16, 16]))
    with pytest.raises(UserError, match="not a stage-1 checkpoint of this architecture"):
        start(stage1_file(tmp_path, PROCESSOR__NAME="supervised"))
    with pytest.raises(UserError, match="no such checkpoint file"):
        start(tmp_path / "absent.pth")
