"""Device, precision and random numbers of a run."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from utils.distributed import local_rank, rank
from utils.errors import UserError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """Returns the device; ``auto`` is a GPU if there is one, else the CPU. Raises ``UserError`` if it is absent."""
    name = name.lower()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"MODEL.DEVICE: unknown device {name!r}; use auto, cpu or cuda") from None
    if device.type == "meta":
        raise UserError("MODEL.DEVICE: 'meta' computes nothing; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("MODEL.DEVICE: 'cuda' needs a GPU, and none is visible here; use 'auto' or 'cpu'")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank() % torch.cuda.device_count())
        torch.cuda.set_device(device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:  # torch was built without it
        reason = str(error).split("\n")[0]
        raise UserError(f"MODEL.DEVICE: {name!r} cannot be used here ({reason}); use 'auto' or 'cpu'") from None
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Returns the type of computation; ``auto`` is fp16 (with a gradient scaler) on a GPU, fp32 on a CPU."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UserError(f"SOLVER.PRECISION: unknown {name!r}. Known: auto, {', '.join(DTYPES)}")
    if name == "fp16" and device.type == "cpu":
        raise UserError("SOLVER.PRECISION: 'fp16' needs a GPU; on a CPU use 'bf16' or 'fp32'")
    return DTYPES[name]


@contextmanager
def quick_attention(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Makes attention use its faster implementation on the device, forward and backward, inside the context.

    On a CPU in bf16 that is matrix products: the fused kernel's backward takes several times as long at the lengths
    of ReID (``benchmarks/train_step.py`` measures it). Everywhere else nothing changes.
    """
    if device.type != "cpu" or dtype != torch.bfloat16:
        yield
        return
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # named after cuda, but CPUs obey it too
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)


def seed_everything(seed: int) -> None:
    """Seeds all random number generators and selects deterministic kernels where they exist."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # nothing here reads memory that it did not write
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue] - no stub
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")


def random_states() -> dict[str, Any]:
    """Returns all random states of this process, in values that a weights-only read accepts."""
    state = np.random.get_state(legacy=False)
    assert isinstance(state, dict), "not the legacy form"
    keys = torch.from_numpy(state["state"]["key"].astype(np.int64))
    states = {
        "python": random.getstate(),
        "numpy": [state["bit_generator"], keys, state["state"]["pos"], state["has_gauss"], state["gauss"]],
        "torch": torch.get_rng_state(),
        "rank": rank(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


@contextmanager
def python_random_kept() -> Iterator[None]:
    """Gives Python's random state back as it was on entry.

    For work that draws no numbers but may import a library: some draw from that state when they are imported (rich,
    which scikit-learn imports), and a resumed run imports them at another moment.
    """
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def restore_random_states(states: dict[str, Any]) -> None:
    """Restores what ``random_states`` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
