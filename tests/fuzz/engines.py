"""The two searches for harmful inputs: libFuzzer's by coverage (atheris), and one by outcomes, which needs nothing."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .target import corpus, find

_LONGEST = 1 << 16  # bytes of an input
_SLACK = 4.0  # instrumented code is slower
_HOURS = 7200  # of the clock for one input: the judge counts the processor's time, which a stopped process spends not

Found = Callable[[bytes, Any], None]
"""Told of an input and its verdict where there is a fault."""


def by_outcome(name: str, seconds: float, seed: int, found: Found) -> int:
    """Mutate what is in the pool; what ends as nothing did before joins it. Returns the number of inputs."""
    from .judge import Judge

    rng, target, runs = random.Random(seed), find(name), 0
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(target, Path(folder))
        pool, outcomes = [*judge.seeds, *(path.read_bytes() for path in corpus(name))], set()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            data = target.mutate(rng.choice(pool), rng)[:_LONGEST] if runs >= len(pool) else pool[runs]
            verdict = judge(data)
            runs += 1
            if verdict.fault is not None:
                found(data, verdict)
            elif verdict.outcome not in outcomes:
                pool.append(data)
            outcomes.add(verdict.outcome)
    return runs


def by_coverage(name: str, seconds: float, seed: int, found: Found) -> None:
    """Hand over to libFuzzer, which ends the process when the time is over and prints its figures on stderr."""
    import atheris  # type: ignore[import-not-found,unused-ignore]

    with atheris.instrument_imports(include=["edgecal", "edgecal_weights", "jinja2", "yaml"]):
        target = find(name)
        from .judge import Judge

    folder = Path(tempfile.mkdtemp())
    judge, pool = Judge(target, folder, _SLACK), folder.parent / f"{folder.name}-pool"
    pool.mkdir()
    for index, data in enumerate([*judge.seeds, *(path.read_bytes() for path in corpus(name))]):
        (pool / f"seed-{index}").write_bytes(data)

    def one(data: bytes) -> None:
        verdict = judge(data)
        if verdict.fault is not None:
            found(data, verdict)

    def mutate(data: bytes, limit: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            changed: bytes = atheris.Mutate(data, limit)
            return changed
        return target.mutate(data, rng)[:limit]

    options = [f"-max_total_time={int(seconds)}", f"-max_len={_LONGEST}", f"-seed={seed}", f"-timeout={_HOURS}"]
    options += ["-rss_limit_mb=4096", "-print_final_stats=1", f"-artifact_prefix={folder}/", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(pool)], one, custom_mutator=mutate)
    atheris.Fuzz()
