"""What every network and every backbone promises: a name for each question that others may ask, with a default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from utils.checkpoint import WeightRules
from utils.errors import UserError
from utils.layered import Layered
from utils.output import ReIDOutput


@dataclass(frozen=True)
class TokenLayout:
    """The order of a transformer's tokens.

    grid: patches (down, across). prefix: tokens before them. by_class: whether the feature is the first token's; else
    it is the mean of the patches.
    """

    grid: tuple[int, int]
    prefix: int
    by_class: bool


class Backbone(WeightRules, Layered, nn.Module):
    """A network from images to one feature each: ``forward(images, cam_label, view_label) -> (B, width)``.

    ``width`` and ``forward`` are all that a backbone needs; the rest has defaults. For JPM it also has ``patches``,
    ``tokens``, ``last_stage`` and ``pool_tokens``.
    """

    width: int
    """Numbers in a feature."""

    patches: int = 0
    """Patch tokens of an image; 0 for a backbone whose tokens JPM cannot use."""

    depths: int = 1
    """How many features ``at_depth`` can give."""

    channels_last: bool = False
    """Whether the maps inside are (B, h, w, C)."""

    def pretrained_part(self) -> nn.Module:
        """Returns the module whose names a pre-trained file has."""
        return self

    def tokens(
        self,
        images: Tensor,
        cam_label: Tensor | None = None,
        view_label: Tensor | None = None,
        blocks: int | None = None,
    ) -> Tensor:
        """Returns the tokens (B, 1 + patches, width) after the first ``blocks`` blocks, -1: all but the last."""
        raise NotImplementedError(f"{type(self).__name__} has no tokens")

    def last_stage(self) -> nn.Sequential:
        """Returns the last block and the final norm, which JPM copies."""
        raise NotImplementedError(f"{type(self).__name__} has no last block of tokens")

    def pool_tokens(self, tokens: Tensor) -> Tensor:
        """Returns the feature (B, width) of normalised tokens (B, 1 + N, width)."""
        raise NotImplementedError(f"{type(self).__name__} has no tokens")

    def at_depth(self, images: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Returns the features (B, width) at the end and at ``depth``, from 0 to ``depths - 1``."""
        last = self(images)
        return last, last

    def require_tiling(self, key: str, size: tuple[int, int]) -> None:
        """Raises ``UserError`` if crops of this size leave pixels over. key: names the size in the message."""

    def token_layout(self) -> TokenLayout | None:
        """Returns the layout of the image tokens; None for a backbone without a plain grid of patches."""
        return None


class Trunk(WeightRules, nn.Module):
    """A convolutional network from images to one map: ``forward(images) -> (B, width, h, w)``."""

    width: int
    """Channels of the map."""

    def closing_norms(self) -> list[nn.BatchNorm2d]:
        """Returns the batch norms that close the stages."""
        raise NotImplementedError(f"{type(self).__name__} gives no stage maps")

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """Returns the stages' maps before the ReLU that closes each."""
        raise NotImplementedError(f"{type(self).__name__} gives no stage maps")

    def margins(self) -> list[Tensor]:
        """Returns what the closing norms leave below 0 on average, (1, C, 1, 1) for each stage."""
        raise NotImplementedError(f"{type(self).__name__} has no margins")

    def set_margins(self) -> None:
        """Computes the margins from the batch norms as they are now, if there are any."""


