"""The HTML page: one file to send to a colleague, with every table and the plots, and nothing fetched from anywhere.

No script runs in it.
"""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import NDArray

from ..pages import plots
from ..pages.page import page, table, text_list
from . import tables
from .results import ProfileReport
from .split import ALL_PARTS, LABELS
from .statistics import median

_NEIGHBOURS = 2
_CALM = "Median over the repeats and over five neighbouring tokens"


def to_html(report: ProfileReport) -> str:
    """The whole page."""
    parts = [text_list("facts", tables.facts(report))]
    notes = [*report.notes, *(["interrupted: this is what was measured until then"] if report.interrupted else [])]
    if notes:
        parts.append("<h2>Notes</h2>" + text_list("notes", notes))
    names = [(method.name, i) for i, method in enumerate(report.methods)]
    parts.append(f"<h2>Plots</h2>{plots.legend(names)}<div class=grid-of-plots>{''.join(_plots(report))}</div>")
    for heading, make in tables.TABLES.items():
        header, body = make(report)
        if body:
            left = 2 if "case" in header else 1
            parts.append(f"<h2>{escape(heading)}</h2><div class=scroll>{table(header, body, left=left)}</div>")
    parts.append(f"<footer>edgecal {escape(report.version)}, {escape(report.when)}</footer>")
    return page(f"edgecal profile: {report.model.source}", parts)


def _plots(report: ProfileReport) -> list[str]:
    """Those that there is something to show in."""
    series, rows, by_depth = [], [], []
    for colour, method in enumerate(report.methods):
        for case in method.decodes[:1]:
            if case.runs:
                medians = np.median(np.array(case.runs), axis=0)
                points = [(case.depth + i, 1e3 * float(t)) for i, t in enumerate(_calm(medians))]
                series.append(plots.Series(method.name, points, colour))
                rows.append((method.name, [1e3 * t for run in case.runs for t in run], colour))
        depths = [(float(c.depth), 1e3 * latency.p50) for c in method.decodes if (latency := c.latency)]
        by_depth.append(plots.Series(method.name, sorted(depths), colour))
    several = len({x for s in by_depth for x, _ in s.points}) > 1
    first = _first(report)
    return [
        plots.lines("Latency per token", series, "position", "ms", f"{_CALM}; {first}.", dots=False),
        plots.histograms("Distribution", rows, "ms per token", "Marks: p50, p95, p99. Beyond p99.5: at the right."),
        plots.lines("Latency by depth", by_depth, "tokens of context", "ms", "Median.", dots=True) if several else "",
        plots.stacks("Where the time goes", _split(report), "ms per token", f"Mean of a token; {first}."),
        _roof(report),
        plots.stacks(
            "Peak memory", _memory(report), "MiB", "Resident, at the longest context; idle: loaded, nothing asked."
        ),
    ]


def _calm(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Medians of each token and its neighbours: with many methods in one plot, single tokens would hide one another."""
    padded = np.pad(steps, _NEIGHBOURS, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * _NEIGHBOURS + 1), axis=1)


def _first(report: ProfileReport) -> str:
    labels = {method.decodes[0].label for method in report.methods if method.decodes}
    return ", ".join(sorted(labels)) or "nothing written"


def _split(report: ProfileReport) -> list[tuple[str, list[tuple[str, float, int]]]]:
    return [
        (method.name, [(LABELS[p], 1e3 * case.split.parts.get(p, 0.0), i) for i, p in enumerate(ALL_PARTS)])
        for method in report.methods
        for case in method.decodes[:1]
        if case.split.steps
    ]


def _memory(report: ProfileReport) -> list[tuple[str, list[tuple[str, float, int]]]]:
    rows = []
    for method in report.methods:
        m = method.memory
        if m is not None:
            sizes = (("weights", m.weights), ("adapters", m.adapters), ("KV cache", m.kv_cache), ("rest", m.rest))
            rows.append((method.name, [(name, size / tables.MIB, i) for i, (name, size) in enumerate(sizes)]))
    idle, weights = report.idle_bytes, report.idle_weights
    if rows:
        rows.append(("idle", [("weights", weights / tables.MIB, 0), ("rest", (idle - weights) / tables.MIB, 3)]))
    return rows


def _roof(report: ProfileReport) -> str:
    points = []
    for colour, method in enumerate(report.methods):
        for case in method.decodes:
            point = method.point(report.model, case, report.reads)
            if point is not None:
                rate = point.operations / point.step_s / 1e9
                points.append((f"{method.name}, {case.label}", point.intensity, rate, colour))
    rates = [read.rate for read in report.reads]
    if not rates:
        return ""
    peak = max(report.peak_operations.values(), default=0) / 1e9
    return plots.roofline(
        "Roofline",
        points,
        median(rates) / 1e9,
        peak or None,
        "A point is a decoding step: what it computes by what it reads. The slope is the plain read of memory, the "
        "flat part the int8 product of these kernels with a weight that is in the cache.",
    )
