"""Files of strangers do nothing: every reader of pickles and archives gets every payload, and nothing happens.

Watched are a canary file, the folder, the environment, the audit events of processes, sockets and files, and memory.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch  # noqa: F401 - so that no import is among the events
import torch
from torch import nn

from datasets.readers.filter_list import listed_names
from processor.finished import Ranked
from utils.checkpoint import load_pretrained, load_weights
from utils.errors import UserError
from utils.feature_files import Features
from utils.torchscript import read_torchscript
from utils.weight_files import read_state

WATCHED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.putenv",
    "os.unsetenv",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.chmod",
    "os.symlink",
    "subprocess.Popen",
    "socket.",
    "shutil.",
    "ctypes.dlopen",
    "code.__new__",
    "pty.spawn",
    "webbrowser.open",
)
MOST_MEMORY = 64 * 2**20

events: list[str] | None = None


def watch(event: str, args: tuple) -> None:
    if events is not None and event == "exec":  # also of a module that is imported from its file
        if args[0].co_filename == "<string>":
            events.append(event)
    elif events is not None and event.startswith(WATCHED):
        events.append(event)
    elif events is not None and event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        events.append(f"open {args[1]}")


sys.addaudithook(watch)


# ---------------------------------------------------------------- payloads


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """A value: what the function returns."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def whole(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(4) + b"tQ"
NO_HOOKS = b"\x89" + call("collections", "OrderedDict")


def tensor(shape: bytes, stride: bytes, offset: int = 0, storage: bytes = STORAGE) -> bytes:
    return call("torch._utils", "_rebuild_tensor_v2", storage, number(offset), shape, stride, NO_HOOKS)


