"""Models of the torchreid family (MTDA, D-MMD and its zoo): a trunk, average pooling, one layer, one classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.mobilenet import MOBILENET_TYPES, MobileNetV2
from model.backbones.osnet import OSNET_TYPES, OSNet
from model.backbones.resnet import RESNET_TYPES
from model.backbones.torchreid_resnet import TorchreidResNet
from model.layers.heads import ClassLinear
from model.output import ReIDOutput
from utils.errors import UserError, nearest

PREFIX = "torchreid_"
"""Before torchreid's names of architectures: its ``resnet50`` has another head and other keys than TransReID's."""

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")

RESNET_FC512 = "resnet50_fc512"
"""The zoo's ResNet-50 whose last stage keeps the third's size; its head is ``fc`` of 512."""

TRUNKS = (*RESNETS, RESNET_FC512, *OSNET_TYPES, *MOBILENET_TYPES)

HEADS = ("feat", "fc", "none")

HEAD_KEYS = ("feat.", "feat_bn.", "fc.", "feat_fc_multi.", "feat_matcher_list.", "classifier.")
"""Prefixes of the published names that belong to the model and not to its trunk."""


def make_trunk(name: str) -> nn.Module:
    """Returns the trunk that ``MODEL.NAME`` names behind the prefix; it has ``width`` and gives a map."""
    short = name.removeprefix(PREFIX)
    if short not in TRUNKS:
        hint = nearest(name, [PREFIX + t for t in TRUNKS])
        raise UserError(f"MODEL.NAME: unknown {name!r}{hint} Known: {', '.join(PREFIX + t for t in TRUNKS)}")
    if short in OSNET_TYPES:
        trunk = OSNet(OSNET_TYPES[short])
    elif short in MOBILENET_TYPES:
        trunk = MobileNetV2(MOBILENET_TYPES[short])
    elif short == RESNET_FC512:
        trunk = TorchreidResNet(RESNET_TYPES["resnet50"], last_stride=1)
    else:
        trunk = TorchreidResNet(RESNET_TYPES[short])
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return trunk


def stage_widths(name: str) -> tuple[int, ...]:
    """Channels of the four stages of a ResNet by its name."""
    expansion = RESNET_TYPES[name.removeprefix(PREFIX)].block.expansion
    return tuple(expansion * width for width in (64, 128, 256, 512))


def linear(width: int, out: int) -> nn.Linear:
    """Returns a linear layer with torchreid's start."""
    layer = ClassLinear(width, out)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def head_of(state: dict[str, Tensor], dim: int) -> tuple[str, int]:
    """Returns the head of a published file and its width; ``dim`` for a file without a head."""
    for head, key in (("feat", "feat.weight"), ("fc", "fc.0.weight")):
        if key in state:
            return head, len(state[key])
    return "none", dim


