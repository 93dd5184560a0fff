"""The protocol of networks: every family answers every question, and a user's plain backbone is as good as ours."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from loss import make_loss
from model import Backbone, ReIDOutput, RetrievalModel, make_model, register_backbone
from model.base import PlainBackbone, TokenLayout, as_backbone
from model.make_model import NETWORKS
from solver import make_optimizer
from tests.model.families import MODELS, OF_METHODS
from tests.tiny import config
from utils.checkpoint import load_complete, load_pretrained, position_grids
from utils.errors import UserError
from utils.methods import METHODS, Method
from utils.names import BACKBONES

FAMILIES = MODELS | OF_METHODS


def settings(**changes):
    return config(Path("none"), Path("none"), **changes)


def build(num_class: int = 5, **changes) -> RetrievalModel:
    torch.manual_seed(0)
    return make_model(settings(**changes), num_class, 3, 2)


def images_for(changes: dict, count: int = 4) -> Tensor:
    size = settings(**changes).INPUT.SIZE_TRAIN
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))


def test_every_network_of_the_table_is_walked():
    assert len(FAMILIES) >= 24
    walked = {METHODS[settings(**changes).PROCESSOR.NAME].network for changes in FAMILIES.values()}
    assert walked == NETWORKS.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_every_question(name, recwarn):
    changes = FAMILIES[name]
    model, images = build(**changes).eval(), images_for(changes)
    assert isinstance(model, RetrievalModel) and model.width > 0
    state = model.state_dict()
    for prefix in (*model.classifier_keys, *model.needed_of_pretrained, *model.needed_for_stage2):
        assert any(key.startswith(prefix) for key in state), prefix
    assert all(isinstance(prefix, str) for prefix in model.optional_keys)
    assert set(model.classifier_keys) <= set(model.optional_keys)
    grids = position_grids(model, model)
    for key, (rows, columns) in grids.items():
        assert state[key].shape[-2] - rows * columns in (0, 1), key  # PASS has the class token's elsewhere
    model.use_domain(0)
    with torch.no_grad():
        feats = model(images, cam_label=torch.zeros(4, dtype=torch.long), view_label=None)
        out = model.outputs(images)
    assert isinstance(feats, Tensor) and len(feats) == 4 and feats.shape[1] >= model.width
    assert isinstance(out, ReIDOutput) and len(out.feats[0]) == 4
    if name == "ssdvit":
        assert model.class_feature(images, cam_label=None, view_label=None).shape == (4, model.width)
    if any(key.startswith("prompt_learner") for key in state):
        features = model.text_features(torch.arange(3))
        assert features.shape == model.embed(images, cam_label=None, view_label=None)[:3].shape
    layout = model.token_layout()
    assert layout is None or isinstance(layout, TokenLayout)
    assert model.maps_channels_last() is (name in ("swin", "timm swin", "solider"))
    backbone, part = model.backbone_module(), model.pretrained_part()
    assert backbone is None or isinstance(backbone, Backbone)
    assert part is None or part is model or part in set(model.modules())
    with torch.no_grad():
        model.set_margins()
        model.sync_copies()
    model.freeze_classifiers()
    frozen = [p.requires_grad for key, p in model.named_parameters() if key.startswith(model.classifier_keys)]
    assert not any(frozen)
    assert not [str(w.message) for w in recwarn if "zero-element" in str(w.message)]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_saves_and_loads_itself(name):
    changes = FAMILIES[name]
    model, other = build(**changes), make_model(settings(**changes), 9, 3, 2)
    report = load_complete(other, model.state_dict())
    assert not report.unexpected and not report.resized
    assert all(key.startswith(model.optional_keys) for key in report.missing)
    model.eval(), other.eval()
    images, labels = images_for(changes), torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(model(images, cam_label=labels), other(images, cam_label=labels))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_without_training_classes_is_built_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = build(num_class=0, **FAMILIES[name]).eval()
        with torch.no_grad():
            assert len(model(images_for(FAMILIES[name]))) == 4


@pytest.mark.parametrize("kind", ["softmax", "arcface", "cosface", "amsoftmax", "circle"])
def test_a_classifier_without_classes_is_built_without_a_warning(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build(num_class=0, MODEL__ID_LOSS_TYPE=kind).eval()(images_for({})).shape == (4, 32)


def test_what_a_network_does_not_have_is_named():
    model, images, labels = build(MODEL__NAME="torchreid_osnet_x0_25"), torch.zeros(1, 3, 32, 16), torch.zeros(1).long()
    with pytest.raises(UserError, match=r"DATASETS\.NAMES: .*TorchreidModel has no class scores"):
        model.class_scores(images)
    for ask in (model.class_feature, model.embed):
        with pytest.raises(NotImplementedError, match="TorchreidModel has no feature"):
            ask(images)
    with pytest.raises(NotImplementedError, match="TorchreidModel has no prompts"):
        model.text_features(labels)
    with pytest.raises(NotImplementedError, match="TorchreidModel has no text side"):
        model.encode_text(images)


def test_a_method_may_name_any_network(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", Method("mine", network="cluster_encoder"))
    assert type(build(PROCESSOR__NAME="mine")).__name__ == "ClusterEncoder"
    monkeypatch.setitem(METHODS, "mine", Method("mine", network="cluster"))
    with pytest.raises(UserError, match="'mine': its method asks for network 'cluster'. Known: reid, prompt"):
        build(PROCESSOR__NAME="mine")


# ---------------------------------------------------------------- a user's backbone


class Plain(nn.Module):
    """A backbone that knows nothing of ours, with names that could meet those of the protocol."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.width = width
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.pool, self.tokens = nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(width)
        self.seen_training: list[bool] = []

    def forward(self, images, cam_label=None, view_label=None):
        self.seen_training.append(self.training)
        return self.pool(self.tokens(self.patches(images))).flatten(1)


