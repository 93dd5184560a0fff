"""A small Hugging Face hub on the loopback address: repositories in memory, in the protocol of ``huggingface_hub``."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_stub"


class Hub(ThreadingHTTPServer):
    """The server. repos: name -> commits, oldest first, each path -> content. private: names of those that need TOKEN.

    objects: what was uploaded as LFS objects, by SHA-256. requests: method and path of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


def commit_id(name: str, number: int) -> str:
    """The hash of a repository's commit, counted from 0."""
    return hashlib.sha1(f"{name} {number}".encode()).hexdigest()


class Answers(BaseHTTPRequestHandler):
    """Answers what pushing one commit and reading a snapshot ask."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Prints nothing."""

    def send(self, status: int, content: object = None, raw: bytes | None = None, **headers: str) -> None:
        body = json.dumps(content).encode() if raw is None else raw
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.send(status, {"error": code}, X_Error_Code=code)

    def commit_of(self, name: str, revision: str) -> int | None:
        """The number of a repository's commit, None if the answer says that there is none."""
        allowed = name in self.server.repos and (name not in self.server.private or self.may_write())
        if not allowed:
            return self.refuse(404 if self.may_write() else 401, "RepoNotFound")
        commits = [commit_id(name, number) for number in range(len(self.server.repos[name]))]
        number = {"main": len(commits) - 1, **{commit: i for i, commit in enumerate(commits)}}.get(revision)
        return self.refuse(404, "RevisionNotFound") if number is None else number

    def may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        path = self.path.split("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            number = self.commit_of(match[1], match[2] or "main")
            if number is not None:
                self.send(200, {"id": match[1], "sha": commit_id(match[1], number), "siblings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            number = self.commit_of(match[1], match[2])
            if number is not None:
                files = self.server.repos[match[1]][number]
                oids = {name: hashlib.sha1(raw).hexdigest() for name, raw in files.items()}
                self.send(200, [
                    {"type": "file", "path": name, "size": len(raw), "oid": oids[name]} for name, raw in files.items()
                ])  # fmt: skip
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            number = self.commit_of(match[1], match[2])
            if number is not None:
                raw = self.server.repos[match[1]][number].get(match[3])
                if raw is None:
                    return self.refuse(404, "EntryNotFound")
                commit, etag = commit_id(match[1], number), f'"{hashlib.sha1(raw).hexdigest()}"'
                self.send(200, raw=raw, X_Repo_Commit=commit, ETag=etag)
        else:
            self.send(404, {"error": path})
        return None

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def do_POST(self) -> None:  # noqa: N802 - the library's name
        path, body = self.path.split("?")[0], self.body()
        self.server.requests.append(f"POST {path}")
        if not self.may_write():
            return self.refuse(401, "Unauthorized")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
            if name in self.server.repos:
                return self.send(409, {"error": "exists", "url": f"{self.server.endpoint}/{name}"})
            if not name.startswith("me/"):
                return self.refuse(403, "Forbidden")
            self.server.repos[name] = [{}]
            self.server.private |= {name} if asked.get("private") or asked.get("visibility") == "private" else set()
            return self.send(200, {"url": f"{self.server.endpoint}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.send(200, {"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in files}
            rows = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            return self.send(200, {"files": rows})
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            href = f"{self.server.endpoint}/objects/"
            return self.send(200, {"transfer": "basic", "objects": [
                {**file, "actions": {"upload": {"href": href + file["oid"]}}} for file in json.loads(body)["objects"]
            ]})  # fmt: skip
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            commits = self.server.repos[match[1]]
            commits.append(commits[-1] | dict(self.changes(body)))
            commit = commit_id(match[1], len(commits) - 1)
            url = f"{self.server.endpoint}/{match[1]}/commit/{commit}"
            return self.send(200, {"commitUrl": url, "commitOid": commit, "success": True})
        return self.send(404, {"error": path})

    def changes(self, body: bytes) -> Iterator[tuple[str, bytes]]:
        """The files of a commit's lines."""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                yield value["path"], base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                yield value["path"], self.server.objects[value["oid"]]

    def do_PUT(self) -> None:  # noqa: N802 - the library's name
        raw, name = self.body(), self.path.rpartition("/")[2]
        self.server.requests.append("PUT /objects")
        if hashlib.sha256(raw).hexdigest() != name:
            return self.send(400, {"error": "another object"})
        self.server.objects[name] = raw
        return self.send(200, {})


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers inside the context."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join(10)
