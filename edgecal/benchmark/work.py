"""The unit of work: one method's answers to a few examples of one task. What runs here and what runs on a worker is the
same function, on plain JSON values."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

from ..completion import Pass, Piece, Request, Settings, completion
from ..engine import Engine
from ..errors import EdgecalError
from ..memory import peak_resident, release_free, reset_peak
from .config import EvalConfig
from .datasets import Example
from .methods import Inventory, Row
from .metrics import Metrics
from .prompts import PromptSet
from .tasks import Task

Line = dict[str, Any]


@dataclass(frozen=True)
class Chunk:
    """Some examples of a task for one method."""

    task: Task
    row: Row
    examples: tuple[Example, ...]


def answer_chunk(
    engine: Engine, inventory: Inventory, config: EvalConfig, prompts: PromptSet, chunk: Chunk
) -> tuple[list[Line], Line]:
    """A line per example, in order, and what the chunk cost. An example that cannot be asked (too long for the context)
    has an `error` in its line; the others run."""
    settings = Settings(max_tokens=config.max_new_tokens)
    requests: list[Request] = []
    asked: list[int] = []
    lines: list[Line] = [{"task": chunk.task.name, "method": chunk.row.name, "id": e.id} for e in chunk.examples]
    for index, example in enumerate(chunk.examples):
        try:
            requests.append(_request(engine, prompts, chunk, example, settings))
            asked.append(index)
        except EdgecalError as error:
            lines[index]["error"] = str(error)
    release_free()
    exact, started = reset_peak(), perf_counter()
    passes: list[list[Pass]] = [[] for _ in requests]
    pieces: list[list[Piece]] = [[] for _ in requests]
    for index, piece in engine.stream_batch(requests, batch_size=config.batch, passes=passes):
        pieces[index].append(piece)
    seconds, peak = perf_counter() - started, peak_resident()
    metrics = Metrics(chunk.task, stemmer=config.stemmer)
    for index, said, took in zip(asked, pieces, passes, strict=True):
        answer, example = completion(said, took, chunk.row.recipe), chunk.examples[index]
        lines[index] |= {
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "scores": metrics.scores(answer.text, example.text, example.references),
            "prompt_tokens": answer.prompt_tokens,
            "reused_tokens": answer.reused_tokens,
            "new_tokens": sum(one.new_tokens for one in took),
            "first_token_s": answer.first_token_s,
            "total_s": answer.total_s,
        }
    return lines, _cost(engine, inventory, chunk, len(requests), seconds, peak, exact)


def _request(engine: Engine, prompts: PromptSet, chunk: Chunk, example: Example, settings: Settings) -> Request:
    recipe = chunk.row.recipe
    if recipe.steps:  # its steps have words of their own
        return engine.prepare(example.text, recipe=recipe, settings=settings)
    return engine.prepare(prompts.messages(chunk.task, example.text), recipe=recipe, settings=settings)


def _cost(
    engine: Engine, inventory: Inventory, chunk: Chunk, answered: int, seconds: float, peak: int, exact: bool
) -> Line:
    recipe = chunk.row.recipe
    compiled = [adapter for adapter in engine.compile(recipe) if adapter is not None]
    used = [engine.adapters[name] for name in recipe.adapter_names]
    calibration = inventory.calibrations.get(recipe.calibration or "")
    return {
        "task": chunk.task.name,
        "method": chunk.row.name,
        "n_passes": recipe.passes,
        "adapter_parameters": sum(adapter.n_parameters for adapter in used),
        "adapter_bytes": sum(adapter.nbytes for adapter in used),
        "extra_parameters": max((adapter.extra_parameters for adapter in compiled), default=0),
        "extra_bytes": calibration.nbytes if calibration is not None else 0,
        "answered": answered,
        "total_s": seconds,
        "peak_bytes": peak if exact else None,
        "threads": engine.threads.decode,
    }