class TorchreidModel(nn.Module):
    """Scores and features as torchreid and the multi-target distillation built on it have them (``docs/mtda.md``).

    base: trunk with ``width``, images -> map. head: ``feat`` (linear, batch norm; unit length in evaluation), ``fc``
    (linear, batch norm, ReLU) or ``none``. dim: width of the feature behind ``feat`` and ``fc``. maps: ``none``, or
    which side of the margin distillation this is (``teacher``, ``student``); ResNets only. matched: channels of the
    teacher's stages, for a student. domains: one copy of the ``feat`` head per target domain, 0 for a shared one.
    """

    def __init__(
        self,
        base: nn.Module,
        num_class: int,
        head: str = "feat",
        dim: int = 2048,
        maps: str = "none",
        matched: tuple[int, ...] = (),
        domains: int = 0,
    ):
        super().__init__()
        self.base, self.head, self.maps, self.domain = base, head, maps, 0
        self.width = base.width if head == "none" else dim
        if head == "feat":
            self.feat, self.feat_bn = linear(base.width, dim), nn.BatchNorm1d(dim)
        elif head == "fc":
            self.fc = nn.Sequential(linear(base.width, dim), nn.BatchNorm1d(dim), nn.ReLU(inplace=True))
        if domains:
            self.feat_fc_multi = nn.ModuleList(
                nn.Sequential(linear(base.width, dim), nn.BatchNorm1d(dim)) for _ in range(domains)
            )
        if maps == "student":
            self.feat_matcher_list = nn.ModuleList(
                matcher(norm.num_features, width)
                for norm, width in zip(base.closing_norms(), matched, strict=True)
            )
        self.classifier = linear(self.width, num_class)

    def use_domain(self, index: int) -> None:
        """Chooses the domain's own head for what follows; without heads of their own, nothing changes."""
        self.domain = index

    def sync_copies(self) -> None:
        """Starts what follows from the weights: the margins, and each domain's head as a copy of the shared one."""
        if hasattr(self.base, "set_margins"):
            self.base.set_margins()
        for linear_layer, norm in getattr(self, "feat_fc_multi", ()):
            linear_layer.load_state_dict(self.feat.state_dict())
            norm.load_state_dict(self.feat_bn.state_dict())

    def embed(self, pooled: Tensor) -> Tensor:
        """(B, trunk width) -> (B, width)."""
        if hasattr(self, "feat_fc_multi"):
            return self.feat_fc_multi[self.domain](pooled)
        if self.head == "feat":
            return self.feat_bn(self.feat(pooled))
        return self.fc(pooled) if self.head == "fc" else pooled

    def outputs(self, images: Tensor) -> ReIDOutput:
        """Scores, feature and, where the model gives them, flattened stage maps, in either mode."""
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
        feat = self.embed(top.mean((2, 3)))
        return ReIDOutput(scores=[self.classifier(feat)], feats=[feat], maps=[m.flatten(1) for m in maps])

    def forward(self, images: Tensor, label=None, cam_label=None, view_label=None) -> ReIDOutput | Tensor:
        """Training: ``ReIDOutput``. Evaluation: the feature (B, width), of unit length behind ``feat``."""
        if self.training:
            return self.outputs(images)
        feat = self.embed(self.base(images).mean((2, 3)))
        return F.normalize(feat) if self.head == "feat" else feat

    optional_keys = ("classifier", "feat_matcher_list", "base.margin")
    """Prefixes of parameters that retrieval does without."""

    def settings_for(self, state: dict[str, Tensor]) -> str:
        """Returns the keys and values that fit the head to a file's; '' if the head or more of the network is not it.

        state: under our names.
        """
        trunk = {f"base.{key}": value for key, value in self.base.state_dict().items()}
        needed = {k: v for k, v in trunk.items() if not k.startswith("base.margin") and not k.endswith("_tracked")}
        if not all(key in state and state[key].shape == value.shape for key, value in needed.items()):
            return ""
        head, dim = head_of(state, self.base.width)
        if (head, dim) == (self.head, self.width):
            return ""
        return f"MODEL.FC_HEAD {head}" + ("" if head == "none" else f" MODEL.FC_DIM {dim}")

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """torchreid's flat names under ours: everything but heads and classifier belongs to the trunk.

        Domain-specific batch norms of SPCL (``BN_S``, ``BN_T``): the target's becomes the batch norm. A file without
        a head per domain starts them all from its shared one.
        """
        state = {key.replace(".BN_T.", "."): value for key, value in state.items() if ".BN_S." not in key}
        if not any(key.startswith("base.") for key in state):
            state = {key if key.startswith(HEAD_KEYS) else f"base.{key}": value for key, value in state.items()}
        heads = range(len(getattr(self, "feat_fc_multi", ())))
        for i, part in ((0, "feat."), (1, "feat_bn.")):
            shared = {key.removeprefix(part): value for key, value in state.items() if key.startswith(part)}
            for domain in heads:
                for key, value in shared.items():
                    state.setdefault(f"feat_fc_multi.{domain}.{i}.{key}", value)
        return state


def matcher(width: int, out: int) -> nn.Sequential:
    """Brings a student's stage map to the teacher's channels. (B, width, H, W) -> (B, out, H, W)."""
    conv = nn.Conv2d(width, out, 1, bias=False)
    nn.init.normal_(conv.weight, std=(2 / out) ** 0.5)
    return nn.Sequential(conv, nn.BatchNorm2d(out))
