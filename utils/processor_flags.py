"""What the processor can do, as the system says it."""

from __future__ import annotations

from pathlib import Path

INT8 = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm"}
"""Flags of instructions that multiply and add 8-bit integers in one step, on x86 and ARM."""


def processor_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Returns the processor's flags; none where the system does not list them."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    listed = (line.partition(":") for line in lines)
    rows = (flags for name, _, flags in listed if name.strip() in ("flags", "Features"))
    return frozenset(flag for flags in rows for flag in flags.split())


def lacks_int8(flags: frozenset[str]) -> bool:
    """Returns whether the processor is known to have no instructions for 8-bit products."""
    return bool(flags) and not flags & INT8
