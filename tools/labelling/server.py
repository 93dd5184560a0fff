"""The server of the page: Starlette on one address, for those who have the token.

Nothing of a request becomes a path: images are asked for by their number, the page's own files by fixed names. A
request is refused if its ``Host`` is not the server's, if its ``Origin`` is another one, without the token, and above
``LARGEST`` bytes.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from datasets.storage.pillow_decoding import BadImage, load_image
from datasets.storage.pixels import PLAIN, PixelRules
from tools.labelling.session import ROWS, Session
from tools.web.guard import Guard, names_of_server
from tools.web.listening import MISSING
from tools.web.pages import page_routes
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
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route
    except ImportError:
        raise UserError(MISSING) from None
    thumbnails = Thumbnails(session, rules)
    cookie = f"lineup-{port}"

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
        *page_routes(Path(__file__).parent / "page", cookie, token),
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
    guard = Middleware(
        Guard, hosts=names_of_server(host, port), token=token, cookie=cookie,  # type: ignore[arg-type]
        hint="open the address that tools.label printed: it holds the token",
    )  # fmt: skip
    return Starlette(routes=routes, middleware=[guard])


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
