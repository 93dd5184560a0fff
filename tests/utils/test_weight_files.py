"""Files of ours notice a flipped bit, and files of others cannot reach beyond themselves."""

from __future__ import annotations

import argparse
import io
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fuzz.mutate_files import flip_bit
from utils.errors import UserError
from utils.safe_pickle import UnsafePickle
from utils.torch_pickle import LARGEST_EXPANDED, check_bounds
from utils.weight_files import DIGEST, digest_of, read_state, save_atomically, write_tensors


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator), "count": torch.tensor(7),
        "half": torch.ones(3, dtype=torch.bfloat16), "mask": torch.tensor([True, False]), "none": torch.empty(0, 4),
    }  # fmt: skip


def last() -> dict[str, Any]:
    """Of the shape of a run's ``last``."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return {
        "fingerprint": {"MODEL.NAME": "resnet10", "SOLVER.STEPS": [1, 2]}, "progress": {"epoch": 3, "best": 0.5},
        "modules": {"model": model.state_dict()}, "optimizers": [optimizer.state_dict()],
        "random": [{"torch": torch.get_rng_state(), "python": random.Random(0).getstate()}], "average": None,
    }  # fmt: skip


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def write(path: Path) -> Any:
    value = last() if path.name == "last" else weights()
    if path.suffix == ".safetensors":
        write_tensors(path, value)
    else:
        save_atomically(value, path)
    return value


@pytest.mark.parametrize("name", ["resnet10_1.pth", "last", "model.safetensors"])
def test_a_flipped_bit_is_refused_or_changes_nothing(name, tmp_path):
    path, draw = tmp_path / name, random.Random(name)
    write(path)
    raw, expected = path.read_bytes(), read_state(path)
    refused = 0
    for _ in range(200):
        path.write_bytes(flip_bit(raw, draw))
        try:
            assert same(read_state(path), expected)
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and len(str(error)) < 400
    assert refused > 20  # the rest hits padding and fields that nothing reads
    path.write_bytes(raw)
    assert same(read_state(path), expected)


def test_safetensors_of_others_have_no_digest_and_load(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    save_file(weights(), tmp_path / "theirs.safetensors")
    assert same(read_state(tmp_path / "theirs.safetensors"), weights())
    write_tensors(tmp_path / "ours.safetensors", weights())
    with safe_open(tmp_path / "ours.safetensors", framework="pt") as file:
        assert file.metadata()[DIGEST] == digest_of(weights())


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w | {"count": torch.tensor(8)}, lambda w: w | {"none": torch.empty(4, 0)},
        lambda w: w | {"new": w["half"]}, lambda w: w | {"half": w["half"].half()},
        lambda w: {f"{k}x": v for k, v in w.items()},
    ],
)  # fmt: skip
def test_the_digest_is_of_names_types_shapes_and_numbers(change):
    assert digest_of(change(weights())) != digest_of(weights())


# ---------------------------------------------------------------- what others' files hold


@pytest.mark.parametrize("legacy", [False, True])
def test_what_published_files_hold_is_read(tmp_path, legacy):
    base = torch.arange(24.0)
    value = {
        **weights(), "view": base[4:16].view(3, 4).t(), "expanded": torch.ones(1).expand(5, 7), "other view": base[::2],
        "parameter": torch.nn.Parameter(torch.ones(2)), "size": torch.Size([1, 2]), "device": torch.device("cpu"),
        "dtype": torch.float16, "set": {1, 2}, "bytes": b"\xff\0", "complex": 1 + 2j, "epoch": np.int64(3),
        "rank1": np.float32(0.5), "args": argparse.Namespace(lr=0.1, names=["a"]), "named": OrderedDict(a=1),
        "array": bytearray(b"ab"), "complex tensor": torch.ones(2, dtype=torch.complex64), "big": 2**70, "none": None,
        "zero": torch.zeros(()),
    }  # fmt: skip
    value["parameter"].note = "an attribute"
    path = tmp_path / "a.pth"
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    try:
        expected = torch.load(path, weights_only=True)
    except Exception:
        expected = None  # NumPy's scalars and arguments need our table
    state = read_state(path)
    assert same({k: v for k, v in state.items() if k != "args"}, {k: v for k, v in value.items() if k != "args"})
    assert vars(state["args"]) == vars(value["args"]) and (expected is None or same(state, expected))


def with_pickle(path: Path, change) -> None:
    """Rewrites the pickle of a checkpoint, with a sound checksum."""
    with zipfile.ZipFile(path) as old:
        entries = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, raw in entries:
            new.writestr(name, change(raw) if name.endswith("data.pkl") else raw)


OUT_OF_BOUNDS = {
    "storage longer than its bytes": lambda raw: raw.replace(b"K\x0atq", b"K\x0btq"),
    "tensor longer than its storage": lambda raw: raw.replace(b"K\x05K\x02\x86", b"K\x06K\x02\x86"),
    "stride beyond it": lambda raw: raw.replace(b"K\x02K\x01\x86", b"K\x03K\x01\x86"),
    "offset beyond it": lambda raw: raw.replace(b"QK\x00", b"QK\x01"),
    "negative stride": lambda raw: raw.replace(b"K\x02K\x01\x86", b"J\xfe\xff\xff\xffK\x01\x86"),
    "terabytes": lambda raw: raw.replace(b"K\x05K\x02\x86", b"\x8a\x06\0\0\0\0\0\x01K\x02\x86"),
    "another storage": lambda raw: raw.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009"),
    "a path as its key": lambda raw: raw.replace(b"X\x01\x00\x00\x000", b"X\x04\x00\x00\x00../0"),
}


@pytest.mark.parametrize("change", OUT_OF_BOUNDS.values(), ids=list(OUT_OF_BOUNDS))
def test_a_tensor_beyond_its_bytes_is_refused(tmp_path, change):
    """torch would read beyond the file, or return numbers that the memory held before."""
    path = tmp_path / "a.pth"
    torch.save({"a": torch.arange(10.0).view(5, 2)}, path)
    before = path.read_bytes()
    with_pickle(path, lambda raw: raw)
    assert torch.equal(read_state(path)["a"], torch.arange(10.0).view(5, 2))
    path.write_bytes(before)
    with_pickle(path, change)
    with zipfile.ZipFile(io.BytesIO(before)) as one, zipfile.ZipFile(path) as two:
        assert one.read("a/data.pkl") != two.read("a/data.pkl")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_state(path)


def test_bounds_of_a_tensor():
    check_bounds(10, 0, (5, 2), (2, 1))
    check_bounds(10, 10, (0,), (1,))
    check_bounds(1, 0, (5, 7), (0, 0))
    for wrong in ((10, 1, (5, 2), (2, 1)), (10, 0, (5,), (2, 1)), (10, 0, 5, 1), (10, 0, (5.0,), (1,)),
                  (10, -1, (1,), (1,)), (10, 0, (True,), (1,)), (10, 11, (0,), (1,)),
                  (1, 0, (LARGEST_EXPANDED, 2), (0, 0))):  # fmt: skip
        with pytest.raises(UnsafePickle):
            check_bounds(*wrong)


@pytest.mark.parametrize("numel", [11, 2**40])
def test_a_legacy_file_that_declares_more_than_it_holds_is_refused(tmp_path, numel):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.arange(10.0)}, path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    declared = pickle.dumps(numel, 2)[2:-1]
    changed = raw.replace(b"K\nNtq", declared + b"Ntq")
    assert changed != raw
    path.write_bytes(changed)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_state(path)
