"""`edgecal demo`: the main job on a real model, with what it costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from ..errors import RecipeError
from ._answer import AnswerWriter, write_answer
from ._output import echo, echo_json, screen, tell
from ._progress import progress
from ._tables import show_table
from .generate import timings
from .options import ModelOptions, json_option, load_engine, memory_limit_option, threads_option

if TYPE_CHECKING:
    from ..adapters.recipe import Recipe
    from ..engine import Completion, Engine, Pass

_MEMORY_CONTEXT = 1024
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One method in the comparison. Bytes, seconds, tokens per second."""

    method: str
    n_passes: int
    rank: int
    extra_parameters: int
    extra_bytes: int
    first_token_s: float
    decode_tokens_per_s: float
    new_tokens: int
    peak_bytes: int
    text: str


@click.command("demo")
@click.option("--method", default="learnable_calibration_pp", show_default=True, help="How to combine the adapters.")
@click.option("--compare", is_flag=True, help="Run every method on the same dialogue and print a table.")
@threads_option
@memory_limit_option
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=80, show_default=True)
@json_option
def command(
    method: str, compare: bool, threads: int | None, memory_limit: int | None, max_tokens: int, as_json: bool
) -> None:
    """Summarize a dialogue in a professional tone, in one pass, with a 135M model in 4 bits.

    Two LoRA adapters (summarize, professional tone) and a calibration work on one base that is never changed. The
    model is fetched once by `edgecal pull demo`.
    """
    from .. import demo

    recipes = demo.recipes()
    if method not in recipes:
        raise RecipeError(f"the demo has no method {method!r}; it has {', '.join(recipes)}")
    engine = load_engine(
        "demo",
        ModelOptions(threads=threads, memory_limit=memory_limit),
        {name: demo.find(f"demo:{name}") for name in demo.PAIR},
        prefix_cache=0,  # nothing is asked twice, and what was kept would count as memory
    )
    if compare:
        _compare(engine, recipes, max_tokens, as_json)
    else:
        _single(engine, method, recipes[method], max_tokens, as_json)


# ------------------------------------------------------------------------------------------------ one method


def _single(engine: Engine, method: str, recipe: Recipe, max_tokens: int, as_json: bool) -> None:
    from .. import demo
    from ..engine import Settings

    text = demo.dialogue()
    passes: list[Pass] = []
    if not as_json:
        echo("Dialogue", bold=True)
        write_answer(text + "\n")
        tell(f"{demo.TASK} ({method})", bold=True)
    answer, writer = "", AnswerWriter()
    settings = Settings(max_tokens=max_tokens)
    for piece in engine.stream(demo.prompt(recipe, text), recipe=recipe, settings=settings, passes=passes):
        answer += piece.text
        if not as_json:
            writer.write(piece.text)
    memory = measure_memory(engine, recipe)
    if as_json:
        facts = {"method": method, "text": answer, "passes": [p.to_dict() for p in passes], "memory": memory}
        echo_json(facts)
        return
    writer.end()
    tell("\n" + timings(passes))
    parts = {name: value / MIB for name, value in memory.items()}
    tell(
        f"[peak memory with {_MEMORY_CONTEXT} tokens of context: {parts['peak']:.0f} MiB = weights "
        f"{parts['weights']:.0f} + KV cache {parts['kv_cache']:.0f} + interpreter, libraries, compiled code and "
        f"adapters {parts['rest']:.0f}]"
    )


def measure_memory(engine: Engine, recipe: Recipe) -> dict[str, int]:
    """Fill a context of 1,024 tokens under `recipe` and say what is resident: peak, weights, kv_cache, rest (bytes)."""
    from .. import demo
    from ..cache import KVCache
    from ..decoding.generate import prefill
    from ..memory import peak_resident, release_free

    ids = engine.encode(demo.prompt(recipe, demo.dialogue()))
    ids = (ids * (_MEMORY_CONTEXT // len(ids) + 1))[:_MEMORY_CONTEXT]
    release_free()  # of loading kernels, 12 MiB
    cache = KVCache(engine.model.config, engine.cache_dtype)
    prefill(engine.model, ids, cache, engine.compile(recipe)[-1])
    peak, weights = peak_resident(), engine.model.weight_bytes
    return {"peak": peak, "weights": weights, "kv_cache": cache.nbytes, "rest": peak - weights - cache.nbytes}


# ------------------------------------------------------------------------------------------------ comparison


def _compare(engine: Engine, recipes: dict[str, Recipe], max_tokens: int, as_json: bool) -> None:
    from .. import demo
    from ..engine import Settings
    from ..memory import peak_resident, reset_peak

    # Without drafts: how much a text copies from the dialogue is not what the methods are compared by
    text, settings = demo.dialogue(), Settings(max_tokens=max_tokens, speculate="off")
    engine.generate(text, settings=Settings(max_tokens=2))  # page the weights in, so that no method pays for it
    rows: list[Row] = []
    with progress("comparing") as report:
        for name, recipe in recipes.items():
            report(len(rows), len(recipes), name)
            engine.forget_compiled()  # the peak of one method without the pairs of the others
            engine.compile(recipe)
            reset_peak()
            answer = engine.generate(demo.prompt(recipe, text), recipe=recipe, settings=settings)
            rows.append(_row(engine, name, recipe, answer, peak_resident()))
    if as_json:
        echo_json([asdict(row) for row in rows])
    else:
        _print_table(rows, text)


def _row(engine: Engine, name: str, recipe: Recipe, answer: Completion, peak: int) -> Row:
    compiled = [adapter for adapter in engine.compile(recipe) if adapter is not None]
    return Row(
        method=name,
        n_passes=recipe.passes,
        rank=max((adapter.rank for adapter in compiled), default=0),
        extra_parameters=max((adapter.extra_parameters for adapter in compiled), default=0),
        extra_bytes=max((adapter.extra_bytes for adapter in compiled), default=0),
        first_token_s=answer.first_token_s,
        decode_tokens_per_s=answer.decode_rate,
        new_tokens=len(answer.tokens),
        peak_bytes=peak,
        text=answer.text,
    )


def _print_table(rows: list[Row], text: str) -> None:
    from .. import demo

    headers = (
        "method",
        "passes",
        "rank",
        "extra\nparams",
        "extra\nKiB",
        "first\ntoken s",
        "tokens\nper s",
        "peak\nMiB",
    )
    cells = [
        (
            row.method,
            str(row.n_passes),
            str(row.rank),
            f"{row.extra_parameters:,}",
            f"{row.extra_bytes / 1024:.1f}",
            f"{row.first_token_s:.2f}",
            f"{row.decode_tokens_per_s:.1f}",
            f"{row.peak_bytes / MIB:.0f}",
        )
        for row in rows
    ]
    write_answer(text + "\n")
    show_table(screen(), headers, cells, title=demo.TASK, spare=("passes", "extra\nKiB"))
    for row in rows:
        echo()
        echo(row.method, bold=True)
        write_answer(row.text)
