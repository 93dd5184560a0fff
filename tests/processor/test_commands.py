"""The commands as a user types them: results, exit codes, and one line for each mistake."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.runs import call, started
from tests.tiny import options, write_market
from tools import record
from utils.commands import run_command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data root, a finished run on it, and its folder."""
    root = write_market(tmp_path_factory.mktemp("data"))
    folder = tmp_path_factory.mktemp("runs") / "done"
    assert call("train", options(root, folder, SOLVER__MAX_EPOCHS=1)) == 0
    return root, folder


def test_testing_a_checkpoint_gives_the_training_run_s_numbers(trained, tmp_path, capsys):
    root, folder = trained
    assert call("test", options(root, tmp_path, TEST__WEIGHT=folder / "transformer_1.pth")) == 0
    tested, run = (json.loads(path.read_text()) for path in (tmp_path / "test_metrics.json", folder / "metrics.json"))
    assert tested["results"] == run["results"]
    assert "Rank-10" in capsys.readouterr().out


def test_the_resolved_yaml_of_a_run_trains_the_same_again(trained, tmp_path):
    _, folder = trained
    assert call("train", ["--config_file", folder / "config.yml", "OUTPUT_DIR", tmp_path / "again"]) == 0
    a, b = (torch.load(f / "transformer_1.pth", weights_only=True) for f in (folder, tmp_path / "again"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_flip_and_everything_that_changes_features_or_distances_run_on_request(trained, tmp_path):
    root, folder = trained
    changes = {"TEST__FLIP": True, "TEST__RE_RANKING": True, "TEST__RERANK": (4, 2, 0.3), "TEST__ROC": True}
    changes |= {"TEST__QUERY_EXPANSION": (1, 2, 3.0), "TEST__NFC": True, "TEST__WEIGHT": folder / "transformer_1.pth"}
    assert call("test", options(root, tmp_path, **changes)) == 0
    assert any(k.startswith("TAR@FAR") for k in json.loads((tmp_path / "test_metrics.json").read_text())["mean"])


def test_a_test_in_the_run_s_own_folder_keeps_what_training_wrote(trained, tmp_path, capsys):
    root, _ = trained
    folder = tmp_path / "run"
    assert call("train", options(root, folder, SOLVER__MAX_EPOCHS=1)) == 0
    run = (folder / "metrics.json").read_bytes()
    changes = {"TEST__WEIGHT": folder / "transformer_1.pth", "TEST__FLIP": True}
    for _ in range(2):
        assert call("test", options(root, folder, **changes)) == 0
        assert (folder / "metrics.json").read_bytes() == run
    tested = (folder / "test_metrics.json").read_bytes()
    assert call("train", options(root, folder, SOLVER__MAX_EPOCHS=1)) == 0
    assert "finished already" in capsys.readouterr().out
    assert ((folder / "metrics.json").read_bytes(), (folder / "test_metrics.json").read_bytes()) == (run, tested)
    assert record.rows_of(folder)[0]["mAP"] == f"{100 * json.loads(run)['mean']['mAP']:.1f}"


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def break_image(root: Path, content: bytes) -> None:
    victim = sorted((root / "market1501" / "bounding_box_train").iterdir())[0]
    victim.write_bytes(content)


# name -> (command, changes to the tiny settings, words of the line)
MISTAKES = {
    "unknown key": ("train", {"MODEL__JMP": True}, ["MODEL.JMP", "MODEL.JPM"]),
    "wrong type": ("train", {"SOLVER__MAX_EPOCHS": "many"}, ["SOLVER.MAX_EPOCHS", "many", "integer"]),
    "unknown dataset": ("train", {"DATASETS__NAMES": "market-1502"}, ["market-1502", "market1501"]),
    "missing dataset folder": ("train", {"DATASETS__ROOT_DIR": "nowhere"}, ["DATASETS.ROOT_DIR", "nowhere"]),
    "fewer identities than P": ("train", {"SOLVER__IMS_PER_BATCH": 16}, ["SOLVER.IMS_PER_BATCH", "8 identities", "4"]),
    "batch that is not P x K": ("train", {"SOLVER__IMS_PER_BATCH": 5}, ["SOLVER.IMS_PER_BATCH", "5", "NUM_INSTANCE 2"]),
    "unknown model": ("train", {"MODEL__NAME": "resnet51"}, ["MODEL.NAME", "resnet51", "resnet50"]),
    "unknown transformer": ("train", {"MODEL__TRANSFORMER_TYPE": "vit_huge"}, ["MODEL.TRANSFORMER_TYPE", "vit_huge"]),
    "jpm on a resnet": ("train", {"MODEL__NAME": "resnet10", "MODEL__JPM": True}, ["MODEL.JPM", "MODEL.NAME"]),
    "unknown method": ("train", {"PROCESSOR__NAME": "supervized"}, ["PROCESSOR.NAME", "supervised"]),
    "unknown switch word": ("train", {"MODEL__IF_LABELSMOOTH": "maybe"}, ["MODEL.IF_LABELSMOOTH", "maybe"]),
    "cuda asked for and absent": ("train", {"MODEL__DEVICE": "cuda"}, ["MODEL.DEVICE", "cuda"]),
    "fp16 on a cpu": ("train", {"SOLVER__PRECISION": "fp16"}, ["SOLVER.PRECISION", "bf16"]),
    "no weights without a network": (
        "train", {"MODEL__PRETRAIN_CHOICE": "imagenet", "MODEL__NAME": "resnet50_ibn_a"},
        ["MODEL.PRETRAIN_PATH", "resnet50_ibn_a.pth.tar", "PRETRAIN_CHOICE 'no'"],
    ),
    "absent pre-trained file": (
        "train", {"MODEL__PRETRAIN_CHOICE": "imagenet", "MODEL__PRETRAIN_PATH": "none.pth"},
        ["MODEL.PRETRAIN_PATH", "none.pth", "no such"],
    ),
    "non-finite loss": (
        "train", {"SOLVER__BASE_LR": 1e30, "SOLVER__WARMUP_EPOCHS": 0, "SOLVER__MAX_EPOCHS": 3},
        ["not finite", "step", "id ", "learning rate"],
    ),
    "no weight to test": ("test", {}, ["TEST.WEIGHT", "empty"]),
    "missing weight": ("test", {"TEST__WEIGHT": "none.pth"}, ["TEST.WEIGHT", "none.pth"]),
    "option nobody knows": ("train", {"DATASETS__TEST_SIZE": 800}, ["DATASETS.TEST_SIZE", "market1501"]),
    "option of a dataset that is not in the run": (
        "train", {"DATASETS__OPTIONS": ["veri.missing_view", "drop"]}, ["DATASETS.OPTIONS", "veri.missing_view"],
    ),
    "unknown target": ("train", {"DATASETS__TARGETS": "vari"}, ["DATASETS.TARGETS", "vari", "'veri'"]),
    "a single image in a batch": (
        "train", {"SOLVER__IMS_PER_BATCH": 1, "DATALOADER__SAMPLER": "softmax"}, ["SOLVER.IMS_PER_BATCH", "two"],
    ),
    "another test size": ("train", {"INPUT__SIZE_TEST": [64, 32], "SOLVER__EVAL_PERIOD": 0}, ["INPUT.SIZE_TEST"]),
    "best by what is not measured": (
        "train", {"SOLVER__KEEP_BEST": "mAP", "TEST__PROTOCOL": "retrieval"}, ["SOLVER.KEEP_BEST", "TEST.PROTOCOL"],
    ),
    "resume word": ("train", {"SOLVER__RESUME": "Never"}, ["SOLVER.RESUME", "'Never'", "'never'"]),
    "device that is not there": ("train", {"MODEL__DEVICE": "xpu"}, ["MODEL.DEVICE", "xpu"]),
    "checkpointing of a resnet": (
        "train", {"MODEL__NAME": "resnet10", "MODEL__GRAD_CHECKPOINT": True}, ["MODEL.GRAD_CHECKPOINT", "MODEL.NAME"],
    ),
    "unknown extra module": ("train", {"EXTRA_MODULES": ("not_there_at_all",)}, ["EXTRA_MODULES", "not_there_at_all"]),
}  # fmt: skip


def one_line(capsys) -> str:
    """The line that a mistake printed; nothing else may stand on standard error."""
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_one_line_and_code_2(mistake, trained, tmp_path, capsys):
    name, changes, words = MISTAKES[mistake]
    root, _ = trained
    assert call(name, options(root, tmp_path / "out", **changes)) == 2
    line = one_line(capsys)
    assert all(word in line for word in words), line
    log = tmp_path / "out" / "log.txt"
    if log.exists() and mistake != "non-finite loss":
        assert "stage supervised" not in log.read_text()  # told before any training
    assert not list(tmp_path.glob("out/*.pth")) and not list(tmp_path.glob("out/*metrics.json"))


def weight_files(tmp_path: Path, trained) -> dict[str, tuple[Path, list[str]]]:
    text, empty, stolen, evil = (tmp_path / n for n in ("text.pth", "empty.pth", "values.pth", "evil.pth"))
    text.write_text("not a checkpoint")
    empty.write_bytes(b"")
    torch.save([1, 2, 3], stolen)
    evil.write_bytes(pickle.dumps({"model": Malicious(tmp_path / "owned")}))
    cut = tmp_path / "cut.pth"
    whole = (trained[1] / "transformer_1.pth").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    other = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(3)}, other)
    return {
        "text": (text, ["not a readable checkpoint"]), "empty": (empty, ["empty.pth"]), "list": (stolen, ["list"]),
        "malicious": (evil, ["refused", "run code"]), "cut": (cut, ["not a readable checkpoint"]),
        "other": (other, ["no tensor fits", "conv.weight"]),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["text", "empty", "list", "malicious", "cut", "other"])
