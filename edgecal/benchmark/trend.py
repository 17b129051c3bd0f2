"""Several evaluations along one number that they differ in: how many examples a calibration was trained on, the size
of the model (both papers plot quality so), or whatever else a configuration says `about` itself.

    about: {examples: 100}            # in a run's configuration; it changes no answer

`size` is always there: the base's parameters, in millions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ..errors import BenchmarkError
from ..pages import plots
from ..pages.page import page, table, text_list
from .statistics import Estimate
from .tables import Report

SIZE = "size"
HEADERS = ("task", "method", "at", "WR", "from", "to", "examples", "run")


@dataclass(frozen=True)
class Point:
    """One method on one task in one run: weighted ROUGE at the place `x`."""

    run: str
    task: str
    method: str
    x: float
    estimate: Estimate


def places(report: Report) -> dict[str, float]:
    """What a run is known by, as numbers."""
    found = {str(name): float(value) for name, value in (report.config.get("about") or {}).items()}
    size = report.notes.get("n_parameters")
    return found | ({SIZE: size / 1e6} if size else {})


def trend(reports: Mapping[str, Report], by: str | None = None) -> tuple[str, list[Point]]:
    """What the runs are laid out by, and their points, from the smallest place up.

    `by` None takes the first number in which they differ. BenchmarkError where there is none, or a run lacks it.
    """
    if len(reports) < 2:
        raise BenchmarkError("a trend needs two runs or more")
    known = {run: places(report) for run, report in reports.items()}
    if by is None:
        shared = set.intersection(*(set(found) for found in known.values()))
        names = [name for found in known.values() for name in found if name in shared]
        differing = [name for name in names if len({found[name] for found in known.values()}) > 1]
        if not differing:
            raise BenchmarkError("the runs differ in no number: say it in their configurations, about: {examples: 100}")
        by = differing[0]
    for run, found in known.items():
        if by not in found:
            raise BenchmarkError(f"{run} does not say its {by!r}; it says {', '.join(found) or 'nothing'}")
    points = [
        Point(run, cell.task, cell.method, known[run][by], one)
        for run, report in reports.items()
        for cell in report.cells.values()
        if (one := cell.estimate("weighted_rouge")) is not None
    ]
    return by, sorted(points, key=lambda point: (point.task, point.method, point.x))


def rows(points: Sequence[Point]) -> list[list[str]]:
    """Of the table with HEADERS, in percent."""
    found = []
    for p in points:
        figures = (f"{100 * value:.1f}" for value in (p.estimate.mean, p.estimate.low, p.estimate.high))
        found.append([p.task, p.method, f"{p.x:g}", *figures, str(p.estimate.n), p.run])
    return found


def to_html(by: str, points: Sequence[Point]) -> str:
    """The page: a plot for each task, and the table."""
    methods = list(dict.fromkeys(point.method for point in points))
    colours = {method: i for i, method in enumerate(methods)}
    name = "million parameters" if by == SIZE else by
    drawn = []
    for task in dict.fromkeys(point.task for point in points):
        of_task = [point for point in points if point.task == task]
        series = [
            plots.Series(method, [(p.x, 100 * p.estimate.mean) for p in of_task if p.method == method], colour)
            for method, colour in colours.items()
        ]
        drawn.append(
            plots.lines(
                f"{task}: weighted ROUGE by {name}", [s for s in series if s.points], name, "percent",
                "The table has the 95 % intervals.", dots=True,
            )
        )  # fmt: skip
    runs = list(dict.fromkeys(point.run for point in points))
    parts = [
        text_list("facts", [f"{len(runs)} runs: {', '.join(runs)}", "weighted ROUGE, F-measure, in percent"]),
        plots.legend(list(colours.items())),
        f"<div class=grid-of-plots>{''.join(drawn)}</div>",
        f"<h2>{escape('Figures')}</h2><div class=scroll>{table(HEADERS, rows(points))}</div>",
    ]
    return page(f"edgecal eval: quality by {name}", parts)
