"""Memory of this process, as the operating system counts it, in bytes: what it has, and what it may have.

A memory-mapped file counts as far as its pages were touched: what a user of a small machine has to have free.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

from edgecal_kernels.control_groups import lines, places

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


@dataclass(frozen=True)
class Room:
    """`nbytes` more may be taken; `where` says who grants that, as the end of a sentence."""

    nbytes: int
    where: str


def room(root: Path = Path("/")) -> Room | None:
    """The least of what the machine has free, what control groups leave, and what the process's own limits leave.

    Pages of files count as free: the kernel drops them when memory is wanted. Swap does not: weights that are read for
    every token do not run from there. None where nothing tells. `root` is where proc and sys are.
    """
    free = meminfo(root).get("MemAvailable")
    rooms = [] if free is None else [Room(free, "are free on this machine")]
    for place, version in places(root, "memory"):
        left = _left_v2(place) if version == 2 else _left_v1(place)
        if left is not None:
            rooms.append(Room(left, "are left by the control group of this process (a container's memory limit)"))
    rooms += _own_limits(root)
    return min(rooms, key=lambda found: found.nbytes, default=None)


def _left_v2(group: Path) -> int | None:
    return _left(group, "memory.max", "memory.current", ("inactive_file", "active_file"))


def _left_v1(group: Path) -> int | None:
    files = ("total_inactive_file", "total_active_file")
    return _left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", files)


def _left(group: Path, limit: str, usage: str, files: tuple[str, str]) -> int | None:
    """None where there is no limit: "max", or a number beyond any machine."""
    most, used = (" ".join(lines(group / name)).strip() for name in (limit, usage))
    if not (most.isdecimal() and used.isdecimal()) or int(most) >= 1 << 60:
        return None
    counted = dict(line.split(" ", 1) for line in lines(group / "memory.stat") if " " in line)
    cached = sum(int(value) for name in files if (value := counted.get(name, "").strip()).isdecimal())
    return max(0, int(most) - max(0, int(used) - cached))


def _own_limits(root: Path) -> list[Room]:
    """Of `ulimit -v` and `ulimit -d`."""
    try:
        import resource
    except ImportError:  # not a Unix
        return []
    status = dict(line.split(":", 1) for line in lines(root / "proc/self/status") if ":" in line)
    found = []
    for kind, field, option in ((resource.RLIMIT_AS, "VmSize", "-v"), (resource.RLIMIT_DATA, "VmData", "-d")):
        most, used = resource.getrlimit(kind)[0], status.get(field, "").split()[:1]
        if most != resource.RLIM_INFINITY and used and used[0].isdecimal():
            left = max(0, most - int(used[0]) * 1024)
            found.append(Room(left, f"are left by the limit of this process (ulimit {option})"))
    return found


def meminfo(root: Path) -> dict[str, int]:
    """Bytes by name."""
    found = {}
    for line in lines(root / "proc/meminfo"):
        words = line.split()
        if len(words) > 1 and words[1].isdecimal():
            found[words[0].rstrip(":")] = int(words[1]) * 1024
    return found
