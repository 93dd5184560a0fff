"""A headless Chromium driven over the DevTools protocol's pipe, for tests of pages; needs no driver and no library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page. ``troubles`` collects console errors, exceptions and requests for anything but the opened file.

    ``allowed``: how addresses begin that may be asked for.
    """

    def __init__(self, profile: Path, width: int = 1280, height: int = 900):
        self.troubles: list[str] = []
        self.allowed = ("file:", "data:")
        self.loaded = threading.Event()
        commands, self.to = os.pipe()
        self.source, answers = os.pipe()
        line = (
            f'exec "{PROGRAM}" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --remote-debugging-pipe '
            f'--no-first-run --user-data-dir="{profile}" --window-size={width},{height} '
            f"3<&{commands} 4>&{answers}"
        )
        self.process = subprocess.Popen(
            ["bash", "-c", line], pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands), os.close(answers)
        self.number, self.answers, self.session = 0, Queue(), None
        threading.Thread(target=self._listen, daemon=True).start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.size(width, height)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.to)

    def _listen(self) -> None:
        rest = b""
        with os.fdopen(self.source, "rb", buffering=0) as pipe:
            while part := pipe.read(2**16):
                *messages, rest = (rest + part).split(b"\0")
                for message in map(json.loads, messages):
                    if "id" in message:
                        self.answers.put(message)
                    else:
                        self._notice(message["method"], message.get("params", {}))

    def _notice(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self.loaded.set()
        elif method == "Runtime.exceptionThrown":
            self.troubles.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.troubles.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.troubles.append(str(params["args"]))
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(self.allowed):
            self.troubles.append(f"request for {params['request']['url']}")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            try:
                answer = self.answers.get(timeout=60)
            except Empty:
                raise TimeoutError(f"the browser does not answer {method}") from None
            if answer["id"] == self.number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def size(self, width: int, height: int, phone: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def open(self, page: Path | str) -> None:
        self.loaded.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        assert self.loaded.wait(60), "the page does not finish loading"

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def picture(self, path: Path, whole: bool = True) -> None:
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no chromium on this machine to open pages with")


class Page(HTMLParser):
    """Text, tags and what stands for those who do not see."""

    def __init__(self, path: Path):
        super().__init__()
        self.source, self.tags, self.words = path.read_text(), [], []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]
