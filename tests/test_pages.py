"""README and docs: commands and example run, links lead somewhere, tables are those of the results."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from glob import glob
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs import load_config
from model import make_model
from model.deployed import make_deployed
from model.exporting import write_onnx
from processor.extractor import Extractor
from tests.imports import PACKAGES, python_files
from tests.kinds import write_teacher
from tests.runs import call
from tests.tiny import MSVIT, config, options, write_market
from tools import record
from utils.calibration import Calibration
from utils.errors import UserError
from utils.methods import METHODS
from utils.scoring.calibration import Probability, Threshold

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

COMMAND = re.compile(r"(?:python|torchrun(?: --\S+ \d+)*) (train|test)\.py (--config_file configs/[^`\n#]+)")
AFTER = ("python -m tools.extract ", "python -m tools.search ")
SHELL_VALUES = {
    "${1}": "[16, 16]", "${2}": "True", "${3}": "False", "${4}": "True", "${OUTPUT_DIR}": "out",
    "${5}": "deit_small_patch16_224_TransReID",
}  # fmt: skip


#: What a folder's YAML files need besides to be a matter of a second.
AVERAGED = MSVIT | {"SOLVER__MAX_EPOCHS": 2, "SOLVER__EMA__RATIO": 0.5, "SOLVER__EMA__EXTRA_EPOCHS": 0}
MINIATURES = {
    "baseline": {"MODEL__NAME": "resnet10"},
    "synthetic_source": {"DATASETS__OPTIONS": []},  # it is trained on the test's Market-1501
    "msvit/imagenet": MSVIT | {"DATALOADER__SAMPLER": "softmax"},
    "msvit": AVERAGED,
    "configs/cluster": {  # any two images of random weights are neighbours enough
        "CLUSTER__ITERS": 2, "CLUSTER__K1": 4, "CLUSTER__K2": 2, "CLUSTER__MIN_SAMPLES": 1,
    },
    "configs/dino": {
        "DATASETS__FILTER_PATH": "", "DATASETS__KEEP_NUM": None, "DATALOADER__SAMPLER": "softmax", "DINO__OUT_DIM": 8,
        "DINO__HIDDEN_DIM": 8, "DINO__CROP_HEIGHT": 32, "DINO__CROP_WIDTH": 16, "SOLVER__WARMUP_EPOCHS": 0,
    },
}  # fmt: skip


def commands() -> list[tuple[str, str]]:
    """(train or test, arguments) of every command of ours on any page, once each."""
    found: dict[tuple[str, str], None] = {}
    for page in PAGES:
        for line in page.read_text().splitlines():
            if line.startswith("|"):
                line = "|".join(line.split(" | ")[1:])  # a table's first column is another system's command
            found |= dict.fromkeys((name, arguments.strip()) for name, arguments in COMMAND.findall(line))
    return list(found)


def tiny_run(root: Path, folder: Path, **changes) -> list:
    """What makes any command's run a matter of a second; the page's own settings stand before it."""
    small = {
        "MODEL__STRIDE_SIZE": [8, 8], "INPUT__SIZE_TRAIN": [64, 32], "INPUT__SIZE_TEST": [64, 32],
        "SOLVER__MAX_EPOCHS": 1, "DATASETS__SYNTHETIC__IDS": 8, "MODEL__VIT_SMALL": "deit",
    }  # fmt: skip
    return options(root, folder, **(small | changes))


def tiny_adaptation(config_file: str, folder: Path) -> dict:
    """Settings for the torchreid family: the built-in data as source, the test's own Market-1501 as target."""
    net = "torchreid_osnet_x0_25"
    settings = {"MODEL__NAME": net, "MODEL__FC_DIM": 32, "DATASETS__CLASSIC": None}
    if load_config(config_file).PROCESSOR.NAME == "supervised":
        return settings
    teacher = folder / "teacher.pth"
    torch.save(make_model(load_config(opts=["MODEL.NAME", net, "MODEL.FC_DIM", 32]), 4).state_dict(), teacher)
    return settings | {
        "DATASETS__NAMES": "synthetic", "DATASETS__TARGETS": ["market1501"], "DMMD__SOURCE_WEIGHT": str(teacher),
        "KD__TEACHER__NAME": net, "KD__TEACHER__WEIGHTS": [str(teacher)], "KD__STUDENT_WEIGHT": str(teacher),
    }  # fmt: skip


def tiny_network(config_file: str, folder: Path) -> dict:
    """Further settings by the family of the page's YAML."""
    if "ssdvit" in config_file:
        data = {"DATASETS__NAMES": "synthetic", "DATASETS__TARGETS": "synthetic_b"}
        return data | {"MODEL__NAME": "ssdvit", "DATALOADER__SAMPLER": "multiple_gallery_nocam", "SSD__ITERS": 1}
    if load_config(config_file).PROCESSOR.NAME == "distill":
        return write_teacher(config(folder, folder), folder)
    if "mtda" in config_file:
        return tiny_adaptation(config_file, folder)
    if family := next((more for part, more in MINIATURES.items() if part in config_file), None):
        return family
    if "clip_reid" not in config_file and "svll" not in config_file:
        return {"MODEL__NAME": "resnet10"} if "baseline" in config_file else {}
    network = {"MODEL__NAME": "ViT-micro-8", "MODEL__STRIDE_SIZE": [8, 8], "MODEL__SSL_HIDDEN": 16}
    if load_config(config_file).PROCESSOR.NAME == "supervised":
        return network
    stages = {f"SOLVER__STAGE{i}__{key}": value for i, key, value in (
        (1, "MAX_EPOCHS", 1), (1, "WEIGHT", ""), (2, "MAX_EPOCHS", 1), (2, "IMS_PER_BATCH", 4), (2, "EVAL_PERIOD", 0),
    )}  # fmt: skip
    return network | stages


