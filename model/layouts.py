"""What other programs feed a network: who resizes and normalises, in which order channels stand, and in which range."""

from __future__ import annotations

from dataclasses import dataclass

from utils.errors import UserError

Colour = tuple[float, float, float]

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
"""Words of ``tools.export --precision``."""


@dataclass(frozen=True)
class Given:
    """The pixels that a program feeds: RGB, float32, (batch, 3, height, width), ``(level / 255 - mean) / std``.

    resize: how the program resizes a crop, as a word of INPUT.RESIZE.
    """

    mean: Colour
    std: Colour
    resize: str


@dataclass(frozen=True)
class Layout:
    """The form of an exported file.

    ending: of its name. given: None where it takes whole images, uint8, RGB, (batch, height, width, 3), and resizes
    them itself. note: how the program finds it. pixel_limit: largest permitted difference of a resized pixel, in
    grey levels. precisions: that the file can have. others: why it has no other, and what to do.
    """

    ending: str
    given: Given | None
    note: str
    pixel_limit: float = 1.0
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")
    others: str = "onnxruntime multiplies no bfloat16 on a CPU; --precision fp16 halves the file too"


LEVELS = Given((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), "cv2_bilinear")
SHARES = Given((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "cv2_bilinear")
IMAGENET = Given((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "cv2_bilinear")

LAYOUTS = {
    "raw": Layout("onnx", None, "any image, as it is in its file"),
    # Pillow's resize in OpenVINO rounds otherwise between its two passes
    "openvino": Layout(
        "xml", None, "any image, as it is in its file; model.bin beside model.xml", pixel_limit=2.0,
        precisions=PRECISIONS,
    ),
    "torchscript": Layout(
        "torchscript", None, "any image, as it is in its file", precisions=("fp32",),
        others="a traced network keeps its precision; export --for raw or openvino",
    ),
    "ultralytics": Layout("onnx", SHARES, "tracker YAML: with_reid: True, model: the path of the file"),
    "boxmot": Layout("onnx", IMAGENET, "reid_weights: the path of the file"),
    "deepstream": Layout(
        "onnx", LEVELS, "config_tracker.yml names the file; nvtracker builds its engine from it", precisions=("fp32",),
        others="TensorRT chooses it when it builds its engine of the fp32 file; set networkMode in config_tracker.yml",
    ),
}  # fmt: skip
"""By the word of ``tools.export --for``."""


def refuse_precision(layout: str, precision: str) -> None:
    """Raises ``UserError`` if a file of the layout cannot have the precision. layout: of ``LAYOUTS``."""
    if precision not in LAYOUTS[layout].precisions:
        raise UserError(f"--precision {precision}: not --for {layout}: {LAYOUTS[layout].others}")
