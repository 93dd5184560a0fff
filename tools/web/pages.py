"""The routes of a page's own files, and the way of its token from the address into a cookie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

FILES = {"/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}


def page_routes(folder: Path, cookie: str, token: str) -> list[Route]:
    """Returns the routes of ``page.html`` at ``/`` and its two files. folder: where these are."""
    from starlette.responses import FileResponse, RedirectResponse
    from starlette.routing import Route

    async def page(request: Request) -> Response:
        if "token" in request.query_params:  # out of the address, so that it is not copied with it
            response = RedirectResponse("/", 303)
            response.set_cookie(cookie, token, max_age=30 * 86400, httponly=True, samesite="strict")
            return response
        return FileResponse(folder / "page.html", media_type="text/html", headers={"Cache-Control": "no-store"})

    async def own_file(request: Request) -> Response:
        name, kind = FILES[request.url.path]
        return FileResponse(folder / name, media_type=kind, headers={"Cache-Control": "no-cache"})

    return [Route("/", page), *(Route(path, own_file) for path in FILES)]
