"""What MODEL.NAME says about a network: a user's backbone, a CLIP, or one of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BACKBONES: dict[str, Callable[[Any, int, int], Any]] = {}
"""Backbones from outside the repository: name -> function of (cfg, camera_num, view_num) that builds one.

``model.register_backbone`` adds to it. A registered name is never taken for one of ours or of CLIP's.
"""


def is_clip(name: str) -> bool:
    """Returns whether MODEL.NAME is a CLIP: upstream's names (ViT-B-16, RN50), others like them, or open_clip:NAME."""
    return name not in BACKBONES and name.startswith(("ViT-", "RN", "open_clip:"))


def is_msvit(name: str) -> bool:
    """Returns whether MODEL.NAME is an MSViT (msvit_s, msvit_l)."""
    return name not in BACKBONES and name.startswith("msvit_")
