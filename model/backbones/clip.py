"""CLIP's image towers with the three features of CLIP-ReID (Li et al., AAAI 2023), for any architecture of open_clip.

A tower is called as ``tower(images, side)`` and gives ``Taps``. Parameters keep the names of CLIP's ``visual``.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, cast

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from model.backbones.timm_image import feature_width, position_grids_of, set_image_size
from model.backbones.vit import grid_size, run_block
from model.base import TokenLayout
from utils.checkpoint import WeightRules
from utils.errors import UserError, nearest
from utils.layered import Layered, Layers

LIBRARY = "open_clip:"
"""In front of a name in MODEL.NAME: exactly open_clip's architecture. A bare name has QuickGELU, as OpenAI's have."""

_SMALL_TEXT = {"context_length": 77, "vocab_size": 49408, "heads": 4}
SMALL = {  # for tests and quick starts: minutes on a CPU, from random weights
    "ViT-mini-16": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 128, "layers": 6, "width": 128, "head_width": 32, "patch_size": 16},
        "text_cfg": _SMALL_TEXT | {"width": 128, "layers": 3},
    },
    "RN-mini": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 128, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        "text_cfg": _SMALL_TEXT | {"width": 128, "layers": 3},
    },
    "ViT-micro-8": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": _SMALL_TEXT | {"width": 32, "layers": 2},
    },
    "RN-micro": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
        "text_cfg": _SMALL_TEXT | {"width": 32, "layers": 2},
    },
}  # fmt: skip


class Taps(NamedTuple):
    """The features that CLIP-ReID uses of an image tower.

    early: (B, E) from the last block or stage but one. late: (B, D) from the last. projected: (B, P), comparable to
    text. tokens: (B, 1 + N, D) before the last block, None where the tower has no tokens.
    """

    early: Tensor
    late: Tensor
    projected: Tensor
    tokens: Tensor | None = None


class CLIPTower(WeightRules, Layered, nn.Module):
    """A CLIP's image side: ``forward(images, side) -> Taps``, side (B, D) being added to a class token.

    Only towers with a class token (``patches`` above 0) take side information and serve JPM.
    """

    width: int
    """D of ``Taps``."""

    embed_dim: int
    """P of ``Taps``."""

    patches: int = 0
    """Patch tokens of an image; 0 for a tower without tokens."""

    def last_stage(self) -> nn.Sequential:
        """Returns the last block and the final norm, of which JPM keeps a copy."""
        raise NotImplementedError(f"{type(self).__name__} has no tokens")

    def pool_tokens(self, tokens: Tensor) -> Tensor:
        """Returns the feature (B, D) of tokens (B, 1 + N, D)."""
        raise NotImplementedError(f"{type(self).__name__} has no tokens")

    def token_layout(self) -> TokenLayout | None:
        """Returns the layout of the image tokens; None for a tower without a plain grid of patches."""
        return None


class CLIPViT(CLIPTower):
    """CLIP's vision transformer with overlapping patches and side information on the class token.

    visual: open_clip's, whose modules become this tower's. image_size, stride: (down, across) of images and patches;
    position embeddings are made for that grid. width, embed_dim: D and P of ``Taps``.
    """

    def __init__(
        self, visual: VisionTransformer, image_size: tuple[int, int], stride: tuple[int, int], grad_checkpoint: bool
    ):
        super().__init__()
        patch = cast("tuple[int, int]", visual.conv1.kernel_size)
        if stride[0] > patch[0] or stride[1] > patch[1]:
            raise UserError(
                f"MODEL.STRIDE_SIZE {list(stride)} leaves out pixels: the tower's patches are {patch[0]} x {patch[1]}; "
                f"set {list(patch)} or less"
            )
        self.image_size, self.grad_checkpoint = tuple(image_size), grad_checkpoint
        self.grid = grid_size(image_size, patch[0], stride)
        self.patches = self.grid[0] * self.grid[1]
        self.conv1, self.ln_pre, self.transformer = visual.conv1, visual.ln_pre, visual.transformer
        self.ln_post, self.class_embedding, self.proj = visual.ln_post, visual.class_embedding, visual.proj
        assert self.proj is not None, "CLIP's vision transformers end with a projection"
        self.conv1.stride = tuple(stride)
        self.width, self.embed_dim = self.conv1.out_channels, self.proj.shape[1]
        scale = self.width**-0.5
        self.positional_embedding = nn.Parameter(scale * torch.randn(1 + self.patches, self.width))
        self.mean_pooled, self.norm_after_pooling = visual.pool_type == "avg", visual.final_ln_after_pool

    def rate_layers(self) -> Layers:
        first = ("conv1.", "ln_pre.", "class_embedding", "positional_embedding")
        return [first, *((f"transformer.resblocks.{i}.",) for i in range(len(self.transformer.resblocks)))]

    def pool_tokens(self, tokens: Tensor) -> Tensor:
        """Returns the class token, or the patches' mean if the architecture says so. (B, 1 + N, D) -> (B, D)."""
        return tokens[:, 1:].mean(1) if self.mean_pooled else tokens[:, 0]

    def last_stage(self) -> nn.Sequential:
        """Returns the last block and the final norm, of which JPM keeps a copy."""
        return nn.Sequential(self.transformer.resblocks[-1], self.ln_post)

    def forward(self, images: Tensor, side: Tensor | float = 0.0) -> Taps:
        """Returns the features; side: (B, D), added to the class token before its position embedding."""
        assert self.proj is not None
        x = self.conv1(images).flatten(2).transpose(1, 2)
        if x.shape[1] + 1 != len(self.positional_embedding):
            raise UserError(
                f"images of {tuple(images.shape[2:])} give {x.shape[1]} patches, the model was built for "
                f"{self.image_size} ({len(self.positional_embedding) - 1} patches): "
                "set INPUT.SIZE_TRAIN and INPUT.SIZE_TEST to the same size"
            )
        first = (self.class_embedding + side).expand(x.shape[0], -1).to(x.dtype)
        x = self.ln_pre(torch.cat([first[:, None], x], dim=1) + self.positional_embedding)
        *blocks, last = self.transformer.resblocks
        checkpointed = self.grad_checkpoint and self.training
        for block in blocks:
            x = run_block(block, x, checkpointed)
        out = run_block(last, x, checkpointed)
        if self.norm_after_pooling or not self.mean_pooled:
            late = self.ln_post(self.pool_tokens(out))  # a class token's norm is its own: the patches need none
        else:
            late = self.pool_tokens(self.ln_post(out))
        return Taps(self.pool_tokens(x), late, late @ self.proj, x)

    def token_layout(self) -> TokenLayout:
        return TokenLayout(self.grid, 1, not self.mean_pooled)

    def position_grids(self) -> dict[str, tuple[int, int]]:
        return {"positional_embedding": self.grid}


