"""Files of strangers do nothing: every reader of pickles and archives gets every payload, and nothing happens.

Watched are a canary file, the folder, the environment, the audit events of processes, sockets and files, and memory.
"""

from __future__ import annotations

import io
import os
import pickle
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
from datasets.readers.frame_boxes import read_frame_boxes
from processor.query_files import Ranked
from tests.payloads import PAYLOADS, Writes
from tools.labelling.exchange import read_labels
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


def labels_of_others(path: Path) -> object:
    try:
        return read_labels(path)
    except UserError as error:  # the option stands before the path
        raise UserError(str(error).removeprefix("--read: ")) from None


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
    "boxes of a video": ("a.json", lambda payload: payload, read_frame_boxes),
    "labelled boxes": ("a.xml", lambda payload: payload, read_frame_boxes),
    "labels in a .zip": ("a.zip", archived, labels_of_others),
    "labels in JSON": ("a.json", lambda payload: payload, labels_of_others),
    "ranked lists": ("ranked.npz", arrays, Ranked.load),
}  # fmt: skip


@pytest.mark.parametrize(
    "payload", [pytest.param(name, marks=pytest.mark.slow) if name == "deep" else name for name in PAYLOADS]
)
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("read", [read_state, read_torchscript, lambda path: load_pretrained(Net(), path)])
def test_a_state_that_a_script_would_set_is_not_set(read, tmp_path):
    torch.jit.script(Writes(str(tmp_path / "canary"))).save(str(tmp_path / "a.pt"))
    try:
        read(tmp_path / "a.pt")
    except UserError as error:
        assert str(tmp_path) in str(error)
    assert sorted(os.listdir(tmp_path)) == ["a.pt"]
