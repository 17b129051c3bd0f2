"""Numbers about many timings: percentiles, jitter, and how sure a ratio is.

Percentiles interpolate linearly between the two nearest ranks (NumPy's default). The p99 of fewer than a hundred
values is close to the largest; it is given all the same, with the number of values beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

RESAMPLES = 4000
CONFIDENCE = 0.99
FEWEST = 3  # repeats on each side, below which an interval would say nothing


@dataclass(frozen=True)
class Summary:
    """Of `n` timings, in seconds. `jitter` is the mean absolute difference between neighbours in time."""

    n: int
    mean: float
    std: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    jitter: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def summarize(runs: Sequence[Sequence[float]]) -> Summary | None:
    """All timings of all runs; jitter within a run only. None where there are none. std has n - 1 below."""
    values = np.array([value for run in runs for value in run], np.float64)
    if not len(values):
        return None
    steps = [abs(b - a) for run in runs for a, b in pairwise(run)]
    p50, p90, p95, p99 = np.percentile(values, (50, 90, 95, 99))
    return Summary(
        n=len(values),
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        p50=float(p50),
        p90=float(p90),
        p95=float(p95),
        p99=float(p99),
        max=float(values.max()),
        jitter=float(np.mean(steps)) if steps else 0.0,
    )


def median(values: Sequence[float]) -> float:
    """NaN for none."""
    return float(np.median(values)) if len(values) else float("nan")


@dataclass(frozen=True)
class Ratio:
    """median(after) / median(before), with a bootstrap interval; low and high are None with too few repeats."""

    value: float
    low: float | None
    high: float | None


def ratio_of_medians(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Ratio:
    """The percentile bootstrap: both sides drawn again with replacement, `CONFIDENCE` of the ratios inside.

    It knows the noise within the two runs and nothing of what differed between them (another load on the machine).
    """
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    value = float(np.median(b) / np.median(a))
    if min(len(a), len(b)) < FEWEST:
        return Ratio(value, None, None)
    rng = np.random.default_rng(seed)
    first = np.median(rng.choice(a, (RESAMPLES, len(a))), axis=1)
    second = np.median(rng.choice(b, (RESAMPLES, len(b))), axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(second / first, (tail, 100 - tail))
    return Ratio(value, float(low), float(high))
