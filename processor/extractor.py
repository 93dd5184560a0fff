"""Extracts features with a trained model, for trackers and services: set up once, no data set needed."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from yacs.config import CfgNode

from configs import load_config, with_traits
from datasets.storage.pillow_decoding import load_image
from datasets.storage.pixels import MEANING, PLAIN, PixelRules, to_rgb
from datasets.transforms.pipelines import build_transforms
from model import RetrievalModel, make_model
from model.deployed import side_labels
from model.networks.clip_reid import PromptReID
from model.sentences import refuse_missing_text_tower, refuse_without_text, sentence_features, token_table
from processor.exported import ExportedFile, is_exported
from processor.published import PublishedModel, is_address, is_published
from processor.runtime_network import network_of_file
from processor.runtimes import TORCH
from processor.trained import in_tested_runtime, last_of_run, load_tested, tested_file, weight_file
from utils import switch
from utils.calibration import Calibration
from utils.checkpoint import as_tensors
from utils.device import choose_device
from utils.errors import UserError
from utils.extra_modules import import_extras
from utils.features import mean_with_mirrored, to_unit_length

log = logging.getLogger("lineup")

IMAGE, TEXT = "image", "text"
"""Spaces of features: the retrieval feature, and that of prompt models in which images and sentences are compared."""

MODEL_KEYS = (
    "NAME", "TRANSFORMER_TYPE", "STRIDE_SIZE", "LAST_STRIDE", "POOLING", "GEM_POOLING", "NECK", "JPM", "SHIFT_NUM",
    "SHUFFLE_GROUP", "DEVIDE_LENGTH", "RE_ARRANGE", "SIE_COE", "SEMANTIC_WEIGHT",
)  # fmt: skip
MSVIT_KEYS = ("SPLIT_SIZE", "SPARSE_RATIO", "SPARSE_POOL", "NUM_PART", "HEAD", "ACT")
INPUT_KEYS = ("SIZE_TRAIN", "SIZE_TEST", "PIXEL_MEAN", "PIXEL_STD", "RESIZE", "RESIZE_MARGIN", "PIPELINE", "BACKGROUND")
TEST_KEYS = ("NECK_FEAT", "FLIP", "FEAT_NORM")
"""Keys that change features although the weights' names and shapes may stay the same."""

Picture = str | Path | Image.Image | np.ndarray


