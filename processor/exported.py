"""A file that ``tools.export`` wrote, with what the ``model.json`` beside it says that it takes and gives."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from model.layouts import LAYOUTS, Layout
from processor.runtimes import READERS
from utils import switch
from utils.calibration import Calibration
from utils.errors import UserError
from utils.feature_files import read_json
from utils.files import sha256_of

log = logging.getLogger("lineup")

CARD = "model.json"
FP32 = "fp32"

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_layout(value: Any) -> bool:
    return is_text(value) and value in LAYOUTS


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def three_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(v, int | float) for v in value)


def two_sides(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(is_whole(v) and v > 0 for v in value)


def names_and_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values())


ENTRIES: dict[str, Check] = {
    "model": is_text, "type": is_text, "layout": is_layout, "inputs": names_and_texts, "width": is_whole,
    "size": two_sides, "resize": is_text, "resize_margin": is_whole, "background": three_numbers,
    "mean": three_numbers, "std": three_numbers, "flip": is_flag, "unit_length": is_flag, "distance": is_text,
    "sha256": names_and_texts, "model_hash": is_text,
}  # fmt: skip
"""The entries of ``model.json`` that are read here, and what they must be."""

INSIDE = {
    "INPUT.SIZE_TEST": "size", "INPUT.PIXEL_MEAN": "mean", "INPUT.PIXEL_STD": "std", "INPUT.RESIZE": "resize",
    "INPUT.RESIZE_MARGIN": "resize_margin", "INPUT.BACKGROUND": "background", "TEST.FLIP": "flip",
}  # fmt: skip
"""Keys whose values are part of the file, and the entries that hold them."""


@dataclass(frozen=True)
class ExportedFile:
    """A network in a file for other runtimes. ``ExportedFile.read(path)`` reads one.

    settings: the values of the keys that the file has inside, in JSON's types. network: those of the keys that say
    which network it is. distance: a word of TEST.METRIC. sides: names of its inputs beside the images. width: of a
    feature. model_hash: of the features, see ``hash_of_features``. digests: SHA-256 of its parts. calibration: what
    distances between the file's features mean, None if it is not known.
    """

    path: Path
    layout: Layout
    settings: dict[str, Any]
    network: dict[str, Any]
    distance: str
    sides: tuple[str, ...]
    width: int
    model_hash: str
    digests: tuple[str, ...]
    calibration: Calibration | None

    @classmethod
    def read(cls, path: str | Path) -> ExportedFile:
        """Reads the ``model.json`` beside a file and compares the file with it.

        Raises ``UserError`` if it is missing or damaged, and for a file that is not the one it describes.
        """
        path = Path(path)
        card_path = path.parent / CARD
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        if not card_path.is_file():
            raise UserError(
                f"{path}: no {CARD} beside it, which says what the file takes; copy it along, or export the model "
                "again (tools.export writes both)"
            )
        card = read_json(card_path)
        for name, check in ENTRIES.items():
            if name not in card:
                raise UserError(f"{card_path}: of an older version, without entry {name!r}; export the model again")
            if not check(card[name]):
                raise UserError(f"{card_path}: damaged, entry {name!r} is not what tools.export writes")
        digests = [refuse_changed(file, card, card_path) for file in (path, *weights_beside(path))]
        precision = str(card.get("precision", FP32))
        model_hash = hash_of_features(card["model_hash"], precision, digests)
        sides = tuple(name for name in card["inputs"] if name != "images")
        settings = {key: card[entry] for key, entry in INSIDE.items()}
        settings |= {"TEST.FEAT_NORM": "yes" if card["unit_length"] else "no"}
        network = {"MODEL.NAME": card["model"]} | ({"MODEL.TRANSFORMER_TYPE": card["type"]} if card["type"] else {})
        network |= {"MODEL.SIE_CAMERA": "cam_label" in sides, "MODEL.SIE_VIEW": "view_label" in sides}
        calibration = Calibration.of(card["calibration"], card_path) if "calibration" in card else None
        if calibration is not None and calibration.model_hash != model_hash:
            log.warning("%s: its calibration is not of this file; calibrate it with tools.calibrate", card_path)
            calibration = None
        return cls(
            path=path, layout=LAYOUTS[card["layout"]], settings=settings, network=network, distance=card["distance"],
            sides=sides, width=card["width"], model_hash=model_hash, digests=tuple(digests), calibration=calibration,
        )  # fmt: skip

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that evaluation feeds."""
        height, width = self.settings["INPUT.SIZE_TEST"]
        return height, width

    def words(self) -> list[Any]:
        """Returns the settings as ``KEY, VALUE, ...``, the distance among them."""
        return [word for pair in (self.settings | {"TEST.METRIC": self.distance}).items() for word in pair]

    def refuse_other_network(self, cfg: CfgNode) -> None:
        """Raises ``UserError`` if the configuration is of another network, or of one with other side information."""
        for key, side in (("SIE_CAMERA", "cam_label"), ("SIE_VIEW", "view_label")):
            if cfg.MODEL[key] and side not in self.sides:
                raise UserError(
                    f"{self.path}: has no input {side}, and MODEL.{key} is True: it was exported from another model; "
                    "name the file of this one, which tools.export --for raw writes"
                )
        self.refuse_differing(self.network, {
            "MODEL.NAME": cfg.MODEL.NAME, "MODEL.TRANSFORMER_TYPE": cfg.MODEL.TRANSFORMER_TYPE,
            "MODEL.SIE_CAMERA": cfg.MODEL.SIE_CAMERA, "MODEL.SIE_VIEW": cfg.MODEL.SIE_VIEW,
        })  # fmt: skip

    def refuse_other_settings(self, cfg: CfgNode) -> None:
        """Raises ``UserError`` if the configuration contradicts what is inside the file."""
        self.refuse_differing(self.settings, {
            "INPUT.SIZE_TEST": cfg.INPUT.SIZE_TEST, "INPUT.PIXEL_MEAN": cfg.INPUT.PIXEL_MEAN,
            "INPUT.PIXEL_STD": cfg.INPUT.PIXEL_STD, "INPUT.RESIZE": cfg.INPUT.RESIZE,
            "INPUT.RESIZE_MARGIN": cfg.INPUT.RESIZE_MARGIN, "INPUT.BACKGROUND": cfg.INPUT.BACKGROUND,
            "TEST.FLIP": cfg.TEST.FLIP,
            "TEST.FEAT_NORM": "yes" if switch("TEST.FEAT_NORM", cfg.TEST.FEAT_NORM) else "no",
        })  # fmt: skip

    def refuse_differing(self, inside: dict[str, Any], values: dict[str, Any]) -> None:
        """Raises ``UserError`` naming the keys of ``inside`` that have another value in ``values``."""
        differing = [
            f"{key} is {plain(values[key])}, the file's is {value}"
            for key, value in inside.items() if plain(values[key]) != value
        ]  # fmt: skip
        if differing:
            raise UserError(
                f"{self.path}: was exported with other settings: {'; '.join(differing)}. Set what the file has, or "
                "export the model again"
            )