class CLIPResNet(CLIPTower):
    """CLIP's ResNet with its last stage at stride 16 and the attention pool's positions made for that map.

    visual: open_clip's, whose modules become this tower's. image_size: (H, W), multiples of 16.
    """

    avgpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    attnpool: nn.Module

    def __init__(self, visual: ModifiedResNet, image_size: tuple[int, int]):
        super().__init__()
        if any(side % 16 for side in image_size):
            raise UserError(f"INPUT.SIZE_TRAIN: {tuple(image_size)}: both must be multiples of 16 for a CLIP ResNet")
        for name, child in visual.named_children():
            self.add_module(name, child)
        first = visual.layer4[0]
        assert isinstance(first.downsample, nn.Sequential), "the first block of a stage changes the width"
        first.avgpool = first.downsample[0] = nn.Identity()
        self.image_size, self.width = tuple(image_size), visual.attnpool.q_proj.in_features
        self.embed_dim = visual.attnpool.c_proj.out_features
        self.grid = (image_size[0] // 16, image_size[1] // 16)
        rows = 1 + self.grid[0] * self.grid[1]
        visual.attnpool.positional_embedding = nn.Parameter(torch.randn(rows, self.width) / self.width**0.5)
        for module in self.modules():  # open_clip leaves torch's start, under which no signal reaches the last stage
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, x: Tensor) -> Tensor:
        """Returns the map before the first stage. (B, 3, H, W) -> (B, C, H / 4, W / 4)."""
        for i in (1, 2, 3):
            x = self.get_submodule(f"act{i}")(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x)))
        return self.avgpool(x)

    def forward(self, images: Tensor, side: Tensor | float = 0.0) -> Taps:
        """Returns the features; side has no effect, since there is no class token to add it to."""
        if tuple(images.shape[2:]) != self.image_size:
            raise UserError(
                f"images of {tuple(images.shape[2:])}, the model was built for {self.image_size}: "
                "set INPUT.SIZE_TRAIN and INPUT.SIZE_TEST to the same size"
            )
        early = self.layer3(self.layer2(self.layer1(self.stem(images))))
        late = self.layer4(early)
        return Taps(early.mean((2, 3)), late.mean((2, 3)), self.attnpool(late))

    def position_grids(self) -> dict[str, tuple[int, int]]:
        return {"attnpool.positional_embedding": self.grid}


