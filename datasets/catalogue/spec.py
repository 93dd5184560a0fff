"""What an entry of the catalogue says about a dataset, and how its folder is found."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.records import RawSplits
from utils.errors import UserError

Counts = Mapping[str, tuple[int | None, int | None, int | None]]


@dataclass(frozen=True)
class DatasetSpec:
    """Where a dataset is on the disk and how its files are named.

    folders: below the data root, the first that exists. pattern: base name -> groups pid, cam and maybe view. aliases:
    other names for it. junk: ids of nobody, dropped everywhere; distractors: dropped from training only. kind: what
    the images show. protocol: how it is evaluated; ks: the K of Recall@K, '1%' is a share of the gallery; also: what
    the retrieval protocol reports beside it, of ``NMI`` and ``mAP``.
    read: reader of the layout, whose keyword arguments are the dataset's options; None: three folders of images, as
    Market-1501 has them. parts: the entries that a joint set trains on, in order, each with the options it is read
    with; its test is the last one's. find: finds the folder or file, in place of ``folders``. make: writes the data
    first (built-in sets).
    marker: files or folders one of which shows that a folder is the dataset. elsewhere: folders that count only with a
    marker in them. restarts: test ids start again, the same number is another person. counts: split -> published
    (identities, images, cameras), None for what was not published; or a function of the options. note: a warning for
    the log. availability: who may have the data, and where.
    """

    name: str
    folders: tuple[str, ...]
    pattern: str = ""
    cite: str = ""
    aliases: tuple[str, ...] = ()
    splits: tuple[str, str, str] = ("bounding_box_train", "query", "bounding_box_test")
    junk: tuple[int, ...] = (-1,)
    distractors: tuple[int, ...] = ()
    kind: str = "person"
    protocol: str = "market1501"
    ks: tuple[int | str, ...] = (1, 2, 4, 8)
    also: tuple[str, ...] = ("NMI",)
    read: Callable[..., RawSplits] | None = None
    parts: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    find: Callable[..., Path] | None = None
    make: Callable[..., Path] | None = None
    marker: str | tuple[str, ...] = "bounding_box_train"
    elsewhere: tuple[str, ...] = ()
    restarts: bool = False
    counts: Counts | Callable[..., Counts] | None = None
    note: str = ""
    availability: str = "public for research"

    @property
    def options(self) -> set[str]:
        """The names of the options that this dataset knows."""
        functions = [f for f in (self.read, self.make, self.find) if f]
        named = {p.name for f in functions for p in inspect.signature(f).parameters.values() if p.kind != p.VAR_KEYWORD}
        return (named - {"spec", "folder", "path", "root", "name", "workers"}) | {"use_all"}

    def published(self, **options: Any) -> Counts:
        """Returns the published counts under the options; empty if none were published."""
        if callable(self.counts):
            known = inspect.signature(self.counts).parameters
            return self.counts(**{k: v for k, v in options.items() if k in known})
        return self.counts or {}


def fold(name: str) -> str:
    """Returns a name without case, ``-``, ``_`` and spaces, as names are compared."""
    return re.sub(r"[-_ ]", "", name.lower())


def locate(spec: DatasetSpec, root: Path) -> Path:
    """Returns the dataset's folder: below the root, below a folder of an accepted name, or the root itself.

    Raises ``UserError`` that names every folder that was tried.
    """
    if not root.is_dir():
        raise UserError(
            f"{spec.name}: DATASETS.ROOT_DIR {str(root)!r} is not a folder; set it to where your datasets are"
        )
    names = {fold(name) for name in (spec.name, *spec.aliases)}
    bases = [root, *sorted(path for path in root.iterdir() if fold(path.name) in names and path.is_dir())]
    candidates = [base / folder for base in bases for folder in spec.folders]
    markers = (spec.marker,) if isinstance(spec.marker, str) else spec.marker

    def is_marked(folder: Path) -> bool:
        return any((folder / marker).exists() for marker in markers)

    fitting = [p for p in [*candidates, root] if is_marked(p) or (p / spec.splits[0]).exists()]
    fitting += [p for p in (base / folder for base in bases for folder in spec.elsewhere) if is_marked(p)]
    if fitting:
        return fitting[0]
    present = [p for p in candidates if p.is_dir()]
    if present:
        return present[0]  # the reader says what is missing inside
    tried = ", ".join(str(p) for p in candidates)
    raise UserError(
        f"{spec.name}: not found; looked for {tried}, and for {' or '.join(markers)} in {root} itself "
        f"(DATASETS.ROOT_DIR is {str(root)!r})"
    )
