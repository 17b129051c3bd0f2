"""Percentiles are NumPy's, jitter is a mean of differences, an interval holds what it should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecal.profile.statistics import CONFIDENCE, median, ratio_of_medians, summarize

RUNS = st.lists(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20), min_size=1, max_size=5)


@given(RUNS)
def test_percentiles_are_numpys(runs):
    summary, flat = summarize(runs), np.concatenate(runs)
    assert summary is not None and summary.n == len(flat)
    for name, percent in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99), ("max", 100)):
        assert getattr(summary, name) == np.percentile(flat, percent)
    assert summary.mean == flat.mean()
    assert summary.std == (flat.std(ddof=1) if len(flat) > 1 else 0)
    assert summary.p50 <= summary.p90 <= summary.p95 <= summary.p99 <= summary.max


def test_jitter_stays_within_a_run():
    assert summarize([[1.0, 2.0, 4.0], [100.0, 101.0]]).jitter == pytest.approx((1 + 2 + 1) / 3)
    assert summarize([[3.0]]).jitter == 0
    assert summarize([[], []]) is None and np.isnan(median([]))


def test_an_interval_needs_repeats():
    assert ratio_of_medians([1.0, 1.0], [2.0, 2.0, 2.0]).low is None
    exact = ratio_of_medians([1.0] * 3, [2.0] * 3)
    assert (exact.value, exact.low, exact.high) == (2, 2, 2)


def test_noise_alone_is_rarely_called_a_change(rng):
    """Of 200 pairs of equal runs at most 5 % have an interval without 1 (nominally 1 %; ten repeats are few)."""
    outside = 0
    for i in range(200):
        a, b = rng.lognormal(0, 0.1, 10), rng.lognormal(0, 0.1, 10)
        ratio = ratio_of_medians(a, b, seed=i)
        outside += not ratio.low <= 1 <= ratio.high
    assert CONFIDENCE == 0.99 and outside <= 10


def test_a_real_change_is_found(rng):
    ratio = ratio_of_medians(rng.normal(1, 0.02, 10), rng.normal(1.2, 0.02, 10))
    assert 1.1 < ratio.low < ratio.value < ratio.high < 1.3
