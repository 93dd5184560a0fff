"""What an entry of the catalogue says about a dataset, and how its folder is found."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets.records import RawSplits
from utils.errors import UserError

Counts = Mapping[str, tuple[int | None, int | None, int | None]]


@dataclass(frozen=True)
class DatasetSpec:
    """Where a dataset lies and how its files are named.

    folders: below the data root, first hit wins. pattern: base name -> groups pid, cam and maybe view. aliases: other
    names for it. junk: ids that are nobody, dropped everywhere; distractors: dropped from training only. kind: what is
    searched for. protocol: how it is evaluated; ks: the K of Recall@K, '1%' is a share of the gallery; also: what the
    retrieval protocol reports beside it, of ``NMI`` and ``mAP``. read: reader of the layout, whose keyword arguments
    are the dataset's options; None: three folders of images, as Market-1501 has them. make: writes the data first
    (built-in sets). marker: files or folders one of which shows that a folder is the dataset. elsewhere: folders that
    count with a marker in them only. restarts: test ids start again, the same number is another person. counts: split
    -> published (identities, images, cameras), None for what was not published; or a function of the options.
    availability: who may have it, where.
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
    find: Callable | None = None
    make: Callable | None = None
    marker: str | tuple[str, ...] = "bounding_box_train"
    elsewhere: tuple[str, ...] = ()
    restarts: bool = False
    counts: Counts | Callable[..., Counts] | None = None
    note: str = ""
    availability: str = "public for research"

    @property
    def options(self) -> set[str]:
        """Names of the options that this dataset knows."""
        functions = [f for f in (self.read, self.make, self.find) if f]
        named = {p.name for f in functions for p in inspect.signature(f).parameters.values() if p.kind != p.VAR_KEYWORD}
        return (named - {"spec", "folder", "path", "root", "name", "workers"}) | {"use_all"}

    def published(self, **options) -> Counts:
        """The published counts under the options; empty where there are none."""
        if callable(self.counts):
            known = inspect.signature(self.counts).parameters
            return self.counts(**{k: v for k, v in options.items() if k in known})
        return self.counts or {}


def fold(name: str) -> str:
    """Names compare without case, ``-`` and ``_``."""
    return re.sub(r"[-_ ]", "", name.lower())


def locate(spec: DatasetSpec, root: Path) -> Path:
    """The dataset's folder: each candidate below the root, then below a folder of an accepted name, then the root."""
    if not root.is_dir():
        raise UserError(f"{spec.name}: DATASETS.ROOT_DIR {str(root)!r} is no folder; set it to where your datasets are")
    names = {fold(name) for name in (spec.name, *spec.aliases)}
    below = [root, *sorted(place for place in root.iterdir() if fold(place.name) in names and place.is_dir())]
    places = [base / folder for base in below for folder in spec.folders]
    markers = (spec.marker,) if isinstance(spec.marker, str) else spec.marker

    def marked(place: Path) -> bool:
        return any((place / marker).exists() for marker in markers)

    fitting = [p for p in [*places, root] if marked(p) or (p / spec.splits[0]).exists()]
    fitting += [p for p in (base / folder for base in below for folder in spec.elsewhere) if marked(p)]
    if fitting:
        return fitting[0]
    present = [p for p in places if p.is_dir()]
    if present:
        return present[0]  # the reader says what is missing inside
    looked = ", ".join(str(p) for p in places)
    raise UserError(
        f"{spec.name}: not found; looked for {looked}, and for {' or '.join(markers)} in {root} itself "
        f"(DATASETS.ROOT_DIR is {str(root)!r})"
    )
