"""The torchreid family: every network of its model zoo by the shipped YAML, and what is said of a file that differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from configs import load_config
from model import make_model
from tests.tiny import config
from utils.checkpoint import load_weights, require_complete
from utils.errors import UserError

ZOO = Path(__file__).resolve().parents[3] / "configs" / "torchreid"

#: File -> (tensors of the published file with its classifier, width of the feature, a name in the file).
PUBLISHED = {
    "osnet_x1_0": (567, 512, "conv2.0.conv2b.1.bn.weight"),
    "osnet_x0_75": (567, 512, "conv3.2.0.conv.weight"),
    "osnet_x0_5": (567, 512, "conv4.1.gate.fc1.bias"),
    "osnet_x0_25": (567, 512, "conv5.bn.running_var"),
    "osnet_ain_x1_0": (552, 512, "conv2.0.conv2.1.layers.0.conv1.weight"),
    "osnet_ibn_x1_0": (568, 512, "conv2.1.IN.weight"),
    "resnet50": (320, 2048, "layer4.2.bn3.weight"),
    "resnet50_fc512": (327, 512, "fc.1.running_mean"),
    "mobilenetv2_x1_0": (320, 1280, "conv3.1.dwconv2.conv.weight"),
    "mobilenetv2_x1_4": (320, 1792, "conv8.0.conv3.1.bias"),
}


def build(num_class: int = 5, **changes) -> nn.Module:
    torch.manual_seed(0)
    settings = {"MODEL__NAME": "torchreid_osnet_x0_25", "MODEL__FC_HEAD": "fc", "MODEL__FC_DIM": 16} | changes
    return make_model(config(Path("none"), Path("none"), **settings), num_class)


def published(model: nn.Module) -> dict[str, Tensor]:
    """A model's state as torchreid's files have it: the trunk's names without a prefix, no margins."""
    state = {key.removeprefix("base."): value.clone() for key, value in model.state_dict().items()}
    return {key: value for key, value in state.items() if not key.startswith("margin")}


def test_every_network_of_the_zoo_has_a_yaml():
    assert {path.stem for path in ZOO.glob("*.yml")} == {"_base", *PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_zoo_file_loads_with_its_yaml_alone(name, tmp_path):
    cfg = load_config(ZOO / f"{name}.yml")
    torch.manual_seed(0)
    source, model = make_model(cfg, 3), make_model(cfg, 0).eval()
    state = published(source)
    count, width, key = PUBLISHED[name]
    assert len(state) == count and key in state and model.width == width
    torch.save(state, tmp_path / "zoo.pth")
    report = load_weights(model, tmp_path / "zoo.pth")
    require_complete(model, report)
    assert not report.unexpected and report.settings == ""
    assert {name.partition(" ")[0] for name in report.mismatched} == {"classifier.weight", "classifier.bias"}
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(model(images), source.eval()(images))


def test_the_zoos_resnets_have_torchvisions_names_and_strides():
    trunks = {name: make_model(load_config(ZOO / f"{name}.yml"), 0).base for name in ("resnet50", "resnet50_fc512")}
    with torch.device("meta"):
        names = {key for key in resnet50().state_dict() if not key.startswith("fc.")}
    for trunk in trunks.values():
        assert {key for key in trunk.state_dict() if not key.startswith("margin")} == names
    with torch.no_grad():
        sizes = [trunk.eval()(torch.randn(1, 3, 64, 32)).shape[2:] for trunk in trunks.values()]
    assert sizes == [(2, 1), (4, 2)]  # the one with a feature of 512 keeps the third stage's size


@pytest.mark.parametrize(
    ("file", "model", "words"),
    [
        ({}, {"MODEL__FC_HEAD": "feat"}, "set MODEL.FC_HEAD fc MODEL.FC_DIM 16"),
        ({"MODEL__FC_HEAD": "feat"}, {}, "set MODEL.FC_HEAD feat MODEL.FC_DIM 16"),
        ({"MODEL__FC_HEAD": "none"}, {}, "set MODEL.FC_HEAD none"),
        ({"MODEL__FC_DIM": 8}, {}, r"fc\.0\.weight has shape .*set MODEL.FC_HEAD fc MODEL.FC_DIM 8"),
    ],
)
def test_a_file_with_another_head_ends_with_the_keys_to_set(file, model, words):
    def load(**changes) -> None:
        network = build(**changes)
        require_complete(network, load_weights(network, published(build(**file))))

    with pytest.raises(UserError, match=words) as caught:
        load(**model)
    keys = str(caught.value).rpartition(" set ")[2].split()
    load(**{key.replace(".", "__"): value for key, value in zip(keys[::2], keys[1::2], strict=True)})


@pytest.mark.parametrize("other", ["torchreid_osnet_x0_5", "torchreid_osnet_ain_x0_25", "torchreid_resnet18"])
def test_a_file_of_another_trunk_names_no_keys_of_the_head(other):
    state = published(build(MODEL__NAME=other, MODEL__FC_HEAD="feat"))
    network = build()
    with pytest.raises(UserError) as caught:
        require_complete(network, load_weights(network, state))
    assert "another model" in str(caught.value) and "MODEL.FC_HEAD" not in str(caught.value)
