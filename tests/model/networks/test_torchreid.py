"""torchreid's model zoo: every shipped YAML reads a file of the published layout; an unfit file names the keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs import load_config
from model import make_model
from model.networks.torchreid import PREFIX, TRUNKS, gives_stage_maps
from utils.checkpoint import load_complete
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
YAMLS = sorted(path for path in (ROOT / "configs" / "torchreid").glob("*.yml") if not path.stem.startswith("_"))
ZOO = {  # millions of parameters with the head and without the classifier, as the zoo's page rounds them
    "resnet50": 23.5, "resnet50_fc512": 24.6, "mobilenetv2_x1_0": 2.2, "mobilenetv2_x1_4": 4.3, "osnet_x1_0": 2.2,
    "osnet_x0_75": 1.3, "osnet_x0_5": 0.6, "osnet_x0_25": 0.2, "osnet_ain_x1_0": 2.2, "osnet_ibn_x1_0": 2.2,
}  # fmt: skip


def build(name: str, *opts, num_class: int = 3) -> nn.Module:
    torch.manual_seed(len(opts))
    return make_model(load_config(ROOT / "configs" / "torchreid" / f"{name}.yml", opts), num_class).eval()


def published(model: nn.Module) -> dict[str, Tensor]:
    """A state as torchreid names it: flat, without our margins."""
    return {key.removeprefix("base."): value for key, value in model.state_dict().items() if "margin" not in key}


def test_every_network_of_the_zoo_has_a_yaml():
    assert len(YAMLS) >= 13
    assert {path.stem for path in YAMLS} >= ZOO.keys()
    assert all(PREFIX + path.stem == load_config(path).MODEL.NAME for path in YAMLS)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_a_zoo_file_is_tested_with_its_yaml(path, tmp_path):
    source, model = build(path.stem, num_class=7), build(path.stem, "MODEL.PRETRAIN_CHOICE", "no")
    nn.init.normal_(next(source.parameters()))
    file = tmp_path / f"{path.stem}_market1501.pth.tar"
    state = {f"module.{key}": value for key, value in published(source).items()}
    torch.save({"state_dict": state, "epoch": 60, "rank1": np.float64(0.94)}, file)
    report = load_complete(model, file)
    assert not report.unexpected
    assert all(key.startswith(("classifier", "base.margin")) for key in report.missing)
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        feats = model(images)
        assert torch.equal(feats, source(images))
    if path.stem in ZOO:
        counted = sum(p.numel() for key, p in model.named_parameters() if not key.startswith("classifier"))
        assert abs(counted / 1e6 - ZOO[path.stem]) < 0.06


def test_the_finer_resnet_keeps_the_size_of_the_third_stages_map():
    images = torch.zeros(1, 3, 64, 32)
    with torch.no_grad():
        assert build("resnet50").base(images).shape == (1, 2048, 2, 1)
        assert build("resnet50_fc512").base(images).shape == (1, 2048, 4, 2)


def test_stage_maps_are_of_the_resnets_alone():
    assert {name for name in TRUNKS if gives_stage_maps(PREFIX + name)} == {
        name for name in TRUNKS if name.startswith("resnet")
    }
    assert not gives_stage_maps("resnet50")


@pytest.mark.parametrize(
    ("file", "ours", "opts", "line"),
    [
        ("osnet_x0_25", "osnet_x0_25", ["MODEL.FC_HEAD", "feat"], "set MODEL.FC_HEAD fc"),
        (
            "osnet_x0_25", "osnet_x0_25", ["MODEL.FC_HEAD", "feat", "MODEL.FC_DIM", 2048],
            "set MODEL.FC_HEAD fc MODEL.FC_DIM 512",
        ),
        ("osnet_x0_25", "osnet_x0_25", ["MODEL.FC_DIM", 256], "set MODEL.FC_DIM 512"),
        ("osnet_x0_5", "osnet_x0_25", [], "set MODEL.NAME torchreid_osnet_x0_5"),
        ("osnet_ain_x0_25", "osnet_x0_25", [], "set MODEL.NAME torchreid_osnet_ain_x0_25"),
        (
            "mobilenetv2_x1_0", "osnet_x0_25", ["MODEL.FC_HEAD", "feat"],
            "set MODEL.NAME torchreid_mobilenetv2_x1_0 MODEL.FC_HEAD none",
        ),
        ("resnet50", "resnet50_fc512", [], "set MODEL.NAME torchreid_resnet50 MODEL.FC_HEAD none"),
        (
            "resnet50_fc512", "resnet50", ["MODEL.FC_HEAD", "feat"],
            "set MODEL.NAME torchreid_resnet50_fc512 MODEL.FC_HEAD fc",
        ),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_names_the_keys_to_set(file, ours, opts, line):
    state, model = published(build(file)), build(ours, *opts)
    with pytest.raises(UserError) as caught:
        load_complete(model, state)
    assert str(caught.value).endswith(f"this checkpoint is of another model or setting: {line}"), str(caught.value)
