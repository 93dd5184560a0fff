"""The server of the page: Starlette on one address, for those who have the token.

Nothing of a request becomes a path: images are asked for by their number, the page's own files by fixed names. A
request is refused if its ``Host`` is not the server's, if its ``Origin`` is another one, without the token, and above
``LARGEST`` bytes.
"""

from __future__ import annotations

import hmac
import io
import json
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from datasets.storage.pillow_decoding import BadImage, load_image
from datasets.storage.pixels import PLAIN, PixelRules
from tools.labelling.session import ROWS, Session
from utils.errors import UserError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

LARGEST = 2**20
"""Bytes of a request's body."""
THUMBNAIL, WHOLE = (128, 192), (512, 768)
"""Width and height that an image of a row and one of a pair fit in."""
CACHED = 64 * 2**20
"""Bytes of thumbnails that stay in memory."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
PAGE = {"/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
MISSING = "the page needs the packages starlette and uvicorn: pip install -r requirements-extra.txt"


class Guard:
    """Lets a request through if it comes from our page and somebody who has the token; adds ``HEADERS``.

    hosts: allowed values of ``Host``. cookie: the name that the token has among the browser's.
    """

    def __init__(self, app: Callable, hosts: set[str], token: str, cookie: str):
        self.app, self.hosts, self.token, self.cookie = app, hosts, token, cookie

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        request = Request(scope)
        status, words = self.verdict(request)

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = dict(message) | {"headers": [*message.get("headers", []), *headers]}
            await send(message)

        app = self.app if status == 200 else PlainTextResponse(words, status)
        await app(scope, receive, with_headers)

    def verdict(self, request: Request) -> tuple[int, str]:
        """Returns the status of a request before it is looked at further, and the words of a refusal."""
        headers = request.headers
        if headers.get("host", "") not in self.hosts:
            return 403, "this server does not have that name"
        origin = headers.get("origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.hosts}:
            return 403, "the request comes from another page"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "the request comes from another page"
        if request.method == "POST" and headers.get("content-type", "").split(";")[0] != "application/json":
            return 415, "expected application/json"
        if not has_token(request, self.token, self.cookie):
            return 401, "open the address that tools.label printed: it holds the token"
        return 200, ""


def has_token(request: Request, token: str, cookie: str) -> bool:
    """Returns whether a request holds the token, in its cookie or, for the page itself, in its address."""
    given = request.cookies.get(cookie, "")
    if request.url.path == "/" and "token" in request.query_params:
        given = request.query_params["token"]
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


class Thumbnails:
    """Small JPEGs of a session's images, made when they are asked for; the last ones stay in memory."""

    def __init__(self, session: Session, rules: PixelRules = PLAIN, most: int = CACHED):
        self.session, self.rules, self.most, self.size = session, rules, most, 0
        self.lock = Lock()
        self.kept: OrderedDict[tuple[int, bool], bytes] = OrderedDict()

    def of(self, row: int, whole: bool) -> bytes:
        """Returns the JPEG of an image. Raises ``BadImage``. whole: in the size of a pair."""
        key = row, whole
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        images = self.session.images
        picture = load_image(images.paths[row], images.box(row), self.rules)
        picture.thumbnail(WHOLE if whole else THUMBNAIL)
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=80)
        raw = out.getvalue()
        with self.lock:
            if key not in self.kept:
                self.kept[key] = raw
                self.size += len(raw)
            while self.size > self.most and len(self.kept) > 1:
                self.size -= len(self.kept.popitem(last=False)[1])
        return raw


