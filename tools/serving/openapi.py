"""The interface's description, for clients that are generated."""

from __future__ import annotations

from typing import Any

from tools.serving.limits import Limits

NUMBERS = {"type": "array", "items": {"type": "number"}}
TEXTS = {"type": "array", "items": {"type": "string"}}


def document(limits: Limits) -> dict[str, Any]:
    """Returns the OpenAPI document of the routes that programs use."""
    images = {
        "type": "array", "items": {"type": "string", "format": "byte"}, "maxItems": limits.images,
        "description": "Image files in base64.",
    }  # fmt: skip
    moment = {"type": ["number", "string"], "description": "Seconds, or a date and time."}
    chosen = {"camera": TEXTS, "identity": TEXTS, "source": TEXTS, "seq": TEXTS, "since": moment, "until": moment}
    query = {
        "images": images, "features": {"type": "array", "items": NUMBERS}, "text": TEXTS,
        "k": {"type": "integer", "minimum": 1, "maximum": limits.longest, "default": 10},
        "exact": {"type": "boolean"}, **chosen,
    }  # fmt: skip
    rows = {"images": images, "identity": TEXTS, "camid": TEXTS, "seq": TEXTS, "time": NUMBERS}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Lineup", "version": "1", "description": "Re-identification: features, search, decisions."},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
        "paths": {
            "/embed": {"post": operation("Returns the unit feature of each image.", {"images": images}, True)},
            "/search": {"post": operation("Returns the nearest rows of each query.", query, True)},
            "/verify": {"post": operation("Returns the probability that two images match.", {"images": images})},
            "/gallery": {
                "post": operation("Adds images to the store. The images are not kept.", rows, True),
                "delete": operation("Erases the rows that match, from answers and files.", chosen),
            },
            "/healthz": {"get": answer("Says that the service runs; needs no token.") | {"security": []}},
            "/metrics": {"get": answer("Returns counts and times as Prometheus reads them.")},
        },
    }  # fmt: skip


def answer(summary: str) -> dict[str, Any]:
    """Returns what every operation has: its purpose and its statuses."""
    words = {
        "200": "The answer.", "400": "What is wrong, in one line.", "401": "No token, or another one.",
        "408": "The request was not sent in time.", "413": "The request is too large.",
        "422": "An image cannot be read.", "429": "Too many requests at once; Retry-After says when to try again.",
        "503": "The gallery does not answer.",
    }  # fmt: skip
    return {"summary": summary, "responses": {code: {"description": text} for code, text in words.items()}}


def operation(summary: str, properties: dict[str, Any], image: bool = False) -> dict[str, Any]:
    """Returns an operation with a JSON object as its body. image: or with an image file."""
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object", "properties": properties}}}
    if image:
        content["image/*"] = {"schema": {"type": "string", "format": "binary"}}
    return answer(summary) | {"requestBody": {"required": True, "content": content}}