class CLIPTimm(CLIPTower):
    """open_clip's towers on a trunk of timm (EVA, ConvNeXt, SigLIP, ...): pooled maps and the projected feature."""

    def __init__(self, visual: TimmModel, embed_dim: int, image_size: tuple[int, int]):
        super().__init__()
        self.trunk: Any = visual.trunk  # timm's models share no base class
        self.head, self.embed_dim = visual.head, embed_dim
        set_image_size(self.trunk, image_size)
        self.width = feature_width(self.trunk)

    def forward(self, images: Tensor, side: Tensor | float = 0.0) -> Taps:
        """Returns the features; side has no effect."""
        last, (early, _) = self.trunk.forward_intermediates(images, indices=2, output_fmt="NCHW")
        late = self.trunk.forward_head(last, pre_logits=True)
        projected = self.head(self.trunk.forward_head(last))
        return Taps(early.mean((2, 3)), late.flatten(2).mean(2) if late.dim() > 2 else late, projected)

    def position_grids(self) -> dict[str, tuple[int, int]]:
        return {f"trunk.{name}": grid for name, grid in position_grids_of(self.trunk).items()}


def openai_name(name: str) -> str:
    """Returns open_clip's name of the architecture that a bare name means; '' if it has none."""
    quick = f"{name}-quickgelu"
    return quick if quick in open_clip.list_models() else ""


def clip_config(name: str) -> dict[str, Any]:
    """Returns open_clip's description of the architecture that MODEL.NAME means.

    Raises ``UserError`` with the nearest name for an unknown one.
    """
    if name in SMALL:
        return copy.deepcopy(SMALL[name]) | {"quick_gelu": True}
    known = open_clip.list_models()
    if name.startswith(LIBRARY):
        architecture = name.removeprefix(LIBRARY)
        if architecture not in known:
            raise UserError(f"MODEL.NAME: open_clip has no architecture {architecture!r}{nearest(architecture, known)}")
        return model_config(architecture)
    if not openai_name(name):
        bare = [n.removesuffix("-quickgelu") for n in known if n.endswith("-quickgelu")] + list(SMALL)
        raise UserError(
            f"MODEL.NAME: unknown {name!r}{nearest(name, bare)} Known with QuickGELU: {', '.join(bare)}; "
            f"{LIBRARY}NAME is any architecture of open_clip with its own activation"
        )
    return model_config(openai_name(name))


def model_config(architecture: str) -> dict[str, Any]:
    """Returns a copy of open_clip's description of one of its architectures."""
    config = open_clip.get_model_config(architecture)
    assert config is not None, f"open_clip lists {architecture} and does not describe it"
    return config


def build_clip(name: str, config: dict[str, Any], with_text: bool) -> open_clip.CLIP | open_clip.CustomTextCLIP:
    """Returns open_clip's model of a ``clip_config``, randomly initialised. with_text: False omits its text tower."""
    config = copy.deepcopy(config)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "multimodal_cfg" in config or vision.get("attentional_pool"):
        raise UserError(f"MODEL.NAME: {name!r} pools its image tokens by queries, which CLIP-ReID does not support")
    custom = config.pop("custom_text", False)
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if not with_text:
        custom, config["text_cfg"] = False, {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
    elif {"hf_model_name", "hf_tokenizer_name"} & text.keys() or text.get("no_causal_mask"):
        raise UserError(
            f"MODEL.NAME: the text tower of {name!r} is not CLIP's own (another tokenizer, or no causal mask): prompts "
            "cannot be learnt for it; PROCESSOR.NAME supervised trains its image tower"
        )
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)


def make_image_tower(
    visual: nn.Module, embed_dim: int, image_size: tuple[int, int], stride: tuple[int, int], grad_checkpoint: bool
) -> CLIPTower:
    """Returns our tower around open_clip's ``visual``. Raises ``UserError`` for settings that it does not support."""
    if isinstance(visual, VisionTransformer):
        return CLIPViT(visual, image_size, stride, grad_checkpoint)
    if tuple(stride) != (16, 16):
        raise UserError(f"MODEL.STRIDE_SIZE: {list(stride)} is for CLIP's ViTs; this tower needs [16, 16]")
    if grad_checkpoint:
        raise UserError("MODEL.GRAD_CHECKPOINT: of CLIP's towers only the ViTs support it")
    if isinstance(visual, ModifiedResNet):
        return CLIPResNet(visual, image_size)
    assert isinstance(visual, TimmModel), f"open_clip has no other towers, not {type(visual).__name__}"
    return CLIPTimm(visual, embed_dim, image_size)