def test_a_bad_weight_file_ends_with_one_line(kind, trained, tmp_path, capsys):
    path, words = weight_files(tmp_path, trained)[kind]
    assert call("test", options(trained[0], tmp_path / "out", TEST__WEIGHT=path)) == 2
    line = one_line(capsys)
    assert all(word in line for word in words) and path.name in line, line
    assert not (tmp_path / "owned").exists() and not (tmp_path / "out" / "test_metrics.json").exists()


def test_a_weight_file_of_another_setting_is_refused(trained, tmp_path, capsys):
    weight = trained[1] / "transformer_1.pth"
    for changes in ({"MODEL__SIE_CAMERA": True}, {"INPUT__SIZE_TRAIN": [32, 16], "MODEL__JPM": True}):
        assert call("test", options(trained[0], tmp_path / "out", TEST__WEIGHT=weight, **changes)) == 2
        assert "another model or setting" in one_line(capsys)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 damaged"], ids=["zero bytes", "damaged"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_and_can_be_skipped(content, workers, tmp_path, capsys):
    root = write_market(tmp_path / "data")
    break_image(root, content)
    changes = {"DATALOADER__NUM_WORKERS": workers, "SOLVER__MAX_EPOCHS": 1}
    assert call("train", options(root, tmp_path / "out", **changes)) == 2
    line = one_line(capsys)
    assert "0001_c1s1_000000_00.jpg" in line and "BAD_IMAGES" in line
    assert call("train", options(root, tmp_path / "out2", DATALOADER__BAD_IMAGES="skip", **changes)) == 0
    assert "1 images could not be read" in capsys.readouterr().out