class Extractor:
    """Turns images into features. ``Extractor.load`` makes one.

    model: moved to the device, in evaluation mode. transform: PIL image -> (3, H, W). size: height and width that it
    gives. settings: what else the features depend on. flip: average with the mirrored image's features. unit: scale to
    unit length. sides: names of the labels that the model takes beside the images. space: ``image`` or ``text``; in the
    latter the model is a ``PromptReID``. sentences: strings -> (S, P), in space ``text``. rules: how files become
    pixels. model_hash: of the features, where the model is not the network itself; None: ``hash_of(model, settings)``.
    """

    def __init__(
        self,
        model: RetrievalModel,
        transform: Callable[[Image.Image], Tensor],
        size: tuple[int, int],
        settings: dict[str, Any],
        device: torch.device,
        *,
        flip: bool = False,
        unit: bool = True,
        sides: tuple[str, ...] = (),
        space: str = IMAGE,
        batch_size: int = 64,
        sentences: Callable[[list[str]], Tensor] | None = None,
        rules: PixelRules = PLAIN,
        model_hash: str | None = None,
    ):
        self._model_hash, self.size = model_hash, size
        self.model, self.transform, self.settings, self.device = model.to(device).eval(), transform, settings, device
        self.flip, self.unit, self.sides, self.space, self.batch_size = flip, unit, sides, space, batch_size
        self.call: Callable[..., Tensor] = model.embed if isinstance(model, PromptReID) and space == TEXT else model
        self._sentences, self.rules = sentences, rules
        self.calibration: Calibration | None = None
        self.width = self.features(torch.zeros(1, 3, *size)).shape[1]

    @classmethod
    def load(
        cls, source: str | Path, weight: str | Path | None = None, *settings: Any, space: str = IMAGE
    ) -> Extractor:
        """Makes the extractor of a trained model.

        source: a YAML file, with a checkpoint or an exported file as ``weight``; or, with None: a ``model.onnx`` or
        ``model.xml`` of tools.export, the folder of a run, whose last checkpoint is taken, a folder that tools.hub
        wrote, or ``hf://OWNER/NAME[@REVISION]`` on the Hugging Face hub, whose commit is printed. settings: further
        ``KEY, VALUE, ...`` pairs. Raises ``UserError`` if something is missing or belongs to another model.
        """
        if weight is None and (is_address(source) or is_published(Path(source))):
            return published_extractor(PublishedModel.read(source), settings, space)
        if weight is None and is_exported(source):
            file = ExportedFile.read(source)
            return extractor_of_file(load_config("", [*file.words(), *settings, "TEST.WEIGHT", str(source)]), file)
        config_file, weight = last_of_run(Path(source)) if weight is None else (source, weight)
        return make_extractor(load_config(config_file, [*settings, "TEST.WEIGHT", str(weight)]), space)

    def with_network(self, network: RetrievalModel) -> Extractor:
        """Returns this extractor with its network in another runtime: the features are the same but for rounding."""
        other = copy.copy(self)
        other._model_hash, other.model = self.model_hash, network.to(self.device).eval()
        other.call = other.model
        return other

    def __call__(
        self, images: Sequence[Picture], camids: Sequence[int] | None = None, viewids: Sequence[int] | None = None
    ) -> np.ndarray:
        """Returns features of images in their order, (N, D) float32, of unit length unless TEST.FEAT_NORM is 'no'.

        images: paths, PIL images or RGB arrays, uint8 (H, W, 3); an empty list gives (0, D). Files and PIL images
        are turned by their EXIF orientation and composed over INPUT.BACKGROUND; arrays are taken as they are. camids,
        viewids: numbers from 0 as training counted them, for models with side information; a number that training
        never saw, or no numbers, adds nothing. Raises ``BadImage``, a ``UserError``, for a file that cannot be read.
        """
        if isinstance(images, Picture) and not (isinstance(images, np.ndarray) and images.ndim == 4):
            images = [images]
        out = np.empty((len(images), self.width), np.float32)
        for start in range(0, len(images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            batch = torch.stack([self.transform(pil_image(image, self.rules)) for image in images[rows]])
            labels = (None if ids is None else torch.as_tensor(ids[rows]).long() for ids in (camids, viewids))
            out[rows] = finite(self.features(batch, *labels).cpu().numpy(), f"images {start} to {start + len(batch)}")
        return out

    @torch.inference_mode()
    def features(self, images: Tensor, camids: Tensor | None = None, viewids: Tensor | None = None) -> Tensor:
        """Returns features (B, D) float32 on the model's device for transformed images (B, 3, H, W) on any device."""
        images = images.to(self.device, non_blocking=True)
        columns = {"cam_label": camids, "view_label": viewids}
        labels = {k: v.to(self.device) for k, v in columns.items() if k in self.sides and v is not None}
        feats = mean_with_mirrored(self.call, images, **labels) if self.flip else self.call(images, **labels)
        return to_unit_length(feats) if self.unit else feats.float()

    def same(self, a: Picture, b: Picture) -> float:
        """Returns the probability that two images show one identity, by TEST.CALIBRATION."""
        calibration = self._calibrated()
        one, two = self([a]), self([b])
        return float(calibration.probability(calibration.distances(one, two))[0, 0])

    def identify(
        self, query: Picture, gallery: Mapping[Hashable, np.ndarray], far: float | None = None
    ) -> tuple[Hashable | None, float]:
        """Returns who an image shows, None for nobody in the gallery, and the probability that the nearest is the same.

        gallery: identity -> features (n, D), as this extractor gives them. far: the false accept rate whose threshold
        decides, one of TEST.CALIBRATION's; None for the strictest.
        """
        return self._calibrated().identify(self([query])[0], gallery, far)

    def _calibrated(self) -> Calibration:
        if self.calibration is None:
            raise UserError("decisions need TEST.CALIBRATION, a file that tools.calibrate wrote for this model")
        return self.calibration

    def sentences(self, words: list[str]) -> np.ndarray:
        """Returns features of sentences, (S, D) float32 of unit length, to search a gallery of space ``text`` with."""
        if self._sentences is None:
            raise UserError("sentences are compared with features of space 'text' of a model of the prompt method")
        return to_unit_length(self._sentences(words)).cpu().numpy()

    @cached_property
    def model_hash(self) -> str:
        """The SHA-256 of the weights that retrieval needs and of the settings that change features, in hexadecimal.

        Features of different hashes are not comparable. Classifiers, the machine and the runtime do not enter.
        """
        return self._model_hash or hash_of(self.model, self.settings)


def hash_of(model: RetrievalModel, settings: dict[str, Any]) -> str:
    """Returns ``Extractor.model_hash`` of a network in torch and the settings of its features."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith(model.optional_keys) and not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_of_tested(cfg: CfgNode, model: RetrievalModel) -> str:
    """Returns ``Extractor.model_hash`` of TEST.WEIGHT, whose network ``model`` is."""
    cameras, views, _ = side_counts(cfg, weight_file(cfg))
    return hash_of(model, feature_settings(cfg, IMAGE, cameras, views))


def pil_image(image: Picture, rules: PixelRules = PLAIN) -> Image.Image:
    """Returns an image as Pillow has it. Raises ``UserError`` for what is not an image, ``BadImage`` for a bad file."""
    if isinstance(image, str | Path):
        return load_image(str(image), rules=rules)
    if isinstance(image, Image.Image):
        return to_rgb(image, rules)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"an image must be a path, a PIL image or a uint8 array (H, W, 3) in RGB, not {kind}")
    if 0 in image.shape:
        raise UserError(f"an image of shape {image.shape} has no pixels")
    return Image.fromarray(image)


def finite(feats: np.ndarray, what: str) -> np.ndarray:
    """Returns the features. Raises ``UserError`` if one is not finite. what: the images, in the message."""
    if not np.isfinite(feats).all():
        raise UserError(f"features of {what} are not finite: the weights are damaged")
    return feats


def make_extractor(cfg: CfgNode, space: str = IMAGE) -> Extractor:
    """Makes the extractor of TEST.WEIGHT. Raises ``UserError`` if it is missing or belongs to another model."""
    import_extras(cfg.EXTRA_MODULES)
    cfg = with_traits(cfg)
    refuse_space(cfg, space)
    if cfg.KD.MULTI_HEAD:
        raise UserError(
            "KD.MULTI_HEAD: a model with a head per target has several features, so there is none to extract"
        )
    file = tested_file(cfg)
    if file is not None:
        return extractor_of_file(cfg, file)
    weight = weight_file(cfg)
    cfg, cameras, views = with_sides_of(cfg, weight)
    model = make_model(cfg, 2, cameras, views)  # classifiers do not matter here
    report = load_tested(cfg, model, weight)
    if space == TEXT:
        refuse_missing_text_tower(cfg, report)
    extractor = Extractor(
        model,
        build_transforms(cfg, is_train=False),
        (cfg.INPUT.SIZE_TEST[0], cfg.INPUT.SIZE_TEST[1]),
        feature_settings(cfg, space, cameras, views),
        choose_device(cfg.MODEL.DEVICE),
        flip=cfg.TEST.FLIP,
        unit=switch("TEST.FEAT_NORM", cfg.TEST.FEAT_NORM),
        sides=side_labels(cfg),
        space=space,
        batch_size=cfg.TEST.IMS_PER_BATCH,
        sentences=make_sentence_encoder(cfg, model) if space == TEXT else None,
        rules=PixelRules.from_cfg(cfg),
    )
    if cfg.TEST.RUNTIME != TORCH:
        extractor = extractor.with_network(in_tested_runtime(cfg, model))
    read_calibration(cfg, extractor)
    return extractor


def extractor_of_file(cfg: CfgNode, file: ExportedFile) -> Extractor:
    """Makes the extractor of an exported file. Raises ``UserError`` if the configuration contradicts it."""
    file.refuse_other_settings(cfg)
    network = network_of_file(file, cfg.TEST.RUNTIME)
    extractor = Extractor(
        network,
        build_transforms(cfg, is_train=False),
        file.size,
        file.settings | {"space": IMAGE, "pixels": MEANING},
        torch.device("cpu"),
        flip=False,  # inside the file, if it is on
        unit=switch("TEST.FEAT_NORM", cfg.TEST.FEAT_NORM),
        sides=file.sides,
        batch_size=min(cfg.TEST.IMS_PER_BATCH, network.batch or cfg.TEST.IMS_PER_BATCH),
        rules=PixelRules.from_cfg(cfg),
        model_hash=file.model_hash,
    )
    extractor.calibration = file.calibration
    read_calibration(cfg, extractor)
    return extractor


def published_extractor(published: PublishedModel, settings: Sequence[Any], space: str) -> Extractor:
    """Makes the extractor of a published model. Raises ``UserError`` if its features are not those it describes."""
    published.announce()
    extractor = make_extractor(published.config(settings), space)
    if not settings and space == IMAGE:
        published.refuse_other(extractor.model_hash)
    return extractor


def read_calibration(cfg: CfgNode, extractor: Extractor) -> None:
    """Gives an extractor TEST.CALIBRATION, if it is set. Raises ``UserError`` if that is of another model."""
    if cfg.TEST.CALIBRATION:
        extractor.calibration = Calibration.read(cfg.TEST.CALIBRATION)
        extractor.calibration.refuse_other(
            extractor.model_hash, cfg.TEST.METRIC, extractor.unit, f"TEST.CALIBRATION {cfg.TEST.CALIBRATION}"
        )


def refuse_space(cfg: CfgNode, space: str) -> None:
    """Raises ``UserError`` if TEST.WEIGHT gives no features of a space."""
    if space != TEXT:
        return
    refuse_without_text(cfg)
    if cfg.TEST.RUNTIME != TORCH or is_exported(cfg.TEST.WEIGHT):
        raise UserError(
            "features that sentences are compared with come from the network itself: set TEST.RUNTIME torch, and "
            "TEST.WEIGHT to its checkpoint"
        )


def make_sentence_encoder(cfg: CfgNode, model: RetrievalModel) -> Callable[[list[str]], Tensor]:
    """Returns a function from sentences to text features (S, P); it reads CLIP's token embedding when first called."""
    assert isinstance(model, PromptReID), "the prompt method's network"
    table = cache(partial(token_table, cfg))
    return lambda sentences: sentence_features(model, table(), sentences)


def feature_settings(cfg: CfgNode, space: str, cameras: int, views: int) -> dict[str, Any]:
    """Returns what features depend on beside the weights, in JSON's types."""
    groups = ((cfg.MODEL, "MODEL", MODEL_KEYS), (cfg.MODEL.MSVIT, "MODEL.MSVIT", MSVIT_KEYS))
    groups += ((cfg.INPUT, "INPUT", INPUT_KEYS), (cfg.TEST, "TEST", TEST_KEYS))
    settings = {f"{section}.{key}": node[key] for node, section, keys in groups for key in keys}
    settings["TEST.FEAT_NORM"] = switch("TEST.FEAT_NORM", cfg.TEST.FEAT_NORM)
    settings |= {"space": space, "cameras": cameras, "views": views, "pixels": MEANING}
    return json.loads(json.dumps(settings))


def with_sides_of(cfg: CfgNode, weight: str) -> tuple[CfgNode, int, int]:
    """Returns the configuration, and how many cameras and views the weight file's side information has rows for.

    With both switched on, the number of rows does not say how many there are of each; then both are switched off.
    """
    cameras, views, reason = side_counts(cfg, weight)
    if not reason:
        return cfg, cameras, views
    log.warning("features are extracted without side information: %s %s", weight, reason)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SIE_CAMERA = cfg.MODEL.SIE_VIEW = False
    return cfg, 0, 0


def side_counts(cfg: CfgNode, weight: str) -> tuple[int, int, str]:
    """Returns how many cameras and views a weight file has rows for, and why that is not known; '' where it is."""
    if not (cfg.MODEL.SIE_CAMERA or cfg.MODEL.SIE_VIEW):
        return 0, 0, ""
    state, _ = as_tensors(weight, key=cfg.MODEL.WEIGHT_KEY)
    rows = next((len(value) for key, value in state.items() if key.endswith(("sie_embed", "cv_embed"))), 0)
    if rows and not (cfg.MODEL.SIE_CAMERA and cfg.MODEL.SIE_VIEW):
        return rows if cfg.MODEL.SIE_CAMERA else 0, rows if cfg.MODEL.SIE_VIEW else 0, ""
    return 0, 0, f"has {rows} rows for cameras and views together" if rows else "holds none"
