"""Describes where a result comes from: commit, library versions and machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from utils.distributed import world_size

BUILT_FROM = "COMMIT"
"""File beside the packages of an installed wheel."""


def commit() -> str:
    """Returns the checkout's commit, with a ``+`` if files differ from it; '' without git.

    An installed package has a file that names the commit that it was built from.
    """
    here = Path(__file__).parent
    try:
        return (here.parent / BUILT_FROM).read_text(encoding="utf-8").strip()
    except OSError:
        pass
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if dirty.strip() else "")


def machine(device: torch.device) -> str:
    """Returns what a process computes on: the GPU's name, or cores and architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} cores {platform.machine()}"


def environment(device: torch.device) -> dict[str, str]:
    """Returns the versions of the libraries that affect numbers, the system and the machine."""
    libraries = ("torch", "torchvision", "timm", "open_clip", "numpy", "PIL")
    return {
        "python": platform.python_version(),
        **{name: sys.modules[name].__version__ for name in libraries if name in sys.modules},
        "system": platform.platform(terse=True),
        "device": f"{world_size()} x {machine(device)}, {torch.get_num_threads()} threads",
    }
