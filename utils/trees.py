"""Flattens nested sections of settings."""

from __future__ import annotations

from typing import Any


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns all values by dotted key, with tuples as lists."""
    out = {}
    for key, value in node.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = list(value) if isinstance(value, (list, tuple)) else value
    return out