PAYLOADS: dict[str, Callable[[str], bytes]] = {
    "reduce: system": lambda canary: whole(call("os", "system", text(f"touch {canary}"))),
    "reduce: posix": lambda canary: whole(call("posix", "mkdir", text(canary))),
    "reduce: popen": lambda canary: whole(call("subprocess", "Popen", b"(" + text("touch") + text(canary) + b"l")),
    "reduce: eval": lambda canary: whole(call("builtins", "eval", text(f"open({canary!r}, 'w')"))),
    "reduce: old eval": lambda canary: whole(call("__builtin__", "eval", text(f"open({canary!r}, 'w')"))),
    "reduce: open": lambda canary: whole(call("io", "open", text(canary), text("w"))),
    "reduce: getattr": lambda canary: whole(call("builtins", "getattr", b"cos\nenviron\n", text("update"))),
    "reduce: environment": lambda canary: whole(call("os", "putenv", text("CANARY"), text("1"))),
    "reduce: socket": lambda canary: whole(
        call("socket", "create_connection", b"(" + text("127.0.0.1") + number(9) + b"t")
    ),
    "reduce: import": lambda canary: whole(call("importlib", "import_module", text("antigravity"))),
    "reduce: pickle": lambda canary: whole(call("pickle", "loads", b"U\x02N.")),
    "reduce: torch.load": lambda canary: whole(call("torch", "load", text(canary))),
    "reduce: from_file": lambda canary: whole(call("torch", "from_file", text(canary), b"\x88", number(4))),
    "reduce: script": lambda canary: whole(call("torch.jit", "load", text(canary))),
    "reduce: compile": lambda canary: whole(call("torch.utils.cpp_extension", "load", text(canary), text(canary))),
    "reduce: numpy": lambda canary: whole(
        call("numpy", "memmap", text(canary), text("u1"), text("w+"), number(0), number(9))
    ),
    "reduce: numpy runs": lambda canary: whole(call("numpy.testing._private.utils", "runstring", text("1"), b"}")),
    "inst": lambda canary: f"(S'touch {canary}'\nios\nsystem\n.".encode(),
    "obj": lambda canary: f"(cos\nsystem\nS'touch {canary}'\no.".encode(),
    "protocol 0": lambda canary: f"cos\nsystem\n(S'touch {canary}'\ntR.".encode(),
    "newobj": lambda canary: whole(b"csubprocess\nPopen\n(" + text(f"touch {canary}") + b"t\x81"),
    "newobj_ex": lambda canary: b"\x80\x04csubprocess\nPopen\n(" + text("true") + b"t}\x92.",
    "stack_global": lambda canary: (
        b"\x80\x04" + text("os") + text("system") + b"\x93(" + text(f"touch {canary}") + b"tR."
    ),
    "nested global": lambda canary: (
        b"\x80\x04" + text("torch") + text("os.system") + b"\x93(" + text(f"touch {canary}") + b"tR."
    ),
    "extension": lambda canary: b"\x80\x02\x82\x01.",
    "build: environment": lambda canary: whole(b"cos\nenviron\n}" + text("CANARY") + text("1") + b"sb"),
    "build: class": lambda canary: whole(b"ccollections\nOrderedDict\n}" + text("__init__") + number(1) + b"sb"),
    "build: tensor": lambda canary: whole(
        tensor(b"K\x04\x85", b"K\x01\x85") + b"(" + STORAGE + number(0) + b"(" + number(2**30) + b"tK\x01\x85tb"
    ),
    "setstate": lambda canary: whole(b"cfunctools\npartial\n)\x81(cos\nsystem\n(" + text(f"touch {canary}") + b"t}Ntb"),
    "setitem of globals": lambda canary: whole(b"cbuiltins\n__dict__\n" + text("open") + b"Ns"),
    "persistent path": lambda canary: whole(text(canary) + b"Q"),
    "persistent text": lambda canary: f"P{canary}\n.".encode(),
    "persistent storage elsewhere": lambda canary: whole(STORAGE.replace(text("0"), text("../../0"))),
    "huge bytearray": lambda canary: whole(call("builtins", "bytearray", number(2**36))),
    "huge storage": lambda canary: whole(call("torch", "FloatStorage", number(2**36))),
    "huge untyped storage": lambda canary: whole(call("torch.storage", "UntypedStorage", number(2**36))),
    "huge tensor": lambda canary: whole(call("torch", "Tensor", number(2**36))),
    "huge parameter": lambda canary: whole(b"ctorch.nn.parameter\nParameter\n" + number(2**36) + b"\x85\x81"),
    "huge rebuilt tensor": lambda canary: whole(tensor(b"(" + number(2**36) + b"t", b"K\x01\x85")),
    "huge expanded tensor": lambda canary: whole(tensor(b"(" + number(2**36) + b"t", b"K\x00\x85")),
    "tensor before its storage": lambda canary: whole(tensor(b"K\x04\x85", b"K\x01\x85", offset=-4)),
    "storage without bytes": lambda canary: whole(STORAGE.replace(number(4), number(2**34))),
    "huge sparse tensor": lambda canary: whole(
        call("torch._utils", "_rebuild_sparse_tensor", b"K\x00", b"(" + number(2**40) + b"t")
    ),
    "huge memo": lambda canary: b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".",
    "huge text": lambda canary: b"\x80\x04\x8d" + struct.pack("<Q", 2**34) + b"x.",
    "huge bytes": lambda canary: b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b"x.",
    "huge number": lambda canary: b"I" + b"9" * 100_000 + b"\n.",
    "object dtype": lambda canary: whole(call("numpy", "dtype", text("O8"))),
    "huge dtype": lambda canary: whole(
        call("numpy.core.multiarray", "scalar", call("numpy", "dtype", text("V999999999")))
    ),
    "codec": lambda canary: whole(call("_codecs", "encode", text("x"), text("unknown.module"))),
    "deep": lambda canary: b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
}


# ---------------------------------------------------------------- what carries them


def archived(payload: bytes, *more: tuple[str, bytes], home: str = "a") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, raw in ((f"{home}/data.pkl", payload), (f"{home}/version", b"3\n"), (f"{home}/byteorder", b"little"),
                          (f"{home}/data/0", bytes(16)), *more):  # fmt: skip
            archive.writestr(name, raw)
    return out.getvalue()


