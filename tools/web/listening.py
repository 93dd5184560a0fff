"""Where a server listens, and its loop."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from utils.errors import UserError

if TYPE_CHECKING:
    from starlette.applications import Starlette

MISSING = "the page needs the packages starlette and uvicorn: pip install -r requirements-extra.txt"


def free_socket(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on the address. Raises ``UserError`` if it is taken. port: 0 for any."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # asyncio sends small answers at once (TCP_NODELAY) only on sockets that name their protocol; else each waits
        # 40 ms for the client to acknowledge its header
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        remedy = "set --port to another number, or 0 for any that is free"
        raise UserError(f"--port: {host}:{port} cannot be used ({error.strerror or error}); {remedy}") from None
    return listening


def serve(app: Starlette, listening: socket.socket, grace: int = 2) -> None:
    """Serves until the process is interrupted. Raises ``UserError`` if uvicorn is missing.

    grace: seconds that requests under way have to end.
    """
    try:
        import uvicorn
    except ImportError:
        raise UserError(MISSING) from None
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=grace
    )
    uvicorn.Server(config).run(sockets=[listening])
