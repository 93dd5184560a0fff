"""Weights from files: every published wrapping, other grids and classifiers, what is refused, and whole writing."""

from __future__ import annotations

import errno
import io
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model import make_model
from model.backbones.vit import ViT, ViTSpec
from tests.tiny import config
from utils.checkpoint import (
    load_complete,
    load_pretrained,
    load_weights,
    require_complete,
    resize_positions,
    unwrap,
)
from utils.errors import UserError
from utils.files import write_atomically
from utils.weight_files import read_state, save_atomically


def build(num_class: int = 5, seed: int = 0, **changes) -> nn.Module:
    torch.manual_seed(seed)
    model = make_model(config(Path("none"), Path("none"), **changes), num_class, 3, 2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    for name, buffer in model.named_buffers():
        if "running" in name:
            nn.init.uniform_(buffer, 0.5, 2)
    return model


def sized(height: int, width: int, stride: int = 8) -> dict:
    size = [height, width]
    return {"INPUT__SIZE_TRAIN": size, "INPUT__SIZE_TEST": size, "MODEL__STRIDE_SIZE": [stride, stride]}


def equal(model: nn.Module, other: nn.Module, but: tuple[str, ...] = ()) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in model.state_dict().items() if not k.startswith(but or ("-",)))


def line(function, *args) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(UserError) as caught:
        function(*args)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


# ---------------------------------------------------------------- whole models


@pytest.mark.parametrize("changes", [{}, {"MODEL__JPM": True, "MODEL__SIE_CAMERA": True}, {"MODEL__NAME": "resnet10"}])
def test_a_saved_model_comes_back_whole(tmp_path, changes):
    model, other = build(**changes), build(seed=1, **changes)
    save_atomically(model.state_dict(), tmp_path / "runs" / "model.pth")
    report = load_weights(other, tmp_path / "runs" / "model.pth")
    assert equal(model, other)
    assert not (report.missing or report.unexpected or report.mismatched or report.resized)
    assert set(report.loaded) == set(model.state_dict())
    require_complete(other, report)
    assert "tensors loaded from" in str(report) and str(tmp_path) in str(report)


WRAPPINGS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {}}},
    "model in state_dict": lambda s: {"state_dict": {"model": s}},
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "module. in state_dict": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=list(WRAPPINGS))
def test_published_wrappings_are_opened(wrap, tmp_path):
    model = build()
    torch.save(wrap(model.state_dict()), tmp_path / "model.pth")
    for source in (tmp_path / "model.pth", str(tmp_path / "model.pth"), wrap(model.state_dict())):
        other = build(seed=1)
        require_complete(other, load_weights(other, source))
        assert equal(model, other)


@pytest.mark.parametrize(
    "word", ["net", "network", "model_state_dict", "state_dict_ema", "module", "teacher", "ema", "model_ema"]
)
@pytest.mark.parametrize("before", ["", "model.", "net.model.", "module.", "model.module."])
def test_other_programs_wrappings_are_opened(word, before, tmp_path, caplog):
    model, other = build(), build(seed=1)
    state = {f"{before}{k}": v for k, v in model.state_dict().items()}
    torch.save({"epoch": 3, word: state, "optimizer_states": [{"state": {}}]}, tmp_path / "a.ckpt")
    require_complete(other, load_weights(other, tmp_path / "a.ckpt"))
    assert equal(model, other) and "MODEL.WEIGHT_KEY" not in caplog.text
    backbone, bare = build(seed=2), {f"{before}{k}": v for k, v in model.base.state_dict().items()}
    load_pretrained(backbone, {word: {**bare, f"{before}head.weight": torch.ones(3, 32)}})
    assert equal(backbone.base, model.base)


def lightning(model: nn.Module) -> dict:
    state = {f"model.{k}": v for k, v in model.state_dict().items()} | {"criterion.centers": torch.ones(5, 32)}
    return {"state_dict": state, "pytorch-lightning_version": "2.0", "epoch": 3, "callbacks": {}, "lr_schedulers": []}


