"""The readers that strangers' files reach, each with sound files to damage."""

from __future__ import annotations

import io
import json
import pickle
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import savemat

from configs import load_config
from configs.defaults import KEYS
from datasets import make_dataset
from datasets.catalogue import find_spec
from datasets.readers.filter_list import listed_names
from datasets.readers.frame_boxes import read_frame_boxes
from datasets.readers.video import matrix
from datasets.storage.cache import unpacked
from datasets.storage.decoding import decode_by_torchvision
from datasets.storage.pillow_decoding import decode, load_image, open_image
from datasets.storage.pixels import kinds_of
from datasets.storage.shard_index import list_options, read_shards
from tests.fuzz import labelling_files, model_files, run_folders
from tests.fuzz.mutate_files import TOKENS, WAYS, damaged
from tests.pictures import PICTURES, UNCLEAR
from tests.tiny import write_market
from tools.make_shards import write_shards
from utils.calibration import Calibration
from utils.errors import UserError
from utils.feature_files import Features, FeatureWriter
from utils.weight_files import read_state, save_atomically, write_tensors

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Target:
    """A reader. write: puts a damaged file into a folder and returns its path. read: reads it. same: whether what was
    read is what the sound file holds, for readers that promise to notice damage."""

    name: str
    write: Callable[[Path, random.Random], Path]
    read: Callable[[Path], Any]
    same: Callable[[Any], bool] | None = None


def writer(sound: Callable[[], list[tuple[str, bytes]]], ways: Callable = damaged) -> Callable:
    """Returns a ``write`` that damages one of several sound files, given as (name, bytes)."""

    def write(folder: Path, draw: random.Random) -> Path:
        name, raw = draw.choice(sound())
        path = folder / name
        path.write_bytes(ways(raw, draw))
        return path

    return write


# ---------------------------------------------------------------- settings


@lru_cache
def yamls() -> list[tuple[str, bytes]]:
    files = sorted((ROOT / "configs").rglob("*.yml"))
    return [("a.yml", path.read_bytes()) for path in files if b"_BASE_" not in path.read_bytes()]


def run_yamls() -> list[tuple[str, bytes]]:
    return [("config.yml", raw) for _, raw in yamls()]


WORDS = [token.decode("utf-8", "replace") for token in TOKENS] + ["0", "1", "-1", "2.5", "[1, 2]", "()", "True", "auto"]


def write_overrides(folder: Path, draw: random.Random) -> Path:
    names = list(KEYS)
    words = [word for _ in range(draw.randrange(1, 5)) for word in (draw.choice(names), draw.choice(WORDS))]
    if draw.random() < 0.2:
        words[draw.randrange(len(words))] = draw.choice(WORDS)
    path = folder / "words.json"
    path.write_text(json.dumps(words))
    return path


# ---------------------------------------------------------------- weights


def state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {"conv.weight": torch.randn(4, 3, 3, 3, generator=generator), "fc.bias": torch.arange(5), "epoch": 3}


@lru_cache
def checkpoints() -> list[tuple[str, bytes]]:
    from safetensors.torch import save

    new, old, script = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": state()}, new)
    torch.save(state(), old, _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))), script)
    tensors = {name: value for name, value in state().items() if isinstance(value, torch.Tensor)}
    return [
        ("a.pth", new.getvalue()), ("a.pth", old.getvalue()), ("a.pt", script.getvalue()),
        ("a.safetensors", save(tensors)), ("a.pth", pickle.dumps({"a": [1, 2]})),
    ]  # fmt: skip


def one_change(raw: bytes, draw: random.Random) -> bytes:
    """One change: two could remove a checksum and then what it is of."""
    return draw.choice(WAYS)(raw, draw)


