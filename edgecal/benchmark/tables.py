"""The papers' tables out of a folder of results: per task, over the sub-tasks of a group, and between two methods.

A figure of a group is the mean over its sub-tasks, as in paper 1's Table 2, each with its own examples. Examples that
could not be asked count in no figure, and are counted in a column of their own.
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BenchmarkError
from .config import EvalConfig
from .metrics import ROUGE
from .results import ResultFolder
from .statistics import Estimate, difference, estimate
from .tasks import GROUPS, Task

METRICS = (*ROUGE, "weighted_rouge")
_BEHAVIOUR = ("length_ratio", "right_language", "copy_rate", "repetition_rate")
SHOWN = (*METRICS, *(f"{name}_unicode" for name in METRICS), *_BEHAVIOUR)
FEW = 20  # examples, below which a bootstrap interval is too narrow to be believed


@dataclass
class Cell:
    """One method on one task. `values` by metric and example; an example without references has no ROUGE."""

    task: str
    method: str
    ids: list[str] = field(default_factory=list)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    new_tokens: list[int] = field(default_factory=list)
    refused: int = 0
    cost: dict[str, Any] = field(default_factory=dict)

    def estimate(self, metric: str) -> Estimate | None:
        """None where there are no references, or no answers."""
        values = self.values.get(metric)
        return estimate(list(values.values())) if values else None

    @property
    def answered(self) -> int:
        return len(self.ids)

    @property
    def good_share(self) -> float:
        """Of the answers that are none of the failures."""
        return 1 - sum(self.failures.values()) / len(self.ids) if self.ids else 0.0

    @property
    def seconds(self) -> float | None:
        """Per example, in the batches that were run."""
        answered = self.cost.get("answered")
        return self.cost["total_s"] / answered if answered else None


@dataclass
class Report:
    """Cells by (task, method), in the order of the run."""

    cells: dict[tuple[str, str], Cell]
    config: dict[str, Any]
    notes: dict[str, Any]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for task, _ in self.cells))

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for _, method in self.cells))

    def groups(self) -> dict[str, list[str]]:
        """Groups of the papers with more than one sub-task in it."""
        found: dict[str, list[str]] = defaultdict(list)
        for name in self.tasks:
            found[Task.parse(name).kind].append(name)
        return {kind: names for kind, names in found.items() if len(names) > 1 and kind in GROUPS}


def read_report(path: str) -> Report:
    """BenchmarkError where there are no answers, or a line is not what it should be."""
    folder = ResultFolder(path)
    try:
        config = EvalConfig.from_dict(folder.config()).to_dict()
    except BenchmarkError as error:
        raise BenchmarkError(f"{folder.path}/config.json is not that of an evaluation: {error}") from error
    notes = folder.notes()
    cells: dict[tuple[str, str], Cell] = {}
    for line in folder.answers():
        _add(cells, line)
    if not cells:
        raise BenchmarkError(f"{folder.path} holds no answers yet")
    for line in folder.read("costs.jsonl"):
        cell = cells.get((line["task"], line["method"]))
        if cell is not None:
            _add_cost(cell.cost, line)
    return Report(_in_order(cells, config), config, notes)


def _in_order(cells: dict[tuple[str, str], Cell], config: Mapping[str, Any]) -> dict[tuple[str, str], Cell]:
    """As they were asked for, whoever was ready first; what is not asked for any more comes last."""
    tasks = {str(name): i for i, name in enumerate(config.get("tasks", ()))}
    names = [str(spec.get("name", spec["method"])) for spec in config.get("methods", ())]
    methods = {name: i for i, name in enumerate(names)}

    def place(key: tuple[str, str]) -> tuple[int, int]:
        task, method = key
        return tasks.get(task, len(tasks)), methods.get(method.removeprefix("shared "), len(methods))

    return {key: cells[key] for key in sorted(cells, key=place)}


def _add(cells: dict[tuple[str, str], Cell], line: Mapping[str, Any]) -> None:
    key = line["task"], line["method"]
    cell = cells.setdefault(key, Cell(*key))
    if "error" in line:
        cell.refused += 1
        return
    scores = line["scores"]
    cell.ids.append(line["id"])
    cell.new_tokens.append(line["new_tokens"])
    for name in SHOWN:
        if name in scores:
            cell.values.setdefault(name, {})[cell.ids[-1]] = float(scores[name])
    if scores["failure"]:
        cell.failures[scores["failure"]] += 1


def _add_cost(cost: dict[str, Any], line: Mapping[str, Any]) -> None:
    """Seconds and examples add up, of the peaks the highest counts, the rest is the same in every chunk."""
    total, answered = cost.get("total_s", 0.0) + line["total_s"], cost.get("answered", 0) + line["answered"]
    peaks = [peak for peak in (cost.get("peak_bytes"), line["peak_bytes"]) if peak is not None]
    cost.update(line)
    cost |= {"total_s": total, "answered": answered, "peak_bytes": max(peaks, default=None)}


# --------------------------------------------------------------------------------------------------------- rows


Row = dict[str, Any]


def rows(report: Report) -> list[Row]:
    """A row per task and method with every figure under its name, then the means over the sub-tasks of each group."""
    found = [_row(cell) for cell in report.cells.values()]
    for kind, names in report.groups().items():
        for method in report.methods:
            cells = [report.cells[name, method] for name in names if (name, method) in report.cells]
            if len(cells) == len(names):
                found.append(_mean_row(kind, method, cells))
    return found


def _row(cell: Cell) -> Row:
    row: Row = {"task": cell.task, "method": cell.method, "n": cell.answered, "refused": cell.refused}
    for name in SHOWN:
        one = cell.estimate(name)
        if one is not None:
            row |= {name: one.mean, f"{name}_low": one.low, f"{name}_high": one.high}
    row |= {"good_share": cell.good_share, "failures": dict(cell.failures)}
    return row | _cost_of([cell])


def _mean_row(kind: str, method: str, cells: Sequence[Cell]) -> Row:
    row: Row = {"task": kind, "method": method, "n": sum(cell.answered for cell in cells)}
    row["refused"] = sum(cell.refused for cell in cells)
    for name in SHOWN:
        each = [one.mean for cell in cells if (one := cell.estimate(name)) is not None]
        if len(each) == len(cells):
            row[name] = sum(each) / len(each)
    failures: Counter[str] = Counter()
    for cell in cells:
        failures.update(cell.failures)
    row |= {"good_share": sum(cell.good_share for cell in cells) / len(cells), "failures": dict(failures)}
    return row | _cost_of(cells)


def _cost_of(cells: Sequence[Cell]) -> Row:
    costs = [cell.cost for cell in cells if cell.cost]
    if not costs:
        return {}
    answered = sum(cost["answered"] for cost in costs)
    tokens = [n for cell in cells for n in cell.new_tokens]
    return {
        "n_passes": max(cost["n_passes"] for cost in costs),
        "extra_parameters": max(cost["extra_parameters"] for cost in costs),
        "adapter_bytes": max(cost["adapter_bytes"] for cost in costs),
        "extra_bytes": max(cost["extra_bytes"] for cost in costs),
        "example_s": sum(cost["total_s"] for cost in costs) / answered if answered else None,
        "new_tokens": sum(tokens) / len(tokens) if tokens else 0.0,
        "peak_bytes": max((c["peak_bytes"] for c in costs if c["peak_bytes"] is not None), default=None),
    }


# ------------------------------------------------------------------------------------------------------ as text

_QUALITY = ("R-1", "R-2", "R-L", "WR", "±", "WR, all letters", "language", "good", "length")
HEADERS = ("method", *_QUALITY, "s", "passes", "extra params", "MiB")

LEGEND = (
    "R-1, R-2, R-L: ROUGE in percent; WR: R-1/6 + R-2/3 + R-3/2; all letters: accents kept; language: percent in the "
    "right one; good: percent without a failure (docs/evaluation.md); s: seconds of an example; MiB: at the peak"
)


def table_rows(report: Report, task: str) -> list[list[str]]:
    """The cells of HEADERS, for a task or a group. ± is half of the 95 % interval of WR."""
    found = []
    for row in rows(report):
        if row["task"] == task:
            found.append([row["method"], *_figures(row)])
    return found


def _figures(row: Row) -> list[str]:
    half = (row["weighted_rouge_high"] - row["weighted_rouge_low"]) / 2 if "weighted_rouge_high" in row else None
    return [
        *(_percent(row.get(name)) for name in ("rouge1", "rouge2", "rougeL", "weighted_rouge")),
        _percent(half),
        _percent(row.get("weighted_rouge_unicode")),
        _percent(row.get("right_language"), 0),
        _percent(row.get("good_share"), 0),
        "" if row.get("length_ratio") is None else f"{row['length_ratio']:.2f}",
        "" if row.get("example_s") is None else f"{row['example_s']:.2f}",
        str(row.get("n_passes", "")),
        f"{row['extra_parameters']:,}" if "extra_parameters" in row else "",
        f"{row['peak_bytes'] / 2**20:.0f}" if row.get("peak_bytes") else "",
    ]


def _percent(share: float | None, digits: int = 2) -> str:
    return "" if share is None else f"{100 * share:.{digits}f}"


def titles(report: Report) -> list[str]:
    """The tasks, and the groups of which there are several sub-tasks."""
    return [*report.tasks, *report.groups()]


def to_markdown(report: Report) -> str:
    """A table per task and group."""
    parts = []
    for title in titles(report):
        lines = [f"### {title}", "", "| " + " | ".join(HEADERS) + " |", "|" + "---|" + "---:|" * (len(HEADERS) - 1)]
        for row in table_rows(report, title):
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def to_csv(report: Report) -> str:
    """Every figure, shares as they are."""
    table = [{**row, "failures": "; ".join(f"{k}: {v}" for k, v in row["failures"].items())} for row in rows(report)]
    names = list(dict.fromkeys(name for row in table for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


_LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})


def to_latex(report: Report) -> str:
    """A tabular per task and group, for booktabs."""
    parts = []
    for title in titles(report):
        lines = [f"% {title}", rf"\begin{{tabular}}{{l{'r' * (len(HEADERS) - 1)}}}", r"\toprule"]
        lines += [" & ".join(HEADERS).replace("±", r"$\pm$") + r" \\", r"\midrule"]
        lines += [" & ".join(cell.translate(_LATEX) for cell in row) + r" \\" for row in table_rows(report, title)]
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------------------------------------------- differences


@dataclass(frozen=True)
class Difference:
    """Of `method` minus `other`, on the examples that both answered."""

    task: str
    method: str
    other: str
    metric: str
    estimate: Estimate

    @property
    def verdict(self) -> str:
        """ "yes" where the interval leaves 0 out, "no" where it does not, "too few" where examples are."""
        if self.estimate.n < FEW:
            return "too few"
        return "yes" if self.estimate.low > 0 or self.estimate.high < 0 else "no"


def between_methods(report: Report, other: str, metric: str = "weighted_rouge") -> list[Difference]:
    """Every method against `other`, task by task."""
    found: list[Difference] = []
    for task in report.tasks:
        base = report.cells.get((task, other))
        if base is None:
            continue
        for method in report.methods:
            cell = report.cells.get((task, method))
            if method != other and cell is not None:
                found += _paired(task, cell, base, method, other, metric)
    return found


def between_runs(a: Report, b: Report, metric: str = "weighted_rouge") -> list[Difference]:
    """Every method of run `a` minus the same of run `b`, on the same examples. BenchmarkError where none is common."""
    found: list[Difference] = []
    for (task, method), cell in a.cells.items():
        other = b.cells.get((task, method))
        if other is not None:
            found += _paired(task, cell, other, method, method, metric)
    if not found:
        raise BenchmarkError("the two have no task, method and examples in common")
    return found


def _paired(task: str, a: Cell, b: Cell, method: str, other: str, metric: str) -> Iterable[Difference]:
    if metric not in a.values or metric not in b.values:
        return []
    mine, theirs = a.values[metric], b.values[metric]
    common = [name for name in mine if name in theirs]
    if not common:
        return []
    estimated = difference([mine[name] for name in common], [theirs[name] for name in common])
    return [Difference(task, method, other, metric, estimated)]
