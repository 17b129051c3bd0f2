"""What the page asks: what can be done with what is loaded, examples, and answers with all that they cost.

A task is written as in the benchmark (`summarize+professional`), a method by its name there; which recipe that is, and
why another one is impossible, is found by the benchmark's own rules, so that the page and `edgecal eval` never differ.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from edgecal_kernels import cpu

from ..adapters.recipe import Recipe
from ..benchmark.datasets import Example, load_examples
from ..benchmark.methods import PAPER, Inventory, MethodSpec, Row, rows_for
from ..benchmark.metrics import Metrics
from ..benchmark.prompts import PromptSet, load_prompts
from ..benchmark.tasks import LANGUAGES, MAIN, TONES, Task
from ..completion import Pass, Request
from ..errors import BenchmarkError
from ..memory import peak_resident, reset_peak, resident
from ..text.tasks import user_message
from .asked import read
from .context import Context
from .errors import HttpError, body_of
from .events import event, streamed
from .served import timings
from .text_answers import Outcome, answer

SPECS = tuple(MethodSpec(name, name) for name in PAPER)
BACK = "english"
"""The name of an adapter that translates into English."""


def _prompts() -> PromptSet:
    return load_prompts("paper1")


def _tasks() -> list[Task]:
    """All that the page offers: a main task alone, with a language, with a tone."""
    return [
        *(Task(main) for main in MAIN),
        *(Task(main, language=language) for main in MAIN for language in LANGUAGES),
        *(Task(main, tone=tone) for main in MAIN for tone in TONES),
    ]


def _ways(task: Task, inventory: Inventory) -> tuple[list[Row], dict[str, str]]:
    rows, lacking = rows_for(SPECS, task, inventory, _prompts())
    if len(task.steps) == 1:
        rows = [row for row in rows if row.name != "linear"]
    return rows, lacking


async def state(http: HttpRequest) -> Response:
    context = Context.of(http)
    served = context.served
    inventory = served.inventory()
    tasks = {}
    for task in _tasks():
        rows, lacking = _ways(task, inventory)
        tasks[task.name] = {
            "methods": [{"name": row.name, "n_passes": row.recipe.passes} for row in rows],
            "lacking": lacking,
        }
    threads = served.engine.threads
    return JSONResponse(
        {
            "model": served.name,
            "context": served.engine.model.config.max_position_embeddings,
            "max_tokens": context.options.max_tokens,
            "main": MAIN,
            "languages": list(LANGUAGES),
            "tones": TONES,
            "adapters": served.adapter_names,
            "tasks": tasks,
            "back": BACK in served.engine.adapters,
            "threads": threads.decode,
            "cores": cpu.usable_cores(),
            "idle_bytes": served.idle_bytes,
        }
    )


async def settings(http: HttpRequest) -> Response:
    """The number of threads, for everybody."""
    context = Context.of(http)
    found = await context.fields(http)
    threads = found.whole("threads", least=1, most=cpu.usable_cores())
    found.finish()
    if threads is None:
        raise HttpError(400, "threads is missing")
    await context.served.running.call(context.served.engine.set_threads, threads)
    return JSONResponse({"threads": context.served.engine.threads.decode})


async def example(http: HttpRequest) -> Response:
    """One of the shipped dialogues, with the reference for the task where there is one."""
    Context.of(http)
    task = _task(http.query_params.get("task", "summarize"))
    found = load_examples("mini", task).examples
    chosen: Example = random.choice(found)
    return JSONResponse({"id": chosen.id, "text": chosen.text, "references": list(chosen.references)})


def _task(name: Any) -> Task:
    if not isinstance(name, str):
        raise HttpError(400, "task must be a name such as summarize+professional")
    try:
        task = Task.parse(name)
    except BenchmarkError as error:
        raise HttpError(400, str(error)) from error
    if task.main is None:
        raise HttpError(400, f"{name!r} has no main task: {', '.join(MAIN)}")
    return task


async def answers(http: HttpRequest) -> Response:
    """One answer by one method, as events: `piece`s, then `done`, or `error`."""
    context = Context.of(http)
    found = await context.fields(http)
    text, method = found.text("text"), found.text("method") or "linear"
    task, references = _task(found.any("task")), found.texts("references", 8)
    asked = read(
        found, context.served, max_tokens=("max_tokens",), default=128, most=context.options.max_tokens
    )
    found.finish()
    if not text or not text.strip():
        raise HttpError(400, "there is no text to work on")
    rows, lacking = _ways(task, context.served.inventory())
    row = next((row for row in rows if row.name == method), None)
    if row is None:
        why = lacking.get(method, "there is no such method")
        raise HttpError(400, f"{method!r:.60} cannot do {task.name} here: {why}")
    if row.n_shots:
        row = row.with_shots(_shots(task, text, row.n_shots))
    prompt: Any = text if row.recipe.steps else _prompts().messages(task, text)
    request = await context.served.running.prepare(prompt, recipe=row.recipe, settings=asked.settings)
    return streamed(_events(context, http, request, row.recipe, task, text, references), _failed)


def _shots(task: Task, text: str, n: int) -> list[Any]:
    """Other examples than the one that is asked about."""
    try:
        found = load_examples("mini", task).examples
    except BenchmarkError as error:
        raise HttpError(400, str(error)) from error
    others = [one for one in found if one.text.strip() != text.strip()]
    return [_prompts().shot(task, one.text, one.references[0]) for one in others[:n]]


async def back(http: HttpRequest) -> Response:
    """A text of another language in English, by an adapter of that name."""
    context = Context.of(http)
    found = await context.fields(http)
    text, language = found.text("text"), found.text("language") or ""
    found.finish()
    if not text or not text.strip() or language not in LANGUAGES:
        raise HttpError(400, f"a text and its language are needed, one of {', '.join(LANGUAGES)}")
    if BACK not in context.served.engine.adapters:
        raise HttpError(400, f"no adapter {BACK!r} is loaded, which would translate back")
    recipe = Recipe("single", (BACK,))
    asked = user_message(f"Translate the following text from {language.capitalize()} to English", text)
    request = await context.served.running.prepare(asked, recipe=recipe)
    return streamed(_events(context, http, request, recipe, Task("summarize"), text, ()), _failed)


def _failed(error: Exception) -> bytes:
    return event({"error": body_of(error)}, "error")


async def _events(
    context: Context,
    http: HttpRequest,
    request: Request,
    recipe: Recipe,
    task: Task,
    text: str,
    references: tuple[str, ...],
) -> AsyncGenerator[bytes, None]:
    served, outcome, began = context.served, Outcome(), time.perf_counter()
    alone = not served.running.n_running and not served.running.n_waiting
    exact = alone and reset_peak()
    # What the process held when it was loaded may have gone back to the system since.
    idle = resident() if exact else served.idle_bytes
    first_s = 0.0
    async for piece in answer(context, request, outcome, context.client(http)):
        now = time.perf_counter() - began
        first_s = first_s or now
        token = piece.token
        yield event(
            {
                "text": piece.text,
                "at_ms": 1000 * now,
                "model_ms": 1000 * token.model_s,
                "choose_ms": 1000 * token.sample_s,
                "index": token.index,
            },
            "piece",
        )
    compiled = await served.running.call(served.engine.compile, recipe)
    calibration = recipe.calibration
    done = {
        "text": outcome.text,
        "finish_reason": outcome.finish_reason,
        "n_passes": recipe.passes,
        "first_ms": 1000 * first_s,
        "total_ms": 1000 * (time.perf_counter() - began),
        "timings": timings(outcome.passes),
        "passes": [_pass(one) for one in outcome.passes],
        "extra_parameters": max((one.extra_parameters for one in compiled if one is not None), default=0),
        "calibrated": calibration is not None,
        "peak_bytes": max(peak_resident(), idle) if exact else None,  # the system counts per processor, a little late
        "idle_bytes": idle,
        "resident_bytes": resident(),
        "scores": _scores(task, outcome.text, text, references),
    }
    yield event(done, "done")


def _pass(one: Pass) -> dict[str, Any]:
    return {"text": one.text, "first_ms": 1000 * one.first_token_s, "total_ms": 1000 * one.total_s}


def _scores(task: Task, said: str, text: str, references: tuple[str, ...]) -> dict[str, Any] | None:
    """None where the libraries of `edgecal eval` are not installed."""
    try:
        return Metrics(task).scores(said, text, references)
    except BenchmarkError:
        return None

