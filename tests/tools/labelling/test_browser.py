"""The page in a browser, by keyboard: twenty crops are labelled through a kill of the server, and nothing is lost."""

from __future__ import annotations

import csv
import json
import os
import re
import time
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="requirements-dev.txt has it")
pytest.importorskip("uvicorn", reason="requirements-dev.txt has it")

from tests.browser import Browser, needs_browser
from tests.runs import started
from tests.tools.labelling.sessions import settings_of, write_crops
from tools import label

CODES = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38, "ArrowDown": 40, "Enter": 13, "Escape": 27}


def serve(words: list[str], log: str) -> None:
    """The command in a process of its own, its output in a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    label.main(words)


def address(log: Path, process) -> str:
    for _ in range(600):
        if log.exists() and (match := re.search(r"open (http://\S+)", log.read_text())):
            return match[1]
        assert process.is_alive(), log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def wait_for(page: Browser, script: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if page.ask(f"(() => {{ try {{ return {script}; }} catch (error) {{ return false; }} }})()"):
            return
        time.sleep(0.02)
    raise AssertionError(f"{script}: {page.ask('document.body.innerText')[:500]}")


def press(page: Browser, key: str) -> None:
    """Presses a key and waits until the page has drawn what follows."""
    wait_for(page, "!state.busy")
    if key in CODES:
        page.press(key, CODES[key])
    else:
        page.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key, windowsVirtualKeyCode=ord(key.upper()))
        page.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=ord(key.upper()))
    wait_for(page, "!state.busy")


def clusters(page: Browser) -> set[frozenset[int]]:
    return {frozenset(row["images"]) for row in page.ask("state.rows")}


def focus(page: Browser, image: int) -> None:
    assert page.ask(f"focusCrop({image})")


@needs_browser
@pytest.mark.slow
def test_twenty_crops_are_labelled_by_keyboard_through_a_kill(tmp_path, plain):
    crops, out = write_crops(tmp_path / "crops"), tmp_path / "labels.csv"
    names = sorted(path.name for path in crops.iterdir())
    truth = [int(name[0]) for name in names]
    words = ["--images", str(crops), "--out", str(out), "--port", "0", *settings_of(plain.TEST.WEIGHT)]
    process = started(serve, words, str(tmp_path / "log"))
    try:
        with Browser(tmp_path / "profile", 1366, 768) as page:
            url = address(tmp_path / "log", process)
            page.allowed = (url.split("?")[0], "data:")
            page.open(url)
            wait_for(page, "document.body.dataset.drawn && !state.busy")
            assert "token" not in page.ask("location.href")

            # pairs: six questions
            press(page, "2")
            wait_for(page, "location.hash === '#pairs' && !state.busy")
            asked: set[tuple[int, int]] = set()
            for _ in range(6):
                pair = page.ask("state.pairs[0].pair")
                assert tuple(pair) not in asked
                asked.add(tuple(pair))
                row = page.ask("rowOfQuestion(state.pairs[0])")
                same = [key for key, one in zip("sfghj", row, strict=False) if truth[one] == truth[pair[0]]]
                press(page, same[0] if same else "d")

            # a row: the third crop of it is the one
            pair = page.ask("state.pairs[0].pair")
            right = next(i for i in range(20) if i not in pair and truth[i] == truth[pair[0]])
            wrong = next(i for i in range(20) if i not in pair and truth[i] != truth[pair[0]])
            page.ask(f"(state.pairs[0].others = [{wrong}, {right}], guarded(drawPairs), 0)")
            wait_for(page, "document.getElementById('choice-2') && !state.busy")
            if shots := os.environ.get("LINEUP_SHOTS"):
                page.picture(Path(shots) / "pairs.png", whole=False)
            press(page, "g")
            journal = out.with_suffix(".work") / "journal.jsonl"
            assert json.loads(journal.read_text().splitlines()[-1])["same"] == [[pair[0], right]]
            press(page, "1")
            people = {frozenset(i for i in range(20) if truth[i] == pid) for pid in range(5)}
            while mixed := [part for part in clusters(page) if not any(part <= person for person in people)]:
                picked = sorted(mixed[0] & next(person for person in people if min(mixed[0]) in person))
                for image in picked:
                    focus(page, image)
                    press(page, "x")
                press(page, "s")
            for person in people:  # what is still apart is merged
                while parts := [part for part in clusters(page) if part < person]:
                    focus(page, min(parts[0]))
                    press(page, "m")
                    focus(page, min(person - parts[0]))
                    press(page, "m")
            assert clusters(page) == people

            # a split of what was confirmed contradicts, is not applied, and is taken back
            first = min(people, key=min)
            one, two = sorted(first)[:2]
            focus(page, one)
            press(page, "c")
            for image in (one, two):
                focus(page, image)
                press(page, "x")
            press(page, "s")
            assert "contradicts" in page.ask("document.getElementById('message').textContent")
            press(page, "u")
            version = page.ask("state.version")
            page.ask("delete document.body.dataset.drawn, location.reload()")
            wait_for(page, f"document.body.dataset.drawn === 'clusters {version}' && !state.busy")
            assert clusters(page) == people

            # a name, by keys alone
            focus(page, one)
            press(page, "n")
            for letter in "anna":
                press(page, letter)
            press(page, "Enter")
            wait_for(
                page,
                "[...document.querySelectorAll('h2')].some(title => title.textContent === 'anna')",
            )
            process.kill()  # no chance to tidy up
            process.join(20)
            press(page, "u")
            wait_for(page, "document.getElementById('message').textContent.includes('does not answer')")

            # the same command goes on; the old window does, too
            port = re.search(r":(\d+)/", url)[1]
            words[words.index("--port") + 1] = port
            process = started(serve, words, str(tmp_path / "log2"))
            assert address(tmp_path / "log2", process) == url
            page.troubles.clear()
            page.ask("delete document.body.dataset.drawn, location.reload()")
            wait_for(page, "document.body.dataset.drawn && !state.busy")
            assert clusters(page) == people
            assert page.ask("state.rows.filter(row => row.name === 'anna').length") == 1
            focus(page, max(max(people, key=max)))
            press(page, "b")
            press(page, "c")
            if shots := os.environ.get("LINEUP_SHOTS"):
                page.picture(Path(shots) / "clusters.png", whole=False)
                for key, name in (("3", "suspects"), ("4", "history")):
                    press(page, key)
                    page.picture(Path(shots) / f"{name}.png", whole=False)
            assert not page.troubles
        wait_until_saved(out)
    finally:
        process.terminate()
        process.join(20)
    with open(out, newline="") as handle:
        rows = list(csv.DictReader(handle))
    pids = [row["pid"] for row in rows]
    assert [Path(row["path"]).name for row in rows] == names
    gone = names.index(max(names))
    assert pids[gone] == "-1" and pids[one] == "anna"
    kept = [i for i in range(20) if i != gone]
    assert all((pids[i] == pids[j]) == (truth[i] == truth[j]) for i in kept for j in kept)


def wait_until_saved(out: Path) -> None:
    for _ in range(100):
        if ",-1," in out.read_text():
            return
        time.sleep(0.1)