def test_names_in_messages_are_those_of_the_file():
    model, other = build(), build(seed=1)
    report = load_weights(other, lightning(model))
    assert equal(model, other) and report.unexpected == ["criterion.centers"]
    resnet = build(MODEL__NAME="resnet10")
    text = line(
        load_weights,
        build(MODEL__JPM=True),
        {"state_dict": {f"other.model.{k}": v for k, v in resnet.base.state_dict().items()}},
    )
    assert "(it has other.model.conv1.weight, " in text and "base.other" not in text


@pytest.fixture
def log_lines(caplog):
    caplog.set_level(logging.INFO, "lineup")
    return caplog


def test_of_two_candidates_the_trained_weights_are_taken_and_the_log_names_both(log_lines, tmp_path):
    model, average = build(), build(seed=1)
    torch.save({"state_dict_ema": average.state_dict(), "state_dict": model.state_dict()}, tmp_path / "a.pth")
    for key, expected in (("", model), ("state_dict", model), ("state_dict_ema", average)):
        log_lines.clear()
        other = build(seed=2)
        load_complete(other, tmp_path / "a.pth", key=key)
        assert equal(other, expected)
        assert ("'state_dict' are taken; it has 'state_dict_ema' too (MODEL.WEIGHT_KEY)" in log_lines.text) == (not key)
        backbone = build(seed=3)
        load_pretrained(backbone, tmp_path / "a.pth", key=key)
        assert equal(backbone.base, expected.base)
    with pytest.raises(UserError, match="no weights under 'ema'; it has state_dict_ema, state_dict$"):
        load_weights(build(), tmp_path / "a.pth", key="ema")
    load_weights(build(), model.state_dict(), key="state_dict_ema")  # a file of one set of weights has no choice


def test_a_classifier_of_other_identities_is_said_to_be_expected():
    report = load_weights(build(seed=1), build(num_class=9).state_dict())
    text = (
        "1 mismatched, as expected with other identities: a test does without (classifier.weight (9, 32) for (5, 32))"
    )
    assert text in str(report) and "missing" not in str(report)


SIDES = {"MODEL__SIE_CAMERA": True, "MODEL__SIE_VIEW": True}