def legacy(payload: bytes) -> bytes:
    out = io.BytesIO()
    torch.save({"a": 1}, out, _use_new_zipfile_serialization=False)
    raw = out.getvalue()
    return raw.replace(b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", payload)


def array(payload: bytes) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return out.getvalue() + payload


def arrays(payload: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("lists", "paths", "kept"):
            archive.writestr(f"{name}.npy", array(payload))
    return out.getvalue()


def within(payload: bytes) -> bytes:
    """An archive in an archive, and entries that name places outside."""
    inner = archived(payload)
    return archived(b"\x80\x02}.", ("a/inner.pth", inner), ("../outside.pkl", payload), ("/tmp/outside", payload))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(4))


READERS: dict[str, tuple[str, Callable[[bytes], bytes], Callable[[Path], object]]] = {
    "weights": ("a.pth", archived, lambda path: load_weights(Net(), path)),
    "pre-trained weights": ("a.pth", archived, lambda path: load_pretrained(Net(), path)),
    "weights of old torch": ("a.pth", legacy, read_state),
    "weights as a bare pickle": ("a.pth", lambda payload: payload, read_state),
    "weights named safetensors": ("a.safetensors", archived, read_state),
    "last": ("last", archived, read_state),
    "TorchScript as weights": ("a.pt", lambda payload: archived(payload, ("a/constants.pkl", payload)), read_state),
    "TorchScript": ("a.pt", lambda payload: archived(payload, ("a/constants.pkl", payload)), read_torchscript),
    "archive in an archive": ("a.pth", within, read_state),
    "list of images": ("CFS_list.pkl", lambda payload: payload, listed_names),
    "features": ("a.npy", array, Features),
    "ranked lists": ("ranked.npz", arrays, Ranked.load),
}  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("reader", READERS)
def test_a_payload_does_nothing(reader, payload, tmp_path, monkeypatch):
    global events
    name, carry, read = READERS[reader]
    folder, canary = tmp_path / "files", tmp_path / "canary"
    folder.mkdir()
    monkeypatch.chdir(folder)
    path = folder / name
    path.write_bytes(carry(PAYLOADS[payload](str(canary))))
    before = dict(os.environ), sorted(os.listdir(tmp_path)), sorted(os.listdir(folder))
    modules = set(sys.modules)
    tracemalloc.start()
    events = []
    try:
        read(path)
        line = ""
    except UserError as error:
        line = str(error)
    finally:
        happened, events = events, None
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert happened == [] and peak < MOST_MEMORY
    assert (dict(os.environ), sorted(os.listdir(tmp_path)), sorted(os.listdir(folder))) == before
    assert "antigravity" not in set(sys.modules) - modules
    assert line.startswith(str(path)) and line.isprintable() and len(line) < 500


def test_the_watch_sees_what_a_payload_would_do(tmp_path):
    """The same payloads in Python's own reader, as far as they are harmless."""
    global events
    for name in ("reduce: posix", "reduce: open", "reduce: environment", "stack_global", "inst"):
        canary = tmp_path / name.replace(": ", "_")
        events = []
        pickle.loads(PAYLOADS[name](str(canary)))
        happened, events = events, None
        assert happened, name
        assert name == "reduce: environment" or canary.exists()
    os.unsetenv("CANARY")


class Writes(nn.Module):
    """A TorchScript module whose ``__setstate__`` makes a file when the interpreter loads it."""

    def __init__(self, path: str):
        super().__init__()
        self.path, self.weight, self.made = path, nn.Parameter(torch.ones(2)), torch.zeros(4, dtype=torch.uint8)

    @torch.jit.export
    def __getstate__(self):
        return self.path, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]):
        self.path = state[0]
        self.weight = state[1]
        self.training = state[2]
        self.made = torch.from_file(self.path, True, 4, dtype=torch.uint8)

    def forward(self, x):
        return x * self.weight


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("read", [read_state, read_torchscript, lambda path: load_pretrained(Net(), path)])
def test_a_state_that_a_script_would_set_is_not_set(read, tmp_path):
    torch.jit.script(Writes(str(tmp_path / "canary"))).save(str(tmp_path / "a.pt"))
    try:
        read(tmp_path / "a.pt")
    except UserError as error:
        assert str(tmp_path) in str(error)
    assert sorted(os.listdir(tmp_path)) == ["a.pt"]
