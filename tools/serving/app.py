"""The service's interface over HTTP: Starlette, for those who have the token.

Nothing of a request becomes a path. A request is refused above the limits before it is read further; what it sends is
held in memory only. Errors are one line of JSON; neither they nor the log repeat what a client sent.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.storage.pillow_decoding import BadImage
from tools.galleries.failures import StoreFailure
from tools.galleries.filters import RowFilter, seconds_of
from tools.serving.batching import Batcher
from tools.serving.limits import Busy, Limits, Room
from tools.serving.metrics import MISSING, Metrics
from tools.serving.openapi import document
from tools.serving.service import Service
from tools.web.guard import Guard, names_of_server
from tools.web.pages import page_routes
from utils.errors import UserError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger("lineup")

KINDS = ("application/json", "image/*")
OPEN = ("/healthz",)
FILTERS = {"camera": "camid", "identity": "identity", "source": "source", "seq": "seq"}


class Refused(Exception):
    """A request that is not answered. status: HTTP's."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status, self.words = status, words


class Asked:
    """What a request contains: raw images, or the content of its JSON object, whose images are in base64."""

    def __init__(self, content: dict[str, Any], images: list[bytes]):
        self.content, self.images = content, images


def make_app(service: Service, token: str, host: str, port: int, limits: Limits | None = None) -> Starlette:
    """Returns the application. host, port: where it will listen. Raises ``UserError`` if a package is missing."""
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.middleware import Middleware
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route
    except ImportError:
        raise UserError(MISSING) from None
    limits, metrics = limits or Limits(), Metrics()
    bodies, waiting = Room(limits.bodies), Room(limits.waiting)
    cookie = f"lineup-{port}"
    batcher = Batcher(service.embed, service.extractor.batch_size, limits.wait, metrics.batch)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.close)

    async def features_of(asked: Asked) -> np.ndarray:
        """Decodes and embeds the images of a request."""
        with waiting.taking(len(asked.images)):
            metrics.waiting.set(waiting.taken)
            try:
                return await batcher(await run_in_threadpool(service.prepared, asked.images))
            finally:
                metrics.waiting.set(waiting.taken - len(asked.images))

    async def embed(asked: Asked) -> Any:
        feats = await features_of(needing_images(asked))
        meta = {"model_hash": service.extractor.model_hash, "width": service.extractor.width}
        return meta | {"features": feats.tolist()}

    async def search(asked: Asked) -> Any:
        content = asked.content
        k, exact, where = whole(content, "k", 10, limits.longest), content.get("exact") is True, filter_in(content)
        if "text" in content:
            words = content["text"]
            if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
                raise Refused(400, "text: expected a list of sentences")
            feats = await run_in_threadpool(service.extractor.sentences, words[: limits.images])
        elif "features" in content:
            feats = features_in(content, service.extractor.width, limits.images)
        else:
            feats = await features_of(needing_images(asked))
        return await run_in_threadpool(service.search, feats, k, where, exact)

    async def verify(asked: Asked) -> Any:
        if len(asked.images) != 2:
            raise Refused(400, f"images: expected two, got {len(asked.images)}")
        _ = service.calibration  # before any work
        return service.same(await features_of(asked))

    async def add(asked: Asked) -> Any:
        feats = await features_of(needing_images(asked))
        return await run_in_threadpool(service.add, feats, asked.content)

    async def erase(asked: Asked) -> Any:
        where = filter_in(asked.content)
        if where == RowFilter():
            raise Refused(400, f"name what to erase: {', '.join(FILTERS)}, since or until")
        return await run_in_threadpool(service.erase, where)

    def endpoint(route: str, work: Callable[[Asked], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            began = time.monotonic()
            response = await settled(request, work)
            metrics.requests.labels(route, str(response.status_code)).inc()
            metrics.seconds.labels(route).observe(time.monotonic() - began)
            return response

        return answer

    async def settled(request: Request, work: Callable[[Asked], Awaitable[Any]]) -> Response:
        try:
            with bodies.taking(length_of(request, limits)):
                asked = await asyncio.wait_for(read(request, limits), limits.body_seconds)
                return JSONResponse(await work(asked))
        except Busy as busy:
            return JSONResponse({"error": str(busy)}, 429, {"Retry-After": str(busy.retry)})
        except Refused as refused:
            return JSONResponse({"error": refused.words}, refused.status)
        except TimeoutError:
            return JSONResponse({"error": "the request was not sent in time"}, 408, {"Connection": "close"})
        except ClientDisconnect:
            return JSONResponse({"error": "the request was cut off"}, 400)
        except BadImage as error:
            return JSONResponse({"error": str(error)}, 422)
        except StoreFailure as failure:  # its reason may name files of this machine
            log.error("the gallery: %s failed (%s)", failure.doing, failure.kind)
            return JSONResponse({"error": "the gallery does not answer; try again later"}, 503)
        except UserError as error:
            return JSONResponse({"error": service.without_address(str(error))}, 400)
        except Exception as error:  # noqa: BLE001 - a traceback could repeat what a client sent
            log.error("a request failed: %s", type(error).__name__)
            return JSONResponse({"error": "the request failed"}, 500)

    async def picture(request: Request) -> Response:
        number = request.path_params["number"]
        try:
            raw = await run_in_threadpool(service.thumbnail, number) if number < 2**63 else None
        except UserError:
            raw = None
        if raw is None:
            return JSONResponse({"error": "no image"}, 404)
        return Response(raw, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def counters(request: Request) -> Response:
        return Response(metrics.text(), media_type=metrics.kind)

    async def openapi(request: Request) -> Response:
        return JSONResponse(document(limits))

    routes = [
        *page_routes(Path(__file__).parent / "page", cookie, token),
        Route("/thumbnail/{number:int}", picture),
        Route("/healthz", health),
        Route("/metrics", counters),
        Route("/openapi.json", openapi),
        Route("/embed", endpoint("/embed", embed), methods=["POST"]),
        Route("/search", endpoint("/search", search), methods=["POST"]),
        Route("/verify", endpoint("/verify", verify), methods=["POST"]),
        Route("/gallery", endpoint("/gallery", add), methods=["POST"]),
        Route("/gallery", endpoint("/gallery", erase), methods=["DELETE"]),
    ]
    guard = Middleware(
        Guard, hosts=names_of_server(host, port), token=token, cookie=cookie, kinds=KINDS,  # type: ignore[arg-type]
        bearer=True, free=OPEN, hint="a request needs the header Authorization: Bearer TOKEN",
    )  # fmt: skip
    return Starlette(routes=routes, middleware=[guard], lifespan=lifespan)


def length_of(request: Request, limits: Limits) -> int:
    """Returns the bytes that a request may need, by what it says. Raises ``Refused`` above the limit."""
    word = request.headers.get("content-length", "")
    length = int(word) if word.isascii() and word.isdecimal() and len(word) < 16 else limits.body
    if length > limits.body:
        raise Refused(413, f"a request has at most {limits.body:,} bytes")
    return length


async def read(request: Request, limits: Limits) -> Asked:
    """Reads a request. Raises ``Refused`` for one that is too large or not a JSON object."""
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > limits.body:
            raise Refused(413, f"a request has at most {limits.body:,} bytes")
    if request.headers["content-type"].lower().startswith("image/"):
        return Asked(from_address(request), [bytes(raw)])
    return from_json(bytes(raw), limits)


def from_address(request: Request) -> dict[str, Any]:
    """Returns the content of a request whose body is an image: k, exact and the filter stand in its address."""
    words = request.query_params
    content: dict[str, Any] = {name: words.getlist(name) for name in FILTERS if name in words}
    content |= {name: words[name] for name in ("since", "until") if name in words}
    if "k" in words:
        content["k"] = int(words["k"]) if words["k"].isascii() and words["k"].isdecimal() and len(words["k"]) < 9 else 0
    return content | {"exact": words.get("exact") in ("1", "true")}


def from_json(raw: bytes, limits: Limits) -> Asked:
    """Reads a JSON object with ``images`` in base64. Raises ``Refused`` for anything else."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise Refused(400, "expected a JSON object, or an image")
    images = content.pop("images", [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise Refused(400, "images: expected a list of images in base64")
    if len(images) > limits.images:
        raise Refused(413, f"images: a request has at most {limits.images}, got {len(images):,}")
    try:
        return Asked(content, [base64.b64decode(image, validate=True) for image in images])
    except (binascii.Error, ValueError):
        raise Refused(400, "images: one is not base64") from None


def needing_images(asked: Asked) -> Asked:
    """Returns a request. Raises ``Refused`` if it has no image."""
    if not asked.images:
        raise Refused(400, "images: expected at least one")
    return asked


def whole(content: dict[str, Any], name: str, default: int, most: int) -> int:
    """Returns a number of a request. Raises ``Refused`` unless it is whole, and from 1 to ``most``."""
    value = content.get(name, default)
    if type(value) is not int or not 1 <= value <= most:
        raise Refused(400, f"{name}: expected a whole number from 1 to {most:,}")
    return value


def features_in(content: dict[str, Any], width: int, most: int) -> np.ndarray:
    """Returns the features (n, D) of a request. Raises ``Refused`` for another shape, and for infinite numbers."""
    try:
        feats = np.array(content["features"], np.float32)
    except (ValueError, TypeError, OverflowError):
        feats = np.empty(0)
    if feats.ndim != 2 or not len(feats) or len(feats) > most or feats.shape[1:] != (width,):
        raise Refused(400, f"features: expected 1 to {most} lists of {width} numbers")
    if not np.isfinite(feats).all():
        raise Refused(400, "features: a number is not finite")
    return feats


def filter_in(content: dict[str, Any]) -> RowFilter:
    """Returns the filter of a request.

    Raises ``Refused`` for a condition that is not a list of texts, ``UserError`` for a malformed time.
    """
    chosen: dict[str, Any] = {}
    for name, column in FILTERS.items():
        values = content.get(name, [])
        if not isinstance(values, list) or len(values) > 1000 or not all(isinstance(value, str) for value in values):
            raise Refused(400, f"{name}: expected a list of texts")
        if values:
            chosen[column] = tuple(values)
    for name in ("since", "until"):
        if content.get(name) not in (None, ""):
            chosen[name] = seconds_of(str(content[name]), name)
    return RowFilter(**chosen)
