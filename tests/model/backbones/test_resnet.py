"""The ResNets: stems, strides and the instance-batch norm, against the layers written out; every listed type builds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from model.backbones.resnet import RESNET_TYPES, ReIDResNet, ResNetSpec
from model.backbones.timm_image import TimmBackbone
from model.layers.norms import IBN, SyncBatchNorm, convert_sync_batch_norm
from utils.errors import UserError

SMALL = ResNetSpec(Bottleneck, (1, 1, 1, 1))
SMALL_IBN = ResNetSpec(Bottleneck, (1, 1, 1, 1), ibn=True)


def build(spec: ResNetSpec, last_stride: int = 1, **place) -> ReIDResNet:
    torch.manual_seed(0)
    return ReIDResNet(spec, last_stride)


@pytest.mark.parametrize("name", sorted(RESNET_TYPES))
def test_every_type_builds_with_the_width_and_depth_of_its_name(name):
    with torch.device("meta"):
        model = ReIDResNet(RESNET_TYPES[name])
        assert model.eval()(torch.empty(2, 3, 64, 32)).shape == (2, model.width)
    convolutions = 3 if RESNET_TYPES[name].block is Bottleneck else 2
    assert f"{convolutions * sum(RESNET_TYPES[name].layers) + 2}" == name.removeprefix("resnet").removesuffix("_ibn_a")
    assert model.width == (2048 if convolutions == 3 else 512)
    assert not any(key.startswith("fc.") for key in model.state_dict())


@pytest.mark.parametrize("spec", [SMALL, SMALL_IBN, ResNetSpec(BasicBlock, (1, 1, 1, 1))])
@pytest.mark.parametrize("last_stride", [1, 2])
def test_the_last_stage_keeps_or_halves_the_map(spec, last_stride):
    model = build(spec, last_stride).eval()
    assert model.maps(torch.randn(1, 3, 64, 32)).shape[2:] == ((4, 2) if last_stride == 1 else (2, 1))


def test_another_last_stride_is_refused():
    with pytest.raises(UserError, match="MODEL.LAST_STRIDE: 3"):
        build(SMALL, 3)


@pytest.mark.parametrize("ibn", [False, True])
def test_the_stem_is_convolution_norm_relu_and_the_published_pooling(ibn):
    model = build(SMALL_IBN if ibn else SMALL).eval()
    images, x = torch.randn(2, 3, 30, 18), {}
    model.layer1.register_forward_pre_hook(lambda module, given: x.update(found=given[0]))
    model(images)
    wanted = F.conv2d(images, model.conv1.weight, stride=2, padding=3)
    wanted = (wanted / (1 + 1e-5) ** 0.5).relu()
    wanted = F.max_pool2d(wanted, 3, 2, 1) if ibn else F.max_pool2d(wanted, 2, 2)
    torch.testing.assert_close(x["found"], wanted)


def test_the_feature_is_the_mean_of_the_map_and_labels_are_taken_and_ignored():
    model, images = build(SMALL).eval(), torch.randn(2, 3, 64, 32)
    torch.testing.assert_close(model(images), model.maps(images).flatten(2).mean(2))
    assert torch.equal(model(images, cam_label=torch.tensor([0, 9]), view_label=None), model(images))


def test_instance_norm_stands_first_in_the_blocks_of_the_first_three_stages():
    model = build(SMALL_IBN)
    found = {name for name, module in model.named_modules() if isinstance(module, IBN)}
    assert found == {f"layer{i}.0.bn1" for i in (1, 2, 3)}
    assert {k for k in model.state_dict() if k.startswith("layer1.0.bn1.")} == {
        *(f"layer1.0.bn1.IN.{n}" for n in ("weight", "bias")),
        *(f"layer1.0.bn1.BN.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    }


@pytest.mark.parametrize("channels", [6, 7])
def test_ibn_normalises_the_first_half_per_image_and_the_rest_per_batch(channels):
    torch.manual_seed(1)
    norm, x = IBN(channels).train(), 3 * torch.randn(4, channels, 5, 3) + 2
    out, half = norm(x), channels // 2
    for c in range(channels):
        if c < half:
            wanted = torch.stack([(m - m.mean()) / (m.var(unbiased=False) + 1e-5).sqrt() for m in x[:, c]])
        else:
            wanted = (x[:, c] - x[:, c].mean()) / (x[:, c].var(unbiased=False) + 1e-5).sqrt()
        torch.testing.assert_close(out[:, c], wanted, atol=1e-5, rtol=1e-4)


def test_synchronised_batch_norm_keeps_the_activation_of_timm_s_norms():
    images = torch.randn(3, 3, 64, 32)
    plain, synced = (TimmBackbone("test_efficientnet", (64, 32)).train() for _ in range(2))
    synced.load_state_dict(plain.state_dict())
    synced = convert_sync_batch_norm(synced)
    assert synced.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(synced(images), plain(images))


def test_synchronised_batch_norm_keeps_parameters_and_in_one_process_is_batch_norm():
    plain = build(SMALL_IBN).train()
    synced = convert_sync_batch_norm(build(SMALL_IBN)).train()
    assert not [m for m in synced.modules() if type(m) in (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)]
    assert [m for m in synced.modules() if isinstance(m, SyncBatchNorm)]
    assert synced.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(3, 3, 32, 16)
    torch.testing.assert_close(synced(images), plain(images))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(synced.state_dict()[key], value)
