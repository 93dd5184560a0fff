"""What a model's name says about its family."""

from __future__ import annotations


def is_clip(name: str) -> bool:
    """Whether MODEL.NAME is a CLIP: upstream's names (ViT-B-16, RN50), others of that form, or open_clip:NAME.

    ``configs.loader`` has the same rule for the schedule, since it imports nothing of ours.
    """
    return name.startswith(("ViT-", "RN", "open_clip:"))