def test_folders_that_are_wrong_inside(tmp_path, capsys):
    root = write_market(tmp_path / "data")
    (root / "market1501" / "query").rename(root / "market1501" / "Query")
    assert call("train", options(root, tmp_path / "out")) == 2
    assert "no folder 'query'" in (line := one_line(capsys)) and "Query" in line
    (root / "market1501" / "Query").rename(root / "market1501" / "query")
    (root / "market1501" / "query" / "someone.jpg").write_bytes(b"")
    assert call("train", options(root, tmp_path / "out")) == 2
    assert "someone.jpg" in one_line(capsys)
    for path in (root / "market1501" / "query").iterdir():
        path.unlink()
    assert call("train", options(root, tmp_path / "out")) == 2
    assert "no images" in one_line(capsys)


def test_no_query_with_a_valid_match(tmp_path, capsys):
    root = write_market(tmp_path / "data", cameras=1)
    assert call("train", options(root, tmp_path / "out", SOLVER__MAX_EPOCHS=1)) == 2
    assert "camera" in one_line(capsys)


def test_yaml_mistakes(tmp_path, capsys):
    assert call("train", ["--config_file", tmp_path / "none.yml"]) == 2
    assert "none.yml" in one_line(capsys)
    (tmp_path / "a.yml").write_text("_BASE_: b.yml\n")
    (tmp_path / "b.yml").write_text("_BASE_: a.yml\n")
    assert call("train", ["--config_file", tmp_path / "a.yml"]) == 2
    assert "circle" in one_line(capsys)


def test_an_output_folder_that_cannot_be_written(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert call("train", options(trained[0], tmp_path / "file" / "run")) == 2
    assert "OUTPUT_DIR" in one_line(capsys)


def test_what_the_system_refuses_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        run_command(Path("/nowhere/at/all").read_text)
    assert "/nowhere/at/all: No such file" in one_line(capsys)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
def test_the_real_commands_and_their_exit_codes(trained, tmp_path):
    root, folder = trained
    run = subprocess.run(
        [sys.executable, "train.py", *map(str, options(root, tmp_path, MODEL__JMP=True))],
        cwd=ROOT, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2 and run.stderr.count("\n") == 1, run.stderr
    words = map(str, options(root, tmp_path, TEST__WEIGHT=folder / "transformer_1.pth"))
    run = subprocess.run(
        [sys.executable, "test.py", "--local_rank=0", *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "market1501" in run.stdout, run.stderr


def test_help_is_quick():
    began = time.perf_counter()
    run = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "--config_file" in run.stdout
    assert time.perf_counter() - began < 3


def train_into(output: Path, words: list) -> None:
    with output.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
    sys.exit(call("train", words))


def lines_of(output: Path) -> int:
    return output.read_text().count("\n") if output.exists() else 0


@pytest.mark.slow
def test_kill_9_and_start_again(market, tmp_path):
    """Killed by the system at random moments, the same command ends with the same bytes."""
    import random

    changes = {"SOLVER__MAX_EPOCHS": 20, "SOLVER__EVAL_PERIOD": 10, "SOLVER__CHECKPOINT_PERIOD": 0, "MODEL__JPM": True}
    changes |= {"MODEL__SHIFT_NUM": 2, "DATALOADER__NUM_WORKERS": 1}
    killed = options(market, tmp_path / "killed", **changes)
    assert call("train", options(market, tmp_path / "whole", **changes)) == 0
    rng = random.Random(0)
    for number in range(2):
        process = started(train_into, output := tmp_path / f"output {number}", killed)
        enough = rng.randint(8, 16)
        while process.is_alive() and lines_of(output) < enough:  # so many log lines later
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
    assert call("train", killed) == 0
    a, b = (torch.load(tmp_path / f / "transformer_20.pth", weights_only=True) for f in ("whole", "killed"))
    assert all(torch.equal(a[k], b[k]) for k in a)
