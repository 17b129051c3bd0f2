"""`edgecal eval`: how well every method does its job, on the papers' tasks or on one's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecal_weights.files import write_text

from ._output import echo, echo_json, note, screen, tell
from ._progress import progress
from ._tables import show_table
from .options import (
    compile_kernels,
    json_option,
    memory_limit_option,
    model_named,
    note_stand_ins,
    threads_option,
)

if TYPE_CHECKING:
    from ..benchmark import EvalConfig, Report
    from ..benchmark.tables import Difference

_FORMATS = ("table", "markdown", "csv", "latex")


@click.command("eval")
@click.argument("config", required=False, type=click.Path())
@click.option("--quick", is_flag=True, help="The demo's model and adapters on the data set that ships.")
@click.option("--out", type=click.Path(), metavar="FOLDER", help="Where answers and page go; a run is taken up there.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Examples of each task, at most.")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="These tasks only; repeatable.")
@click.option("--format", "form", type=click.Choice(_FORMATS), default="table", show_default=True)
@click.option("--against", default="linear", show_default=True, metavar="METHOD", help="Differences are to this one.")
@click.option("--report", "only_report", type=click.Path(), metavar="FOLDER", help="Tables and page of a folder again.")
@click.option("--compare", nargs=2, type=click.Path(), metavar="A B", help="Two folders: what differs, with intervals.")
@click.option(
    "--trend",
    "runs",
    multiple=True,
    type=click.Path(),
    metavar="FOLDER",
    help="Quality along a number in which several folders differ; repeat. With --out, a page with plots.",
)
@click.option("--by", metavar="NAME", help="With --trend: size (of the model), or what the configurations say about.")
@click.option(
    "--judge",
    "judges",
    multiple=True,
    metavar="MODEL",
    help="With --report: ask a model about every answer; NAME@URL is a server's. A second one: their agreement.",
)
@click.option("--list", "listed", is_flag=True, help="Tasks, data sets, methods and prompt sets.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="So many processes on this machine.")
@click.option("--scheduler", metavar="ADDRESS", help="The workers of a dask scheduler, tcp://host:8786.")
@threads_option
@memory_limit_option
@json_option
def command(
    config: str | None,
    quick: bool,
    out: str | None,
    limit: int | None,
    tasks: tuple[str, ...],
    form: str,
    against: str,
    only_report: str | None,
    compare: tuple[str, str] | None,
    runs: tuple[str, ...],
    by: str | None,
    judges: tuple[str, ...],
    listed: bool,
    workers: int | None,
    scheduler: str | None,
    threads: int | None,
    memory_limit: int | None,
    as_json: bool,
) -> None:
    """Answer every example with every method, and score the answers.

    \b
    edgecal eval --quick                       # 5 minutes, nothing else needed
    edgecal eval eval.yaml --out results       # docs/evaluation.md has the keys
    edgecal eval --compare results other       # paired differences, with intervals
    edgecal eval --trend run10 --trend run100  # quality by examples, by model size ...

    Every answer is kept in FOLDER; a run that was stopped goes on where it was. Needs the extra edgecal[eval].
    """
    from ..benchmark import read_report

    if sum(map(bool, (config, quick, only_report, compare, runs, listed))) != 1:
        raise click.UsageError("give a configuration, or one of --quick, --report, --compare, --trend, --list")
    if by is not None and not runs:
        raise click.UsageError("--by goes with --trend")
    if judges and only_report is None:
        raise click.UsageError("--judge goes with --report FOLDER: answers first, then verdicts")
    if listed:
        _list(as_json)
        return
    if compare is not None:
        _compare(*compare, as_json)
        return
    if runs:
        _trend(runs, by, out, as_json)
        return
    if only_report is None:
        made = _config(config, limit, tasks)
        only_report = _run(made, out or _folder(config), threads, memory_limit, workers, scheduler)
    for spelled in judges:
        _judge(only_report, spelled, threads=threads, memory_limit=memory_limit)
    report = read_report(only_report)
    page = _write_page(report, Path(only_report), against)
    if as_json:
        from ..benchmark.tables import rows

        verdicts = _verdicts(only_report)
        values = {"path": only_report, "page": str(page), "rows": rows(report), "notes": report.notes}
        echo_json(values | ({"judges": verdicts} if verdicts else {}))
        return
    _show(report, form, against)
    if form == "table":
        _show_verdicts(only_report)
    echo(f"page: {page}", err=form != "table")


def _folder(config: str | None) -> str:
    return f"eval-{Path(config).stem if config else 'quick'}"


def _config(config: str | None, limit: int | None, tasks: tuple[str, ...]) -> EvalConfig:
    from ..benchmark import EvalConfig, quick
    from ..benchmark.tasks import parse_tasks

    made = quick() if config is None else EvalConfig.from_file(config)
    if limit is not None:
        made = replace(made, limit=limit)
    return replace(made, tasks=tuple(parse_tasks(tasks))) if tasks else made


def _run(
    config: EvalConfig,
    out: str,
    threads: int | None,
    memory_limit: int | None,
    workers: int | None,
    scheduler: str | None,
) -> str:
    from ..benchmark import Evaluation
    from ..benchmark.metrics import Metrics

    if workers is not None and scheduler is not None:
        raise click.UsageError("--workers are processes of this machine, --scheduler those of a cluster: give one")
    Metrics(config.tasks[0])  # says what is not installed before anything is loaded
    evaluation = Evaluation(config, out)
    with model_named(config.model):
        pass
    compile_kernels()
    note_stand_ins()
    if workers is not None or scheduler is not None:
        from ..benchmark.cluster import run_on_cluster

        with progress("answering") as report:
            run_on_cluster(
                evaluation, workers=workers, scheduler=scheduler, memory_limit=memory_limit, progress=report
            )
        return out
    with progress("answering") as report:
        evaluation.run(threads=threads, memory_limit=memory_limit, progress=report, note=note)
    return out


def _write_page(report: Report, folder: Path, against: str) -> Path:
    from ..benchmark.page import to_html

    page = folder / "report.html"
    write_text(page, to_html(report, folder, against))
    return page


def _show(report: Report, form: str, against: str) -> None:
    from ..benchmark import tables

    if form != "table":
        make = {"markdown": tables.to_markdown, "csv": tables.to_csv, "latex": tables.to_latex}[form]
        echo(make(report).rstrip("\n"))
        return
    console = screen()
    spare = ("±", "length", "extra params", "passes", "R-1", "R-2", "WR, all letters", "MiB")
    for title in tables.titles(report):
        show_table(console, tables.HEADERS, tables.table_rows(report, title), title=title, spare=spare)
    _differences(tables.between_methods(report, against), f"minus {against}, weighted ROUGE")
    console.print(tables.LEGEND)
    for task, count in report.notes.get("n_left_out", {}).items():
        note(f"{task}: {count} rows of the data were left out; notes.json says which and why")
    for task, lacking in report.notes.get("lacking", {}).items():
        for name, why in lacking.items():
            note(f"{task}: no {name}: {why}")


def _judge(folder: str, spelled: str, **loading: int | None) -> None:
    from ..benchmark.judge import find_judge, judge_answers

    if "@" not in spelled:
        compile_kernels()
    with model_named(spelled) as path, progress("loading the judge"):
        judge = find_judge(path, **({} if "@" in spelled else loading))
    with progress("judging") as report:
        judge_answers(folder, judge, progress=report)


def _verdicts(folder: str) -> list[dict[str, Any]]:
    """A row for each judge, task and method."""
    from ..benchmark.judge import VERDICTS, judged
    from ..benchmark.results import ResultFolder

    found = judged(ResultFolder(folder).read(VERDICTS))
    return [
        {"judge": judge, "task": task, "method": method, "n": len(said), "yes_share": said.count(1) / len(said)}
        | {"no_verdict": said.count(None)}
        for (judge, task, method), said in found.items()
    ]


def _show_verdicts(folder: str) -> None:
    from ..benchmark.judge import VERDICTS, agreement
    from ..benchmark.results import ResultFolder

    rows = _verdicts(folder)
    if not rows:
        return
    cells = []
    for row in rows:
        told = [row[name] for name in ("judge", "task", "method")]
        cells.append([*told, str(row["n"]), f"{100 * row['yes_share']:.1f}", str(row["no_verdict"])])
    headers = ("judge", "task", "method", "answers", "yes %", "no verdict")
    show_table(screen(), headers, cells, title="judged", left=(0, 1, 2), spare=("answers",))
    names = list(dict.fromkeys(row["judge"] for row in rows))
    lines = list(ResultFolder(folder).read(VERDICTS))
    for second in names[1:]:
        found = agreement(lines, names[0], second)
        kappa = "" if found.kappa is None else f", kappa {found.kappa:.2f}"
        tell(f"{names[0]} and {second} agree on {100 * found.share:.1f} % of {found.n} answers{kappa}")


def _differences(found: list[Difference], title: str) -> None:
    rows = []
    for d in found:
        figures = (f"{100 * x:+.2f}" for x in (d.estimate.mean, d.estimate.low, d.estimate.high))
        rows.append([d.task, d.method, *figures, str(d.estimate.n), d.verdict])
    if rows:
        headers = ("task", "method", "difference", "from", "to", "examples", "certain")
        show_table(screen(), headers, rows, title=title, left=(0, 1), spare=("examples",))


def _compare(first: str, second: str, as_json: bool) -> None:
    from ..benchmark import between_runs, read_report

    found = between_runs(read_report(first), read_report(second))
    if as_json:
        echo_json([{**vars(d), "estimate": vars(d.estimate), "certain": d.verdict} for d in found])
        return
    _differences(found, f"{first} minus {second}, weighted ROUGE")


def _trend(runs: tuple[str, ...], by: str | None, out: str | None, as_json: bool) -> None:
    from ..benchmark import read_report, trend
    from ..benchmark.trend import HEADERS, rows, to_html

    name, points = trend({run: read_report(run) for run in runs}, by)
    page = None
    if out is not None:
        page = Path(out) / "trend.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        write_text(page, to_html(name, points))
    if as_json:
        found = [{**vars(point), "estimate": vars(point.estimate)} for point in points]
        echo_json({"by": name, "points": found, "page": None if page is None else str(page)})
        return
    show_table(screen(), HEADERS, rows(points), title=f"weighted ROUGE by {name}", left=(0, 1, 7), spare=("examples",))
    if page is not None:
        echo(f"page: {page}")


def _list(as_json: bool) -> None:
    from ..benchmark import DATASETS, SUB_TASKS
    from ..benchmark.methods import ABLATIONS, PAPER
    from ..benchmark.prompts import SETS
    from ..benchmark.tasks import GROUPS, LANGUAGES, MAIN, TONES

    if as_json:
        sets = [{"name": d.name, "about": d.about, "licence": d.licence} for d in DATASETS.values()]
        values = {"groups": list(GROUPS), "sub_tasks": [task.name for task in SUB_TASKS], "data": sets}
        echo_json({**values, "methods": [*PAPER, *ABLATIONS], "prompts": list(SETS)})
        return
    console = screen()
    tasks = [[kind, ", ".join(task.name for task in SUB_TASKS if task.kind == kind)] for kind in GROUPS]
    tasks.append(["single", ", ".join((*MAIN, *TONES, *LANGUAGES))])
    show_table(console, ("tasks", "sub-tasks"), tasks, left=(0, 1))
    rows = [[d.name, d.about, d.licence] for d in DATASETS.values()]
    show_table(console, ("data", "what", "licence"), rows, left=(0, 1, 2), title=" ", spare=("licence",))
    tell("\nmethods: " + ", ".join((*PAPER, *ABLATIONS)) + "; any other of `edgecal merge --list`")
    tell("prompt sets: " + ", ".join(SETS))


