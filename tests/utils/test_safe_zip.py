"""Archives are looked over before they are read."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.safe_zip import check_archive


def test_the_checksums_of_a_file_are_compared(tmp_path):
    path = tmp_path / "theirs.pth"
    torch.save({"weight": torch.arange(1000.0)}, path)
    check_archive(path)
    raw = bytearray(path.read_bytes())
    place = raw.index(np.float32(500).tobytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="checksum"):
        check_archive(path)


def test_an_archive_that_expands_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.npy", bytes(50 * 2**20))
    with pytest.raises(UserError, match="expand"):
        check_archive(path)


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside", "..\\outside"])
def test_an_entry_outside_the_archive_is_refused(tmp_path, name):
    path = tmp_path / "outside.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(UserError, match="outside"):
        check_archive(path)


@pytest.mark.parametrize("raw", [b"", b"PK", b"no archive at all", b"\x80\x02N."])
def test_what_is_not_an_archive_passes(tmp_path, raw):
    (tmp_path / "x").write_bytes(raw)
    check_archive(tmp_path / "x")
