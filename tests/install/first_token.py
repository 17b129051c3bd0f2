"""Seconds from starting `edgecal demo` to the first token of its answer, the median of five: first_token.py COMMAND...

Only the standard library."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

HEADING = b"Summarize the following text"


def measure(command: list[str]) -> float:
    began, said, took = time.perf_counter(), b"", 0.0
    with subprocess.Popen([*command, "demo", "-n", "2"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as demo:
        assert demo.stdout is not None
        while piece := demo.stdout.read1():
            said += piece
            answer = said.partition(HEADING)[2].partition(b"\n")[2]
            if answer.strip() and not took:
                took = time.perf_counter() - began
    if demo.returncode or not took:
        raise SystemExit(f"first_token.py: exit code {demo.returncode}, found {said[-300:]!r}")
    return took


if __name__ == "__main__":
    measure(sys.argv[1:])  # files are read from disk, and Python writes what it compiled
    print(f"{statistics.median(measure(sys.argv[1:]) for _ in range(5)):.2f}")
