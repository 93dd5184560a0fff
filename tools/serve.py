"""Serves a model and a store over HTTP: ``python -m tools.serve --run RUN --gallery STORE``.

RUN is the folder of a run, an exported file or a published model, as for ``Extractor.load``; STORE one of
tools.gallery. Programs send images to ``/embed``, ``/search``, ``/verify`` and ``/gallery``, described by
``/openapi.json``; a page at ``/`` tries a picture. Images of several clients share a batch. Whoever asks needs the
token: LINEUP_TOKEN, or one that is made and shown on a terminal. See ``docs/gallery.md``.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace

from processor.extractor import IMAGE, Extractor
from tools.galleries.opening import open_store
from tools.serving.app import make_app
from tools.serving.limits import Limits
from tools.serving.service import Service
from tools.web.listening import free_socket, serve
from utils.commands import make_parser, run_command
from utils.errors import UserError

PORT = 8266
TOKEN = "LINEUP_TOKEN"
"""The environment variable with the token."""
SHORTEST = 16
"""Letters of a token."""
GRACE = 10
"""Seconds that requests under way have when the service stops."""


def token_of(word: str | None) -> tuple[str, bool]:
    """Returns the token, and whether it is a new one that must be shown. word: of --token.

    Raises ``UserError`` for one that is easily guessed, and where a new one would land in a log.
    """
    word = word or os.environ.get(TOKEN, "")
    if word:
        if len(word) < SHORTEST or not word.isascii() or not word.isprintable() or " " in word:
            raise UserError(f"--token: expected at least {SHORTEST} letters and digits without spaces")
        return word, False
    if not sys.stdout.isatty():
        raise UserError(
            f"--token: the output is not a terminal, where a new token could be shown; set {TOKEN} to one of at least "
            f"{SHORTEST} letters"
        )
    return secrets.token_hex(16), True


def make_service(args: argparse.Namespace) -> Service:
    """Makes what the options name."""
    store = open_store(args.gallery) if args.gallery else None
    space = store.meta.space if store is not None else IMAGE
    extractor = Extractor.load(args.run, None, *args.opts, space=space)
    if not extractor.unit:
        raise UserError("a service gives features of unit length; set TEST.FEAT_NORM 'yes'")
    return Service(extractor, store, extractor.calibration, args.far)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser(
        "python -m tools.serve", __doc__, "--run runs/quickstart --gallery gate",
        "--run resnet10.onnx --gallery gate --port 80 --host 0.0.0.0 TEST.CALIBRATION calibration.json",
    )  # fmt: skip
    parser.add_argument("--run", required=True, metavar="RUN", help="folder of a run, exported file or published model")
    parser.add_argument("--gallery", metavar="STORE", help="of tools.gallery; without, /embed and /verify only")
    parser.add_argument("--token", metavar="WORD", help=f"who asks must have it; others see command lines: see {TOKEN}")
    parser.add_argument("--far", type=float, metavar="RATE", help="whose threshold decides; the strictest")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=PORT, help=f"0: any that is free; {PORT}")
    parser.add_argument("--wait", type=float, default=10.0, metavar="MS", help="that an image waits for a batch (10)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings that override the run's")
    args = parser.parse_args(argv)
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port: {args.port} must be between 0 and 65535")
    if not 0 <= args.wait <= 1000:
        raise UserError(f"--wait: expected 0 to 1000 ms, got {args.wait:g}")
    token, new = token_of(args.token)
    listening = free_socket(args.host, args.port)
    try:
        service = make_service(args)
        host, port = listening.getsockname()[:2]
        app = make_app(service, token, host, port, replace(Limits(), wait=args.wait / 1000))
        name = f"[{host}]" if ":" in host else host
        print(f"serving http://{name}:{port}/" + (f"?token={token}" if new else ""), flush=True)
        serve(app, listening, GRACE)
    finally:
        listening.close()


if __name__ == "__main__":
    run_command(main)
