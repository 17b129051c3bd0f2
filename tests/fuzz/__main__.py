"""The command: see the package's docstring. Exit code 1 where a fault was found; `--out` gets the inputs."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import engines
from .target import names


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them unless some are named")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target (default: 1)")
    parser.add_argument("--engine", choices=("auto", "coverage", "outcome"), default="auto")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"), help="where harmful inputs are put")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the figures of each target, a line each")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.list:
        print(*names(), sep="\n")
        return 0
    if unknown := set(asked.targets) - set(names()):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    if asked.child:
        _search(asked.targets[0], asked)
        return 0
    if asked.engine == "auto":
        asked.engine = "coverage" if importlib.util.find_spec("atheris") else "outcome"
    faulty = [_target(name, asked) for name in asked.targets or names()]
    return int(any(faulty))


def _target(name: str, asked: Any) -> bool:
    """Search in a process of its own, which a crash may take along; whether there was a fault."""
    options = ["--child", "--engine", asked.engine, "--minutes", str(asked.minutes), "--seed", str(asked.seed)]
    command = [sys.executable, "-m", "tests.fuzz", name, *options, "--out", str(asked.out)]
    before, started = _findings(asked.out, name), time.monotonic()
    try:
        patience = _patience(asked.minutes)
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=patience)
        said, ended = done.stderr + done.stdout, f"ended with {done.returncode}"
    except subprocess.TimeoutExpired as error:
        said, ended = (error.stderr or b"").decode("utf-8", "replace"), "came to no end"
    seconds = time.monotonic() - started
    runs = re.search(r"(?:number_of_executed_units|inputs): *(\d+)", said)
    found = sorted(_findings(asked.out, name) - before)
    crashed = ended != "ended with 0" or runs is None
    if crashed:
        print(f"{name}: the process {ended}\n{said[-3000:]}", file=sys.stderr)
    figures = {"target": name, "engine": asked.engine, "seed": asked.seed, "seconds": round(seconds, 1)}
    figures |= {"inputs": int(runs[1]) if runs else 0, "faults": len(found) + crashed}
    print(json.dumps(figures), flush=True)
    if asked.json is not None:
        with asked.json.open("a") as file:
            file.write(json.dumps(figures) + "\n")
    return bool(found) or crashed


def _patience(minutes: float) -> float:
    """Seconds of the clock after which a search hangs, on a machine that may be busy or stopped for a while."""
    return 600 + 300 * minutes


def _findings(folder: Path, name: str) -> set[Path]:
    return set((folder / name).glob("*.txt"))


def _search(name: str, asked: Any) -> None:
    """One finding of each kind is written: the input, and what is wrong with it as text."""
    folder, kinds = asked.out / name, set[str]()

    def found(data: bytes, verdict: Any) -> None:
        if verdict.outcome in kinds:
            return
        kinds.add(verdict.outcome)
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / hashlib.sha256(verdict.outcome.encode()).hexdigest()[:12]
        place.write_bytes(data)
        place.with_suffix(".txt").write_text(f"{verdict.fault}\n\n{verdict.details}", errors="backslashreplace")
        print(f"{name}: {verdict.fault} ({place})", file=sys.stderr, flush=True)

    seconds = 60 * asked.minutes
    if asked.engine == "coverage":
        engines.by_coverage(name, seconds, asked.seed, found)
    else:
        print(f"inputs: {engines.by_outcome(name, seconds, asked.seed, found)}")


if __name__ == "__main__":
    sys.exit(main())
