"""Zip archives are looked over before they are read.

``torch.save`` and ``numpy.savez`` write zip archives. A file of somebody else may declare more than it holds (a few
bytes that expand to gigabytes), name places outside a folder, or have a flipped bit that its reader does not notice.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from utils.errors import UserError


def check_archive(path: str | Path, contents: bool = True) -> None:
    """Raises ``UserError`` where a zip archive is damaged, expands to more than it holds, or names places outside.

    contents: compare every entry with its checksum too. A file that is no zip archive passes.
    """
    if not zipfile.is_zipfile(path):
        return
    size = Path(path).stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            expanded = sum(info.file_size for info in entries)
            if expanded > 64 * size + 2**20:
                raise UserError(f"{path}: refused: {size:,} bytes that expand to {expanded:,}")
            for info in entries:
                parts = info.filename.replace("\\", "/").split("/")
                if ".." in parts or info.filename.startswith(("/", "\\")):
                    name = info.filename[:80]
                    raise UserError(f"{path}: refused: an entry names a place outside the archive ({name!r})")
            bad = archive.testzip() if contents else None
    except UserError:
        raise
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path}: damaged: {' '.join(str(error).split())[:120]}") from None
    except Exception as error:  # noqa: BLE001 - decompressors raise errors of their own
        raise UserError(f"{path}: damaged: {type(error).__name__}") from None
    if bad is not None:
        raise UserError(f"{path}: damaged: the checksum of {bad[:80]!r} differs; copy it again")
