"""Pickles and archives that would do something in a reader that runs them: what strangers' files may hold."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable

import torch
from torch import nn


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
