"""Models of the torchreid family (MTDA, D-MMD and its zoo): a trunk, average pooling, one layer, one classifier."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.mobilenet import MOBILENET_TYPES, MobileNetV2
from model.backbones.osnet import OSNET_TYPES, OSNet
from model.backbones.resnet import RESNET_TYPES, ResNetSpec
from model.backbones.torchreid_resnet import TorchreidResNet
from model.base import RetrievalModel, Trunk, with_base
from model.layers.heads import ClassLinear
from utils.errors import UserError, nearest
from utils.output import ReIDOutput

PREFIX = "torchreid_"
"""Before torchreid's names of architectures: its ``resnet50`` has another head and other keys than TransReID's."""

FINE_RESNETS = {"resnet50_fc512": "resnet50"}
"""torchreid's ResNets whose last stage keeps its map's size -> the network that they are otherwise."""

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", *FINE_RESNETS)

TRUNKS = (*RESNETS, *OSNET_TYPES, *MOBILENET_TYPES)

HEAD_KEYS = ("feat.", "feat_bn.", "fc.", "feat_fc_multi.", "feat_matcher_list.", "classifier.")
"""Prefixes of the published names that belong to the model and not to its trunk."""


def make_trunk(name: str) -> Trunk:
    """Returns the trunk that ``MODEL.NAME`` names behind the prefix."""
    short = name.removeprefix(PREFIX)
    if short not in TRUNKS:
        hint = nearest(name, [PREFIX + t for t in TRUNKS])
        raise UserError(f"MODEL.NAME: unknown {name!r}{hint} Known: {', '.join(PREFIX + t for t in TRUNKS)}")
    trunk: Trunk
    if short in OSNET_TYPES:
        trunk = OSNet(OSNET_TYPES[short])
    elif short in MOBILENET_TYPES:
        trunk = MobileNetV2(MOBILENET_TYPES[short])
    else:
        trunk = TorchreidResNet(resnet_of(short), last_stride=1 if short in FINE_RESNETS else 2)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return trunk


def resnet_of(short: str) -> ResNetSpec:
    """Returns the shape of a ResNet by torchreid's name."""
    return RESNET_TYPES[FINE_RESNETS.get(short, short)]


def gives_stage_maps(name: str) -> bool:
    """Returns whether MODEL.NAME is a network whose stage maps can be distilled: torchreid's ResNets."""
    return name.startswith(PREFIX) and name.removeprefix(PREFIX) in RESNETS


def stage_widths(name: str) -> tuple[int, ...]:
    """Returns the channels of the four stages of a ResNet by its name."""
    expansion = resnet_of(name.removeprefix(PREFIX)).block.expansion
    return tuple(expansion * width for width in (64, 128, 256, 512))


def normal_linear(width: int, out: int) -> nn.Linear:
    """Returns a linear layer with torchreid's first weights; it may have no outputs."""
    layer = ClassLinear(width, out)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def head_of(state: dict[str, Tensor], dim: int) -> tuple[str, int]:
    """Returns MODEL.FC_HEAD and MODEL.FC_DIM of a file, by its names and shapes; ``dim`` for one without a head."""
    for head, key in (("feat", "feat.weight"), ("fc", "fc.0.weight")):
        if key in state:
            return head, len(state[key])
    return "none", dim


def trunks_of(state: dict[str, Tensor]) -> list[str]:
    """Returns the names of the trunks whose parameters a file holds, each in its shape. state: under our names."""

    def holds(shapes: dict[str, torch.Size]) -> bool:
        return all(key in state and state[key].shape == shape for key, shape in shapes.items())

    return [PREFIX + name for name in TRUNKS if holds(trunk_shapes(name))]


@cache
def trunk_shapes(name: str) -> dict[str, torch.Size]:
    """Returns the shapes of a trunk's parameters, by their names in a model."""
    with torch.device("meta"):
        return {key: value.shape for key, value in make_trunk(name).named_parameters(prefix="base")}


