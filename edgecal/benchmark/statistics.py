"""Means with intervals, and differences between methods on the same examples.

Bootstrap over examples (Efron 1979), percentile intervals of 95 %, from a seed: the same results on every machine. For
a difference the pairs are drawn, so that what makes an example hard for every method cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` examples, and the interval that holds it in 95 of 100 draws."""

    mean: float
    low: float
    high: float
    n: int


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """ValueError without values."""
    array = np.asarray(values, np.float64)
    if not array.size:
        raise ValueError("no values")
    low, high = np.percentile(_means(array, seed), [2.5, 97.5])
    return Estimate(float(array.mean()), float(low), float(high), array.size)


def difference(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Estimate:
    """Of a - b, pair by pair. ValueError where the lengths differ."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values and {len(b)}: pairs are needed")
    return estimate(np.asarray(a, np.float64) - np.asarray(b, np.float64), seed)  # type: ignore[arg-type]


def _means(values: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    means = np.empty(DRAWS)
    for start in range(0, DRAWS, 250):  # of 10,000 examples, 20 MB at a time
        stop = min(start + 250, DRAWS)
        means[start:stop] = values[rng.integers(0, values.size, (stop - start, values.size))].mean(axis=1)
    return means
