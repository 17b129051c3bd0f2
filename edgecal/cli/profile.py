"""`edgecal profile`: where every millisecond and every byte goes, per method."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from ..errors import EdgecalError, OptionError, PromptError, StorageError
from .options import json_option, load_engine, model_options, recipe_options

if TYPE_CHECKING:
    from ..adapters.recipe import Recipe
    from ..engine import Engine
    from ..profile import Plan, ProfileReport, ProfileRun

_ANSWER = 80  # tokens at most of an answer to a dialogue
_FILES = ("html_file", "trace_file", "save")


def _with_thread_list(function: Callable[..., Any]) -> Callable[..., Any]:
    """`model_options`, with a list in the place of the one number of threads."""
    function = model_options(function)
    params = function.__click_params__  # type: ignore[attr-defined]
    params[:] = [param for param in params if param.name not in ("threads", "prefill_threads")]
    return click.option("-t", "--threads", metavar="N,...", help="Threads; the physical (big) cores unless given.")(
        function
    )


@click.command("profile")
@click.argument("model", required=False)
@click.argument("recipes", nargs=-1, metavar="[RECIPE]...")
@click.option("-p", "--prompt", metavar="N,...", default="128,512", show_default=True, help="Prompts to read; 0: none.")
@click.option("-n", "--new", metavar="N,...", help="Tokens to write, default 64 (80 for --dialogues); 0: none.")
@click.option("-d", "--depth", metavar="N,...", default="0", show_default=True, help="Tokens of context before them.")
@click.option("-r", "--repeats", type=int, default=5, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Of the prompts, and sampling.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, default=0, show_default=True, help="0 is off.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="1 is off.")
@_with_thread_list
@recipe_options
@click.option("--dialogues", metavar="FILE", help="Paper 2's system analysis on these dialogues: JSONL, text, or demo.")
@click.option("--task", default="summarize+tone", show_default=True, help="With --dialogues: what one pass is asked.")
@click.option("--tone", help="Of the task; professional unless given.")
@click.option("--language", help="Of the task.")
@click.option("--limit", type=click.IntRange(min=1), help="With --dialogues: only the first so many.")
@click.option("--costs", is_flag=True, help="Paper 1's Table 3 for these recipes, or for any; nothing is timed.")
@click.option("--rank", type=int, help="With --costs and no recipes: of the calibrations, default 4.")
@click.option("--lora-rank", type=int, help="With --costs and no recipes: of the LoRA, default 32.")
@click.option("--compare", nargs=2, metavar="A.json B.json", help="What changed from A to B. Exit code 1: got worse.")
@click.option("--threshold", type=float, default=0.05, show_default=True, help="With --compare: changes that count.")
@click.option("--html", "html_file", metavar="FILE", help="One page with plots that needs no network.")
@click.option("--trace", "trace_file", metavar="FILE", help="Trace events for ui.perfetto.dev or chrome://tracing.")
@click.option("--save", metavar="FILE", help="The JSON as a file, whatever is printed.")
@click.option("--csv", "as_csv", is_flag=True, help="A row per measurement on stdout.")
@click.option("--md", "as_md", is_flag=True, help="Markdown on stdout.")
@json_option
def command(model: str | None, recipes: tuple[str, ...], **options: Any) -> int:
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
    threshold, 1 something did, 2 the two cannot be compared.
    """
    if sum((options["as_json"], options["as_csv"], options["as_md"])) > 1:
        raise click.UsageError("--json, --csv and --md each want the output: give one of them")
    if options["compare"]:
        return _compare(model, options)
    if model is None:
        raise click.UsageError("say which model to measure, or --compare two profiles")
    modes = ("dialogues", "costs")
    if all(options[mode] for mode in modes):
        raise click.UsageError("--dialogues and --costs are two things: give one of them")
    for mode in modes:
        if options[mode] and (options["as_csv"] or options["as_md"] or any(options[key] for key in _FILES)):
            raise click.UsageError(f"--{mode} prints a table or --json")
    if options["costs"]:
        return _costs(model, recipes, options)
    if options["rank"] or options["lora_rank"]:
        raise click.UsageError("--rank and --lora-rank go with --costs")
    if options["dialogues"]:
        return _system(model, recipes, options)
    for key in _FILES:
        if options[key] and not Path(options[key]).expanduser().absolute().parent.is_dir():
            raise StorageError(f"{options[key]} cannot be written: there is no such folder")
    return _measure(model, recipes, options)


