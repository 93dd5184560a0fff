"""The journal: every decision is a line of JSON that is only ever appended, and on the disk before it is confirmed.

The first line names the list of images. A further line is a ``Decision``; an undo is a decision, too, so nothing is
ever removed. What the labels are follows from the lines (``labelling.constraints``).
"""

from __future__ import annotations

import errno
import fcntl
import gc
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from datasets.identifiers import JUNK, canonical
from utils.errors import UserError, cut
from utils.files import write_lines

log = logging.getLogger("lineup")

FORMAT, VERSION = "lineup labels", 1
LIST = "images.txt"
"""The list of images beside the journal, to say what differs from another."""
LARGEST = 2**30
"""Bytes of a journal that is read; 100,000 decisions take about ten million."""
LONGEST_LINE = 4 * 2**20
"""Bytes of a line: a decision about every image of half a million."""
PAIRS, GROUPS = ("differ", "unsure"), ("same",)
FIELDS = ("n", "view", "same", "differ", "unsure", "name", "nobody", "set", "keep", "why", "undo")
LONGEST_VIEW, LONGEST_WHY = 20, 300
DECODER = json.JSONDecoder()


class Decision(NamedTuple):
    """What one step of the person said. Images are rows of the list, from 0.

    number: from 1, in the order of the journal. view: where it was made. same: groups of images of one identity.
    differ: pairs of two identities. unsure: pairs that the person cannot tell. name: images and the name of their
    identity. nobody: images of no identity. set: images and the identity that replaces their given one. keep: proposals
    that were refused, by their keys. why: the reason of a proposal that was accepted. undo: the number of a decision
    that no longer counts, 0 for none.
    """

    number: int
    view: str = ""
    same: tuple[tuple[int, ...], ...] = ()
    differ: tuple[tuple[int, int], ...] = ()
    unsure: tuple[tuple[int, int], ...] = ()
    name: tuple[tuple[int, str], ...] = ()
    nobody: tuple[int, ...] = ()
    set: tuple[tuple[int, str], ...] = ()
    keep: tuple[str, ...] = ()
    why: str = ""
    undo: int = 0

    @classmethod
    def of(cls, number: int, content: dict[str, Any], count: int) -> Decision:
        """Returns a checked decision about a list of ``count`` images. Raises ``UserError`` if it is malformed."""
        read: dict[str, Any] = {}
        for name, value in content.items():
            if name not in READERS:
                raise UserError(f"unknown entry {cut(str(name), 40)!r}; known: {', '.join(FIELDS)}")
            read[name] = READERS[name](value, name, count)
        decision = cls(number, **read)
        if decision.undo >= number:
            raise UserError(f"undo must be the number of an earlier decision, got {decision.undo}")
        if not (decision.facts() or decision.undo):
            raise UserError(f"a decision must say one of {', '.join(FIELDS[2:-2])}")
        return decision

    def facts(self) -> bool:
        """Returns whether it says anything beside an undo."""
        return bool(self.same or self.differ or self.unsure or self.name or self.nobody or self.set or self.keep)

    def line(self) -> bytes:
        """Returns the journal's line."""
        content: dict[str, Any] = {"n": self.number}
        content |= {name: value for name in FIELDS[1:] if (value := getattr(self, name))}
        return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def text(value: object, name: str, most: int) -> str:
    """Returns a text of at most so many letters."""
    if not isinstance(value, str) or len(value) > most:
        raise UserError(f"{name} must be a text of at most {most} letters")
    return value


def earlier(value: object) -> int:
    """Returns the number of a decision, 0 for none."""
    if type(value) is not int or value < 0:
        raise UserError(f"undo must be the number of an earlier decision, got {cut(repr(value), 40)}")
    return value


def several(value: object, name: str) -> list:
    """Returns an entry that is a list."""
    if not isinstance(value, list):
        raise UserError(f"{name} must be a list")
    return value


def images(value: object, count: int, least: int) -> tuple[int, ...]:
    """Returns different rows of the list, at least so many."""
    if not isinstance(value, list) or len(value) < least:
        raise UserError(f"expected a list of at least {least} images, got {cut(repr(value), 40)}")
    for row in value:
        if type(row) is not int or not 0 <= row < count:
            raise UserError(f"an image must be a number from 0 to {count - 1}, got {cut(repr(row), 40)}")
    if len(set(value)) < len(value):
        raise UserError("an image stands twice in one list")
    return tuple(value)


def pair(value: object, count: int) -> tuple[int, int]:
    """Returns two different rows of the list."""
    rows = images(value, count, 2)
    if len(rows) != 2:
        raise UserError(f"expected a pair of images, got {len(rows)}")
    return rows[0], rows[1]