class TorchreidModel(RetrievalModel):
    """Scores and features as in torchreid and the multi-target distillation built on it (``docs/mtda.md``).

    base: trunk, images -> map. head: ``feat`` (linear, batch norm; unit length in evaluation), ``fc``
    (linear, batch norm, ReLU) or ``none``. dim: width of the feature behind ``feat`` and ``fc``. maps: ``none``, or
    which side of the margin distillation this is (``teacher``, ``student``); ResNets only. matched: channels of the
    teacher's stages, for a student. domains: one copy of the ``feat`` head per target domain, 0 for a shared one.
    """

    optional_keys = ("classifier", "feat_matcher_list", "base.margin")

    base: Trunk

    def __init__(
        self,
        base: Trunk,
        num_class: int,
        head: str = "feat",
        dim: int = 2048,
        maps: str = "none",
        matched: tuple[int, ...] = (),
        domains: int = 0,
    ):
        super().__init__()
        self.base, self.head, self.dim, self.maps, self.domain = base, head, dim, maps, 0
        self.width = base.width if head == "none" else dim
        if head == "feat":
            self.feat, self.feat_bn = normal_linear(base.width, dim), nn.BatchNorm1d(dim)
        elif head == "fc":
            self.fc = nn.Sequential(normal_linear(base.width, dim), nn.BatchNorm1d(dim), nn.ReLU(inplace=True))
        self.feat_fc_multi = nn.ModuleList(
            nn.Sequential(normal_linear(base.width, dim), nn.BatchNorm1d(dim)) for _ in range(domains)
        )
        if maps == "student":
            self.feat_matcher_list = nn.ModuleList(
                matcher(norm.num_features, width) for norm, width in zip(base.closing_norms(), matched, strict=True)
            )
        self.classifier = normal_linear(self.width, num_class)

    def use_domain(self, index: int) -> None:
        self.domain = index

    def pretrained_part(self) -> nn.Module:
        return self.base

    def set_margins(self) -> None:
        self.base.set_margins()

    def sync_copies(self) -> None:
        """Computes the margins, and makes each domain's head a copy of the shared one."""
        self.set_margins()
        for head in self.feat_fc_multi:
            assert isinstance(head, nn.Sequential)
            head[0].load_state_dict(self.feat.state_dict())
            head[1].load_state_dict(self.feat_bn.state_dict())

    def freeze_shared_head(self) -> None:
        """Excludes the ``feat`` head that all domains share from training."""
        self.feat.requires_grad_(False)
        self.feat_bn.requires_grad_(False)

    def head_feature(self, pooled: Tensor) -> Tensor:
        """Returns the feature behind the head. (B, trunk width) -> (B, width)."""
        if len(self.feat_fc_multi):
            return self.feat_fc_multi[self.domain](pooled)
        if self.head == "feat":
            return self.feat_bn(self.feat(pooled))
        return self.fc(pooled) if self.head == "fc" else pooled

    def outputs(
        self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None
    ) -> ReIDOutput:
        """Returns scores, feature and, if the model gives them, flattened stage maps, in either mode."""
        maps: list[Tensor] = []
        if self.maps == "none":
            top = self.base(images)
        else:
            maps = self.base.stage_maps(images)
            top = maps[-1].relu()
            if self.maps == "teacher":
                maps = [torch.maximum(m, margin) for m, margin in zip(maps, self.base.margins(), strict=True)]
            else:
                maps = [match(m) for m, match in zip(maps, self.feat_matcher_list, strict=True)]
        feat = self.head_feature(top.mean((2, 3)))
        return ReIDOutput(scores=[self.classifier(feat)], feats=[feat], maps=[m.flatten(1) for m in maps])

    def forward(
        self,
        images: Tensor,
        label: Tensor | None = None,
        cam_label: Tensor | None = None,
        view_label: Tensor | None = None,
    ) -> ReIDOutput | Tensor:
        """Returns ``outputs`` in training, else the feature (B, width), of unit length behind ``feat``."""
        if self.training:
            return self.outputs(images)
        feat = self.head_feature(self.base(images).mean((2, 3)))
        return F.normalize(feat) if self.head == "feat" else feat

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the state of torchreid's flat names under ours: all but heads and classifier belong to the trunk.

        Of SPCL's batch norms per domain (``BN_S``, ``BN_T``) the target's is taken. A file without a head per domain
        starts all of them from its shared one.
        """
        state = {key.replace(".BN_T.", "."): value for key, value in state.items() if ".BN_S." not in key}
        state = with_base(state, HEAD_KEYS)
        for i, layer in ((0, "feat."), (1, "feat_bn.")):
            shared = {key.removeprefix(layer): value for key, value in state.items() if key.startswith(layer)}
            for domain in range(len(self.feat_fc_multi)):
                for key, value in shared.items():
                    state.setdefault(f"feat_fc_multi.{domain}.{i}.{key}", value)
        return state

    def settings_for(self, state: dict[str, Tensor]) -> str:
        """Returns the keys of the network and the head of a file of this family, as far as they differ from ours."""
        words, (head, dim) = [], head_of(state, self.dim)
        trunks = trunks_of(state)
        own = all(key in state and state[key].shape == p.shape for key, p in self.base.named_parameters(prefix="base"))
        if own and head == self.head:
            trunks = []  # whatever does not fit, it is not the trunk
        elif len(trunks) > 1:  # ResNets of equal shapes: the one with a head is the finer one
            trunks = [name for name in trunks if (name.removeprefix(PREFIX) in FINE_RESNETS) == (head == "fc")]
        elif own:
            trunks = []
        words += [f"MODEL.NAME {name}" for name in trunks[:1]]
        if head != self.head:
            words.append(f"MODEL.FC_HEAD {head}")
        if head != "none" and dim != self.dim:
            words.append(f"MODEL.FC_DIM {dim}")
        return " ".join(words)


def matcher(width: int, out: int) -> nn.Sequential:
    """Returns layers from a student's stage map to the teacher's channels. (B, width, H, W) -> (B, out, H, W)."""
    conv = nn.Conv2d(width, out, 1, bias=False)
    nn.init.normal_(conv.weight, std=(2 / out) ** 0.5)
    return nn.Sequential(conv, nn.BatchNorm2d(out))
