"""DINOv2, DINOv3, SigLIP 2 and EVA-02 through timm, one block deep: files, odd sizes, rates, freezing."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from configs import load_config
from model import make_model
from model.backbones import timm_image
from model.freezing import freeze_matching
from model.summary import require_size
from solver import make_optimizer
from tests.tiny import words
from utils.checkpoint import load_pretrained
from utils.errors import UserError

FILES = sorted(Path("configs/foundation").resolve().glob("market*.yml"))
SMALL = {  # the networks of the YAML files, narrower
    "market1501_dinov2_base": "vit_small_patch14_reg4_dinov2",
    "market1501_dinov3_base": "vit_small_patch16_dinov3",
    "market1501_dinov3_base_lora": "vit_small_patch16_dinov3",
    "market1501_eva02_base": "eva02_tiny_patch14_224",
    "market1501_siglip2_base": "vit_base_patch16_siglip_256",
}
CREATE = timm.create_model


@pytest.fixture(autouse=True)
def one_block(monkeypatch):
    monkeypatch.setattr(timm_image.timm, "create_model", lambda name, **more: CREATE(name, **(more | {"depth": 1})))


def settings(file: Path, **changes):
    return load_config(file, ["MODEL.NAME", f"timm:{SMALL[file.stem]}", "MODEL.DROP_PATH", 0.0, *words(changes)])


def published(name: str) -> dict[str, torch.Tensor]:
    """Random weights as timm gives them out, at the size of their pre-training."""
    torch.manual_seed(0)
    network = CREATE(name, pretrained=False, depth=1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network.state_dict()


def test_every_file_has_its_network_here():
    assert {file.stem for file in FILES} == SMALL.keys()
    for file in FILES:
        cfg = load_config(file)
        assert cfg.MODEL.PRETRAIN_PATH.split(".")[0] == cfg.MODEL.NAME and cfg.INPUT.SIZE_TRAIN == cfg.INPUT.SIZE_TEST


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_in_timms_layout_loads_at_another_size_and_aspect_ratio(file, tmp_path):
    cfg, state = settings(file), published(SMALL[file.stem])
    torch.save(state, tmp_path / "published.pth")
    model = make_model(cfg, 4).eval()
    report = load_pretrained(model, tmp_path / "published.pth")
    assert [key for key in report.missing if "lora" not in key] == [] and not report.mismatched
    height, width = cfg.INPUT.SIZE_TRAIN
    patch = model.base.net.patch_embed.patch_size[0]
    grid, loaded = (height // patch, width // patch), model.base.net.state_dict()
    assert ("pos_embed" in state) == ("pos_embed" in report.resized)
    if "pos_embed" in state:  # patches alone are resized, from the square grid of the file, without antialiasing
        old = state["pos_embed"]
        prefix = loaded["pos_embed"].shape[1] - grid[0] * grid[1]
        side = int((old.shape[1] - prefix) ** 0.5)
        patches = old[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        expected = F.interpolate(patches, grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
        torch.testing.assert_close(loaded["pos_embed"], torch.cat([old[:, :prefix], expected], 1))
    images = torch.randn(2, 3, height, width)
    feature = model(images)
    assert feature.shape == (2, model.base.width) and torch.isfinite(feature).all()
    tokens = model.base.token_layout()
    assert tokens.grid == grid and tokens.prefix == {"dinov2": 5, "dinov3": 5, "eva02": 1, "siglip2": 0}[
        file.stem.split("_")[1]
    ]  # class and register tokens


@pytest.mark.parametrize("name", ["market1501_dinov3_base", "market1501_eva02_base"])
def test_rotary_embeddings_are_those_of_the_grid(name):
    """Rotary embeddings tell places apart by themselves: without absolute ones, moved patches are another image."""
    file = next(file for file in FILES if file.stem == name)
    model = make_model(settings(file), 4).eval()
    network = model.base.net
    if network.pos_embed is not None:
        nn.init.zeros_(network.pos_embed)
    height, width = settings(file).INPUT.SIZE_TRAIN
    patch = network.patch_embed.patch_size[0]
    image = torch.randn(1, 3, height, width)
    moved = torch.roll(image, patch, dims=3)  # the same patches in other places
    for parameter in network.blocks.parameters():
        nn.init.normal_(parameter, std=0.3)
    assert (model(image) - model(moved)).abs().max() > 1e-5


def test_rates_fall_from_layer_to_layer_and_patterns_freeze():
    for file in FILES:
        if file.stem.endswith("lora"):
            continue
        cfg = settings(file)
        model = make_model(cfg, 4)
        freeze_matching(model, ["base.net.patch_embed.*"])
        rates = {}
        names = {id(p): name for name, p in model.named_parameters()}
        for group in make_optimizer(cfg, model).param_groups:
            rates |= {names[id(p)]: group["lr"] for p in group["params"]}
        assert not any(name.startswith("base.net.patch_embed") for name in rates)
        block = next(rate for name, rate in rates.items() if ".blocks.0." in name)
        assert block < rates["classifier.weight"] == pytest.approx(cfg.SOLVER.BASE_LR), file.stem


@pytest.mark.parametrize(
    ("stem", "changes", "expected"),
    [
        ("market1501_dinov2_base", {"INPUT__SIZE_TRAIN": [256, 128]},
         "INPUT.SIZE_TRAIN: 256 x 128 cannot be tiled by the model's patches of 14 x 14; the nearest size that can is"),
        ("market1501_dinov3_base", {"INPUT__SIZE_TEST": [390, 128]},
         "INPUT.SIZE_TEST: the network cannot take images of 390 x 128"),
        ("market1501_siglip2_base", {"INPUT__SIZE_TEST": [384, 128]},
         "INPUT.SIZE_TEST: the network cannot take images of 384 x 128, which may be too small, leave part of a patch "
         "over or not be INPUT.SIZE_TRAIN"),
    ],
)  # fmt: skip
def test_a_size_that_does_not_fit_is_one_line_before_any_work(stem, changes, expected):
    cfg = settings(next(file for file in FILES if file.stem == stem), **changes)
    trained, tested = tuple(cfg.INPUT.SIZE_TRAIN), tuple(cfg.INPUT.SIZE_TEST)
    with pytest.raises(UserError) as error:
        require_size(make_model(cfg, 4), "INPUT.SIZE_TEST", tested, trained)
    assert str(error.value).startswith(expected)


def test_rotary_networks_are_tested_at_another_size():
    file = next(file for file in FILES if file.stem == "market1501_dinov3_base")
    model = make_model(settings(file, INPUT__SIZE_TEST=[384, 128]), 4).eval()
    assert model(torch.randn(1, 3, 384, 128)).shape == (1, model.base.width)
