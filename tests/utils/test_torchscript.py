"""Archives and pickles are read without running anything from them."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from contextlib import suppress

import pytest
import torch

from tests.payloads import PAYLOADS, Writes
from utils.errors import UserError
from utils.safe_pickle import UnsafePickle, check_pickle, load_restricted
from utils.torchscript import is_torchscript, read_torchscript


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        self.gain = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
        self.register_buffer("count", torch.arange(5))
        self.sizes = [1, 2]

    def forward(self, x):
        return self.body(x)


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "small.pt"
    torch.jit.script(Small()).save(str(path))
    return path


def changed(path, out, change) -> None:
    """Copies an archive with ``change(name, bytes) -> bytes`` applied to each entry."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))


def test_the_tensors_are_those_of_the_interpreter(archive):
    expected = torch.jit.load(str(archive)).state_dict()
    tensors = read_torchscript(archive)
    assert is_torchscript(archive) and tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype, name


def test_code_in_an_archive_does_not_run(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "writes.pt"
    torch.jit.script(Writes(str(canary))).save(str(path))
    torch.jit.load(str(path))
    assert canary.exists()  # what the interpreter does with it
    canary.unlink()
    with suppress(UserError):
        read_torchscript(path)
    assert not canary.exists()


def test_a_storage_that_is_shorter_than_declared_is_refused(archive, tmp_path):
    changed(archive, tmp_path / "short.pt", lambda name, raw: raw[:4] if "/data/" in name else raw)
    with pytest.raises(UserError, match="not a readable TorchScript archive"):
        read_torchscript(tmp_path / "short.pt")


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
def test_a_damaged_archive_is_refused(archive, tmp_path, cut):
    raw = archive.read_bytes()
    (tmp_path / "cut.pt").write_bytes(raw[: int(len(raw) * cut)])
    assert not is_torchscript(tmp_path / "cut.pt")
    with pytest.raises(UserError, match="not a readable TorchScript archive"):
        read_torchscript(tmp_path / "cut.pt")


@pytest.mark.parametrize("payload", PAYLOADS)
def test_payloads_in_the_place_of_the_modules_do_nothing(archive, tmp_path, payload, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = PAYLOADS[payload](str(tmp_path / "canary"))
    changed(archive, tmp_path / "bad.pt", lambda name, raw: content if name.endswith("/data.pkl") else raw)
    before = dict(os.environ), sorted(os.listdir())
    with pytest.raises(UserError):
        read_torchscript(tmp_path / "bad.pt")
    assert (dict(os.environ), sorted(os.listdir())) == before


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".",  # a memo of gigabytes
        b"\x80\x04\x8d" + struct.pack("<Q", 2**33) + b"x.",  # a text of gigabytes
        b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"x.",
        b"Np99999999999\n.",
        b"I" + b"9" * 10_000 + b"\n.",
        b"\x80\x02N",
        b"\xff.",
    ],
    ids=["memo", "text", "bytearray", "memo as text", "digits", "no end", "no instruction"],
)
def test_sizes_are_checked_before_memory_is_taken(raw):
    with pytest.raises(UnsafePickle):
        check_pickle(raw)
    with pytest.raises(UnsafePickle):
        load_restricted(raw, {})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol_are_read(protocol):
    value = {"names": ["a", "ä" * 300, b"x" * 300], "numbers": (1, -5, 2**80, 1.5, None, True), "nested": [[{}]]}
    names = {("_codecs", "encode"): lambda text, how: text.encode("latin1")}
    assert load_restricted(pickle.dumps(value, protocol), names) == value
