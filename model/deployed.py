"""The retrieval model as it is exported: images in, features of unit length out.

Written in plain tensor operations, so that it can be traced for any number and size of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from model.layouts import Given
from utils import switch
from utils.errors import UserError
from utils.features import mean_with_mirrored, to_unit_length


def triangle(x: Tensor) -> Tensor:
    """Returns Pillow's bilinear filter, of support 1, at ``x``."""
    return (1 - x.abs()).clamp(min=0)


def cubic(x: Tensor) -> Tensor:
    """Returns Pillow's bicubic filter (a = -0.5), of support 2, at ``x``."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


#: INPUT.RESIZE in evaluation -> (filter, whether it widens when an image shrinks).
FILTERS = {
    "auto": (triangle, True),
    "pil_bilinear": (triangle, True),
    "pil_bicubic": (cubic, True),
    "cv2_bilinear": (triangle, False),
}


def resize_matrix(source: int, target: int, kernel: Callable[[Tensor], Tensor], antialias: bool) -> Tensor:
    """Returns the weights of ``source`` pixels in each of ``target`` ones, rows of sum 1. (target, source) float32."""
    pixels = torch.arange(source, dtype=torch.float32) + 0.5
    scale = (pixels[-1] + 0.5) / target  # a tensor, so that tracing does not take the image's size for a constant
    width = scale.clamp(min=1.0) if antialias else torch.ones(())
    centres = (torch.arange(target, dtype=torch.float32) + 0.5) * scale
    weights = kernel((pixels[None] - centres[:, None]) / width)
    return weights / weights.sum(1, keepdim=True)


def round_levels(pixels: Tensor) -> Tensor:
    """Returns whole grey levels from 0 to 255, halves rounded up as Pillow does."""
    return (pixels + 0.5).floor().clamp(0, 255)


class Preprocess(nn.Module):
    """Evaluation's transform on whole images: resize as Pillow does, cut the margin off, normalise.

    size: (H, W). resize: a word of INPUT.RESIZE. margin: pixels that are cut off after resizing, half of them on each
    side (INPUT.RESIZE_MARGIN). Resizes across and then down, each rounded to whole grey levels, as Pillow's eight-bit
    arithmetic does.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], resize: str = "auto", margin: int = 0
    ):
        super().__init__()
        if resize not in FILTERS:
            raise UserError(f"INPUT.RESIZE: unknown {resize!r}. Known: {', '.join(FILTERS)}")
        self.size, self.margin, self.resize = size, margin, resize
        self.kernel, self.antialias = FILTERS[resize]
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std]).view(3, 1, 1), persistent=False)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(3, 1, 1)
        self.register_buffer("shift", shift, persistent=False)

    def resized(self, images: Tensor) -> Tensor:
        """Returns resized images in whole grey levels. uint8 (B, H', W', 3) -> float32 (B, 3, H, W)."""
        pixels = images.permute(0, 3, 1, 2).float()
        height, width = (side + self.margin for side in self.size)
        across = resize_matrix(pixels.shape[3], width, self.kernel, self.antialias)
        down = resize_matrix(pixels.shape[2], height, self.kernel, self.antialias)
        pixels = round_levels(pixels @ across.t())
        pixels = round_levels(down @ pixels)
        edge = self.margin // 2
        return pixels[:, :, edge : edge + self.size[0], edge : edge + self.size[1]]

    def forward(self, images: Tensor) -> Tensor:
        return self.resized(images) * self.scale + self.shift


class Renormalise(nn.Module):
    """The normalisation alone, of pixels that another program has resized and scaled in its own way.

    size: (H, W) that it resizes to. mean, std: those of training. given: how the program scales.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], given: Given):
        super().__init__()
        self.size = size
        scale = torch.tensor(given.std) / torch.tensor(std)
        shift = (torch.tensor(given.mean) - torch.tensor(mean)) / torch.tensor(std)
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns pixels as training normalised them, (B, 3, H, W) float32. pixels: the same shape, as ``Given``."""
        return pixels * self.scale + self.shift


class Normalised(nn.Module):
    """No preprocessing: pixels come as training normalised them, (B, 3, H, W) float32. size: (H, W)."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels


class Deployed(nn.Module):
    """Preprocessing, network and scaling in one.

    model: in evaluation mode. preprocess: of whole images, or of what a program feeds. sides: names of the labels that
    it takes beside the images. flip: the mean with the mirrored image's features (TEST.FLIP). unit: scale features to
    unit length (TEST.FEAT_NORM).
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess | Renormalise | Normalised,
        sides: tuple[str, ...] = (),
        flip: bool = False,
        unit: bool = True,
    ):
        super().__init__()
        self.model, self.preprocess, self.sides, self.flip, self.unit = model, preprocess, sides, flip, unit

    def forward(self, images: Tensor, *labels: Tensor) -> Tensor:
        """Returns features (B, D) float32 of images, as the preprocessing takes them, and int64 labels (B,) each."""
        pixels, named = self.preprocess(images), dict(zip(self.sides, labels, strict=True))
        feats = mean_with_mirrored(self.model, pixels, **named) if self.flip else self.model(pixels, **named)
        return to_unit_length(feats) if self.unit else feats.float()

    def network(self) -> Deployed:
        """Returns the same without its preprocessing."""
        return Deployed(self.model, Normalised(self.preprocess.size), self.sides, self.flip, self.unit).eval()


def side_labels(cfg: CfgNode) -> tuple[str, ...]:
    """Returns the names of the labels that a network takes beside the images."""
    keys = (("cam_label", cfg.MODEL.SIE_CAMERA), ("view_label", cfg.MODEL.SIE_VIEW))
    return tuple(name for name, switched_on in keys if switched_on)


def make_deployed(cfg: CfgNode, model: nn.Module, given: Given | None = None) -> Deployed:
    """Returns the model as it is exported, on the CPU in full precision.

    cfg: the configuration of its test. given: what a program feeds that resizes images itself.
    """
    if cfg.KD.MULTI_HEAD:
        raise UserError("KD.MULTI_HEAD: a model with a head per target has no single feature to export")
    if cfg.INPUT.PIPELINE != "reid":
        raise UserError(f"INPUT.PIPELINE {cfg.INPUT.PIPELINE!r}: only 'reid' can be exported, the others classify")
    sizes = tuple(cfg.INPUT.SIZE_TEST), cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD
    preprocess: Preprocess | Renormalise
    if given is None:
        preprocess = Preprocess(*sizes, cfg.INPUT.RESIZE, cfg.INPUT.RESIZE_MARGIN)
    elif cfg.INPUT.RESIZE_MARGIN:
        raise UserError("INPUT.RESIZE_MARGIN: no tracker cuts a margin off; export --for raw")
    else:
        preprocess = Renormalise(*sizes, given)
    sides = side_labels(cfg)
    if given is not None and sides:
        raise UserError(
            f"this layout has no input for {' and '.join(sides)}; export --for raw or openvino, or a model that was "
            "trained without MODEL.SIE_CAMERA and MODEL.SIE_VIEW"
        )
    unit = switch("TEST.FEAT_NORM", cfg.TEST.FEAT_NORM)
    return Deployed(model.cpu().float().eval(), preprocess, sides, cfg.TEST.FLIP, unit).eval()
