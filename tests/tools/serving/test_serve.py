"""The service over HTTP: answers, batches of several clients, limits, refusals, and nothing of a client in the log."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import logging
import socket
import threading
import time
from contextlib import closing
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("starlette", reason="requirements-dev.txt has it")
pytest.importorskip("uvicorn", reason="requirements-dev.txt has it")
pytest.importorskip("prometheus_client", reason="requirements-dev.txt has it")
if find_spec("lancedb") is None:
    pytest.skip("requirements-dev.txt has lancedb", allow_module_level=True)

import uvicorn

from model.make_model import make_model
from processor.extractor import make_extractor
from tests.tiny import config, write_market
from tools import gallery, serve
from tools.extract import extract_to_folder
from tools.galleries.failures import named_failures
from tools.galleries.filters import RowFilter
from tools.galleries.lancedb import LanceStore
from tools.serving.app import make_app
from tools.serving.batching import Batcher
from tools.serving.limits import Limits, Room
from tools.serving.openapi import document
from tools.serving.service import Service
from tools.web.listening import free_socket
from utils.calibration import Calibration
from utils.errors import UserError
from utils.scoring.calibration import Probability, Threshold

TOKEN = "secret0123456789abcdef"
LIMITS = Limits(images=4, body=2**18, bodies=2**20, waiting=8, body_seconds=3.0)


def calibration_of(model_hash: str) -> Calibration:
    threshold = Threshold(0.01, 0.5, 0.4, 0.6, 0.001, 0.1, 0.9)
    chance = Probability(np.array([0.0, 0.5, 2.0]), np.array([100.0, 1.0, 0.01]), 0.1)
    return Calibration(model_hash, "euclidean", True, "off", "x", "across", 9, 9, 9, [threshold], chance)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A service of a small network and a store of 16 images; its port, its service, its log."""
    folder = tmp_path_factory.mktemp("site")
    root, weight = write_market(tmp_path_factory.mktemp("data")), folder / "transformer.pth"
    cfg, images = config(root, folder, TEST__WEIGHT=str(weight)), root / "market1501" / "bounding_box_train"
    torch.manual_seed(0)
    torch.save(make_model(cfg, 4).state_dict(), weight)
    extract_to_folder(cfg, images, folder / "features")
    gallery.main(["create", "--store", str(folder / "store"), "--features", str(folder / "features")])
    gallery.main(["add", "--store", str(folder / "store"), "--features", str(folder / "features")])
    extractor = make_extractor(cfg)
    service = Service(extractor, LanceStore.open(str(folder / "store")), calibration_of(extractor.model_hash))
    listening = free_socket("127.0.0.1", 0)
    port = listening.getsockname()[1]
    app = make_app(service, TOKEN, "127.0.0.1", port, LIMITS)
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error", "lineup"):
        logging.getLogger(name).addHandler(handler)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield port, service, sorted(images.iterdir()), lines
    running.should_exit = True
    thread.join(10)


def ask(port: int, path: str, content=None, method: str = "", **headers) -> tuple[int, dict | bytes, dict]:
    given = {"Host": f"127.0.0.1:{port}", "Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    body = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(
            method or ("GET" if content is None else "POST"), path, body, {k: v for k, v in given.items() if v}
        )
        answer = connection.getresponse()
        raw, found = answer.read(), dict(answer.getheaders())
        return answer.status, json.loads(raw) if found.get("content-type") == "application/json" else raw, found


