"""The service's page in a browser: a picture, its matches, filters, keyboard, a phone; nothing secret in the log."""

from __future__ import annotations

import os
import re
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("starlette", reason="requirements-dev.txt has it")
pytest.importorskip("uvicorn", reason="requirements-dev.txt has it")
pytest.importorskip("prometheus_client", reason="requirements-dev.txt has it")
if find_spec("lancedb") is None:
    pytest.skip("requirements-dev.txt has lancedb", allow_module_level=True)

from model.make_model import make_model
from processor.trained import CONFIG
from tests.browser import Browser, needs_browser
from tests.runs import started
from tests.tiny import config
from tools import gallery, serve
from tools.extract import extract_to_folder
from utils.files import write_csv

TOKEN = "token-of-this-test-0123456789"
KEYS = {"Enter": 13, "ArrowRight": 39, "ArrowLeft": 37}


def run_service(words: list[str], log: str) -> None:
    """The command in a process of its own, its output in a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ[serve.TOKEN] = TOKEN
    serve.main(words)


def address_in(log: Path, process) -> str:
    for _ in range(600):
        if log.exists() and (match := re.search(r"serving (http://\S+)", log.read_text())):
            return match[1]
        assert process.is_alive(), log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def wait_for(page: Browser, words: str) -> None:
    end = time.monotonic() + 60
    while words not in page.ask("document.getElementById('state').textContent"):
        assert time.monotonic() < end, page.ask("document.body.innerText")
        time.sleep(0.02)


def choose(page: Browser, picture: Path) -> None:
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(picture)])


def write(page: Browser, field: str, words: str) -> None:
    page.ask(f"(document.getElementById('{field}').focus(), document.getElementById('{field}').value = '', 0)")
    page.call("Input.insertText", text=words)


def matches(page: Browser) -> list[str]:
    return page.ask("[...document.querySelectorAll('#matches li')].map((item) => item.textContent)")


@needs_browser
@pytest.mark.slow
def test_a_picture_is_searched_for_by_keyboard_on_a_laptop_and_a_phone(market, tmp_path):
    cfg = config(market, tmp_path, TEST__WEIGHT=str(tmp_path / "transformer.pth"))
    torch.manual_seed(0)
    torch.save(make_model(cfg, 4).state_dict(), cfg.TEST.WEIGHT)
    crops = sorted((market / "market1501" / "bounding_box_train").iterdir())
    lines = [(str(path), f"p{i // 4}", i % 2 + 1, 10 * i, "test") for i, path in enumerate(crops)]
    write_csv(tmp_path / "images.csv", ("path", "pid", "camid", "time", "split"), lines)
    extract_to_folder(cfg, tmp_path / "images.csv", tmp_path / "features")
    store, run, log = tmp_path / "store", tmp_path / "run", tmp_path / "log"
    for command in ("create", "add"):
        gallery.main([command, "--store", str(store), "--features", str(tmp_path / "features")])
    run.mkdir()
    (run / CONFIG).write_text(cfg.dump())
    process = started(run_service, ["--run", str(run), "--gallery", str(store), "--port", "0"], str(log))
    try:
        with Browser(tmp_path / "profile", 1366, 768) as page:
            url = address_in(log, process)
            page.allowed = (url, "data:")
            page.open(f"{url}?token={TOKEN}")
            assert page.ask("location.href") == url
            write(page, "camera", "")
            page.press("Enter", KEYS["Enter"])  # without a picture the browser asks for one, and nothing is sent
            choose(page, crops[5])
            write(page, "camera", "")
            page.press("Enter", KEYS["Enter"])
            wait_for(page, "16 matches.")
            found = matches(page)
            assert found[0].startswith("1. identity p1") and "distance 0.000, camera 2, 50 s" in found[0]
            page.ask("Promise.all([...document.images].map((image) => image.decode()))")
            if shots := os.environ.get("LINEUP_SHOTS"):
                page.picture(Path(shots) / "service.png")

            write(page, "camera", "1")
            write(page, "since", "50")
            write(page, "k", "4")
            page.press("Enter", KEYS["Enter"])
            wait_for(page, "4 matches.")
            found = matches(page)
            assert all("camera 1" in words for words in found)
            assert all(float(re.search(r"([\d.]+) s$", words)[1]) >= 50 for words in found)

            page.ask("(document.querySelector('#matches li').focus(), 0)")
            page.press("ArrowRight", KEYS["ArrowRight"])
            assert page.ask("document.activeElement.textContent") == found[1]
            page.press("ArrowLeft", KEYS["ArrowLeft"])
            assert page.ask("document.activeElement.textContent") == found[0]

            assert not page.troubles
            write(page, "since", "yesterday noon")
            page.press("Enter", KEYS["Enter"])
            wait_for(page, "expected seconds or a date")
            (tmp_path / "note.png").write_text("no picture")
            choose(page, tmp_path / "note.png")
            write(page, "since", "")
            page.press("Enter", KEYS["Enter"])
            wait_for(page, "the image cannot be read")

            choose(page, crops[9])
            page.size(390, 844, phone=True)
            write(page, "camera", "")
            page.press("Enter", KEYS["Enter"])
            wait_for(page, "4 matches.")
            assert matches(page)[0].startswith("1. identity p2")
            assert page.ask("document.documentElement.scrollWidth") <= 390
            page.ask("Promise.all([...document.querySelectorAll('#matches img')].map((image) => image.decode()))")
            if shots:
                page.picture(Path(shots) / "service_phone.png")

            os.kill(process.pid, signal.SIGTERM)
            process.join(60)
            assert process.exitcode in (0, -signal.SIGTERM), log.read_text()  # uvicorn repeats the signal at its end
            page.press("Enter", KEYS["Enter"])
            wait_for(page, "The service does not answer.")
    finally:
        process.kill()
    text = log.read_text()
    assert "serving http" in text
    assert TOKEN not in text and str(crops[0].parent) not in text and str(store) not in text, text