def named(value: object, count: int, *more: str) -> tuple[int, str]:
    """Returns an image and an identity. more: identities that are no names, and are allowed nevertheless."""
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], str):
        raise UserError(f"expected an image and a name, got {cut(repr(value), 40)}")
    name = canonical(value[1])
    if not name or (name == JUNK and JUNK not in more):
        raise UserError(f"{cut(value[1], 40)!r} cannot be a name: it means a missing value or nobody")
    return images(value[:1], count, 1)[0], name


def short_text(value: object) -> str:
    """Returns a proposal's key."""
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise UserError("keep must be a list of proposals' keys")
    return value


READERS: dict[str, Callable[[Any, str, int], Any]] = {
    "view": lambda value, name, count: text(value, name, LONGEST_VIEW),
    "same": lambda value, name, count: tuple([images(group, count, 2) for group in several(value, name)]),
    "differ": lambda value, name, count: tuple([pair(two, count) for two in several(value, name)]),
    "unsure": lambda value, name, count: tuple([pair(two, count) for two in several(value, name)]),
    "name": lambda value, name, count: tuple([named(two, count) for two in several(value, name)]),
    "nobody": lambda value, name, count: images(several(value, name), count, 0),
    "set": lambda value, name, count: tuple([named(two, count, JUNK) for two in several(value, name)]),
    "keep": lambda value, name, count: tuple([short_text(word) for word in several(value, name)]),
    "why": lambda value, name, count: text(value, name, LONGEST_WHY),
    "undo": lambda value, name, count: earlier(value),
}
"""Entry of a line -> the checked value, given what the line says, the entry's name and the number of images."""


def list_digest(names: Iterable[str]) -> str:
    """Returns the SHA-256 of a list of images, in hexadecimal."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()


class Journal:
    """The decisions in a file, open for writing by this process alone.

    ``Journal.open`` reads them and drops a last line that was never finished. ``append`` returns once the line is on
    the disk.
    """

    def __init__(self, path: Path, descriptor: int, count: int, decisions: list[Decision], size: int):
        self.path, self.count, self.decisions = path, count, decisions
        self._descriptor, self._size = descriptor, size
        self._active = active(decisions)

    @classmethod
    def open(cls, path: Path, names: Sequence[str]) -> Journal:
        """Opens the journal of a list of images, given by their names, or begins one.

        Raises ``UserError`` if another process has it, it is of another list, or it is damaged before its last line.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); name another --out") from None
        try:
            refuse_second_process(descriptor, path)
            raw, dropped = whole_lines(content_of(descriptor, path))
            header = {"format": FORMAT, "version": VERSION, "images": len(names), "list": list_digest(names)}
            decisions = read_decisions(path, raw, header, names) if raw else []
            if dropped:
                os.ftruncate(descriptor, len(raw))
                log.warning("%s: the last line was never finished and is dropped; %d decisions are kept", path,
                            len(decisions))  # fmt: skip
            if not raw:
                write_lines(path.with_name(LIST), (f"{name}\n" for name in names))
                write_whole(descriptor, json.dumps(header).encode() + b"\n")
            os.fsync(descriptor)
            sync_folder(path.parent)
            return cls(path, descriptor, len(names), decisions, os.fstat(descriptor).st_size)
        except BaseException:
            os.close(descriptor)
            raise

    def append(self, content: dict[str, Any]) -> Decision:
        """Adds a decision, given by its entries, and returns it once it is on the disk.

        Raises ``UserError`` if the entries are not a decision or could not be written; the journal is then as before.
        """
        decision = Decision.of(len(self.decisions) + 1, {k: v for k, v in content.items() if k != "n"}, self.count)
        line = decision.line()
        try:
            if os.fstat(self._descriptor).st_size != self._size:
                raise UserError(f"{self.path}: another program has written into it; stop it and start again")
            try:
                write_whole(self._descriptor, line)
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, self._size)
                raise
        except OSError as error:
            raise UserError(f"{self.path}: could not be written ({error.strerror}); it needs room") from None
        self._size += len(line)
        self.decisions.append(decision)
        if decision.undo:
            self._active = active(self.decisions)
        else:
            self._active.append(decision)
        return decision

    def active(self) -> Sequence[Decision]:
        """Returns the decisions that count, in order: those that no counting undo takes back."""
        return self._active

    def close(self) -> None:
        """Releases the file."""
        os.close(self._descriptor)


