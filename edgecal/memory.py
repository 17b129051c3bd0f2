"""Resident memory of this process, as the operating system counts it, in bytes.

A memory-mapped file counts as far as its pages were touched: what a user of a small machine has to have free.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def _status(field: str) -> int | None:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def peak_resident() -> int:
    """Largest resident size since the start, or since `reset_peak`."""
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def resident() -> int:
    """Resident size now; the peak where the system does not tell."""
    return _status("VmRSS") or peak_resident()


def release_free() -> None:
    """Give heap pages that are free back to the system, where the C library can (glibc keeps them otherwise).

    Worth it after loading: a tokenizer's JSON is three times its own size while it is read.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> bool:
    """Start a new peak at today's size; False where the system has no such thing (only Linux does)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
