"""MSViT as a ReID network of two branches and part heads, and as the ImageNet classifier it starts from."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.backbones.msvit import (
    ACTIVATIONS,
    CONV_HEAD_WIDTH,
    MSViT,
    MSViTSpec,
    WindowSpec,
    freeze,
    initialise,
    make_conv_head,
    make_stages,
    make_stem,
)
from model.base import RetrievalModel
from model.layers.batch_erasing import BatchErasing
from model.layers.heads import ClassLinear
from model.networks.necked import require_neck_feat
from utils.errors import UserError
from utils.output import ReIDOutput

log = logging.getLogger("lineup")

SETTINGS = (
    "MODEL.LAST_STRIDE", "MODEL.MSVIT.SPARSE_RATIO", "MODEL.MSVIT.SPLIT_SIZE (rows)",
    "MODEL.MSVIT.SPLIT_SIZE (columns)", "MODEL.MSVIT.SPARSE_POOL", "MODEL.MSVIT.NUM_PART",
)  # fmt: skip
"""Keys that change the features without changing the shape of a tensor (and the parts): stored in checkpoints."""

WHOLE_HEADS = 3
"""Heads that see a whole map, before those of the parts; the metric loss takes their features."""


def root_mean_square(maps: Tensor) -> Tensor:
    """Returns the generalised mean over the map with p = 2, in float32. (B, C, H, W) -> (B, C).

    Floored at 1e-6, so that a channel that is 0 everywhere has a finite gradient.
    """
    return maps.float().square().mean((2, 3)).clamp(min=1e-12).sqrt()


def part_rows(maps: Tensor, parts: int, interleaved: bool) -> list[Tensor]:
    """Returns the rows of each part. (B, C, R, S) -> parts of (B, C, r, S).

    interleaved: part i has rows i, i + parts, ...; else stripes of ceil(R / parts) rows, of which the last may be
    shorter.
    """
    if interleaved:
        return [maps[:, :, i::parts] for i in range(parts)]
    return list(maps.split(math.ceil(maps.shape[2] / parts), dim=2))


def check_parts(rows: int, parts: int, interleaved: bool) -> None:
    """Raises ``UserError`` if some part would have no row of a map of ``rows``."""
    possible = min(parts, rows) if interleaved else math.ceil(rows / math.ceil(rows / parts))
    if parts < 1 or possible < parts:
        raise UserError(
            f"MODEL.MSVIT.NUM_PART: a map of {rows} rows gives {possible} parts, not {parts} (rows: the height of "
            "INPUT.SIZE_TRAIN and INPUT.SIZE_TEST over 16 times MODEL.LAST_STRIDE; MODEL.MSVIT.SPARSE_POOL "
            f"{interleaved})"
        )


class MSViTReID(RetrievalModel):
    """A shared trunk, two copies of the last stage, and parts + 3 heads (``docs/msvit.md`` has the table).

    Each head pools a branch's map to 512 numbers, then linear layer, batch norm (the retrieval feature) and classifier.
    Heads 0 and 1: root mean square of branch 1 and 2. Head 2: maximum of branch 1. The rest: maximum of each part of
    branch 2. make_head: width -> classifier. neck_feat: ``before`` or ``after`` the batch norms. frozen: parts of the
    trunk that are not trained.
    """

    optional_keys = classifier_keys = ("class_list",)

    width = CONV_HEAD_WIDTH

    settings: Tensor

    def __init__(
        self,
        spec: MSViTSpec,
        attention: WindowSpec,
        make_head: Callable[[int], nn.Module],
        parts: int = 2,
        interleaved: bool = True,
        last_stride: int = 1,
        drop_path: float = 0.0,
        act: str = "relu",
        erasing: BatchErasing | None = None,
        frozen: tuple[str, ...] = (),
        neck_feat: str = "after",
    ):
        super().__init__()
        self.spec, self.parts, self.interleaved = spec, parts, interleaved
        self.neck_feat = require_neck_feat(neck_feat)
        self.erasing = erasing or nn.Identity()
        kind, heads = ACTIVATIONS[act], range(parts + WHOLE_HEADS)
        self.stem = make_stem(spec, kind)
        self.layer1, self.layer2, self.layer3, last = make_stages(spec, drop_path, kind, attention, last_stride)
        self.branch_1 = initialise(nn.Sequential(last, make_conv_head(spec, kind)))
        self.branch_2 = copy.deepcopy(self.branch_1)
        self.feat_list = nn.ModuleList(nn.Linear(self.width, self.width, bias=False) for _ in heads)
        self.bn_list = nn.ModuleList(nn.BatchNorm1d(self.width) for _ in heads)
        for module in (self.stem, self.layer1, self.layer2, self.layer3, self.feat_list):
            initialise(module)
        self.class_list = nn.ModuleList(make_head(self.width) for _ in heads)
        for norm in list(self.bn_list)[2:]:
            assert isinstance(norm, nn.BatchNorm1d)
            norm.bias.requires_grad_(False)
        freeze(self, frozen)
        settings = [last_stride, attention.ratio, *attention.split, interleaved, parts]
        self.register_buffer("settings", torch.tensor(settings, dtype=torch.float32))

    def branches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the maps of both branches, (B, 512, R, S) each."""
        x = self.layer3(self.layer2(self.layer1(self.stem(self.erasing(images)))))
        return self.branch_1(x), self.branch_2(x)

    def features(self, images: Tensor) -> list[Tensor]:
        """Returns one feature per head, before the batch norms, (B, 512) each."""
        one, two = self.branches(images)
        parts = [rows.amax((2, 3)) for rows in part_rows(two, self.parts, self.interleaved)]
        pooled = [root_mean_square(one), root_mean_square(two), one.amax((2, 3)), *parts]
        return [linear(p) for linear, p in zip(self.feat_list, pooled, strict=True)]

    def forward(
        self,
        images: Tensor,
        label: Tensor | None = None,
        cam_label: Tensor | None = None,
        view_label: Tensor | None = None,
    ) -> ReIDOutput | Tensor:
        """Returns parts + 3 scores and 3 features in training, else the retrieval feature (B, 512 * (parts + 3))."""
        feats = self.features(images)
        if self.training or self.neck_feat == "after":
            feats = [norm(f) for norm, f in zip(self.bn_list, feats, strict=True)]
        if not self.training:
            return torch.cat(feats, dim=1)
        scores = [classify(f, label) for classify, f in zip(self.class_list, feats, strict=True)]
        return ReIDOutput(scores=scores, feats=feats[:WHOLE_HEADS])

    # ---------------------------------------------------------------- checkpoints

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a whole model's state under our names: published files have them, ours also hold ``settings``.

        Raises ``UserError`` if the file was trained under other settings that its shapes do not show.
        """
        ours = self.settings.tolist()
        if "settings" not in state:
            words = ", ".join(f"{name} {value:g}" for name, value in zip(SETTINGS, ours, strict=True))
            log.info("the file does not hold its settings; the configuration's are used: %s", words)
            return state | {"settings": self.settings}
        theirs = state["settings"].tolist()
        other = [
            f"{name} {there:g}, now {here:g}"
            for name, there, here in zip(SETTINGS, theirs, ours, strict=True)
            if not math.isclose(there, here, rel_tol=1e-5)
        ]
        if other:
            raise UserError(f"the checkpoint was trained with other settings ({'; '.join(other)}); set the same ones")
        return state

    def pretrained_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the state of the plain backbone's ImageNet file (``MSViTClassifier``'s) under our names.

        Of a ReID file, all but its classes.

        The last stage and the convolution after it go into both branches, the classifier's hidden layer and its norm
        into every head. Raises ``UserError`` for a file of the other size.
        """
        check_width(state, self.spec)
        out = {}
        for key, value in state.items():
            first, _, rest = key.partition(".")
            if first == "first_conv":
                out[f"stem.{rest}"] = value
            elif first in ("layer4", "conv_head"):
                inside = f"0.{rest}" if first == "layer4" else f"1.{rest}"
                out |= {f"branch_{i}.{inside}": value for i in (1, 2)}
            elif first in ("fc", "norm"):
                target = "feat_list" if first == "fc" else "bn_list"
                out |= {f"{target}.{i}.{rest}": value for i in range(len(self.bn_list))}
            elif first not in ("classifier", "class_list", "settings"):
                out[key] = value
        return out