def with_cameras(cameras: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make_model(config(Path("none"), Path("none"), MODEL__SIE_CAMERA=True), 5, cameras, 2)


def test_side_information_of_other_cameras_names_both_and_the_ways_out():
    theirs, ours = with_cameras(6), with_cameras(3, seed=1)
    for load in (load_weights, load_pretrained):
        text = line(load, ours, theirs.state_dict())
        assert "has 6 rows" in text and "these data have 3 cameras" in text
        assert "MODEL.SIE_CAMERA False" in text and "MODEL.SIE_NEW_ROWS True" in text
    plain = load_weights(ours, build().state_dict())
    assert "MODEL.SIE_CAMERA False" in line(require_complete, ours, plain)


def test_new_rows_of_side_information_start_as_the_mean_of_the_known():
    theirs = with_cameras(6)
    nn.init.normal_(theirs.base.sie_embed)
    for load in (load_weights, load_pretrained):
        ours = with_cameras(3, seed=1)
        report = load(ours, theirs.state_dict(), new_rows=True)
        torch.testing.assert_close(ours.base.sie_embed[1], theirs.base.sie_embed.mean(0))
        assert torch.equal(ours.base.sie_embed[0], ours.base.sie_embed[2]) and not report.mismatched
    same = with_cameras(6, seed=1)
    load_weights(same, theirs.state_dict(), new_rows=True)
    assert torch.equal(same.base.sie_embed, theirs.base.sie_embed)


def test_another_stride_or_size_is_named_before_the_ratio():
    model = build(**sized(64, 32, 4))
    text = line(load_weights, build(**sized(40, 16)), model.state_dict())
    for word in ("patches", "5 x 2", "MODEL.STRIDE_SIZE", "INPUT.SIZE_TEST"):
        assert 0 < text.index(word) < text.index("MODEL.PRETRAIN_HW_RATIO"), text


def test_numpy_arrays_are_taken_as_tensors():
    model, other = build(), build(seed=1)
    load_weights(other, {k: v.numpy() for k, v in model.state_dict().items()})
    assert equal(model, other)


@pytest.mark.parametrize("kind", ["softmax", "amsoftmax"])
@pytest.mark.parametrize("parts", [False, True])
def test_a_classifier_of_another_number_of_identities_does_not_stop_a_test_and_is_told(kind, parts):
    changes = {"MODEL__ID_LOSS_TYPE": kind, "MODEL__JPM": parts}
    model, other = build(num_class=9, **changes), build(seed=1, **changes)
    report = load_weights(other, model.state_dict())
    assert equal(other, model, but=("classifier",))
    assert len(report.mismatched) == (5 if parts else 1) == len(report.missing)
    assert all(text.startswith("classifier") and "for" in text for text in report.mismatched)
    assert "mismatched" in str(report)
    require_complete(other, report)


def test_what_is_missing_or_unexpected_is_told_and_only_a_classifier_may_be_missing():
    state = build().state_dict()
    del state["classifier.weight"]
    state |= {"extra.weight": torch.ones(1), "base.fc.weight": torch.ones(1000, 32), "base.fc.bias": torch.ones(1000)}
    report = load_weights(build(seed=1), state)
    assert report.missing == ["classifier.weight"]
    assert set(report.unexpected) == {"extra.weight", "base.fc.weight", "base.fc.bias"}
    require_complete(build(), report)
    del state["bottleneck.running_mean"]
    report = load_weights(build(seed=1), state)
    assert "bottleneck.running_mean" in line(require_complete, build(), report)


def test_a_counter_of_batches_may_be_missing():
    state = {k: v for k, v in build().state_dict().items() if not k.endswith("num_batches_tracked")}
    assert load_weights(build(seed=1), state).missing == []


def test_another_models_file_is_refused():
    resnet = build(MODEL__NAME="resnet10")
    assert "no tensor fits" in line(load_weights, build(), {"a": torch.ones(2)})
    report = load_weights(build(MODEL__REDUCE_FEAT_DIM=True, MODEL__FEAT_DIM=512), resnet.state_dict())
    assert "another model" in line(require_complete, build(), report)
    assert "another model or setting" in line(load_weights, build(), resnet.state_dict())
    wider = build(MODEL__TRANSFORMER_TYPE="vit_mini_patch8_TransReID").state_dict()
    assert "has shape" in line(load_weights, build(), wider)
    assert "base.sie_embed" in line(
        load_weights, build(MODEL__SIE_CAMERA=True), build(MODEL__SIE_CAMERA=True, MODEL__SIE_VIEW=True).state_dict()
    )


# ---------------------------------------------------------------- position embeddings


def slow_resize(old: torch.Tensor, rows: int, columns: int, grid: tuple[int, int]) -> torch.Tensor:
    """Bilinear, corners not aligned, no antialiasing, a point at a time. old: (1 + rows * columns, D)."""
    table, out = old[1:].view(rows, columns, -1), []
    for y in range(grid[0]):
        for x in range(grid[1]):
            at = []
            for i, new, count in ((y, grid[0], rows), (x, grid[1], columns)):
                place = max((i + 0.5) * count / new - 0.5, 0)
                low = int(place)
                at.append((low, min(low + 1, count - 1), place - low))
            (t, b, dy), (le, r, dx) = at
            out.append(
                (1 - dy) * ((1 - dx) * table[t, le] + dx * table[t, r])
                + dy * ((1 - dx) * table[b, le] + dx * table[b, r])
            )
    return torch.cat([old[:1], torch.stack(out)])


@pytest.mark.parametrize(
    ("ratio", "rows", "columns", "grid"),
    [(1, 4, 4, (6, 3)), (1, 5, 5, (3, 2)), (2, 8, 4, (4, 4)), (2, 10, 5, (12, 4)), (3, 6, 2, (4, 2))],
)
def test_position_embeddings_are_resized_bilinearly_from_a_grid_of_the_ratio(ratio, rows, columns, grid):
    old = torch.randn(1, 1 + rows * columns, 3, generator=torch.Generator().manual_seed(0))
    found = resize_positions(old, grid, ratio)
    torch.testing.assert_close(found[0], slow_resize(old[0], rows, columns, grid))


def test_equal_lengths_are_left_alone_whatever_the_shape_of_the_grid():
    old = torch.randn(1, 9, 3)
    assert resize_positions(old, (2, 4), 2) is old


def test_a_length_that_is_no_grid_names_the_key():
    assert "MODEL.PRETRAIN_HW_RATIO 1" in line(resize_positions, torch.ones(1, 129, 2), (4, 4), 1)


@pytest.mark.parametrize(
    ("ratio", "source", "size"), [(1, (32, 32), (32, 16)), (2, (64, 32), (32, 16)), (2, (48, 24), (64, 32))]
)
def test_a_backbone_of_another_image_size_loads_with_its_positions_resized(ratio, source, size):
    model, old = build(**sized(*size)), build(seed=1, **sized(*source))
    grid = (source[0] // 8, source[1] // 8)
    wanted = slow_resize(old.base.pos_embed[0], *grid, (size[0] // 8, size[1] // 8))
    report = load_pretrained(model, old.base.state_dict(), ratio)
    assert report.resized == ["pos_embed"] and not report.missing
    torch.testing.assert_close(model.base.pos_embed[0], wanted)
    again = build(**sized(*size))
    assert load_weights(again, old.state_dict(), ratio).resized == ["base.pos_embed"]
    torch.testing.assert_close(again.base.pos_embed, model.base.pos_embed)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (32, 16)])
def test_the_distillation_token_is_dropped_by_its_name_or_by_the_count(named, size):
    source = build(seed=1, **sized(32, 32)).base.state_dict()
    plain = dict(source)
    source["pos_embed"] = torch.cat(
        [source["pos_embed"][:, :1], torch.full((1, 1, 32), 99.0), source["pos_embed"][:, 1:]], 1
    )
    if named:
        source |= {
            "dist_token": torch.ones(1, 1, 32),
            "head_dist.weight": torch.ones(3, 32),
            "head.weight": torch.ones(3, 32),
        }
    model, wanted = build(**sized(*size)), build(**sized(*size))
    report = load_pretrained(model, {"model": source})
    load_pretrained(wanted, plain)
    assert torch.equal(model.base.pos_embed, wanted.base.pos_embed)
    assert not (model.base.pos_embed == 99).any()
    assert set(report.unexpected) == ({"dist_token", "head_dist.weight", "head.weight"} if named else set())


@pytest.mark.parametrize("size", [(80, 40), (40, 16), (16, 8)])  # 50, 10 and 2 patches: one more than a square each
def test_a_grid_of_one_patch_more_than_a_square_is_no_distillation_token(size):
    model, other = build(**sized(*size)), build(seed=1, **sized(*size))
    load_weights(other, model.state_dict())
    assert equal(model, other)
    again = build(seed=2, **sized(*size))
    load_pretrained(again, model.base.state_dict())
    assert torch.equal(again.base.pos_embed, model.base.pos_embed)
    if size == (80, 40):  # a grid of the ratio, for another size
        smaller = build(**sized(32, 16))
        load_pretrained(smaller, model.base.state_dict(), 2)
        torch.testing.assert_close(smaller.base.pos_embed[0], slow_resize(model.base.pos_embed[0], 10, 5, (4, 2)))


def test_a_timm_backbone_of_another_image_size_loads():
    import timm

    torch.manual_seed(0)
    source = timm.create_model("test_vit", img_size=(64, 64))
    model = build(**{"MODEL__NAME": "timm:test_vit", **sized(64, 32, 16)})
    report = load_pretrained(model, source.state_dict())
    assert (
        report.resized == ["pos_embed"]
        and not report.missing
        and set(report.unexpected) == {"head.weight", "head.bias"}
    )
    torch.testing.assert_close(model.base.net.pos_embed[0], slow_resize(source.pos_embed[0], 4, 4, (4, 2)))


# ---------------------------------------------------------------- weights from elsewhere


def test_backbone_files_in_published_wrappings_load_and_heads_are_skipped():
    state = build(seed=1).base.state_dict()
    dino = {f"module.backbone.{k}": v for k, v in state.items()} | {"module.head.mlp.0.weight": torch.ones(2)}
    imagenet = state | {
        "head.weight": torch.ones(10, 32),
        "pre_logits.fc.weight": torch.ones(2),
        "fc.bias": torch.ones(2),
    }
    whole = {f"base.{k}": v for k, v in state.items()} | {"classifier.weight": torch.ones(3, 32)}
    for source in (
        state,
        {"teacher": dino, "student": {}, "epoch": 3},
        imagenet,
        {"state_dict": {"model": state}},
        whole,
    ):
        model = build()
        report = load_pretrained(model, source)
        assert all(torch.equal(v, state[k]) for k, v in model.base.state_dict().items())
        assert not report.missing
    assert set(load_pretrained(build(), imagenet).unexpected) == {"head.weight", "pre_logits.fc.weight", "fc.bias"}


def test_a_flattened_patch_weight_is_given_its_shape_back():
    state = build(seed=1).base.state_dict()
    flat = state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"].flatten(1)}
    model = build()
    load_pretrained(model, flat)
    assert torch.equal(model.base.patch_embed.proj.weight, state["patch_embed.proj.weight"])


def test_resnet_files_load_without_their_classifier():
    source = build(seed=1, MODEL__NAME="resnet10").base.state_dict()
    model = build(MODEL__NAME="resnet10")
    report = load_pretrained(
        model, {"state_dict": {f"module.{k}": v for k, v in source.items()} | {"module.fc.weight": torch.ones(5, 512)}}
    )
    assert report.unexpected == ["fc.weight"] and not report.missing
    assert all(torch.equal(v, source[k]) for k, v in model.base.state_dict().items())


def test_a_backbone_file_of_another_width_or_kind_is_refused():
    wide = ViT(ViTSpec(48, 3, 2, mlp_ratio=2.0, patch=8), (32, 16), (8, 8))
    assert "another model or setting" in line(load_pretrained, build(), wide.state_dict())
    assert "no tensor fits" in line(load_pretrained, build(), {"features.0.weight": torch.ones(3)})


# ---------------------------------------------------------------- files


def test_a_missing_file_and_a_folder_are_told(tmp_path):
    assert line(read_state, tmp_path / "none.pth") == f"{tmp_path}/none.pth: no such checkpoint file"
    assert "no such checkpoint file" in line(read_state, tmp_path)


NO_CHECKPOINTS = {
    "text": lambda p: p.write_text("hello\nworld\n"),
    "page": lambda p: p.write_text("<!DOCTYPE html><html>404</html>"),
    "empty": lambda p: p.write_bytes(b""),
    "list": lambda p: torch.save([1, 2], p),
    "tensor": lambda p: torch.save(torch.ones(2), p),
    "truncated": lambda p: (torch.save({"a": torch.randn(500)}, p), os.truncate(p, 1000)),
    "archive": lambda p: p.write_bytes(b"PK\x03\x04 and so on"),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", NO_CHECKPOINTS.values(), ids=list(NO_CHECKPOINTS))
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(write, ending, tmp_path):
    path = tmp_path / f"file.{ending}"
    write(path)
    text = line(read_state, path)
    assert text.startswith(f"{path}: not a")
    assert "run code" not in text


class Intruder:
    """What unpickling it would do: create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "bare"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(how, tmp_path):
    path, trace = tmp_path / "model.pth", tmp_path / "trace"
    value = {"state_dict": {"a": torch.ones(1)}, "x": Intruder(trace)}
    if how in ("pickle", "bare"):
        path.write_bytes(pickle.dumps({"x": Intruder(trace)}, protocol=2 if how == "pickle" else 4))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=how == "zip")
    text = line(read_state, path)
    assert not trace.exists()
    assert "refused: the file may ask to run code (posix.mkdir)" in text
    pickle.loads(pickle.dumps(Intruder(trace)))
    assert trace.exists()  # it would have


def test_a_whole_pickled_module_is_refused_with_its_class(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    assert "(torch.nn.modules.linear.Linear)" in line(read_state, tmp_path / "model.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_numpy_scalars_beside_the_weights_are_read(legacy, tmp_path):
    model, path = build(), tmp_path / "model.pth.tar-3"
    beside = {
        "rank1": np.float64(0.912), "epoch": 3, "mAP": np.float32(0.5), "best": np.int64(2), "small": np.float16(1),
        "flag": np.bool_(True), "optimizer": torch.optim.Adam(model.parameters()).state_dict(),
    }  # fmt: skip
    torch.save({"state_dict": model.state_dict(), **beside}, path, _use_new_zipfile_serialization=not legacy)
    if legacy:  # as NumPy 1 spelt it, in files of that time
        path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    state = read_state(path)
    assert (state["rank1"], state["epoch"], state["mAP"], state["best"]) == (0.912, 3, 0.5, 2)
    other = build(seed=1)
    require_complete(other, load_weights(other, path))
    assert equal(model, other)
    assert set(unwrap(state)) == set(model.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_gives_its_state_only(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    torch.jit.trace(model, torch.ones(2, 3)).save(str(tmp_path / "clip.pt"))
    state = read_state(tmp_path / "clip.pt")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file

    model, other = build(), build(seed=1)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    load_weights(other, tmp_path / "model.safetensors")
    assert equal(model, other)


# ---------------------------------------------------------------- writing


def refuse(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["os.fsync", "torch.save"])
def test_a_full_disk_leaves_the_old_file_and_no_other(broken, tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    save_atomically({"a": torch.ones(3)}, path)
    before = path.read_bytes()
    monkeypatch.setattr(broken, refuse)
    text = line(save_atomically, {"a": torch.zeros(9)}, path)
    assert text.startswith(f"{path}: could not be written (No space left on device)")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pth"]


@pytest.mark.parametrize(
    "error",
    [RuntimeError(), RuntimeError("PytorchStreamWriter failed\nwriting file"), KeyboardInterrupt(), TypeError("x")],
)
def test_whatever_stops_the_writing_leaves_no_temporary_file(error, tmp_path, monkeypatch):
    def stop(value, handle):
        handle.write(b"half")
        raise error

    monkeypatch.setattr("torch.save", stop)
    with pytest.raises(UserError if isinstance(error, RuntimeError) else type(error)) as caught:
        save_atomically({}, tmp_path / "model.pth")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    text = line(save_atomically, {}, tmp_path / "file" / "model.pth")
    assert str(tmp_path / "file" / "model.pth") in text


def test_a_written_file_is_readable_for_others_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "model.pth"
    for value in (1.0, 2.0):
        save_atomically({"a": torch.full((2,), value)}, path)
        assert read_state(path)["a"].tolist() == [value] * 2
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["model.pth"]


def test_a_full_disk_is_named_where_torch_speaks_of_positions(tmp_path):
    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() > 1000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def write(handle):
        torch.save({"a": torch.zeros(1000)}, Full())

    with pytest.raises(UserError, match=r"could not be written \(No space left on device\)"):
        write_atomically(tmp_path / "a.pth", write)
    assert not list(tmp_path.iterdir())
