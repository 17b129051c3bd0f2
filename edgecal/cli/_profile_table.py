"""Profiles on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from ._tables import plain, show_table

if TYPE_CHECKING:
    from ..adapters.parameter_counts import ParameterCounts
    from ..profile.compare import Change, ProfileComparison
    from ..profile.costs import Cost
    from ..profile.results import ProfileReport
    from ..profile.system import SystemAnalysis

KIB, MIB = 2**10, 2**20
_BAR = 24
_SHORT = {
    "learnable_calibration": "learnable_calib.",
    "learnable_calibration_pp": "learnable_calib.++",
    "single (summarize)": "single (summar.)",
}


def show(report: ProfileReport, console: Console) -> None:
    """The console must not interpret markup: names come from files."""
    from ..profile import tables

    for line in tables.facts(report):
        console.print(plain(line), soft_wrap=False)
    for case, header, body in _by_case(*tables.speed_table(report)):
        _table(console, f"{case}: ms per token", header, body, ("p90", "GB/s", "max", "p99"))
    for case, header, body in _by_case(*tables.prompt_table(report)):
        _table(console, f"{case}, up to the first token", header, body, ("passes", "rank"))
    _table(console, "Median latency by depth", *tables.depth_table(report))
    _split(console, report)
    _table(console, "Memory, MiB resident", *tables.memory_table(report))
    for note in report.notes:
        console.print(plain(f"note: {note}"))
    if report.interrupted:
        console.print("interrupted: this is what was measured until then")


def _by_case(header: list[str], body: list[list[str]]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """The rows of each case, without its column: on a narrow screen the case is the title."""
    at = header.index("case")
    for case in dict.fromkeys(row[at] for row in body):
        rows = [row[:at] + row[at + 1 :] for row in body if row[at] == case]
        yield case, header[:at] + header[at + 1 :], rows


def _table(
    console: Console, title: str, header: Sequence[str], body: Sequence[Sequence[str]], spare: Sequence[str] = ()
) -> None:
    if body:
        rows = [(_SHORT.get(row[0], row[0]), *row[1:]) for row in body]
        show_table(console, header, rows, title=title, left=(0, "figure"), spare=spare)


def _split(console: Console, report: ProfileReport) -> None:
    """One bar per part for a single method; a column per method for several, a few at a time."""
    from ..profile import tables

    header, body = tables.split_table(report)
    if not body:
        return
    case = next(m.decodes[0] for m in report.methods if m.decodes and m.decodes[0].split.steps)
    threads = f", {case.threads} threads" if len(report.settings.get("threads", [])) > 1 else ""
    title = f"Where a token's time goes, ms ({case.label}{threads})"
    if len(header) == 2:
        whole = float(body[-1][1]) or 1.0
        rows = [
            (name, value, f"{100 * float(value) / whole:.1f}", _bar(float(value) / whole, console))
            for name, value in body
        ]
        rows[-1], rows[-2] = (*rows[-1][:3], ""), (*rows[-2][:3], "")
        show_table(console, ("part", "ms", "%", ""), rows, title=title, left=(0, 3))
        return
    names = [_SHORT.get(name, name).replace("_", "\n").replace(" ", "\n") for name in header[1:]]
    show_table(console, ["", *names], body, title=title)


def _bar(share: float, console: Console) -> str:
    """Eighths of a character, or whole ones where there is no Unicode."""
    eighths = round(8 * _BAR * max(0.0, min(share, 1.0)))
    if console.options.ascii_only:
        return "#" * (eighths // 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def show_comparison(result: ProfileComparison, console: Console) -> None:
    """What changed, the regressions last; what did not is counted."""
    console.print(plain(f"A {result.before}"))
    console.print(plain(f"B {result.after}"))
    for verdict, title in (
        ("unsure", "Other medians, within the noise or not judged"),
        ("better", "Better"),
        ("worse", "Worse"),
    ):
        body = [_change(change) for change in result.changes if change.verdict == verdict]
        header = ["method", "figure", "unit", "A", "B", "B/A", "99 %"]
        _table(console, f"{title} (B by A)", header, body, ("99 %",))
    if not any(change.verdict != "same" for change in result.changes):
        console.print()
    same = sum(change.verdict == "same" for change in result.changes)
    limit = f"{100 * result.threshold:g} %"
    console.print(f"{same} of {len(result.changes)} figures are within {limit}")
    for note in result.notes:
        console.print(plain(f"note: {note}"))
    worse = len(result.regressions)
    if worse:
        console.print(f"{worse} regressions beyond {limit}", style="red")
    elif not n_judged(result):
        console.print("not judged: no time was measured often enough to tell a change from noise", style="yellow")
    else:
        console.print(f"no significant regression beyond {limit}", style="green")


def n_judged(result: ProfileComparison) -> int:
    """Times that were measured often enough, in both, to be told from noise. (Bytes have none.)"""
    return sum(change.unit == "s" and change.ratio.low is not None for change in result.changes)


def _change(change: Change) -> list[str]:
    scale, unit = (1e3, "ms") if change.unit == "s" else (1 / MIB, "MiB")
    low, high = change.ratio.low, change.ratio.high
    interval = "" if low is None or high is None or change.unit == "B" else f"{low:.2f}-{high:.2f}"
    values = [f"{scale * x:.2f}" for x in (change.before, change.after)]
    return [change.method, change.figure, unit, *values, f"{change.ratio.value:.2f}", interval]


def show_system(analysis: SystemAnalysis, console: Console) -> None:
    """Paper 2's table."""
    from .. import machine

    body = []
    for row in analysis.rows:
        if row.total_s:
            times = (row.mean_s, row.std_s, row.mean_first_s)
            cells = [row.name, str(row.n_passes), *(f"{t:.3f}" for t in times), f"{row.mean_new:.0f}"]
            body.append([*cells, *(f"{x / MIB:.0f}" for x in (row.peak_bytes, row.idle_bytes))])
            body[-1].append(f"{row.extra_parameters:,}")
    n = len(analysis.dialogues)
    title = f"{n} {'dialogue' if n == 1 else 'dialogues'}, {analysis.repeats} times each: inference time and memory"
    header = ["method", "passes", "mean s", "std s", "first\ntoken s", "new\ntokens", "peak\nMiB", "idle\nMiB"]
    _table(console, title, [*header, "extra\nparams"], body, ("passes", "idle\nMiB"))
    if any(not row.peak_is_exact for row in analysis.rows):
        console.print("note: this system cannot start a new peak of memory: peaks include what came before")
    for note in machine.warnings(analysis.disturbance, machine.facts()):
        console.print(plain(f"note: {note}"))