def text(path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_embed_gives_the_extractor_s_features(site):
    port, service, images, _ = site
    status, content, _ = ask(port, "/embed", {"images": [text(path) for path in images[:3]]})
    assert status == 200 and content["model_hash"] == service.extractor.model_hash
    np.testing.assert_allclose(content["features"], service.extractor(images[:3]), atol=1e-6)
    status, one, _ = ask(port, "/embed", images[0].read_bytes(), Content_Type="image/jpeg")
    np.testing.assert_allclose(one["features"][0], content["features"][0], atol=1e-6)


def test_search_finds_the_image_and_filters(site):
    port, service, images, _ = site
    status, content, _ = ask(port, "/search?k=3", images[5].read_bytes(), Content_Type="image/jpeg")
    (result,) = content["results"]
    assert status == 200 and result["known"] and result["matches"][0]["row"] == 5
    assert result["matches"][0]["probability"] > 0.9 and "path" not in result["matches"][0]
    feats = service.extractor(images[:2]).tolist()
    status, content, _ = ask(port, "/search", {"features": feats, "k": 2, "exact": True})
    assert [result["matches"][0]["row"] for result in content["results"]] == [0, 1] and "Exact" in content["how"]
    assert ask(port, f"/thumbnail/{content['results'][0]['matches'][0]['id']}")[1][:2] == b"\xff\xd8"
    status, content, _ = ask(port, "/search", {"features": feats, "source": ["other"]})
    assert status == 200 and content["results"][0]["matches"] == []
    status, content, _ = ask(port, "/search", {"features": feats, "camera": ["1"]})
    assert status == 400 and content["error"].startswith("the gallery: no row has the column camid")


def test_verify_and_additions_and_erasure(site):
    port, service, images, _ = site
    same = ask(port, "/verify", {"images": [text(images[0]), text(images[0])]})[1]
    assert same["same"] and same["probability"] > 0.9 and same["distance"] < 1e-5
    before = service.store.count(RowFilter())
    rows = {"images": [text(images[0])], "identity": ["zoe"], "camid": ["7"], "time": [5.0]}
    assert ask(port, "/gallery", rows)[1]["added"] == 1
    status, content, _ = ask(port, "/search", {"images": rows["images"], "identity": ["zoe"], "since": 5, "until": 6})
    assert [match["pid"] for match in content["results"][0]["matches"]] == ["zoe"]
    assert ask(port, f"/thumbnail/{content['results'][0]['matches'][0]['id']}")[0] == 404  # the image was not kept
    assert ask(port, "/gallery", {"identity": ["zoe"]}, "DELETE")[1] == {"erased": 1, "left": before}
    assert ask(port, "/gallery", {}, "DELETE")[0] == 400


def test_a_gallery_that_fails_is_a_line_without_its_address(site, monkeypatch):
    port, service, images, lines = site
    before, address = lines.tell(), service.store.address

    def broken(self, *args):
        with named_failures(self.address, "searching"):
            raise OSError(f"{self.address}/data/1.lance: no such file")

    monkeypatch.setattr(LanceStore, "scan", broken)
    status, answer, _ = ask(port, "/search", {"images": [text(images[0])]})
    assert (status, answer["error"]) == (503, "the gallery does not answer; try again later")
    log = lines.getvalue()[before:]
    assert "the gallery: searching failed (OSError)" in log and address not in log


def bomb() -> bytes:
    out = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(out, "PNG")
    return out.getvalue()


def test_bad_requests_are_one_line(site):
    port, _, images, _ = site
    one = text(images[0])
    calls = [
        (422, "the image cannot be read", "/embed", {"images": [base64.b64encode(b"no image").decode()]}),
        (422, "INPUT.MAX_PIXELS", "/embed", {"images": [base64.b64encode(bomb()).decode()]}),
        (413, "at most 4, got 10,000", "/embed", {"images": [""] * 10_000}),
        (413, "at most 262,144 bytes", "/embed", {"images": ["A" * 2**19]}),
        (400, "not base64", "/embed", {"images": ["%"]}),
        (400, "expected at least one", "/embed", {"images": []}),
        (400, "expected a JSON object", "/embed", b"[1]"),
        (400, "expected a JSON object", "/embed", b"[" * 100_000),
        (400, "expected two, got 1", "/verify", {"images": [one]}),
        (400, "k: expected a whole number from 1 to", "/search", {"images": [one], "k": 0}),
        (400, "features: expected", "/search", {"features": [[1.0]]}),
        (400, "camera: expected a list of texts", "/search", {"images": [one], "camera": "c1"}),
        (400, "expected seconds or a date", "/search", {"images": [one], "since": "noon"}),
        (400, "sentences are compared with", "/search", {"text": ["a car"]}),
        (400, "time: expected a list of 1 numbers", "/gallery", {"images": [one], "time": ["x"]}),
        (400, "identity: expected a list of 1 texts", "/gallery", {"images": [one], "identity": ["a", "b"]}),
    ]
    for wanted, words, path, content in calls:
        status, answer, _ = ask(port, path, content)
        assert (status, words in answer["error"]) == (wanted, True), (status, answer, words)
    assert ask(port, "/embed", b"x", Content_Type="text/html")[0] == 415


def test_who_has_no_token_or_comes_from_elsewhere_is_refused(site):
    port, _, images, _ = site
    assert ask(port, "/healthz", Authorization=None)[1] == {"status": "ok"}
    for path in ("/", "/metrics", "/openapi.json", "/page.js", "/thumbnail/1"):
        assert ask(port, path, Authorization=None)[0] == 401
        assert ask(port, path, Authorization=f"Bearer {TOKEN}x")[0] == 401
        assert ask(port, path, Origin="http://evil.example")[0] == 403
        assert ask(port, path, Host="evil.example")[0] == 403
    assert ask(port, "/embed", {"images": [text(images[0])]}, Authorization=None)[0] == 401
    assert ask(port, "/", Authorization=None, Cookie=f"lineup-{port}={TOKEN}")[0] == 200
    status, _, headers = ask(port, f"/?token={TOKEN}", Authorization=None)
    assert status == 303 and headers["location"] == "/" and "HttpOnly" in headers["set-cookie"]


def test_a_slow_client_and_one_that_leaves_cost_nothing(site):
    port, _, images, _ = site
    head = f"POST /embed HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += "Content-Type: image/jpeg\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
        slow.sendall((head + "Content-Length: 1000\r\n\r\nabc").encode())
        began = time.monotonic()
        assert b" 408 " in slow.recv(4096).split(b"\r\n")[0] and 2 < time.monotonic() - began < 30
    with socket.create_connection(("127.0.0.1", port), timeout=10) as gone:
        gone.sendall((head + "Content-Length: 1000\r\n\r\nabc").encode())
    assert ask(port, "/embed", images[0].read_bytes(), Content_Type="image/jpeg")[0] == 200


def test_more_than_there_is_room_for_is_told_to_come_back(site):
    port, _, images, _ = site
    body, statuses = {"images": [text(path) for path in images[:4]]}, []
    threads = [threading.Thread(target=lambda: statuses.append(ask(port, "/embed", body))) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = {status: sum(s == status for s, *_ in statuses) for status in {s for s, *_ in statuses}}
    assert set(counts) == {200, 429} and counts[200] >= 2
    assert all(headers["retry-after"] == "1" for status, _, headers in statuses if status == 429)
    assert ask(port, "/embed", body)[0] == 200  # the room is free again


def test_metrics_count_and_the_document_has_every_route(site):
    port, service, _, _ = site
    words = ask(port, "/metrics")[1].decode()
    assert 'lineup_requests_total{route="/embed",status="200"}' in words and "lineup_waiting_images 0.0" in words
    assert "lineup_batch_images_bucket" in words and TOKEN not in words
    content = ask(port, "/openapi.json")[1]
    assert content == json.loads(json.dumps(document(LIMITS)))
    served = {"/embed", "/search", "/verify", "/gallery", "/healthz", "/metrics"}
    assert set(content["paths"]) == served


def test_nothing_of_a_client_is_in_the_log(site):
    port, _, images, lines = site
    ask(port, "/embed", {"images": [base64.b64encode(b"no image").decode()]})
    ask(port, f"/?token={TOKEN}")
    time.sleep(0.1)
    assert TOKEN not in lines.getvalue() and str(images[0].parent) not in lines.getvalue()


def test_clients_share_batches():
    sizes = []

    def embed(images: torch.Tensor) -> np.ndarray:
        sizes.append(len(images))
        return images.flatten(1)[:, :2].numpy()

    async def both() -> list[np.ndarray]:
        batcher = Batcher(embed, 8, 0.2)
        try:
            return await asyncio.gather(*(batcher(torch.full((n, 3, 2, 2), float(n))) for n in (1, 2, 3, 7, 20)))
        finally:
            batcher.close()

    found = asyncio.run(both())
    assert [len(part) for part in found] == [1, 2, 3, 7, 20]
    assert all((part == len(part)).all() for part in found)
    assert sum(sizes) == 33 and max(sizes) <= 8 and len(sizes) <= 7


def test_a_failure_reaches_all_who_asked():
    def embed(images: torch.Tensor) -> np.ndarray:
        raise UserError("the weights are damaged")

    async def one() -> None:
        batcher = Batcher(embed, 8, 0.01)
        try:
            await batcher(torch.zeros(2, 3, 2, 2))
        finally:
            batcher.close()

    with pytest.raises(UserError, match="weights are damaged"):
        asyncio.run(one())


def test_room_is_given_back():
    room = Room(3)
    with room.taking(2), pytest.raises(Exception, match="too many"), room.taking(2):
        pass
    assert room.taken == 0


def test_tokens(monkeypatch, capsys):
    monkeypatch.delenv("LINEUP_TOKEN", raising=False)
    with pytest.raises(UserError, match="output is not a terminal"):
        serve.token_of(None)
    for weak in ("short", "0123456789 abcdef", "0123456789abcdéf"):
        with pytest.raises(UserError, match="at least 16 letters") as error:
            serve.token_of(weak)
        assert weak not in str(error.value)
    monkeypatch.setenv("LINEUP_TOKEN", TOKEN)
    assert serve.token_of(None) == (TOKEN, False)
    with pytest.raises(UserError, match="--wait: expected"):
        serve.main(["--run", "x", "--wait", "-1"])
    assert TOKEN not in capsys.readouterr().out