class PlainBackbone(Backbone):
    """A backbone of any other class (``docs/your_method.md``) behind the names of ``Backbone``.

    network: has ``width`` and ``forward(images, cam_label, view_label)``; for JPM also ``pos_embed`` (1, 1 + N, width),
    ``tokens``, ``last_stage`` and ``pool``. Its parameters and sub-modules become those of this module, so that their
    names in checkpoints have no further prefix.
    """

    network: Any

    def __init__(self, network: nn.Module):
        super().__init__()
        self._parameters, self._buffers, self._modules = network._parameters, network._buffers, network._modules
        self._non_persistent_buffers_set = network._non_persistent_buffers_set
        self.__dict__["network"] = network  # not as a sub-module, which would name everything twice
        foreign: Any = network
        self.width = foreign.width
        if hasattr(foreign, "last_stage") and hasattr(foreign, "pos_embed"):
            self.patches = foreign.pos_embed.shape[1] - 1

    def train(self, mode: bool = True) -> PlainBackbone:
        self.network.train(mode)
        super().train(mode)
        return self

    def forward(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        return self.network(images, cam_label, view_label)

    def tokens(
        self,
        images: Tensor,
        cam_label: Tensor | None = None,
        view_label: Tensor | None = None,
        blocks: int | None = None,
    ) -> Tensor:
        return self.network.tokens(images, cam_label, view_label, blocks=blocks)

    def last_stage(self) -> nn.Sequential:
        return self.network.last_stage()

    def pool_tokens(self, tokens: Tensor) -> Tensor:
        return self.network.pool(tokens)


def as_backbone(network: nn.Module) -> Backbone:
    """Returns a registered backbone as a ``Backbone``: as it is, or behind ``PlainBackbone``."""
    return network if isinstance(network, Backbone) else PlainBackbone(network)


def with_base(state: dict[str, Tensor], others: tuple[str, ...]) -> dict[str, Tensor]:
    """Returns the state with ``base.`` before bare backbone names, if no name has it.

    others: prefixes of the names that are not the backbone's.
    """
    if any(key.startswith("base.") for key in state):
        return state
    return {key if key.startswith(others) else f"base.{key}": value for key, value in state.items()}


class RetrievalModel(WeightRules, Layered, nn.Module):
    """A network that retrieves: every hook that checkpoints, evaluation, export and methods may call.

    ``forward(images, label, cam_label, view_label)`` gives a ``ReIDOutput`` in training and the retrieval feature
    (B, D) in evaluation. What a network does not have keeps the default here: nothing happens, or an error that says
    what is missing.
    """

    width: int
    """Numbers in one part's feature."""

    classifier_keys: tuple[str, ...] = ("classifier",)
    """Prefixes of the classifiers' parameters."""

    optional_keys = classifier_keys

    needed_for_stage2: tuple[str, ...] = ()
    """Prefixes of what a checkpoint of the prompt method's stage 1 must bring."""

    runs_in: str = "torch"
    """The runtime that computes ``forward``, a word of TEST.RUNTIME."""

    averages_mirrored: bool = False
    """Whether the feature is the mean with the mirrored image's by itself, so that TEST.FLIP need not make it one."""

    sees_whole_batch: tuple[str, ...] = ()
    """Sub-modules that see the rows of all processes on each of them, so that their batch norms need not share."""

    # ---------------------------------------------------------------- weights

    def backbone_module(self) -> Backbone | None:
        """Returns the backbone that takes pre-trained weights; None if they belong to the whole network."""
        return None

    def pretrained_part(self) -> nn.Module | None:
        backbone = self.backbone_module()
        return None if backbone is None else backbone.pretrained_part()

    def pretrained_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        backbone = self.backbone_module()
        return state if backbone is None else backbone.pretrained_state(state)

    def set_margins(self) -> None:
        """Computes the margins of the stage maps from the batch norms, where the network has margins."""

    def freeze_classifiers(self) -> None:
        """Excludes the classifiers from training."""
        for name, parameter in self.named_parameters():
            if name.startswith(self.classifier_keys):
                parameter.requires_grad_(False)

    # ---------------------------------------------------------------- features and scores

    def use_domain(self, index: int) -> None:
        """Selects the head of a target domain for the calls that follow, where the network has one per domain."""

    def class_scores(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        """Returns the logits (B, C) of the training classes, without a margin."""
        raise UserError(
            f"DATASETS.NAMES: these images are to be classified, and {type(self).__name__} has no class scores; "
            "MODEL.MSVIT.HEAD 'classifier' has"
        )

    def outputs(
        self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None
    ) -> ReIDOutput:
        """Returns what a teacher is distilled from: its feature and, where it has them, scores and stage maps."""
        out = self(images, cam_label=cam_label, view_label=view_label)
        return ReIDOutput(scores=[], feats=[out]) if isinstance(out, Tensor) else out

    def class_feature(
        self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None
    ) -> Tensor:
        """Returns the feature (B, width) that class memories hold."""
        raise NotImplementedError(f"{type(self).__name__} has no feature for class memories")

    def embed(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        """Returns the image feature (B, P) that is compared with text."""
        raise NotImplementedError(f"{type(self).__name__} has no feature that is compared with text")

    def prompts(self, labels: Tensor) -> Tensor:
        """Returns the learnt prompts (B, L, W) of identities (B,)."""
        raise NotImplementedError(f"{type(self).__name__} has no prompts")

    def encode_text(self, prompts: Tensor) -> Tensor:
        """Returns the text features (B, P) of prompts (B, L, W)."""
        raise NotImplementedError(f"{type(self).__name__} has no text side")

    def text_features(self, labels: Tensor) -> Tensor:
        """Returns the text features (B, P) of identities (B,)."""
        return self.encode_text(self.prompts(labels))

    # ---------------------------------------------------------------- description

    def token_layout(self) -> TokenLayout | None:
        """Returns the layout of the image tokens; None for a network without a plain grid of patches."""
        backbone = self.backbone_module()
        return None if backbone is None else backbone.token_layout()

    def maps_channels_last(self) -> bool:
        """Returns whether the maps inside are (B, h, w, C)."""
        backbone = self.backbone_module()
        return backbone is not None and backbone.channels_last