def show_costs(rows: list[Cost], console: Console) -> None:
    """Paper 1's Table 3."""
    body = []
    for row in rows:
        counts = (row.adapter_parameters, row.extra_parameters)
        cells = [row.name, str(row.n_passes), *(f"{n:,}" for n in counts), f"{100 * row.extra_share:.2f} %"]
        sizes = (f"{row.extra_bytes / KIB:.1f}", str(row.rank), f"{row.run_time_bytes / MIB:.1f}")
        body.append([*cells, *sizes])
    header = ["method", "passes", "adapters'\nparams", "extra\nparams", "extra\nshare", "extra\nKiB"]
    _table(console, "What a method costs beside the adapters", [*header, "rank", "merged\nMiB"], body, ("passes",))


def show_counts(counts: ParameterCounts, model: str, console: Console) -> None:
    """Paper 1's Table 3 of a model that need not be there."""
    rows = counts.table()
    body = []
    for row in rows:
        cells = [row.method, str(row.n_passes), f"{row.parameters:,}", f"{100 * row.share:.2f} %"]
        body.append([*cells, f"{row.parameters / 256:,.1f}"])
    console.print(plain(f"{model} ({counts.model_type}), by its configuration alone"))
    console.print(f"LoRA of rank {counts.lora_rank}: {counts.lora:,} parameters. Calibrations: rank {counts.rank}")
    header = ["method", "passes", "extra\nparams", "share of\na LoRA", "KiB in\nfp32"]
    _table(console, "What a method costs beside the adapters", header, body)