def make_app(session: Session, token: str, host: str, port: int, rules: PixelRules = PLAIN) -> Starlette:
    """Returns the application. host, port: where it will listen. Raises ``UserError`` if Starlette is missing."""
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.exceptions import HTTPException
        from starlette.middleware import Middleware
        from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
        from starlette.routing import Route
    except ImportError:
        raise UserError(MISSING) from None
    thumbnails = Thumbnails(session, rules)
    folder = Path(__file__).parent / "page"
    cookie = f"lineup-{port}"

    async def page(request: Request) -> Response:
        if "token" in request.query_params:  # out of the address, so that it is not copied with it
            response = RedirectResponse("/", 303)
            response.set_cookie(cookie, token, max_age=30 * 86400, httponly=True, samesite="strict")
            return response
        return FileResponse(folder / "page.html", media_type="text/html", headers={"Cache-Control": "no-store"})

    async def own_file(request: Request) -> Response:
        name, kind = PAGE[request.url.path]
        return FileResponse(folder / name, media_type=kind, headers={"Cache-Control": "no-cache"})

    async def picture(request: Request) -> Response:
        row = request.path_params["row"]
        if row >= len(session.images):
            raise HTTPException(404, "no such image")
        if row in session.images.bad:
            raise HTTPException(410, "the image cannot be read")
        try:
            raw = await run_in_threadpool(thumbnails.of, row, request.url.path.startswith("/whole/"))
        except BadImage:
            raise HTTPException(410, "the image cannot be read") from None
        return Response(raw, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    def asking(ask: Callable[[Request], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                return JSONResponse(await run_in_threadpool(ask, request))
            except UserError as error:
                return JSONResponse({"error": str(error)}, 400)

        return endpoint

    def telling(tell: Callable[[dict[str, Any]], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                content = json.loads(await body_of(request))
            except (ValueError, RecursionError):
                return JSONResponse({"error": "expected a JSON object"}, 400)
            if not isinstance(content, dict):
                return JSONResponse({"error": "expected a JSON object"}, 400)
            try:
                return JSONResponse(await run_in_threadpool(tell, content))
            except UserError as error:
                return JSONResponse({"error": str(error)}, 400)

        return endpoint

    async def body_of(request: Request) -> bytes:
        raw = b""
        async for part in request.stream():
            raw += part
            if len(raw) > LARGEST:
                raise HTTPException(413, f"a request has at most {LARGEST:,} bytes")
        return raw

    def clusters(request: Request) -> dict[str, Any]:
        return session.rows(number_in(request, "offset", 0), number_in(request, "limit", ROWS))

    routes = [
        Route("/", page),
        *(Route(path, own_file) for path in PAGE),
        Route("/thumbnail/{row:int}", picture),
        Route("/whole/{row:int}", picture),
        Route("/state", asking(lambda request: session.state() | {"title": session.out.name})),
        Route("/clusters", asking(clusters)),
        Route("/names", asking(lambda request: names_of(session, request))),
        Route("/pair", asking(lambda request: session.pair())),
        Route("/suspects", asking(lambda request: session.suspects())),
        Route("/history", asking(lambda request: session.history())),
        Route("/unreadable", asking(lambda request: unreadable(session))),
        Route("/decide", telling(session.decide), methods=["POST"]),
        Route("/undo", telling(lambda content: session.undo(number_of(content))), methods=["POST"]),
        Route("/redo", telling(lambda content: session.redo()), methods=["POST"]),
    ]
    guard = Middleware(Guard, hosts=names_of_server(host, port), token=token, cookie=cookie)  # type: ignore[arg-type]
    return Starlette(routes=routes, middleware=[guard])


def names_of_server(host: str, port: int) -> set[str]:
    """Returns the values of ``Host`` that mean this server."""
    names = set(LOOPBACK) | {f"[{host}]" if ":" in host else host}
    if host in ("0.0.0.0", "::"):
        names |= {socket.gethostname(), socket.getfqdn()}
        names |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    return {f"{name}:{port}" for name in names} | (names if port == 80 else set())


def number_in(request: Request, name: str, default: int) -> int:
    """Returns a number in a request's address."""
    word = request.query_params.get(name, str(default))
    if not (word.isascii() and word.isdecimal() and len(word) <= 9):
        raise UserError(f"{name} must be a number")
    return int(word)


def number_of(content: dict[str, Any]) -> int:
    """Returns the number of the decision to take back, 0 for the last one."""
    number = content.get("number", 0)
    if type(number) is not int or number < 0:
        raise UserError("number must be that of a decision")
    return number


def names_of(session: Session, request: Request) -> dict[str, str]:
    """Returns the file names of some images by their numbers."""
    words = request.query_params.get("rows", "").split(",")[:1000]
    rows = [int(word) for word in words if word.isascii() and word.isdecimal() and len(word) <= 9]
    return {str(row): printable(session.images.names[row]) for row in rows if row < len(session.images)}


def unreadable(session: Session) -> dict[str, Any]:
    """Returns the images that cannot be read, and why."""
    bad = sorted(session.images.bad.items())
    rows = [{"name": printable(session.images.names[row]), "reason": printable(why)} for row, why in bad[:1000]]
    return {"total": len(bad), "rows": rows}


def printable(text: str) -> str:
    """Returns a file name with half surrogates, of bytes that are no text, as escapes: JSON has no such letters."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def free_socket(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on the address. Raises ``UserError`` if it is taken. port: 0 for any."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        remedy = "set --port to another number, or 0 for any that is free"
        raise UserError(f"--port: {host}:{port} cannot be used ({error.strerror or error}); {remedy}") from None
    return listening


def serve(app: Starlette, listening: socket.socket) -> None:
    """Serves until the process is interrupted. Raises ``UserError`` if uvicorn is missing."""
    try:
        import uvicorn
    except ImportError:
        raise UserError(MISSING) from None
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    uvicorn.Server(config).run(sockets=[listening])
