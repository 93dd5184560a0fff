"""Who may ask a server: those who have its token, from its own page or a program, under one of its own names."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Callable, Collection, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.requests import Request

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Lets a request through if it comes from our page, or no page, and somebody who has the token; adds ``HEADERS``.

    hosts: allowed values of ``Host``. cookie: the name that the token has among the browser's. hint: words for those
    without it. kinds: of the content that a POST may have, before a slash and behind. bearer: the token may stand in
    the header ``Authorization``, too. free: paths that need no token.
    """

    def __init__(
        self,
        app: Callable,
        *,
        hosts: set[str],
        token: str,
        cookie: str,
        hint: str,
        kinds: Collection[str] = ("application/json",),
        bearer: bool = False,
        free: Collection[str] = (),
    ):
        self.app, self.hosts, self.token, self.cookie, self.hint = app, hosts, token, cookie, hint
        self.kinds, self.bearer, self.free = tuple(kinds), bearer, frozenset(free)

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
        if request.method in ("POST", "DELETE") and not self.takes(headers.get("content-type", "")):
            return 415, f"expected {' or '.join(self.kinds)}"
        if request.url.path not in self.free and not self.has_token(request):
            return 401, self.hint
        return 200, ""

    def takes(self, kind: str) -> bool:
        """Returns whether a POST may have this kind of content."""
        name = kind.split(";")[0].strip().lower()
        return any(name == known or (known.endswith("/*") and name.startswith(known[:-1])) for known in self.kinds)

    def has_token(self, request: Request) -> bool:
        """Returns whether a request holds the token: in its cookie, its header, or, for the page, its address."""
        given = [request.cookies.get(self.cookie, "")]
        if request.url.path == "/" and "token" in request.query_params:
            given = [request.query_params["token"]]
        if self.bearer:
            word, _, rest = request.headers.get("authorization", "").partition(" ")
            given += [rest.strip()] if word.lower() == "bearer" else []
        return any(hmac.compare_digest(word.encode(errors="replace"), self.token.encode()) for word in given)


def names_of_server(host: str, port: int) -> set[str]:
    """Returns the values of ``Host`` that mean this server."""
    names = set(LOOPBACK) | {f"[{host}]" if ":" in host else host}
    if host in ("0.0.0.0", "::"):
        names |= {socket.gethostname(), socket.getfqdn()}
        names |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    return {f"{name}:{port}" for name in names} | (names if port == 80 else set())