@lru_cache
def our_checkpoints() -> list[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_atomically({**state(), "beside": {"b": torch.ones(2, dtype=torch.bfloat16)}}, folder / "a.pth")
        tensors = {name: value for name, value in state().items() if isinstance(value, torch.Tensor)}
        write_tensors(folder / "a.safetensors", tensors)
        return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def same_state(found: dict[str, Any]) -> bool:
    """Whether the tensors are those that were written; what stands beside them may be what another program left."""
    expected = {name: value for name, value in state().items() if isinstance(value, torch.Tensor)}
    return all(isinstance(found.get(name), torch.Tensor) and torch.equal(found[name], expected[name])
               and found[name].dtype == expected[name].dtype for name in expected)  # fmt: skip


# ---------------------------------------------------------------- lists and tables


@lru_cache
def tables() -> list[tuple[str, bytes]]:
    rows = [
        f"img/{pid}_{cam}_{i}.jpg,{pid},{cam},{split},0,0,8,16"
        for pid in range(1, 9) for cam in (1, 2) for i in range(2)
        for split in (["train"] if pid < 5 else ["query" if i == 0 else "gallery"])
    ]  # fmt: skip
    text = "path,pid,camid,split,x1,y1,x2,y2\n" + "\n".join(rows) + "\n"
    lines = [dict(zip(("path", "pid", "camid", "split"), row.split(",")[:4], strict=True)) for row in rows]
    jsonl = "\n".join(json.dumps({**line, "pid": int(line["pid"])}) for line in lines)
    return [("dataset.csv", text.encode()), ("dataset.jsonl", jsonl.encode())]


def read_table(path: Path) -> Any:
    return make_dataset("csv", path, list_cache=False)


@lru_cache
def boxes_of_video() -> list[tuple[str, bytes]]:
    rows = [(frame, number, 10 * number, 5, 20, 40) for frame in range(1, 9) for number in (1, 2)]
    mot = "".join(",".join(map(str, row)) + ",0.9,-1,-1,-1\n" for row in rows)
    table = "frame,seq,x1,y1,x2,y2,score\n" + "".join(",".join(map(str, row)) + ",0.5\n" for row in rows)
    boxes = "".join(f'<box frame="{f}" outside="0" xtl="{x}" ytl="5" xbr="60" ybr="40"/>' for f, _, x, *_ in rows)
    xml = f'<?xml version="1.0"?><annotations><track id="1">{boxes}</track></annotations>'
    images = [{"id": frame, "frame_id": frame} for frame in range(9)]
    annotations = [{"image_id": f, "bbox": box, "track_id": n} for f, n, *box in rows]
    coco = json.dumps({"images": images, "annotations": annotations})
    texts = {"txt": mot, "csv": table, "xml": xml, "json": coco}
    return [(f"a.{kind}", text.encode()) for kind, text in texts.items()]


@lru_cache
def matrices() -> list[tuple[str, bytes]]:
    out = io.BytesIO()
    savemat(out, {"track_train_info": np.arange(40.0).reshape(10, 4), "other": np.arange(3)})
    return [("a.mat", out.getvalue())]


def read_matrix(path: Path) -> Any:
    return matrix(find_spec("mars"), path, "track_train_info")


@lru_cache
def filter_lists() -> list[tuple[str, bytes]]:
    names = [f"images/{i:06d}.jpg" for i in range(200)]
    found = [("list.pkl", pickle.dumps(names, protocol)) for protocol in range(6)]
    return [*found, ("list.txt", "\n".join(names).encode())]


# ---------------------------------------------------------------- images


@lru_cache
def images() -> list[tuple[str, bytes]]:
    return [("a.jpg", raw) for raw in [*(raw for raw, _ in PICTURES.values()), *UNCLEAR.values()]]


def read_an_image(path: Path) -> Any:
    """Both decoders, and the header alone."""
    raw = path.read_bytes()
    decode_by_torchvision(raw, str(path))
    return kinds_of(open_image(raw)), decode(raw, str(path), (8, 4))


# ---------------------------------------------------------------- what we keep of lists and features


@lru_cache
def shards() -> tuple[bytes, bytes]:
    """The index of a small dataset's shards, and its only shard."""
    with tempfile.TemporaryDirectory() as name:
        root = write_market(Path(name))
        write_shards(make_dataset("market1501", root, list_cache=False), root / "out", MARKET_OPTIONS, 10**9)
        home = root / "out" / "market1501"
        return (home / "index.npz").read_bytes(), (home / "000000.tar").read_bytes()


MARKET_OPTIONS = list_options(find_spec("market1501"), False, {})


def read_damaged_shards(path: Path) -> Any:
    home = path.parent / "market1501"
    home.mkdir(exist_ok=True)
    (home / "000000.tar").write_bytes(shards()[1])
    (home / "index.npz").write_bytes(path.read_bytes())
    _, records, _ = read_shards(find_spec("market1501"), path.parent, MARKET_OPTIONS)
    return [(part.counts(), list(part), load_image(part.paths[0])) for part in records.values()]


def read_damaged_cache(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as archive:
        records, _ = unpacked(archive, path.parent)
    return [(part.counts(), list(part)) for part in records.values()]


def kept_lists(path: Path) -> Any:
    try:
        return read_damaged_cache(path)
    except Exception as error:  # noqa: BLE001 - as ``cache.load`` does, which reads the lists again
        raise UserError(type(error).__name__) from None


@lru_cache
def feature_files() -> list[tuple[str, bytes]]:
    out = io.BytesIO()
    np.save(out, np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32))
    plan = {"model_hash": "a", "list_hash": "b", "batch": 4, "count": 7, "width": 5}
    text = json.dumps(plan).encode()
    return [("features.npy", out.getvalue()), ("plan.json", text), ("meta.json", text)]


def read_features(path: Path) -> Any:
    for name, raw in feature_files():
        if name != path.name:
            (path.parent / name).write_bytes(raw)
    found = Features(path.parent)
    if path.name == "plan.json":
        (path.parent / "meta.json").unlink()
        FeatureWriter(path.parent, {"model_hash": "a", "list_hash": "b", "batch": 4}, 7, 5).begin()
    return found.array.sum()


TARGETS = {
    target.name: target
    for target in (
        Target("settings in YAML", writer(yamls), load_config),
        Target("settings in overrides", write_overrides, lambda path: load_config(opts=json.loads(path.read_text()))),
        Target("weights", writer(checkpoints), read_state),
        Target("our weights", writer(our_checkpoints, one_change), read_state, same_state),
        Target("table of images", writer(tables), read_table),
        Target("boxes of a video", writer(boxes_of_video), read_frame_boxes),
        Target("tracklets of a set", writer(matrices), read_matrix),
        Target("filter list", writer(filter_lists), listed_names),
        Target("image", writer(images), read_an_image),
        Target("index of shards", writer(lambda: [("index", shards()[0])]), read_damaged_shards),
        Target("kept lists", writer(lambda: [("index", shards()[0])]), kept_lists),
        Target("features", writer(feature_files), read_features),
        *(Target(name, writer(sound), read) for name, (sound, read) in run_folders.READERS.items()),
        Target("calibration", writer(model_files.calibrations), Calibration.read),
        Target("description of a file", writer(model_files.descriptions), model_files.read_description),
        Target("published model", writer(model_files.published), model_files.read_published),
        Target("journal of labels", writer(labelling_files.journals), labelling_files.read_journal),
        Target("labels of other tools", writer(labelling_files.exports), labelling_files.read_export),
        Target("table of scalars", writer(model_files.scalars), model_files.read_scalars),
        Target("settings of a run", writer(run_yamls), run_folders.read_settings),
        Target("last", writer(run_folders.lasts), run_folders.read_all_of_last),
        Target("edited last", run_folders.odd_state, run_folders.read_all_of_last),
    )
}
