"""Benchmarks beside a yardstick: `paired` times both in turn, so that a ratio is left when the machine is not quiet.

Two yardsticks know nothing of edgecal's kernels: "core" is integer arithmetic that waits for nothing but the
processor's clock, "memory" a plain read of 64 MiB. A round is one call of the yardstick, then one of the benchmark.
`bench.ratios` compares the tenth percentiles of both: what a busy machine adds to a time is only ever added. Kernels
whose threads wait for each other lose far more by it than a yardstick that waits for nobody; on a machine that is never
quiet, NUMBA_NUM_THREADS=1 keeps the ratios within some per cent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numba
import numpy as np
import pytest

from edgecal_kernels.bandwidth import plain_read
from edgecal_kernels.cpu import detect_isa
from edgecal_kernels.threads import number_of_threads, use_threads

collect_ignore_glob = [] if find_spec("pytest_benchmark") else ["test_*.py"]
_STEPS, _WORDS = 400_000, (64 << 20) // 8


@lru_cache(maxsize=1)
def _core() -> Callable[[], Any]:
    @numba.njit
    def shift(steps: int) -> Any:
        x = np.uint64(88172645463325252)
        for _ in range(steps):
            x ^= x << np.uint64(13)
            x ^= x >> np.uint64(7)
            x ^= x << np.uint64(17)
        return x

    shift(1)
    return lambda: shift(_STEPS)


@lru_cache(maxsize=1)
def _memory() -> Callable[[], Any]:
    words, read = np.arange(1, _WORDS + 1, dtype=np.uint64), plain_read()
    return lambda: read(words)


YARDSTICKS = {"core": _core, "memory": _memory}


@pytest.fixture(autouse=True, scope="session")
def physical_cores() -> Iterator[None]:
    """Kernels that are called without a model take as many threads as those of a model."""
    with use_threads(number_of_threads()):
        yield


@pytest.fixture
def paired(benchmark: Any) -> Callable[..., None]:
    """`paired(function, times, beside="core")` benchmarks `times` calls of `function` in a row."""

    def run(function: Callable[[], Any], times: int, *, beside: str = "core", rounds: int = 40) -> None:
        yardstick, beats = YARDSTICKS[beside](), list[float]()

        def before() -> None:
            started = perf_counter()
            yardstick()
            beats.append(perf_counter() - started)

        def calls() -> None:
            for _ in range(times):
                function()

        benchmark.pedantic(calls, setup=before, rounds=rounds, warmup_rounds=2)
        quick, beat = (float(np.percentile(seconds, 10)) for seconds in (benchmark.stats.stats.data, beats))
        kind = f"{detect_isa()}, {number_of_threads()} threads"
        benchmark.extra_info.update(kind=kind, beside=beside, calls=times, ratio=quick / beat, yardstick_s=beat)

    return run
