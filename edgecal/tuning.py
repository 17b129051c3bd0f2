"""Which numbers of threads read prompts and write tokens fastest here, measured in seconds.

Writing waits for memory, which few cores may fill (a Raspberry Pi 5 reads more with one thread than with four); reading
a prompt computes. All numbers are measured in turn, round after round, so that a machine that slows down slows all of
them, and the fewest threads within a few percent of the best are taken: what they leave free costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np

from edgecal_kernels import cpu

from .cache import KVCache
from .engine import Engine
from .errors import OptionError
from .text.counted import counted
from .threads import Threads

PROMPT, ANSWER = 128, 8  # tokens of a round
AS_GOOD = 1.03  # times the best: within what a repetition differs by
_LEAST_ROUNDS, _MOST_ROUNDS = 2, 7


@dataclass(frozen=True)
class Measured:
    """One number of threads: medians of the rounds."""

    threads: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True)
class Tuning:
    """`threads` is what was chosen out of `measured`."""

    threads: Threads
    measured: tuple[Measured, ...]
    rounds: int
    total_s: float


def candidates(usable: int, physical: int) -> list[int]:
    """The numbers worth trying: powers of two, the physical (big) cores, all cores."""
    powers = [2**i for i in range(usable.bit_length())]
    return sorted({n for n in (*powers, physical, usable) if 1 <= n <= usable})


def tune(
    engine: Engine, *, seconds: float = 20.0, progress: Callable[[int, int, str], None] | None = None
) -> Tuning:
    """Measure, choose, and set the engine's threads to what was chosen.

    Rounds are repeated for about `seconds`, two at least. `progress(done, total, name)` counts measurements of the
    rounds that are expected. OptionError on NumPy, whose BLAS has settings of its own, and for a time that is no
    positive number.
    """
    if engine.model.ops.NAME == "numpy":
        raise OptionError("the NumPy back end has no threads to tune, its BLAS has settings of its own")
    if not 0 < seconds < float("inf"):
        raise OptionError(f"seconds must be a positive number, found {seconds!r}")
    numbers = candidates(cpu.usable_cores(), cpu.physical_cores())
    limit = engine.model.config.max_position_embeddings
    answer = min(ANSWER, limit - 1)
    prompt = min(PROMPT, limit - answer)
    ids = np.random.default_rng(0).integers(0, engine.model.config.vocab_size, prompt)
    before, start = engine.threads, perf_counter()
    read: dict[int, list[float]] = {n: [] for n in numbers}
    write: dict[int, list[float]] = {n: [] for n in numbers}
    rounds, expected = 0, _MOST_ROUNDS
    try:
        _once(engine, ids, answer)  # loads the kernels
        while rounds < expected:
            for place, n in enumerate(numbers):
                engine.set_threads(n)
                reading, writing = _once(engine, ids, answer)
                read[n].append(reading)
                write[n].append(writing)
                if progress is not None:
                    progress(rounds * len(numbers) + place + 1, expected * len(numbers), counted(n, "thread"))
            rounds += 1
            affordable = int(seconds / ((perf_counter() - start) / rounds))
            expected = max(_LEAST_ROUNDS, rounds, min(_MOST_ROUNDS, affordable))
    except BaseException:
        engine.model.threads = before
        raise
    engine.model.threads = chosen = Threads(_fewest(write), _fewest(read))
    rates = (Measured(n, len(ids) / median(read[n]), answer / median(write[n])) for n in numbers)
    return Tuning(chosen, tuple(rates), rounds, perf_counter() - start)


def _once(engine: Engine, ids: np.ndarray, answer: int) -> tuple[float, float]:
    """Seconds to read the prompt, and to write `answer` tokens behind it."""
    cache = KVCache(engine.model.config, engine.cache_dtype)
    start = perf_counter()
    engine.model.forward(ids, cache)
    between = perf_counter()
    for i in range(answer):
        engine.model.forward(ids[i : i + 1], cache)
    return between - start, perf_counter() - between


def _fewest(times: dict[int, list[float]]) -> int:
    """The fewest threads whose median is as good as the best."""
    medians = {n: median(values) for n, values in times.items()}
    return min(n for n, value in medians.items() if value <= AS_GOOD * min(medians.values()))
