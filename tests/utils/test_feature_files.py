"""Files of an extraction that a stranger wrote or a disk damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest

from utils.errors import UserError
from utils.feature_files import Features, FeatureWriter, read_array

PLAN = {"model_hash": "a", "list_hash": "b", "batch": 4}


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"', "{", "[" * 100_000, "", '{"model_hash": "a"}'])
@pytest.mark.parametrize("name", ["plan.json", "meta.json"])
def test_a_plan_or_meta_of_another_kind_is_one_line(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=r"(plan|meta)\.json|another"):
        FeatureWriter(tmp_path, PLAN, 3, 2).begin()
    if name == "meta.json":
        with pytest.raises(UserError, match=r"meta\.json"):
            Features(tmp_path)


def header_of(kind: str, shape: str) -> bytes:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()


@pytest.mark.parametrize("header", [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,", b"{'descr': '<f4', 'shape': (3, 2), }", b"[" * 200,
    b"\xff\xfe", header_of("|O", "(3, 2)"), header_of("<U4", "(3, 2)"), header_of("<f4", "(-3, 2)"),
    header_of("<f4", "(9**9, 9**9)"), header_of("<f4", "(999999999999, 999)"),
])  # fmt: skip
def test_a_damaged_header_of_an_array_is_one_line(header, tmp_path):
    padded = header.ljust(118) + b"\n"
    raw = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + bytes(24)
    (tmp_path / "a.npy").write_bytes(raw)
    with pytest.raises(UserError, match=r"a\.npy") as error:
        read_array(tmp_path / "a.npy")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_sound_files_read(tmp_path):
    np.save(tmp_path / "features.npy", np.zeros((3, 2), np.float32))
    (tmp_path / "meta.json").write_text(json.dumps(PLAN | {"count": 3, "width": 2}))
    assert Features(tmp_path).array.shape == (3, 2)
