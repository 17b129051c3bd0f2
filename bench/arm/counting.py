"""Executed instructions per token, by class, under emulation.

qemu-user runs a program for aarch64 and a plugin counts what it executes. A program marks the border between two parts
of its work with the system call getpriority, at which the plugin prints what ran since the mark before: guest.py
(edgecal) and llama_count.c (llama.cpp) do the same work between the same marks. Counts do not depend on the machine
that emulates, and every part is one thread.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

CLASSES = ("dot", "dot by element", "mmla", "simd load or store", "other simd", "rest")
_MARK = re.compile(r"^mark (\d+):")
_CLASS = re.compile(rf"\b({'|'.join(CLASSES)}) (\d+)")
Counts = Mapping[str, float]


def parse_marks(lines: Iterable[str]) -> list[dict[str, int]]:
    """What the plugin printed at each mark, by class; lines of other programs are passed over."""
    found = []
    for line in lines:
        if _MARK.match(line):
            counts = {name: int(n) for name, n in _CLASS.findall(line)}
            if set(counts) != set(CLASSES):
                raise SystemExit(f"error: the plugin should count {', '.join(CLASSES)}; it said {line.strip()[:200]}")
            found.append(counts)
    return found


def per_token(marks: Sequence[Mapping[str, int]], prompt: int, decode: int) -> dict[str, dict[str, float]]:
    """Of the three marks of a program: {"prefill": instructions per token by class, "decode": ...}."""
    if len(marks) != 3:
        raise SystemExit(f"error: three marks were expected of a program, {len(marks)} came; did it end early?")
    parts = {"prefill": (marks[1], prompt), "decode": (marks[2], decode)}
    return {part: {name: n / tokens for name, n in counts.items()} for part, (counts, tokens) in parts.items()}


def simd(counts: Counts) -> float:
    """All but `rest`."""
    return sum(n for name, n in counts.items() if name != "rest")


def run(command: Sequence[str], plugin: Path, environment: Mapping[str, str]) -> tuple[list[dict[str, int]], int]:
    """The marks of a program under emulation, and the token that it printed as its last: the engines should agree."""
    settings = {**os.environ, **environment, "QEMU_PLUGIN": f"file={plugin.resolve()}"}
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"error: {' '.join(command)[:300]} failed: {done.stderr.strip()[-600:]}")
    return parse_marks(done.stderr.splitlines()), int(done.stdout.split()[-1])


def edgecal_command(machine: Path, cpu: str, model: Path, prompt: int, decode: int) -> list[str]:
    """guest.py in the Python that tests/arm/setup.sh unpacked into `machine`."""
    python = str(machine / "root/usr/bin/python")
    guest = [python, "-m", "bench.arm.guest", str(model.resolve()), str(prompt), str(decode)]
    return ["qemu-aarch64", "-cpu", cpu, "-L", str(machine / "root"), *guest]


def edgecal_environment(machine: Path, ready: Path) -> dict[str, str]:
    root = Path(__file__).parent.parent.parent
    path = [root, root / "kernels", root / "weights", machine / "packages"]
    return {
        "PYTHONHOME": str(machine / "root/usr"),
        "PYTHONPATH": os.pathsep.join(str(place.resolve()) for place in path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "EDGECAL_BACKEND": "ready",
        "EDGECAL_READY": str(ready.resolve()),
        "OPENBLAS_NUM_THREADS": "1",
    }


def llama_command(program: Path, cpu: str, model: Path, prompt: int, decode: int) -> list[str]:
    return ["qemu-aarch64", "-cpu", cpu, str(program), "count", str(model), str(prompt), str(decode)]