def is_exported(path: str | Path) -> bool:
    """Returns whether a path has the ending of an exported file that a runtime here reads."""
    return Path(path).suffix in READERS


def weights_beside(path: Path) -> list[Path]:
    """Returns the further files that a file needs: OpenVINO keeps its weights in one beside."""
    return [path.with_suffix(".bin")] if path.suffix == ".xml" else []


def refuse_changed(path: Path, card: dict[str, Any], card_path: Path) -> str:
    """Returns the SHA-256 of a file. Raises ``UserError`` unless ``model.json`` has it; the name may be another."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    digest, digests = sha256_of(path).hex(), card["sha256"]
    if digest not in ([digests[path.name]] if path.name in digests else digests.values()):
        raise UserError(
            f"{path}: changed since {card_path} was written (SHA-256 {digest[:12]}...); export the model again, or put "
            f"the {CARD} of this file beside it"
        )
    return digest


def hash_of_features(model_hash: str, precision: str, digests: list[str]) -> str:
    """Returns the hash of a file's features, as ``Extractor.model_hash``. digests: SHA-256 of the file's parts.

    In full precision it is that of the weights it was exported from: the export refuses a file whose features differ by
    more than rounding, so galleries and calibrations of the network serve the file too, as they serve another machine.
    In any other precision distances change by more, so the features are of a model of their own.
    """
    if precision == FP32:
        return model_hash
    return hashlib.sha256("\0".join([model_hash, precision, *digests]).encode()).hexdigest()


def plain(value: Any) -> Any:
    """Returns a setting in JSON's types."""
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value
