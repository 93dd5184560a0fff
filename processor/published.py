"""A published model: weights, settings and a description, in a folder or on the Hugging Face hub. Data, no code.

``tools.hub`` writes one, ``Extractor.load("hf://owner/name@revision")`` reads one. The settings of a stranger reach no
file and import nothing: keys that name paths stand at their defaults here, and EXTRA_MODULES is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from configs import load_config
from configs.defaults import KEYS
from configs.loader import BASE, read_text
from configs.yaml_reader import YAMLMistake, parse_yaml
from utils.errors import UserError, one_line, reason_of
from utils.feature_files import read_json
from utils.files import sha256_of

PREFIX = "hf://"
WEIGHTS, SETTINGS, DESCRIPTION, CALIBRATION = "model.safetensors", "config.yml", "model.json", "calibration.json"
NEEDED = (WEIGHTS, SETTINGS, DESCRIPTION)
FILES = (*NEEDED, CALIBRATION)
"""All that is ever read of a published model."""
ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
LOGIN = "log in with 'hf auth login', or set HF_TOKEN"


def is_address(source: str | Path) -> bool:
    """Returns whether a source is on the hub."""
    return isinstance(source, str) and source.startswith(PREFIX)


def is_published(folder: Path) -> bool:
    """Returns whether a folder holds a published model."""
    return all((folder / name).is_file() for name in NEEDED)


@dataclass(frozen=True)
class PublishedModel:
    """A published model. ``PublishedModel.read(source)`` reads one.

    source: the folder, or the address with the revision that was read. model_hash: of its features. licence: '' if
    nobody named one.
    """

    folder: Path
    source: str
    model_hash: str
    licence: str

    @classmethod
    def read(cls, source: str | Path) -> PublishedModel:
        """Reads a folder, or an address on the hub, and compares the files with their digests.

        Raises ``UserError`` if it cannot be reached, is no published model, is damaged, or asks for code.
        """
        source, folder = fetched(str(source)) if is_address(source) else (str(source), Path(source))
        missing = [name for name in NEEDED if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{source}: no {', '.join(missing)}: not a model that tools.hub has published")
        content = read_json(folder / DESCRIPTION)
        digests, model_hash, licence = (content.get(name) for name in ("sha256", "model_hash", "license"))
        if not isinstance(digests, dict) or not isinstance(model_hash, str) or not isinstance(licence, str | None):
            raise UserError(f"{source}: {DESCRIPTION} is damaged, or not of a model that tools.hub has published")
        for name in (file for file in FILES if (folder / file).is_file() and file != DESCRIPTION):
            if digests.get(name) != sha256_of(folder / name).hex():
                raise UserError(f"{source}: {name} is not the file that {DESCRIPTION} describes; publish it again")
        refuse_code(folder / SETTINGS)
        return cls(folder, source, model_hash, one_line(licence or "")[:60])

    def config(self, settings: Sequence[Any] = ()) -> CfgNode:
        """Returns the configuration of its extractor. settings: further ``KEY, VALUE, ...`` pairs of the user's own."""
        words = [word for name, key in KEYS.items() if key.path for word in (name, key.default)]
        words += ["TEST.WEIGHT", str(self.folder / WEIGHTS)]
        if (self.folder / CALIBRATION).is_file():
            words += ["TEST.CALIBRATION", str(self.folder / CALIBRATION)]
        return load_config(self.folder / SETTINGS, [*words, *settings])

    def announce(self) -> None:
        """Prints which revision was read, and under which licence."""
        terms = f"licence {self.licence}" if self.licence else "it names no licence: ask its author before you use it"
        print(f"{self.source}: {terms}", file=sys.stderr)

    def refuse_other(self, model_hash: str) -> None:
        """Raises ``UserError`` if the features are not those of the description."""
        if model_hash != self.model_hash:
            raise UserError(
                f"{self.source}: its features are not those that {DESCRIPTION} describes; it was edited, or another "
                "version of Lineup has published it"
            )


def refuse_code(path: Path) -> None:
    """Raises ``UserError`` for settings that are no settings, read other files or import modules."""
    try:
        tree = parse_yaml(read_text(path))
    except (OSError, UnicodeDecodeError, YAMLMistake) as error:
        raise UserError(f"{path}: damaged ({reason_of(error)})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: damaged, expected sections of settings")
    if BASE in tree:
        raise UserError(f"{path}: a published model has its settings in one file, and this one has {BASE}")
    if tree.get("EXTRA_MODULES"):
        raise UserError(
            f"{path}: EXTRA_MODULES asks for code, which is never loaded with a model; name the modules yourself if "
            "you trust them: Extractor.load(YAML, WEIGHTS, 'EXTRA_MODULES', ...)"
        )


def fetched(address: str) -> tuple[str, Path]:
    """Returns an address with the commit that it stands for now, and the folder of its files, fetched if need be.

    Raises ``UserError`` if the address is malformed, does not exist or cannot be reached.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        raise UserError(f"{address}: expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION")
    from huggingface_hub import errors, snapshot_download  # a second, for those who need it

    try:
        folder = snapshot_download(match["repo"], revision=match["revision"], allow_patterns=list(FILES))
    except errors.RevisionNotFoundError:
        raise UserError(f"{address}: the repository has no revision {match['revision']!r}") from None
    except errors.GatedRepoError:
        raise UserError(f"{address}: its owner grants access on request: ask on its page, then {LOGIN}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{address}: no such repository, or a private one: {LOGIN}") from None
    except errors.LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            raise UserError(f"{address}: HF_HUB_OFFLINE is set, and no copy of it is on this machine") from None
        raise UserError(
            f"{address}: the hub cannot be reached, and no copy of it is on this machine ({reason_of(error)})"
        ) from None
    except Exception as error:  # noqa: BLE001 - of whichever HTTP library the hub's client stands on
        raise UserError(f"{address}: cannot be fetched ({reason_of(error)})") from None
    return f"{PREFIX}{match['repo']}@{Path(folder).name}", Path(folder)
