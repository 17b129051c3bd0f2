"""A diagnosis as text: per adapter a map of components by layers, then angles and what is wrong."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console

from ..text.counted import counted
from ._tables import choose_glyphs, plain, show_table

if TYPE_CHECKING:
    from ..inspection.diagnosis import AdapterDiagnosis, Diagnosis, ModuleChange, Overlap, Term

_BARS, _DIGITS = "▁▂▃▄▅▆▇█", "12345678"
_FEWEST = 1.0  # decades between the lowest bar and the highest
_LISTED = 12  # groups of a calibration that are shown
_WIDTH = 40  # layers in one map


def show(report: Diagnosis, console: Console) -> None:
    """The console must not interpret markup: names come from files."""
    console.print(plain(f"{report.model}: {counted(report.n_modules, 'module')} that an adapter can change"))
    low, high = _scale(report)
    for adapter in report.adapters:
        console.print()
        _adapter(adapter, low, high, console)
    if any(adapter.changes for adapter in report.adapters):
        console.print()
        console.print("median, largest: |dW| / |W| over the layers. One bar per layer,")
        bars = _bars(console)
        console.print(f"{bars[0]} {10**low:.2g} to {bars[-1]} {10**high:.2g} (logarithmic); x: zero; .: not changed")
    if report.overlaps:
        console.print()
        _overlaps(report.overlaps, console)
    if report.calibration is not None:
        console.print()
        c = report.calibration
        console.print(plain(f"calibration {c.path}: {c.method or 'unreadable'}"))
        _terms(c.terms, console)
    console.print()
    for note in report.notes:
        console.print(plain(f"note: {note}"))
    for problem in report.problems:
        console.print(plain(f"PROBLEM: {problem}"))
    if report.healthy:
        console.print("everything fits and has an effect")


def _scale(report: Diagnosis) -> tuple[float, float]:
    """log10 of |dW| / |W| at the lowest and the highest bar, the same for all adapters."""
    ratios = [c.ratio for adapter in report.adapters for c in adapter.changes if c.ratio > 0 and math.isfinite(c.ratio)]
    low, high = (math.log10(min(ratios)), math.log10(max(ratios))) if ratios else (-3.0, 0.0)
    spare = max(0.0, _FEWEST - (high - low)) / 2
    return low - spare, high + spare


def _terms(terms: Mapping[str, Term], console: Console) -> None:
    if not terms:
        return
    rows = [
        (group, f"{term.norm:.3g}", "" if math.isnan(term.ratio) else f"{term.ratio:.4f}")
        for group, term in list(terms.items())[:_LISTED]
    ]
    show_table(console, ("tensors", "norm", "/ |W|"), rows)
    if len(terms) > _LISTED:
        console.print(f"and {len(terms) - _LISTED} more")


def _adapter(adapter: AdapterDiagnosis, low: float, high: float, console: Console) -> None:
    base = f", trained on {adapter.base_model_name}" if adapter.base_model_name else ""
    console.print(plain(f"{adapter.name} ({adapter.path}{base})"))
    for what, modules in (
        ("not in the model", adapter.missing),
        ("of another shape there", adapter.misshapen),
        ("asked for, not in its file", adapter.absent),
    ):
        if modules:
            console.print(plain(f"  {what}: {len(modules)}, the first {modules[0]}"))
    if not adapter.changes:
        return
    layers = sorted({change.layer for change in adapter.changes if change.layer is not None})
    n_layers = 1 + max([*layers, *(_layer(m) for m in adapter.untouched)], default=0)
    rows = []
    for name in dict.fromkeys(change.component for change in adapter.changes):
        own = [change for change in adapter.changes if change.component == name]
        ratios = [change.ratio for change in own if not math.isnan(change.ratio)] or [math.nan]
        cells = (
            name,
            _both(str(change.rank) for change in own),
            _both(f"{change.scaling:g}" for change in own),
            f"{median(ratios):.4f}",
            f"{max(ratios):.4f}",
        )
        layers_map = textwrap.wrap(_map(own, n_layers, low, high, _bars(console)), _WIDTH)
        rows += [(*cells, layers_map[0]), *(("", "", "", "", "", more) for more in layers_map[1:])]
    headers = ("component", "rank", "scaling", "median", "largest", "by layer")
    show_table(console, headers, rows, left=("component", "by layer"), spare=("rank", "scaling"))


def _bars(console: Console) -> str:
    return choose_glyphs(console, _BARS, _DIGITS)


def _layer(module: str) -> int:
    return next((int(part) for part in module.split(".") if part.isdecimal()), 0)


def _both(values: Iterable[str]) -> str:
    different = list(dict.fromkeys(values))
    return different[0] if len(different) == 1 else f"{different[0]}..{different[-1]}"


def _map(changes: list[ModuleChange], n_layers: int, low: float, high: float, bars: str) -> str:
    cells = ["."] * n_layers
    for change in changes:
        if change.layer is None:
            continue
        if change.norm == 0:
            cells[change.layer] = "x"
            continue
        place = (math.log10(change.ratio) - low) / (high - low) if change.ratio > 0 else 1.0
        cells[change.layer] = bars[min(len(bars) - 1, max(0, int(place * len(bars))))]
    return "".join(cells)


def _overlaps(overlaps: list[Overlap], console: Console) -> None:
    pairs = list(dict.fromkeys((o.first, o.second) for o in overlaps))
    components = list(dict.fromkeys(o.component for o in overlaps))
    found = {(o.first, o.second, o.component): o for o in overlaps}
    console.print("cosine between the dW of two adapters (1: the same, 0: orthogonal, -1: one undoes the other)")
    rows = []
    for first, second in pairs:
        cells = []
        for name in components:
            overlap = found.get((first, second, name))
            cells.append("-" if overlap is None or math.isnan(overlap.cosine) else f"{overlap.cosine:+.3f}")
        rows.append((f"{first} / {second}", *cells))
    show_table(console, ("pair", *(plain(name.removesuffix("_proj")) for name in components)), rows)
