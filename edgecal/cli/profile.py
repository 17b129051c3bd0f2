"""`edgecal profile`: where every millisecond and every byte goes, per method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from ..errors import EdgecalError, StorageError
from ._completion import calibrations, complete_paths, methods
from ._model_argument import MODEL, NAMED, model_and_words
from ._output import echo, echo_json, note, screen
from ._progress import progress
from ._sampling import SAMPLING
from ._tasks import TaskOptions
from .options import (
    ModelOptions,
    RecipeOptions,
    compile_kernels,
    group_of,
    json_option,
    load_engine,
    model_options_but_threads,
    open_model,
    recipe_options,
)

if TYPE_CHECKING:
    from ..adapters.recipe import Recipe
    from ..completion import Pass
    from ..engine import Engine
    from ..profile import Plan, ProfileComparison, ProfileReport, ProfileRun
    from ..profile.costs import Cost


NOT_JUDGED = 3  # exit code of --compare


@dataclass(frozen=True)
class PlanOptions:
    """What is measured, as it was typed."""

    prompt: str
    new: str | None
    depth: str
    repeats: int
    seed: int
    temperature: float
    top_k: int
    top_p: float
    threads: str | None

    def plan(self) -> Plan:
        from ..profile import Plan
        from ..profile.plan import parse_lengths

        return Plan(
            prompts=parse_lengths(self.prompt, "-p"),
            new=parse_lengths(self.new or "64", "-n"),
            depths=parse_lengths(self.depth, "-d"),
            repeats=self.repeats,
            threads=parse_lengths(self.threads, "-t", least=1) if self.threads else (),
            seed=self.seed,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )


@dataclass(frozen=True)
class OutputOptions:
    """What is printed, and what is written beside it."""

    html_file: str | None
    trace_file: str | None
    save: str | None
    as_csv: bool
    as_md: bool
    as_json: bool

    @property
    def files(self) -> list[str]:
        return [name for name in (self.html_file, self.trace_file, self.save) if name]

    def check(self) -> None:
        """Before minutes are spent: StorageError for a folder that is not there."""
        for name in self.files:
            if not Path(name).expanduser().absolute().parent.is_dir():
                raise StorageError(f"{name} cannot be written: there is no such folder")


def _recipe_words() -> list[str]:
    return ["demo", *calibrations(), *methods()]


_plan_options = group_of(
    "lengths",
    PlanOptions,
    click.option(
        "-p", "--prompt", metavar="N,...", default="128,512", show_default=True, help="Prompts to read; 0: none."
    ),
    click.option("-n", "--new", metavar="N,...", help="Tokens to write, default 64 (80 for --dialogues); 0: none."),
    click.option(
        "-d", "--depth", metavar="N,...", default="0", show_default=True, help="Tokens of context before them."
    ),
    click.option("-r", "--repeats", type=int, default=5, show_default=True),
    SAMPLING["seed"].click_option(
        type=click.IntRange(min=0), default=1, show_default=True, help="Of the prompts, and sampling."
    ),
    *(SAMPLING[name].click_option() for name in ("temperature", "top_k", "top_p")),
    click.option("-t", "--threads", metavar="N,...", help="Threads; the physical (big) cores unless given."),
)
_dialogue_options = group_of(
    "asked",
    TaskOptions,
    click.option(
        "--task", default="summarize+tone", show_default=True, help="With --dialogues: what one pass is asked."
    ),
    click.option("--tone", help="Of the task; professional unless given."),
    click.option("--language", help="Of the task."),
)
_output_options = group_of(
    "output",
    OutputOptions,
    click.option("--html", "html_file", metavar="FILE", help="One page with plots that needs no network."),
    click.option("--trace", "trace_file", metavar="FILE", help="Trace events for ui.perfetto.dev or chrome://tracing."),
    click.option("--save", metavar="FILE", help="The JSON as a file, whatever is printed."),
    click.option("--csv", "as_csv", is_flag=True, help="A row per measurement on stdout."),
    click.option("--md", "as_md", is_flag=True, help="Markdown on stdout."),
    json_option,
)


@click.command("profile")
@MODEL
@NAMED
@click.argument("recipes", nargs=-1, metavar="[RECIPE]...", shell_complete=complete_paths(_recipe_words))
@_plan_options
@model_options_but_threads
@recipe_options
@click.option("--dialogues", metavar="FILE", help="Paper 2's system analysis on these dialogues: JSONL, text, or demo.")
@_dialogue_options
@click.option("--limit", type=click.IntRange(min=1), help="With --dialogues: only the first so many.")
@click.option("--costs", is_flag=True, help="Paper 1's Table 3 for these recipes, or for any; nothing is timed.")
@click.option("--rank", type=int, help="With --costs and no recipes: of the calibrations, default 4.")
@click.option("--lora-rank", type=int, help="With --costs and no recipes: of the LoRA, default 32.")
@click.option("--compare", nargs=2, metavar="A.json B.json", help="What changed from A to B. Exit code 1: got worse.")
@click.option("--threshold", type=float, default=0.05, show_default=True, help="With --compare: changes that count.")
@_output_options
def command(
    model: str | None,
    named: str | None,
    recipes: tuple[str, ...],
    lengths: PlanOptions,
    loading: ModelOptions,
    chosen: RecipeOptions,
    dialogues: str | None,
    asked: TaskOptions,
    limit: int | None,
    costs: bool,
    rank: int | None,
    lora_rank: int | None,
    compare: tuple[str, str] | None,
    threshold: float,
    output: OutputOptions,
) -> int:
    """Measure MODEL under one or several RECIPEs, interleaved: a recipe file, a method of the given adapters, an
    adapter's name, a calibration (or demo:NAME), or demo for all that the demo data has. Without any: the options'.

    \b
    edgecal profile demo demo
    edgecal profile base/ zero_shot linear mine.yaml --adapter adapters/a --adapter adapters/b -n 128 -d 0,1024
    edgecal profile demo demo --dialogues demo
    edgecal profile --costs config.json --rank 8
    edgecal profile --compare before.json after.json

    Lengths: -p reads prompts, -n writes tokens, each behind every depth of -d, with every number of -t threads.
    docs/profile.md says how every figure is measured. Exit codes with --compare: 0 nothing got worse beyond the
    threshold, 1 something did, 2 the two cannot be compared, 3 too few repeats to judge any time.
    """
    if sum((output.as_json, output.as_csv, output.as_md)) > 1:
        raise click.UsageError("--json, --csv and --md each want the output: give one of them")
    model, words = model_and_words(named, (model, *recipes))
    recipes = tuple(words)
    if compare:
        if model is not None:
            raise click.UsageError("--compare takes two files and measures nothing: leave the model away")
        return _compare(compare, threshold, output)
    if model is None:
        raise click.UsageError("say which model to measure, or --compare two profiles")
    if dialogues and costs:
        raise click.UsageError("--dialogues and --costs are two things: give one of them")
    if (dialogues or costs) and (output.as_csv or output.as_md or output.files):
        raise click.UsageError(f"--{'costs' if costs else 'dialogues'} prints a table or --json")
    ranks = {key: value for key, value in (("rank", rank), ("lora_rank", lora_rank)) if value is not None}
    if costs and not recipes and not chosen.adapters and not chosen.given() and (ranks or model != "demo"):
        return _counts(model, ranks, loading, output)
    if ranks:
        raise click.UsageError("--rank and --lora-rank go with --costs: they are for counts without recipes")
    if costs:
        return _costs(model, recipes, loading, chosen, output)
    if dialogues:
        from ._profile_dialogues import analyse

        new, threads, repeats = lengths.new, lengths.threads, lengths.repeats
        return analyse(
            model, recipes, dialogues, limit, asked, new, threads, repeats, loading, chosen, as_json=output.as_json
        )
    output.check()
    return _measure(model, recipes, lengths.plan(), loading, chosen, output)


# ---------------------------------------------------------------------------------------------------- measuring


def _measure(
    model: str,
    words: tuple[str, ...],
    plan: Plan,
    loading: ModelOptions,
    chosen: RecipeOptions,
    output: OutputOptions,
) -> int:
    from .. import engine as _engine_module  # noqa: F401  (imported before the clock runs)
    from ..profile import ProfileRun
    from ..profile.trace import Span
    from ._profile_recipes import gather

    recipes, paths = gather(words, chosen)
    kernels_s = compile_kernels(loading.backend) or None
    started = perf_counter()
    engine = load_engine(model, loading)
    load_s = perf_counter() - started
    for name, path in paths.items():
        engine.add_adapter(path, name)
    interrupted = False
    with progress("profiling", still=True) as report:
        measurement = ProfileRun(
            engine, dict(recipes), plan, source=model, load_s=load_s, kernels_s=kernels_s, progress=report
        )
        if not output.as_json:
            note(f"this takes about {_in_words(_estimate(engine, plan, len(recipes)))}; Ctrl-C gives what is there")
        measurement.spans.append(Span("load", started, load_s, "edgecal", {"model": model}))
        try:
            measurement.run()
        except KeyboardInterrupt:
            interrupted = True
    if not interrupted or any(case.runs for m in measurement.report.methods for case in m.decodes):
        _write(measurement, output)
        _print(measurement.report, output)
        for name in output.files:
            echo(f"written: {name}", err=True)
    else:
        note("no answer had been measured yet, so there is nothing to show or write")
    if interrupted:
        raise KeyboardInterrupt
    return 0


def _estimate(engine: Engine, plan: Plan, n_recipes: int) -> float:
    """Seconds, from a short prompt and a short answer of the bare base; it leaves out what adapters cost."""
    from ..cache import KVCache
    from ..completion import Settings

    ids = [i % engine.model.config.vocab_size for i in range(3, 35)]
    for _ in range(2):  # the first loads the kernels
        passes: list[Pass] = []
        settings = Settings(max_tokens=4, speculate="off")
        cache = KVCache(engine.model.config, engine.cache_dtype)  # none of an earlier answer's keys
        for _piece in engine.stream_ids(ids, settings=settings, cache=cache, passes=passes):
            pass
    read, written = passes[0].first_token_s / len(ids), 1 / max(passes[0].decode_rate, 1e-3)
    once = sum(depth * read + length * (read if kind == "prompt" else written) for kind, length, depth in plan.cases())
    threads = max(1, len(plan.threads))
    return n_recipes * (plan.longest * read + 2 * plan.repeats * threads * once)  # twice: with the clock and without


def _in_words(seconds: float) -> str:
    return f"{max(seconds, 1):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _write(measurement: ProfileRun, output: OutputOptions) -> None:
    from edgecal_weights.files import write_json, write_text

    report = measurement.report
    if output.save:
        write_json(output.save, report.to_dict())
    if output.html_file:
        from ..profile.page import to_html

        write_text(output.html_file, to_html(report))
    if output.trace_file:
        from ..profile.trace import trace

        write_json(output.trace_file, trace(measurement.spans, title=f"edgecal {report.model.source}"))


def _print(report: ProfileReport, output: OutputOptions) -> None:
    from ..profile import tables

    if output.as_json:
        echo_json(report.to_dict())
    elif output.as_csv:
        echo(tables.to_csv(tables.rows(report)), nl=False)
    elif output.as_md:
        echo(tables.to_markdown(report), nl=False)
    else:
        from ._profile_table import show

        show(report, screen())


# ------------------------------------------------------------------------------------------------ the other modes


def _compare(files: tuple[str, str], threshold: float, output: OutputOptions) -> int:
    from ..profile import compare, load
    from ._profile_table import n_judged, show_comparison

    first, second = files
    try:
        result: ProfileComparison = compare(load(first), load(second), threshold=threshold, names=files)
    except EdgecalError as error:
        raise click.UsageError(str(error)) from error
    if output.as_json:
        echo_json({**result.to_dict(), "judged": n_judged(result)})
    else:
        show_comparison(result, screen())
    return 1 if result.regressions else 0 if n_judged(result) else NOT_JUDGED


def _costs(
    model: str, words: tuple[str, ...], loading: ModelOptions, chosen: RecipeOptions, output: OutputOptions
) -> int:
    from ..adapters.lora import LoraAdapter
    from ..architecture import Architecture
    from ..profile.costs import costs, to_rows
    from ._profile_recipes import gather_or_demo

    named: tuple[dict[str, Recipe], dict[str, str]] = gather_or_demo(model, words, chosen)
    recipes, paths = named
    with open_model(model, loading) as checkpoint:
        architecture = Architecture.of(checkpoint)
    adapters = {name: LoraAdapter.load(path, name) for name, path in paths.items()}
    for adapter in adapters.values():
        adapter.check_against(architecture.shapes)
    rows: list[Cost] = costs(architecture, dict(recipes), adapters)
    if output.as_json:
        echo_json(to_rows(rows))
    else:
        from ._profile_table import show_costs

        show_costs(rows, screen())
    return 0


def _counts(model: str, ranks: dict[str, int], loading: ModelOptions, output: OutputOptions) -> int:
    """The papers' counts, from the model's configuration alone."""
    from ..adapters.parameter_counts import parameter_counts
    from ._names import model_named

    with model_named(model) as path:
        counts = parameter_counts(path, **ranks, revision=loading.revision, offline=loading.offline)
    if output.as_json:
        echo_json(counts.to_dict())
    else:
        from ._profile_table import show_counts

        show_counts(counts, model, screen())
    return 0
