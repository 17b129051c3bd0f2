"""`edgecal search`: weights for adapters from a few examples, by looking at losses alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import StorageError
from ..text.counted import counted
from ._model_argument import model_argument
from ._output import echo_json, screen, tell
from ._progress import progress
from ._tables import show_table
from ._tasks import TaskOptions, task_options
from .options import ModelOptions, RecipeOptions, adapter_options, json_option, load_engine, model_options

if TYPE_CHECKING:
    from ..adapters.recipe import Recipe
    from ..engine import Engine
    from ..search.losses import ExampleLosses
    from ..search.search import Search, SearchProgress


@click.command("search")
@model_argument
@adapter_options
@click.option(
    "--examples",
    "examples_file",
    required=True,
    metavar="FILE",
    help="JSON lines with prompt and target, or (with --task) dialogue or text, and summary or target.",
)
@task_options
@click.option(
    "--method",
    type=click.Choice(["lorahub", "lm_cocktail"]),
    default="lorahub",
    show_default=True,
    help="lorahub: optimise the weights. lm_cocktail: softmax of the adapters' losses.",
)
@click.option(
    "--evaluations",
    type=click.IntRange(min=1),
    help="The most to make, those of --state included; 40 for lorahub, one per adapter and one more for lm_cocktail.",
)
@click.option("--minutes", type=float, help="Start no evaluation later than this.")
@click.option("--temperature", type=float, default=5.0, show_default=True, help="Of lm_cocktail's softmax.")
@click.option("--state", type=click.Path(dir_okay=False), help="Keep all evaluations here, and go on from them.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write the recipe here, not on stdout.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=42, show_default=True)
@model_options
@json_option
def command(
    model: str,
    chosen: RecipeOptions,
    examples_file: str,
    asked: TaskOptions,
    method: str,
    evaluations: int | None,
    minutes: float | None,
    temperature: float,
    state: str | None,
    out: str | None,
    seed: int,
    loading: ModelOptions,
    as_json: bool,
) -> None:
    """Find weights for the adapters with which MODEL predicts the targets of some examples best.

    Ctrl-C keeps the best so far; with --state the same command goes on from there.

    \b
    edgecal search demo --adapter demo:summarize --adapter demo:professional \\
        --examples few.jsonl --task summarize+tone --tone professional --state search.json --out recipe.json
    """
    from ..search.losses import ExampleLosses, fingerprint, read_examples
    from ..search.record import SearchRecord
    from ..search.search import Candidates, Search

    if not chosen.adapters:
        raise click.UsageError("say which adapters to weigh: --adapter PATH, once for each")
    examples = read_examples(examples_file, asked.instruction())
    target = Path(out).expanduser() if out else None
    if target is not None and not (target.parent.is_dir() and os.access(target.parent, os.W_OK)):
        raise StorageError(f"{out} could not be written: {target.parent} is not a folder that can be written to")
    paths = chosen.paths()
    engine = load_engine(model, loading, paths)
    setup = {
        "method": method,
        "model": _model_identity(model, engine, loading),
        "adapters": ", ".join(f"{name} {engine.adapters[name].sha256[:16]}" for name in paths),
        "examples": fingerprint(examples),
    }
    candidates = Candidates(method, [engine.adapters[name].on_base(engine.base) for name in paths])
    evaluator = _Evaluator(
        lambda weights: engine.model.run_form(candidates.compile(weights)), ExampleLosses(engine, examples)
    )
    with progress(f"searching ({method})") as report:
        search = Search(
            method,
            tuple(paths),
            evaluator,
            evaluations=evaluations,
            minutes=minutes,
            temperature=temperature,
            seed=seed,
            record=SearchRecord(setup, state),
            progress=lambda now: report(now.done, now.total, _best(now)),
        )
        outcome = _run(search)
    _finish(search, outcome.at(_places(chosen)), evaluator, target, as_json=as_json)


def _finish(search: Search, outcome: _Outcome, evaluator: _Evaluator, target: Path | None, *, as_json: bool) -> None:
    """Write and print what was found, also after Ctrl-C."""
    if target is not None and outcome.recipe is not None:
        _write(target, outcome.recipe)
    if as_json:
        _print_json(search, outcome, evaluator)
    else:
        _print(search, outcome.recipe, evaluator, target)
    if outcome.interrupted:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class _Outcome:
    """The best recipe so far, if there is one; seconds."""

    recipe: Recipe | None
    seconds: float
    interrupted: bool

    def at(self, paths: tuple[tuple[str, str], ...]) -> _Outcome:
        """With a recipe that says where its adapters are, and so is complete wherever it is used."""
        return self if self.recipe is None else replace(self, recipe=replace(self.recipe, paths=paths))


def _run(search: Search) -> _Outcome:
    """To the end, or to Ctrl-C, which keeps what was found."""
    began = time.monotonic()
    try:
        recipe: Recipe | None = search.run()
    except KeyboardInterrupt:
        search.record.save()
        return _Outcome(search.best_recipe(), time.monotonic() - began, True)
    return _Outcome(recipe, time.monotonic() - began, False)


@dataclass
class _Evaluator:
    """The loss of some weights, and what the evaluations cost so far."""

    compile: Callable[[tuple[float, ...]], Any]
    losses: ExampleLosses
    compile_s: list[float] = field(default_factory=list)
    loss_s: list[float] = field(default_factory=list)
    tokens_run: int = 0  # of one evaluation; they are all equal
    tokens_saved: int = 0

    def __call__(self, weights: tuple[float, ...]) -> float:
        began = time.monotonic()
        compiled = self.compile(weights)
        took = time.monotonic() - began
        result = self.losses(compiled)
        self.compile_s.append(took)
        self.loss_s.append(result.seconds)
        self.tokens_run, self.tokens_saved = result.tokens_run, result.tokens_saved
        return result.mean

    def cost(self) -> dict[str, float] | None:
        """Means per evaluation; None if every one came out of the state file."""
        count = len(self.loss_s)
        if not count:
            return None
        return {
            "total_s": (sum(self.loss_s) + sum(self.compile_s)) / count,
            "compile_s": sum(self.compile_s) / count,
            "tokens_run": self.tokens_run,
            "tokens_saved": self.tokens_saved,
        }


def _model_identity(model: str, engine: Engine, loading: ModelOptions) -> str:
    """What of the model and its number formats a loss depends on, in words."""
    from ..demo import find

    source = find(model)
    name = Path(source).expanduser().name if Path(source).expanduser().exists() else source
    formats = f"weights {loading.weights}/{loading.group_size}, cache {loading.cache_dtype}"
    return f"{name} ({engine.model.weight_bytes} bytes, {formats})"


def _places(chosen: RecipeOptions) -> tuple[tuple[str, str], ...]:
    """{name: path} as a recipe file has it: demo:NAME as it is, the rest in full."""
    from ..demo import ADAPTERS, DATA

    shipped = {str(DATA / name): f"demo:{name}" for name in ADAPTERS}
    return tuple(
        (name, shipped.get(path) or str(Path(path).expanduser().absolute())) for name, path in chosen.paths().items()
    )


def _best(now: SearchProgress) -> str:
    return f"best {now.best_objective:.4f} at {_weights(now.best.weights)}"


def _weights(weights: tuple[float, ...]) -> str:
    return ", ".join(f"{w:.3f}" for w in weights)


def _write(path: Path, recipe: Recipe) -> None:
    from edgecal_weights.files import write_json

    write_json(path, recipe.to_dict(), indent=1)


def _print(search: Search, recipe: Recipe | None, evaluator: _Evaluator, out: Path | None) -> None:
    """The account on stderr, the recipe on stdout or where it was written."""
    with_objective = search.method == "lorahub"
    rows = [
        (
            label,
            f"{evaluation.loss:.4f}",
            *([f"{search.objective(evaluation):.4f}"] if with_objective else []),
            *(f"{w:.4f}" for w in evaluation.weights),
        )
        for label, evaluation in _notable(search)
    ]
    if rows:
        show_table(screen(err=True), ("", "loss", *(["objective"] if with_objective else []), *search.adapters), rows)
    ended = " (the time was over)" if search.out_of_time else ""
    known = f", {search.reused} of them known before" if search.reused else ""
    tell(f"{search.done} of {counted(search.total, 'evaluation')}{known}{ended}", err=True)
    cost = evaluator.cost()
    if cost is not None:
        total = cost["tokens_run"] + cost["tokens_saved"]
        tell(
            f"per evaluation: {cost['total_s']:.2f} s ({1000 * cost['compile_s']:.0f} ms of it to compile), "
            f"{cost['tokens_run']} tokens run, {cost['tokens_saved']} saved by prefix reuse "
            f"({100 * cost['tokens_saved'] / total:.0f} %)",
            err=True,
        )
    if recipe is None:
        tell("no recipe yet", err=True)
    elif out is not None:
        tell(f"written to {out}", err=True)
    else:
        echo_json(recipe.to_dict())


def _notable(search: Search) -> Iterator[tuple[str, Any]]:
    """The evaluations to show: where LoraHub started and its best; all of LM-Cocktail's."""
    for evaluation in search.record.evaluations:
        alone = evaluation.weights.count(0.0) == len(evaluation.weights) - 1
        if search.method == "lm_cocktail":
            yield ("alone" if alone else "mix"), evaluation
        elif not any(evaluation.weights):
            yield "base alone", evaluation
    if search.method == "lorahub" and search.best is not None:
        yield "best", search.best


def _print_json(search: Search, outcome: _Outcome, evaluator: _Evaluator) -> None:
    best = search.best
    result = {
        "method": search.method,
        "recipe": outcome.recipe.to_dict() if outcome.recipe is not None else None,
        "best": {"weights": best.weights, "loss": best.loss, "objective": search.objective(best)} if best else None,
        "evaluations": search.done,
        "reused_evaluations": search.reused,
        "stopped": "interrupted" if outcome.interrupted else "minutes" if search.out_of_time else "evaluations",
        "total_s": outcome.seconds,
        "per_evaluation": evaluator.cost(),
        "trajectory": [{"weights": e.weights, "loss": e.loss} for e in search.record.evaluations],
    }
    echo_json(result)