def words_of(arguments: str) -> list[str]:
    """The words of a command's arguments, as the shell of our scripts gives them."""
    for variable, value in SHELL_VALUES.items():
        arguments = arguments.replace(variable, value)
    return shlex.split(arguments)


def kinds_of_commands() -> list[tuple[str, list[str]]]:
    """(train or test, words) of the first command of each kind: a tiny run of another would be the same run again.

    Commands of a kind read files of one folder that have one method, and set the same of the keys that a tiny run
    leaves.
    """
    small = {*tiny_run(Path(), Path())[::2], "MODEL.PRETRAIN_PATH", "SOLVER.SEED"}
    kinds: dict[tuple, tuple[str, list[str]]] = {}
    for name, arguments in commands():
        words = words_of(arguments)
        keys = frozenset(words[2::2]) - small
        method = load_config(words[1]).PROCESSOR.NAME
        kinds.setdefault((name, Path(words[1]).parent, method, keys), (name, words))
    return list(kinds.values())


@pytest.mark.parametrize(("name", "words"), kinds_of_commands(), ids=lambda word: "".join(word)[-60:])
def test_a_command_of_the_pages_runs(name, words, market, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    extra = tiny_network(words[1], tmp_path)
    trained = tmp_path / "trained"
    assert call("train", [*words, *tiny_run(market, trained, **extra)]) == 0
    if name == "test":
        weight = next(path for path in trained.glob("*_1.pth") if "stage1" not in path.name)
        assert call("test", [*words, *tiny_run(market, tmp_path / "tested", TEST__WEIGHT=weight, **extra)]) == 0


def test_the_settings_of_every_command_are_taken():
    for _, arguments in commands():
        words = words_of(arguments)
        assert words[0] == "--config_file"
        load_config(words[1], words[2:])


def test_the_pages_show_commands():
    assert len(commands()) > 20


def fenced(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def test_the_method_from_outside_the_repository_runs(tmp_path, monkeypatch):
    (code, _), (settings, _) = fenced("your_method.md", "python"), fenced("your_method.md", "yaml")
    assert len([line for line in code.splitlines() if line.strip()]) <= 45
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    (tmp_path / "my_method.py").write_text(code)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my_method.yml").write_text(settings)
    root = write_market(tmp_path / "data")
    (root / "market1501").rename(root / "my_store")
    for image in (root / "my_store").glob("*/*.jpg"):
        image.rename(image.with_name(re.sub(r"^(\d+)_c(\d)", r"item\1_cam\2", image.name)))
    own = {"DATASETS.NAMES", "MODEL.NAME", "MODEL.TRANSFORMER_TYPE"}
    words = options(root, tmp_path / "out")
    kept = [w for key, value in zip(words[::2], words[1::2], strict=True) if key not in own for w in (key, value)]
    assert call("train", ["--config_file", "my_method.yml", *kept]) == 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "stage with_entropy" in log and " entropy -" in log
    weight = tmp_path / "out" / "my_net_2.pth"
    assert call("test", ["--config_file", "my_method.yml", *kept, "TEST.WEIGHT", weight]) == 0
    METHODS.pop("my_method")


def test_the_clustering_method_from_outside_the_repository_runs(tmp_path, monkeypatch):
    (_, code), (_, settings) = fenced("your_method.md", "python"), fenced("your_method.md", "yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    (tmp_path / "my_clusters.py").write_text(code)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my_clusters.yml").write_text(settings)
    small = {
        "DATASETS__NAMES": "synthetic", "DATASETS__SYNTHETIC__IDS": 8, "INPUT__SIZE_TRAIN": [64, 32],
        "INPUT__SIZE_TEST": [64, 32], "MODEL__NAME": "resnet10", "DATALOADER__SAMPLER": "multiple_gallery",
    } | MINIATURES["configs/cluster"]  # fmt: skip
    words = options(tmp_path, tmp_path / "out", **small)
    assert call("train", ["--config_file", "my_clusters.yml", *words]) == 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "stage cooling_clusters" in log and log.count(" clusters, ") == 2
    weight = tmp_path / "out" / "resnet10_2.pth"
    assert call("test", ["--config_file", "my_clusters.yml", *words, "TEST.WEIGHT", weight]) == 0
    METHODS.pop("cooling_clusters")


@pytest.fixture
def after_the_quickstart(tmp_path, monkeypatch):
    """A working directory as the quick start leaves it, less the training."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    torch.manual_seed(0)
    weights = make_model(load_config("configs/quickstart.yml"), 4).state_dict()
    torch.save(weights, tmp_path / "runs" / "quickstart" / "resnet10_12.pth")
    write_market(tmp_path / "data")
    (tmp_path / "data" / "market1501").rename(tmp_path / "data" / "synthetic_0badcafe")
    return tmp_path


def test_the_commands_of_extraction_and_search_run(after_the_quickstart):
    lines = "".join(fenced("after.md", "bash")).splitlines()
    done = [shlex.split(line)[2:] for line in lines if line.startswith(AFTER)]
    assert [words[0] for words in done] == ["tools.extract", "tools.search", "tools.search"]
    for module, *words in done:
        words = [path for word in words for path in (sorted(glob(word)) if "*" in word else [word])]
        importlib.import_module(module).main(words)
    found = (after_the_quickstart / "found.jsonl").read_text().splitlines()
    assert len(found) == 4 and len(json.loads(found[0])["found"]) == 8
    assert "data:image/jpeg" in (after_the_quickstart / "found.html").read_text()
    assert (after_the_quickstart / "topk.npz").is_file()


def test_the_tracker_tells_people_apart(after_the_quickstart):
    (code,) = (block for block in fenced("after.md", "python") if "class Tracks" in block)
    room: dict = {}
    extractor = Extractor.load("configs/quickstart.yml", "runs/quickstart/resnet10_12.pth")
    threshold = Threshold(far=0.01, distance=0.002, low=0.001, high=0.003, got_low=0.0, got_high=0.1, tar=0.5)
    Calibration(
        model_hash=extractor.model_hash, metric="euclidean", normalize=True, camera_norm="off", dataset="synthetic",
        pairs="within", identities=4, genuine_pairs=4, impostor_pairs=400, thresholds=[threshold],
        probability=Probability(np.array([0.0, 4.0]), np.array([9.0, 0.0]), 0.01),
    ).write("runs/quickstart/calibration.json")  # fmt: skip
    exec(code, room)
    tracks = room["Tracks"]()
    assert tracks.least == pytest.approx(0.999)
    frame = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
    frame[:, 45:] //= 4
    left, right = (0, 10, 40, 110), (48, 10, 88, 110)
    assert tracks.update(frame, [left, right]) == [0, 1]
    assert tracks.update(frame, []) == []
    assert tracks.update(frame, [right, left]) == [1, 0] and tracks.update(frame, [right]) == [1]
    assert tracks.update(np.flip(frame, 0) // 2 + 90, [left]) == [2]


@pytest.mark.slow
def test_the_exported_file_runs_as_the_page_says(after_the_quickstart):
    pytest.importorskip("onnxruntime", reason="requirements-dev.txt has it")
    pytest.importorskip("onnxscript", reason="requirements-dev.txt has it")
    cfg = load_config("configs/quickstart.yml")
    (after_the_quickstart / "exported").mkdir()
    write_onnx(make_deployed(cfg, make_model(cfg, 4)), after_the_quickstart / "exported" / "model.onnx")
    Image.fromarray(np.zeros((90, 40, 3), np.uint8)).save(after_the_quickstart / "person.jpg")
    (code,) = (block for block in fenced("after.md", "python") if "InferenceSession" in block)
    room: dict = {}
    exec(code, room)
    assert room["features"].shape == (1, 512) and np.isclose(np.linalg.norm(room["features"]), 1)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith(("http://", "https://", "mailto:")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_pictures_are_small():
    for picture in (ROOT / "docs").rglob("*.png"):
        assert picture.stat().st_size < 200_000, picture.name


def test_tables_are_those_of_the_results():
    for page in PAGES:
        for match in record.MARKS.finditer(page.read_text()):
            rows = record.read(ROOT / "results" / f"{match['method']}.csv")
            wanted = match[1] + record.markdown_table(rows) + match[3]
            assert match[0] == wanted, f"{page.name}: run python -m tools.record --tables"


def test_yaml_examples_of_the_pages_load(tmp_path):
    """As files beside the bases that they name, so that a misspelt key or value is found."""
    examples = [block for page in PAGES for block in re.findall(r"```ya?ml\n(.*?)```", page.read_text(), re.DOTALL)]
    assert len(examples) >= 2
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for base in (ROOT / "configs" / "transreid").glob("*.yml"):
        (tmp_path / base.name).symlink_to(base)
    for i, block in enumerate(examples):
        path = tmp_path / f"example_{i}.yml"
        path.write_text(block)
        load_config(path)
        path.write_text(re.sub(r"^([A-Z]+):", r"\1X:", block, count=1, flags=re.MULTILINE))
        with pytest.raises(UserError, match="X: unknown"):
            load_config(path)


def test_the_project_names_no_device_and_no_machine():
    files = [ROOT / path for package in PACKAGES for path in python_files(package)]
    files += [ROOT / "train.py", ROOT / "test.py"]
    files += (ROOT / "benchmarks").rglob("*.py")
    assert len(files) > 200
    for path in files:
        assert not re.search(r"\.cuda\(|cuda:0|device_ids=\[0\]", path.read_text()), path