def check_width(state: dict[str, Tensor], spec: MSViTSpec) -> None:
    """Raises ``UserError`` if a file's stem has another width than the model's: it is of the other size."""
    stem = next((state[k] for k in ("first_conv.conv.weight", "stem.conv.weight") if k in state), None)
    if stem is not None and len(stem) != spec.stem:
        raise UserError(
            f"MODEL.PRETRAIN_PATH: the file is of another size, its first stage is {2 * len(stem)} wide and the model's"
            f" {2 * spec.stem}; msvit_s has 32, msvit_l 48 (MODEL.NAME, MODEL.MSVIT.WIDTHS)"
        )


class MSViTClassifier(MSViT, RetrievalModel):
    """The classifier of ImageNet pre-training. Its file is what MODEL.PRETRAIN_PATH of a ReID network reads.

    The whole network takes pre-trained weights, under its own names.
    """

    def __init__(
        self,
        spec: MSViTSpec,
        attention: WindowSpec,
        num_class: int,
        drop_path: float = 0.0,
        act: str = "gelu",
        dropout: float = 0.2,
    ):
        super().__init__(spec, attention, drop_path, act)
        self.spec = spec
        self.fc = nn.Linear(self.width, self.width, bias=False)
        self.norm = nn.BatchNorm1d(self.width)
        self.act, self.dropout = ACTIVATIONS[act](), nn.Dropout(dropout)
        self.classifier = ClassLinear(self.width, num_class, bias=False)
        initialise(self)

    def hidden(self, images: Tensor) -> Tensor:
        """Returns the feature behind the hidden layer and its norm, (B, 512)."""
        return self.norm(self.fc(self.maps(images).mean((2, 3))))

    def class_scores(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        """Returns the logits (B, C) of the training classes."""
        return self.classifier(self.dropout(self.act(self.hidden(images))))

    def forward(
        self,
        images: Tensor,
        label: Tensor | None = None,
        cam_label: Tensor | None = None,
        view_label: Tensor | None = None,
    ) -> ReIDOutput | Tensor:
        """Returns one score and one feature in training, else the normalised feature (B, 512)."""
        hidden = self.hidden(images)
        if not self.training:
            return hidden
        return ReIDOutput(scores=[self.classifier(self.dropout(self.act(hidden)))], feats=[hidden])
