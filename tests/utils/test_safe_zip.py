"""Archives are looked over before they are read."""

from __future__ import annotations

import warnings
import zipfile

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.safe_zip import check_archive
from utils.weight_files import read_state


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


def with_entries(path, *entries: tuple[str, bytes]) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile's own about a name that is there already
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content)


@pytest.mark.parametrize(
    "names",
    [
        ("a/data.pkl", "a/data/0", "a/data/0"), ("a/data.pkl", "b/data.pkl"), ("a/data.pkl", "a/Data.PKL"),
        ("x.npy", "x.npy"), ("a/data.pkl", "a/data/"), ("folder/",), ("a\\",),
    ],
)  # fmt: skip
def test_two_entries_of_one_name_two_checkpoints_and_folders_are_refused(tmp_path, names):
    with_entries(tmp_path / "a.pth", *((name, b"") for name in names))
    with pytest.raises(UserError, match="refused"):
        check_archive(tmp_path / "a.pth")


@pytest.mark.parametrize("entry", range(3))
def test_an_entry_that_is_marked_as_a_folder_is_refused(tmp_path, entry):
    """torch reads no bytes of such an entry, and gives what the memory held before as a tensor's numbers."""
    path = tmp_path / "a.pth"
    torch.save({"a": torch.arange(1000.0), "b": torch.ones(3)}, path)
    raw = bytearray(path.read_bytes())
    place = -1
    for _ in range(entry + 1):
        place = raw.index(b"PK\x01\x02", place + 1)
    raw[place + 38] |= 0x10
    path.write_bytes(raw)
    with pytest.raises(UserError, match="folder"):
        read_state(path)


def test_a_file_that_torch_wrote_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(1000.0)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is not None
    assert torch.equal(read_state(tmp_path / "a.pth")["a"], torch.arange(1000.0))


@pytest.mark.parametrize("place", range(22))
def test_an_end_of_the_archive_that_contradicts_itself_is_one_line(tmp_path, place):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.arange(10.0)}, path)
    raw = bytearray(path.read_bytes())
    raw[-22 + place] ^= 0xFF
    path.write_bytes(raw)
    try:
        state = read_state(path)
    except UserError:
        return
    assert torch.equal(state["a"], torch.arange(10.0))


def test_masks_and_untouched_optimizer_states_may_be_compressed(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", masks=np.random.default_rng(0).random((100, 1000)) < 0.01)
    check_archive(tmp_path / "a.npz")
