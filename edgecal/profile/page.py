"""The HTML page: one file to send to a colleague, with every table and the plots, and nothing fetched from anywhere.

No script runs in it (a content security policy says so to the browser as well): the names of methods and files come
from whoever made the profile, and are text here and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from . import plots, tables
from .results import ProfileReport
from .split import ALL_PARTS, LABELS
from .statistics import median

_STYLE = """
:root { --back: #fff; --text: #1b1f24; --dim: #5b6572; --line: #d9dee4; --card: #f6f8fa; --strong: #000;
  --c0: #2a6fdb; --c1: #d9622b; --c2: #2f9e57; --c3: #8a4fd3; --c4: #c22f5c; --c5: #178a9c; --c6: #b58900;
  --c7: #6b7785; --c8: #5fa8f5; --c9: #f09a64; --c10: #78c48f; --c11: #c29bf0; --c12: #a9b2bd; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171b; --text: #e4e8ec; --dim: #98a3af; --line: #323a43; --card: #1b2026; --strong: #fff;
  --c0: #5b9bff; --c1: #ff8f57; --c2: #56c983; --c3: #b283ff; --c4: #ff6b93; --c5: #43c0d4; --c6: #e0b93b;
  --c7: #8e9aa8; --c8: #2f68b8; --c9: #a85a2c; --c10: #2f7d4b; --c11: #6f48ab; --c12: #545f6b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1320px; background: var(--back); color: var(--text);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 8px; } h2 { font-size: 1.05rem; margin: 26px 0 8px; }
ul.facts, ul.notes { margin: 0; padding-left: 18px; color: var(--dim); overflow-wrap: anywhere; }
ul.notes { color: var(--text); }
.grid-of-plots { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 350px), 1fr));
  margin-top: 16px; }
figure { margin: 0; padding: 10px; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figcaption { font-weight: 600; margin-bottom: 4px; }
figure p { margin: 6px 0 0; color: var(--dim); font-size: .82rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--dim); font-size: 11.5px; } svg text.label { fill: var(--text); }
.grid { stroke: var(--line); stroke-width: 1; } .axis { stroke: var(--dim); stroke-width: 1; }
.l { fill: none !important; stroke-width: 1.6; stroke-linejoin: round; }
.roof { fill: none; stroke: var(--strong); stroke-width: 2; }
.mark { stroke: var(--strong); stroke-width: 1.2; }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 3px 12px; padding: 0; margin: 6px 0 0;
  font-size: .82rem; color: var(--dim); overflow-wrap: anywhere; }
ul.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 9px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--back); }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 110px; max-width: 220px; }
th { color: var(--dim); font-weight: 600; }
footer { margin-top: 24px; color: var(--dim); font-size: .82rem; }
"""
_COLOURS = "".join(
    f".s{i} {{ fill: var(--c{i}); stroke: none; }} .l.s{i} {{ stroke: var(--c{i}); }} "
    f"i.s{i} {{ background: var(--c{i}); }}\n"
    for i in range(plots.COLOURS)
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def to_html(report: ProfileReport) -> str:
    """The whole page."""
    title = f"edgecal profile: {report.model.source}"
    parts = [
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title><style>{_STYLE}{_COLOURS}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        _list("facts", tables.facts(report)),
    ]
    notes = [*report.notes, *(["interrupted: this is what was measured until then"] if report.interrupted else [])]
    if notes:
        parts.append("<h2>Notes</h2>" + _list("notes", notes))
    names = [(method.name, i) for i, method in enumerate(report.methods)]
    parts.append(f"<h2>Plots</h2>{plots.legend(names)}<div class=grid-of-plots>{''.join(_plots(report))}</div>")
    for heading, make in tables.TABLES.items():
        header, body = make(report)
        if body:
            parts.append(f"<h2>{escape(heading)}</h2><div class=scroll>{_table(header, body)}</div>")
    parts.append(f"<footer>edgecal {escape(report.version)}, {escape(report.when)}</footer></body></html>\n")
    return "".join(parts)


def _list(kind: str, lines: Sequence[str]) -> str:
    return f"<ul class={kind}>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _plots(report: ProfileReport) -> list[str]:
    """Those that there is something to show in."""
    series, rows, by_depth = [], [], []
    for colour, method in enumerate(report.methods):
        for case in method.decodes[:1]:
            if case.runs:
                medians = np.median(np.array(case.runs), axis=0)
                points = [(case.depth + i, 1e3 * float(t)) for i, t in enumerate(medians)]
                series.append(plots.Series(method.name, points, colour))
                rows.append((method.name, [1e3 * t for run in case.runs for t in run], colour))
        depths = [(float(c.depth), 1e3 * latency.p50) for c in method.decodes if (latency := c.latency)]
        by_depth.append(plots.Series(method.name, sorted(depths), colour))
    several = len({x for s in by_depth for x, _ in s.points}) > 1
    first = _first(report)
    return [
        plots.lines("Latency per token", series, "position", "ms", f"Median over the repeats; {first}.", dots=False),
        plots.histograms("Distribution", rows, "ms per token", "Marks: p50, p95, p99. Beyond p99.5: at the right."),
        plots.lines("Latency by depth", by_depth, "tokens of context", "ms", "Median.", dots=True) if several else "",
        plots.stacks("Where the time goes", _split(report), "ms per token", f"Mean of a token; {first}."),
        _roof(report),
        plots.stacks(
            "Peak memory", _memory(report), "MiB", "Resident, at the longest context; idle: loaded, nothing asked."
        ),
    ]


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