def active(decisions: Sequence[Decision]) -> list[Decision]:
    """Returns the decisions that no undo takes back. An undo may be undone: what it took back counts again."""
    gone: set[int] = set()
    for decision in reversed(decisions):  # an undo names an earlier one, so its own fate is known before it acts
        if decision.undo and decision.number not in gone:
            gone.add(decision.undo)
    return [decision for decision in decisions if decision.number not in gone and decision.facts()]


def refuse_second_process(descriptor: int, path: Path) -> None:
    """Takes the lock of the file. Raises ``UserError`` if another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"{path}: another tools.label is at work on it; open its page once more, or stop it first"
            ) from None


def content_of(descriptor: int, path: Path) -> bytes:
    """Returns what the file holds. Raises ``UserError`` if it is too large to be a journal."""
    size = os.fstat(descriptor).st_size
    if size > LARGEST:
        raise UserError(f"{path}: {size:,} bytes are more than the {LARGEST:,} of a journal")
    with os.fdopen(os.dup(descriptor), "rb") as handle:
        handle.seek(0)
        return handle.read()


def whole_lines(raw: bytes) -> tuple[bytes, bool]:
    """Returns the content without a last line that was not finished, and whether there was one."""
    end = raw.rfind(b"\n") + 1
    kept, dropped = raw[:end], end < len(raw)
    last = kept[kept.rfind(b"\n", 0, max(end - 1, 0)) + 1 :]
    if last and parsed(last) is None:  # a page of zeros or a torn sector that ends in a line end
        kept, dropped = kept[: end - len(last)], True
    return kept, dropped


def parsed(line: bytes) -> dict[str, Any] | None:
    """Returns the object in a line, None if it holds none."""
    if len(line) > LONGEST_LINE:
        return None
    try:
        content = DECODER.decode(line.decode())
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def all_parsed(lines: list[bytes]) -> Sequence[dict[str, Any] | None]:
    """Returns what ``parsed`` does for each line; sound ones are read as one text, in one call of the decoder."""
    if all(line[:1] == b"{" and line[-1:] == b"}" and len(line) <= LONGEST_LINE for line in lines):
        try:
            found = DECODER.decode(f"[{b','.join(lines).decode()}]")
        except (ValueError, RecursionError):
            found = []
        if len(found) == len(lines) and all(type(content) is dict for content in found):
            return found
    return [parsed(line) for line in lines]


def read_decisions(path: Path, raw: bytes, header: dict[str, Any], names: Sequence[str]) -> list[Decision]:
    """Returns the decisions. Raises ``UserError`` for another list of images or format, or a damaged line."""
    first, *lines = raw.split(b"\n")[:-1]
    found = parsed(first) or {}
    if found.get("format") != FORMAT:
        raise UserError(f"{path}: no journal of tools.label (its first line says no format); name another --out")
    if found.get("version") != VERSION:
        raise UserError(f"{path}: a journal of version {cut(repr(found.get('version')), 20)}; this reads {VERSION}")
    if (found.get("images"), found.get("list")) != (header["images"], header["list"]):
        raise UserError(
            f"{path}: is a journal of another list of images ({difference(path.with_name(LIST), names)}); give the "
            "same --images, or another --out"
        )
    decisions: list[Decision] = []
    with collector_paused():
        for number, content in enumerate(all_parsed(lines), 1):
            if content is None or content.pop("n", None) != number:
                raise UserError(
                    f"{path}, line {number + 1}: damaged; restore the file, or remove this line and all after it"
                )
            try:
                decisions.append(Decision.of(number, content, header["images"]))
            except UserError as error:
                raise UserError(f"{path}, line {number + 1}: {error}") from None
    return decisions


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses the garbage collector: among many decisions none is garbage, and looking for it takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.unfreeze()  # what was made is old now, and no pass over it follows
            gc.enable()


def difference(path: Path, names: Sequence[str]) -> str:
    """Returns in words how a list of images differs from the one in a file."""
    try:
        before = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1]
    except OSError:
        return f"{len(names):,} images here, and no {path.name} says which there"
    gone, new = (sorted(set(a) - set(b)) for a, b in ((before, names), (names, before)))
    words = [
        f"{len(list_):,} {what}, such as {list_[0]}" for what, list_ in (("missing here", gone), ("new", new)) if list_
    ]
    return "; ".join(words) or f"{len(before):,} images in another order or with other columns"


def write_whole(descriptor: int, data: bytes) -> None:
    """Writes all of the bytes."""
    while data:
        data = data[os.write(descriptor, data) :]


def sync_folder(folder: Path) -> None:
    """Brings a folder's entries to the disk, so that a new file survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
