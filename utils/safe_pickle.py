"""Pickles read without running anything from them, and without more memory than the file accounts for.

A pickle is a program for a small stack machine. Two things in it are dangerous: the names that it may import and call,
and sizes that it declares without having the bytes. ``check_pickle`` walks the program and refuses the second;
``RestrictedUnpickler`` knows no name but those of its table.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from utils.errors import NAME, UserError

LONGEST_LINE = 4096
"""Bytes of one argument that is written as a line of text; numbers of more digits take quadratic time to read."""

_SIZES: dict[int, int] = {ord(op.code): 0 if op.arg is None else op.arg.n for op in pickletools.opcodes}
_LENGTH_BYTES = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4,
                 pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}  # fmt: skip
_LINES = {ord(op.code): 2 if op.name in ("GLOBAL", "INST") else 1 for op in pickletools.opcodes}
_PUT, _LONG_BINPUT, _BINPUT, _STOP = ord("p"), ord("r"), ord("q"), ord(".")


class UnsafePickle(UserError):
    """The pickle asks for what is not read: a name outside the table, a size without bytes, an unknown instruction.

    asked: the name, if it is one.
    """

    def __init__(self, message: str, asked: str = ""):
        super().__init__(message)
        self.asked = asked


def check_pickle(raw: bytes) -> None:
    """Raises ``UnsafePickle`` where an instruction is unknown or cut off, or declares more than the file holds.

    The memo is checked too: ``LONG_BINPUT 2**32`` makes an unpickler allocate gigabytes for a file of twelve bytes.
    """
    end_of_pickle(raw)


def end_of_pickle(raw: bytes | mmap.mmap, start: int = 0) -> int:
    """Returns where the pickle that starts at a byte ends. Raises ``UnsafePickle`` as ``check_pickle`` does."""
    position, count, length = start, 0, len(raw)
    while position < length:
        code = raw[position]
        position, count = position + 1, count + 1
        if code == _STOP:
            return position
        size = _SIZES.get(code)
        if size is None:
            raise UnsafePickle(f"byte {position - 1} is not an instruction of a pickle")
        argument = position
        if size >= 0:
            position += size
        elif size == pickletools.UP_TO_NEWLINE:
            for _ in range(_LINES[code]):
                end = raw.find(b"\n", position, position + LONGEST_LINE)
                if end < 0:
                    raise UnsafePickle(f"the line at byte {position} does not end within {LONGEST_LINE} bytes")
                position = end + 1
        else:
            width = _LENGTH_BYTES[size]
            position += width + int.from_bytes(raw[position : position + width], "little")
        if position > length:
            raise UnsafePickle(f"byte {argument} declares more bytes than the file has")
        if code in (_BINPUT, _LONG_BINPUT):
            index = int.from_bytes(raw[argument:position], "little")
        elif code == _PUT:
            text = raw[argument : position - 1]
            index = int(text) if text.isdigit() else -1
        else:
            continue
        if not 0 <= index <= max(count, 255):
            raise UnsafePickle(f"byte {argument} numbers a value {index}, beyond what the file can hold")
    raise UnsafePickle("it ends in the middle")


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickles with the names of a table only.

    names: (module, name) -> what to use in its place. persistent: called with what a persistent id holds.
    """

    def __init__(
        self, raw: bytes, names: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any] | None = None
    ):
        check_pickle(raw)
        super().__init__(io.BytesIO(raw), encoding="utf-8")
        self.names, self.persistent = names, persistent
        self.binary = raw[:1] == pickle.PROTO  # the first letters of any text may be instructions, too

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            asked = f"{module}.{name}"
            if self.binary and NAME.fullmatch(asked):
                raise UnsafePickle(f"it asks for {asked}, which is not read", asked)
            raise UnsafePickle("it asks for a name that is not read")
        return self.names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self.persistent is None:
            raise UnsafePickle("it refers to data outside itself")
        return self.persistent(pid)


def load_restricted(
    raw: bytes, names: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Returns the value of a pickle; ``UnsafePickle`` for whatever is wrong with it, in one line."""
    try:
        return RestrictedUnpickler(raw, names, persistent).load()
    except UnsafePickle:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged program fails in many ways
        raise UnsafePickle(f"it is damaged ({type(error).__name__})") from None
