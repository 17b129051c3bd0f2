"""Two profiles: changes beyond the noise, and what cannot be compared."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

from edgecal.errors import OptionError
from edgecal.profile import compare
from edgecal.profile.results import DecodeCase


def steady(report, factor=1.0, repeats=8, spread=0.01):
    """The report with made-up timings: a step takes `factor` ms, give or take `spread`."""
    made = copy.deepcopy(report)
    for method in made.methods:
        method.compile_s = [1e-3] * repeats
        for case in method.decodes:
            steps = [1e-3 * factor * (1 + spread * (i % 3 - 1)) for i in range(repeats)]
            case.runs = [[s] * case.new for s in steps]
            case.write_s = [s * case.new for s in steps]
        for case in method.prompts:
            case.read_s = case.first_token_s = [0.01] * repeats
    made.reads = []
    return made


def test_the_same_is_the_same(report):
    result = compare(steady(report), steady(report))
    assert result.regressions == [] and {c.verdict for c in result.changes} == {"same"} and result.notes == []
    figures = {change.figure for change in result.changes if change.method == "linear"}
    assert any("write 12" in f for f in figures) and any("p95" in f for f in figures)
    assert any("first token" in f for f in figures) and any("peak memory" in f for f in figures)
    json.dumps(result.to_dict(), allow_nan=False)


def test_slower_beyond_the_threshold_is_a_regression(report):
    worse = compare(steady(report), steady(report, 1.2))
    assert {c.verdict for c in worse.changes if "write" in c.figure} == {"worse"}
    change = worse.regressions[0]
    assert change.ratio.value == pytest.approx(1.2, rel=0.02) and change.ratio.low > 1.1
    better = compare(steady(report, 1.2), steady(report))
    assert better.regressions == [] and any(c.verdict == "better" for c in better.changes)
    assert compare(steady(report), steady(report, 1.2), threshold=0.5).regressions == []
    assert compare(steady(report), steady(report, 1.03)).regressions == [], "below the threshold"


def test_noise_is_no_regression(report):
    """8 % slower by the medians, with repeats that differ by 60 %: not significant."""
    noisy = compare(steady(report, spread=0.6), steady(report, 1.08, spread=0.6))
    assert noisy.regressions == []


def test_memory_counts(report):
    more = steady(report)
    memory = more.methods[0].memory
    more.methods[0].memory = replace(memory, peak=int(memory.peak * 1.3))
    result = compare(steady(report), more)
    assert [(c.method, c.unit) for c in result.regressions] == [("base", "B")]


def test_too_few_repeats_are_not_judged(report):
    result = compare(steady(report, repeats=2), steady(report, 3.0, repeats=2))
    assert result.regressions == [] and any("fewer than 3 repeats" in note for note in result.notes)
    assert {c.verdict for c in result.changes if c.unit == "s"} == {"unsure"}


def test_another_model_is_refused(report):
    other = steady(report)
    other.model = replace(other.model, hidden_size=128, source="other")
    with pytest.raises(OptionError, match="B about other: hidden_size 64 and 128"):
        compare(steady(report), other)


def test_nothing_in_common_is_refused(report):
    other = steady(report)
    for method in other.methods:
        method.name += " too"
    with pytest.raises(OptionError, match="no measurement in common: their methods are base, linear"):
        compare(steady(report), other)
    with pytest.raises(OptionError, match="the threshold"):
        compare(report, report, threshold=-1)


def test_what_makes_it_doubtful_is_said(report):
    a, b = steady(report), steady(report)
    b.machine = {**b.machine, "cpu": "another"}
    b.model = replace(b.model, formats={"int4": 1})
    b.methods[0].decodes.append(DecodeCase(1, 99, 0, [[1.0]], [99.0]))
    b.methods = b.methods[:3]
    b.interrupted = True
    notes = "\n".join(compare(a, b, names=("old", "new")).notes)
    for part in (
        "different machines",
        "and another",
        "different weights: int8",
        "new was interrupted",
        "two only in old",
    ):
        assert part in notes
    assert "different lengths" in notes and "write 99" in notes


def test_a_machine_that_became_slower_is_said(report):
    a, b = copy.deepcopy(report), copy.deepcopy(report)
    b.reads = [replace(read, read_s=2 * read.read_s) for read in b.reads]
    assert any("the plain read of memory" in note for note in compare(a, b).notes)