def _plan(options: dict[str, Any]) -> Plan:
    from ..profile import Plan
    from ..profile.plan import parse_lengths

    return Plan(
        prompts=parse_lengths(options["prompt"], "-p"),
        new=parse_lengths(options["new"] or "64", "-n"),
        depths=parse_lengths(options["depth"], "-d"),
        repeats=options["repeats"],
        threads=parse_lengths(options["threads"], "-t", least=1) if options["threads"] else (),
        seed=options["seed"],
        temperature=options["temperature"],
        top_k=options["top_k"],
        top_p=options["top_p"],
    )


def _load(
    model: str, paths: dict[str, str], options: dict[str, Any], quiet: bool, threads: int | None = None
) -> tuple[Engine, float, float | None]:
    """The engine with its adapters, seconds to load it (libraries imported before), seconds to compile kernels."""
    from edgecal_kernels.dispatch import backend

    from .. import engine as _engine_module  # noqa: F401  (imported before the clock runs)

    kernels: float | None = None
    if backend(options["backend"]).NAME == "numba":
        from rich.console import Console

        from edgecal_kernels.warmup import is_warm, warm_up

        if not is_warm():
            with Console(stderr=True, quiet=quiet).status("compiling kernels for this machine (once, under a minute)"):
                kernels = warm_up()
    own = {"adapters": (), "recipe_file": None, "threads": threads, "prefill_threads": None}
    started = perf_counter()
    engine = load_engine(model, quiet=quiet, **{**options, **own})
    seconds = perf_counter() - started
    for name, path in paths.items():
        engine.add_adapter(path, name)
    return engine, seconds, kernels


def _measure(model: str, words: tuple[str, ...], options: dict[str, Any]) -> int:
    from ..profile import ProfileRun
    from ..profile.trace import Span
    from ._profile_recipes import gather

    plan = _plan(options)
    recipes, paths = gather(words, options)
    quiet = options["as_json"] or options["as_csv"] or options["as_md"]
    started = perf_counter()
    engine, load_s, kernels_s = _load(model, paths, options, quiet)
    with _progress() as progress:
        measurement = ProfileRun(
            engine, dict(recipes), plan, source=model, load_s=load_s, kernels_s=kernels_s, progress=progress
        )
        measurement.spans.append(Span("load", started, load_s, "edgecal", {"model": model}))
        try:
            measurement.run()
        except KeyboardInterrupt:
            interrupted = True
        else:
            interrupted = False
    if not interrupted or any(case.runs for m in measurement.report.methods for case in m.decodes):
        _write(measurement, options)
    if interrupted:
        raise KeyboardInterrupt
    return 0


def _write(measurement: ProfileRun, options: dict[str, Any]) -> None:
    from ..profile.files import write_text

    report = measurement.report
    _print(report, options)
    if options["save"]:
        write_text(options["save"], json.dumps(report.to_dict(), ensure_ascii=False) + "\n")
    if options["html_file"]:
        from ..profile.page import to_html

        write_text(options["html_file"], to_html(report))
    if options["trace_file"]:
        from ..profile.trace import trace

        write_text(options["trace_file"], json.dumps(trace(measurement.spans, title=f"edgecal {report.model.source}")))


def _print(report: ProfileReport, options: dict[str, Any]) -> None:
    from ..profile import tables

    if options["as_json"]:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    elif options["as_csv"]:
        click.echo(tables.to_csv(tables.rows(report)), nl=False)
    elif options["as_md"]:
        click.echo(tables.to_markdown(report), nl=False)
    else:
        from rich.console import Console

        from ._profile_table import show

        show(report, Console(markup=False, emoji=False, highlight=False))


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar on stderr; None when nobody is looking."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    what = TextColumn("{task.fields[what]}", style="dim", markup=False)
    with Progress(
        BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), what, console=console, transient=True
    ) as bar:
        task = bar.add_task("", total=None, what="")

        # Drawn between measurements only: a thread that draws meanwhile would take the time that is measured
        def report(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, what=name)
            bar.refresh()

        yield report


# ------------------------------------------------------------------------------------------------ the other modes


def _compare(model: str | None, options: dict[str, Any]) -> int:
    from ..profile import compare, load

    if model is not None:
        raise click.UsageError("--compare takes two files and measures nothing: leave the model away")
    first, second = options["compare"]
    try:
        result = compare(load(first), load(second), threshold=options["threshold"], names=(first, second))
    except EdgecalError as error:
        raise click.UsageError(str(error)) from error
    if options["as_json"]:
        click.echo(json.dumps(result.to_dict(), ensure_ascii=False))
    else:
        from rich.console import Console

        from ._profile_table import show_comparison

        show_comparison(result, Console(markup=False, emoji=False, highlight=False))
    return 1 if result.regressions else 0


def _gather_or_demo(
    model: str, words: tuple[str, ...], options: dict[str, Any]
) -> tuple[dict[str, Recipe], dict[str, str]]:
    """The recipes; of the demo all, unless something else is asked for."""
    from ._profile_recipes import gather

    return gather(words or (() if _asked(options) or model != "demo" else ("demo",)), options)


