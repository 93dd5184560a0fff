"""Where a result comes from: commit, library versions and machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from utils.distributed import world_size


def commit() -> str:
    """The checkout's commit, with a mark when files differ from it; '' where there is no git."""
    here = Path(__file__).parent
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


def machine(device) -> str:
    """What a process computes on: the GPU's name, or cores and architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} cores {platform.machine()}"


def environment(device: torch.device) -> dict[str, str]:
    """What computed: versions of the parts that change numbers, system and machine."""
    libraries = ("torch", "torchvision", "timm", "open_clip", "numpy", "PIL")
    return {
        "python": platform.python_version(),
        **{name: sys.modules[name].__version__ for name in libraries if name in sys.modules},
        "system": platform.platform(terse=True),
        "device": f"{world_size()} x {machine(device)}, {torch.get_num_threads()} threads",
    }
