"""The server refuses what does not come from its page, serves listed images only and survives several windows."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from contextlib import closing

import pytest

pytest.importorskip("starlette", reason="requirements-dev.txt has it")
pytest.importorskip("uvicorn", reason="requirements-dev.txt has it")

import uvicorn

from tests.tools.labelling.sessions import make_session, write_crops
from tools.labelling import server
from tools.labelling.journal import Journal
from tools.web.listening import free_socket
from utils.errors import UserError

TOKEN = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A session and the port at which its page is served."""
    folder = tmp_path_factory.mktemp("site")
    crops = write_crops(folder / "crops")
    (crops / "a<b>&\"'.png").write_bytes((crops / "0_0.png").read_bytes())
    session = make_session(crops, folder / "labels.csv", bad={0: "0_0.png: the image cannot be read (<script>)"})
    listening = free_socket("127.0.0.1", 0)
    port = listening.getsockname()[1]
    app = server.make_app(session, TOKEN, "127.0.0.1", port)
    running = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield session, port
    running.should_exit = True
    thread.join(10)
    session.journal.close()


def ask(port: int, path: str, content=None, **headers) -> tuple[int, str, dict]:
    given = {"Host": f"127.0.0.1:{port}", "Cookie": f"lineup-{port}={TOKEN}"}
    if content is not None:
        given["Content-Type"] = "application/json"
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        body = content if isinstance(content, bytes) or content is None else json.dumps(content)
        connection.putrequest("GET" if content is None else "POST", path, skip_host=True)
        for name, value in given.items():
            if value is not None:
                connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body.encode() if isinstance(body, str) else body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("latin-1"), dict(answer.getheaders())


PATHS = ["/", "/page.js", "/state", "/clusters", "/pair", "/suspects", "/history", "/thumbnail/1", "/whole/1"]


@pytest.mark.parametrize("path", PATHS)
def test_every_address_needs_the_token_the_host_and_the_origin(site, path):
    _, port = site
    assert ask(port, path)[0] == 200
    assert ask(port, path, Cookie=None)[0] == 401
    assert ask(port, path, Cookie=f"lineup-{port}={TOKEN[:-1]}0")[0] == 401
    assert ask(port, path, Host=f"evil.example:{port}")[0] == 403
    assert ask(port, path, Host=None)[0] in (400, 403)
    assert ask(port, path, Origin="http://evil.example")[0] == 403
    assert ask(port, path, Origin="null")[0] == 403
    assert ask(port, path, Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(port, path, Origin=f"http://127.0.0.1:{port}", Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize("path", ["/decide", "/undo", "/redo"])
def test_what_changes_something_needs_them_too_and_json(site, path):
    session, port = site
    before = session.version
    refused = [
        ask(port, path, {"nobody": [1]}, Cookie=None),
        ask(port, path, {"nobody": [1]}, Origin="http://evil.example"),
        ask(port, path, {"nobody": [1]}, Host="evil.example"),
        ask(port, path, {"nobody": [1]}, Content_Type="text/plain"),
        ask(port, path, b"[1]"),
        ask(port, path, b"[" * 100_000),
        ask(port, path, b" " * (server.LARGEST + 1)),
        ask(port, path),
    ]
    assert [status for status, *_ in refused] == [401, 403, 403, 415, 400, 400, 413, 405]
    assert session.version == before


@pytest.mark.parametrize(
    "path",
    ["/thumbnail/99", "/thumbnail/-1", "/thumbnail/../../etc/passwd", "/thumbnail/%2e%2e%2fetc%2fpasswd", "/page.html",
     "/thumbnail/1/../2", "/../page.py", "/static/x", "/thumbnail//etc/passwd", "/thumbnail/99999999999999999999999"],
)  # fmt: skip
def test_no_path_of_the_client_reaches_a_file(site, path):
    assert ask(site[1], path)[0] in (404, 400)


def test_the_token_leaves_the_address_for_a_cookie(site):
    _, port = site
    status, _, headers = ask(port, f"/?token={TOKEN}", Cookie=None)
    assert status == 303 and headers["location"] == "/"
    assert {"httponly", "samesite=strict"} <= {word.strip().lower() for word in headers["set-cookie"].split(";")}
    assert ask(port, "/?token=wrong", Cookie=None)[0] == 401
    assert ask(port, f"/state?token={TOKEN}", Cookie=None)[0] == 401  # for the page only


def test_answers_forbid_what_the_page_does_not_need(site):
    headers = ask(site[1], "/")[2]
    assert "default-src 'none'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers or "uvicorn" in headers["server"]


def test_images_are_small_jpegs_and_unreadable_ones_are_counted(site):
    session, port = site
    status, body, headers = ask(port, "/thumbnail/1")
    assert status == 200 and body.startswith("\xff\xd8") and headers["content-type"] == "image/jpeg"
    assert ask(port, "/thumbnail/0")[0] == 410
    state = json.loads(ask(port, "/state")[1])
    assert (state["images"], state["unreadable"]) == (len(session.images) - 1, 1)
    assert json.loads(ask(port, "/unreadable")[1])["rows"][0]["name"] == "0_0.png"
    rows = json.loads(ask(port, "/clusters?limit=200")[1])["rows"]
    assert sorted(image for row in rows for image in row["images"]) == list(range(1, len(session.images)))


def test_bad_requests_get_a_line(site):
    _, port = site
    for content, words in (
        ({"same": [[1, 999]]}, "an image must be a number from 0"),
        ({}, "a decision must say one of"),
        ({"same": [[1]]}, "at least 2 images"),
        ({"view": "pairs", "same": 5}, "same must be a list"),
        ({"n": 1, "path": "/etc/passwd"}, "unknown entry"),
    ):
        status, body, _ = ask(port, "/decide", content)
        assert status == 400 and words in json.loads(body)["error"]
    assert "number must be" in ask(port, "/undo", {"number": "1"})[1]
    assert ask(port, "/clusters?offset=x")[0] == 400 and ask(port, "/clusters?offset=999999")[0] == 200


def test_two_windows_at_once_lose_no_decision(site):
    session, port = site
    before, statuses = session.version, []

    def window(image: int) -> None:
        for _ in range(10):
            statuses.append(ask(port, "/decide", {"view": "clusters", "differ": [[image, image + 1]]})[0])

    windows = [threading.Thread(target=window, args=(image,)) for image in (3, 7, 11)]
    for thread in windows:
        thread.start()
    for thread in windows:
        thread.join(60)
    assert statuses == [200] * 30 and session.version == before + 30
    session.journal.close()
    again = Journal.open(session.journal.path, session.images.names)
    assert [decision.number for decision in again.decisions] == list(range(1, before + 31))
    assert again.decisions == session.journal.decisions
    session.journal = again


def test_a_port_in_use_is_said_with_the_way_out(site):
    with pytest.raises(
        UserError, match=r"--port: 127.0.0.1:\d+ cannot be used \(.*\); set --port to another number, or 0"
    ):
        free_socket("127.0.0.1", site[1])


def test_missing_packages_are_one_line(site, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "starlette.applications", None)
    with pytest.raises(UserError, match="starlette and uvicorn: pip install -r requirements-extra.txt"):
        server.make_app(site[0], TOKEN, "127.0.0.1", 1)


def test_small_answers_do_not_wait_for_an_acknowledgement():
    """asyncio looks at the protocol that the listening socket names before it sends at once."""
    with free_socket("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()) as client:
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP and client.getpeername() == listening.getsockname()
