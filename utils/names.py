"""What a model's name says about its family."""

from __future__ import annotations


def is_clip(name: str) -> bool:
    """Returns whether MODEL.NAME is a CLIP: upstream's names (ViT-B-16, RN50), others like them, or open_clip:NAME."""
    return name.startswith(("ViT-", "RN", "open_clip:"))