def _asked(options: dict[str, Any]) -> bool:
    """Whether the options make a recipe."""
    return any(options[key] for key in ("adapters", "method", "calibration", "steps", "recipe_file"))


def _costs(model: str, words: tuple[str, ...], options: dict[str, Any]) -> int:
    from edgecal_weights.checkpoint import open_checkpoint

    from ..adapters.lora import LoraAdapter
    from ..architecture import Architecture
    from ..demo import find
    from ..profile.costs import costs, to_rows

    ranks = {key: options[key] for key in ("rank", "lora_rank") if options[key] is not None}
    if not words and not _asked(options) and (ranks or model != "demo"):
        return _counts(model, ranks, options)
    if ranks:
        raise click.UsageError("--rank and --lora-rank are for counts without recipes; recipes have ranks of their own")
    recipes, paths = _gather_or_demo(model, words, options)
    with open_checkpoint(find(model), revision=options["revision"], offline=options["offline"]) as checkpoint:
        architecture = Architecture.of(checkpoint)
    adapters = {name: LoraAdapter.load(path, name) for name, path in paths.items()}
    for adapter in adapters.values():
        adapter.check_against(architecture.shapes)
    rows = costs(architecture, dict(recipes), adapters)
    if options["as_json"]:
        click.echo(json.dumps(to_rows(rows), ensure_ascii=False))
    else:
        from rich.console import Console

        from ._profile_table import show_costs

        show_costs(rows, Console(markup=False, emoji=False, highlight=False))
    return 0


def _counts(model: str, ranks: dict[str, int], options: dict[str, Any]) -> int:
    """The papers' counts, from the model's configuration alone."""
    from ..adapters.parameter_counts import parameter_counts
    from ..demo import find

    counts = parameter_counts(find(model), **ranks, revision=options["revision"], offline=options["offline"])
    if options["as_json"]:
        click.echo(json.dumps(counts.to_dict(), ensure_ascii=False))
    else:
        from rich.console import Console

        from ._profile_table import show_counts

        show_counts(counts, model, Console(markup=False, emoji=False, highlight=False))
    return 0


def _system(model: str, words: tuple[str, ...], options: dict[str, Any]) -> int:
    from ..profile.plan import parse_lengths
    from ..profile.system import SystemAnalysis
    from ..text.tasks import instruction

    new = parse_lengths(options["new"], "-n", least=1) if options["new"] else (_ANSWER,)
    threads = parse_lengths(options["threads"], "-t", least=1) if options["threads"] else ()
    if len(new) > 1 or len(threads) > 1:
        raise OptionError("--dialogues takes one length of answer (-n) and one number of threads (-t)")
    texts = _dialogues(options["dialogues"], options["limit"])
    fields = {"tone": options["tone"], "language": options["language"]}
    if options["task"] == "summarize+tone" and not any(fields.values()):
        fields["tone"] = "professional"
    task = instruction(options["task"], **{k: v for k, v in fields.items() if v is not None})
    recipes, paths = _gather_or_demo(model, words, options)
    engine, _, _ = _load(model, paths, options, options["as_json"], threads[0] if threads else None)
    with _progress() as progress:
        analysis = SystemAnalysis(
            engine,
            dict(recipes),
            texts,
            task,
            repeats=options["repeats"],
            max_tokens=new[0],
            progress=progress,
        )
        with suppress(KeyboardInterrupt):  # said below, behind what there is
            analysis.run()
    if options["as_json"]:
        click.echo(json.dumps(analysis.to_dict(), ensure_ascii=False))
    else:
        from rich.console import Console

        from ._profile_table import show_system

        show_system(analysis, Console(markup=False, emoji=False, highlight=False))
    if analysis.interrupted:
        raise KeyboardInterrupt
    return 0


def _dialogues(name: str, limit: int | None) -> list[str]:
    """One text per line of a JSONL file ("dialogue" or "text"), a whole text file, or the demo's dialogue."""
    from .. import demo

    if name == "demo" and not Path(name).exists():
        return [demo.dialogue()]
    path = Path(name).expanduser()
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 text: {error}") from error
    found = []
    if path.suffix in (".jsonl", ".json"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                found.append(_dialogue(line, f"{path} line {number}"))
            if limit is not None and len(found) == limit:
                break
    elif text.strip():
        found = [text.strip()]
    if not found:
        raise PromptError(f"{path} has no dialogue")
    return found


def _dialogue(line: str, place: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{place} is not JSON: {error}") from error
    text = value.get("dialogue", value.get("text")) if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f'{place}: expected an object with a text under "dialogue" or "text"')
    return text.strip()
