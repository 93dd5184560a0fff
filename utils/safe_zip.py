"""Zip archives are looked over before they are read.

``torch.save`` and ``numpy.savez`` write zip archives. A file of somebody else may declare more than it holds (a few
bytes that expand to gigabytes), name places outside a folder, hold two entries of one name (readers differ in which
they take), or have a flipped bit that its reader does not notice.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from utils.errors import UserError, reason_of

LARGEST_RATIO = 64
"""Most bytes that one byte of an archive may expand to. Measured: a ResNet-18's weights 1.08, with two copies of zeros
(a new optimizer's state) 3.2; truth values, one in a hundred true, 64. DEFLATE itself reaches 1,032."""
SMALL = 2**24
"""Bytes that any archive may expand to, whatever its ratio: small tables of truth values give 400 and more."""
DIRECTORY = 0x10
"""The bit of an entry's attributes that says it is a folder: torch reads no bytes of it, and returns what the memory
held before as the entry's content."""


def is_archive(path: str | Path) -> bool:
    """Returns whether a file is a zip archive, damaged or not."""
    try:
        return zipfile.is_zipfile(path)
    except (OSError, zipfile.BadZipFile):  # an archive in several files, or an end that contradicts itself
        return True


def open_archive(path: str | Path) -> zipfile.ZipFile:
    """Returns an open zip archive whose entries are compared with their checksums as they are read, if it has any.

    ``torch.serialization.set_crc32_options(False)`` makes torch write 0 for all of them.
    """
    archive = zipfile.ZipFile(path)
    if not any(info.CRC for info in archive.infolist()):
        for info in archive.infolist():
            del info.CRC  # so zipfile knows an entry without a checksum
    return archive


def check_archive(path: str | Path) -> None:
    """Raises ``UserError`` where a zip archive is damaged, expands to more than it holds, or names places outside.

    Every entry is compared with its checksum, if the archive has any. A file that is no zip archive passes.
    """
    if not is_archive(path):
        return
    try:
        with open_archive(path) as archive:
            problem = _problem(archive.infolist(), Path(path).stat().st_size)
            if problem:
                raise UserError(f"{path}: refused: {problem}")
            bad = archive.testzip()
    except UserError:
        raise
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path}: damaged: {reason_of(error)}") from None
    except Exception as error:  # noqa: BLE001 - decompressors raise errors of their own
        raise UserError(f"{path}: damaged: {type(error).__name__}") from None
    if bad is not None:
        raise UserError(f"{path}: damaged: the checksum of {bad!r} differs; copy it again")


def _problem(entries: list[zipfile.ZipInfo], size: int) -> str:
    """Returns what is wrong with the list of entries of an archive of ``size`` bytes; '' if nothing is."""
    expanded = sum(info.file_size for info in entries)
    if expanded > LARGEST_RATIO * size + SMALL:
        return f"{size:,} bytes that expand to {expanded:,}"
    seen: set[str] = set()
    for info in entries:
        name = info.filename
        if ".." in name.replace("\\", "/").split("/") or name.startswith(("/", "\\")):
            return f"an entry names a place outside the archive ({name!r})"
        if name.endswith(("/", "\\")) or info.external_attr & DIRECTORY:
            return f"the entry {name!r} is a folder; torch.save and numpy.savez write none"
        if name in seen:
            return f"it has two entries {name!r}"
        seen.add(name)
    pickles = [name for name in seen if name.count("/") == 1 and name.lower().endswith("/data.pkl")]
    if len(pickles) > 1:
        return f"it holds {len(pickles)} checkpoints ({', '.join(sorted(pickles)[:2])})"
    return ""