SAMPLERS = {"self_distill": "multiple_gallery_nocam", "dino": "softmax"}


@pytest.fixture(params=["plain_net", "RN_mine", "ViT-mine", "msvit_mine", "torchreid_mine"])
def registered(request):
    register_backbone(request.param)(lambda cfg, camera_num, view_num: Plain())
    yield request.param
    del BACKBONES[request.param]


@pytest.mark.parametrize(
    "name",
    ["resnet50", "transformer", "msvit_s", "torchreid_osnet_x1_0", "ViT-B-16", "RN50", "timm:mine", "open_clip:mine"],
)
def test_the_name_of_a_network_of_ours_cannot_be_registered(name):
    with pytest.raises(UserError, match="is a network here already"):
        register_backbone(name)
    assert name not in BACKBONES


def test_the_buffers_that_a_registered_backbone_does_not_save_are_not_saved():
    network = Plain()
    network.register_buffer("scratch", torch.zeros(2), persistent=False)
    assert network.state_dict().keys() == as_backbone(network).state_dict().keys()


@pytest.mark.parametrize("method", ["supervised", "cluster", "self_distill", "dino"])
def test_a_plain_backbone_serves_every_network_under_its_own_names(registered, method):
    changes = {"MODEL__NAME": registered, "PROCESSOR__NAME": method, "DINO__OUT_DIM": 8}
    if method in SAMPLERS:
        changes["DATALOADER__SAMPLER"] = SAMPLERS[method]
    model, images = build(**changes), images_for({})
    backbone = model.backbone_module()
    assert isinstance(backbone, PlainBackbone) and backbone.width == 6 and backbone.patches == 0
    start = "backbone." if method == "dino" else "base."
    names = {key for key in model.state_dict() if key.startswith(start) and "bottleneck" not in key}
    assert names == {f"{start}{key}" for key in Plain().state_dict()}
    model.eval()
    with torch.no_grad():
        assert model(images).shape == (4, 6)
    load_complete(copy.deepcopy(model), model.state_dict())
    source = Plain()
    report = load_pretrained(model, source.state_dict())
    assert not [key for key in report.missing if "bottleneck" not in key]
    assert torch.equal(model.state_dict()[f"{start}patches.weight"], source.patches.weight)


def test_a_plain_backbone_trains_with_the_loss_of_any_network(registered):
    cfg = settings(MODEL__NAME=registered)
    model, images, labels = build(MODEL__NAME=registered).train(), images_for({}), torch.tensor([0, 0, 1, 1])
    out = model(images, label=labels)
    terms = make_loss(cfg, 5)(out, labels)
    assert set(terms) == {"id", "triplet"}
    before = model.state_dict()["base.patches.weight"].clone()
    optimizer = make_optimizer(cfg, model)
    sum(terms.values()).backward()
    optimizer.step()
    after = model.eval().state_dict()["base.patches.weight"]
    assert not torch.equal(before, after)
    model(images)
    assert model.backbone_module().network.seen_training == [True, False]
    doubled = copy.deepcopy(model).double()
    assert doubled.backbone_module().network.patches.weight.dtype == torch.double
    assert doubled(images.double()).dtype == torch.double and model(images).dtype == torch.float32


def test_a_plain_backbone_with_tokens_serves_jpm():
    class Tokens(nn.Module):
        width = 8

        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 8, 8)
            self.pos_embed = nn.Parameter(torch.zeros(1, 9, 8))
            self.block, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

        def tokens(self, images, cam_label=None, view_label=None, blocks=None):
            x = self.patch(images).flatten(2).transpose(1, 2)
            return torch.cat([x.mean(1, keepdim=True), x], 1) + self.pos_embed

        def last_stage(self):
            return nn.Sequential(self.block, self.norm)

        def pool(self, tokens):
            return tokens[:, 0]

        def forward(self, images, cam_label=None, view_label=None):
            return self.pool(self.last_stage()(self.tokens(images)))

    register_backbone("with_tokens")(lambda cfg, camera_num, view_num: Tokens())
    try:
        changes = {"MODEL__NAME": "with_tokens", "MODEL__JPM": True, "MODEL__DEVIDE_LENGTH": 2}
        model = build(**changes).eval()
        assert model(images_for({})).shape == (4, 5 * 8)
    finally:
        del BACKBONES["with_tokens"]
