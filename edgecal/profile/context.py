"""Profile: watches an engine's own generations, whoever asks for them.

    with Profile(engine) as p:
        for piece in engine.stream(prompt, recipe=recipe):
            ...
    p.generations[0].decode_rate, p.latency, p.split(), p.write_trace("trace.json")

Inside the block every forward of the model is timed and the kernels' clock runs; the token records that the engine
gives anyway tell what sampling took. Batches (`generate_batch`) are not watched. Outside of it the engine is
untouched. What a program does between two tokens (printing them, say) counts as "python" in the split, for the token
after it.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from ..adapters.recipe import Recipe
from ..completion import Piece
from ..decoding.generate import TokenRecord
from ..engine import Engine
from ..errors import OptionError
from .files import write_text
from .schema import encode
from .split import Marks, Split, TimedStep, split_of
from .statistics import Summary, summarize
from .trace import Span, trace


@dataclass
class Generation:
    """One answer. `steps` are its forwards (all passes'), `tokens` the records of the tokens that it gave.

    Seconds; `start_s` as `perf_counter` counts, `total_s` by a clock around the whole stream, its consumer included.
    """

    method: str
    start_s: float
    steps: list[TimedStep] = field(default_factory=list)
    tokens: list[TokenRecord] = field(default_factory=list)
    prompt_steps: int = 0  # of the steps, those before the first token
    total_s: float = 0.0

    @property
    def first_token_s(self) -> float:
        """Of the last pass: from the start of its prefill."""
        return self.tokens[0].at_s if self.tokens else 0.0

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return self.tokens[-1].at_s - self.tokens[0].at_s if self.tokens else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first."""
        return (len(self.tokens) - 1) / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def step_seconds(self) -> list[float]:
        """Of every token but the first, from the one before it."""
        return [b.at_s - a.at_s for a, b in pairwise(self.tokens)]

    def decode_split(self) -> Split:
        """Of the tokens after the first; they were timed by the generation's own clock, the parts by theirs."""
        n = len(self.tokens) - 1
        return split_of(self.steps[self.prompt_steps :], self.decode_s, n) if n > 0 else Split()

    def prompt_split(self) -> Split:
        """Everything up to the first token: all passes."""
        steps = self.steps[: self.prompt_steps]
        return split_of(steps, sum(s.before_s + s.forward_s + s.sample_s for s in steps), 1) if self.tokens else Split()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; per token: id, at_s, model_s, sample_s."""
        return {
            "method": self.method,
            "first_token_s": self.first_token_s,
            "decode_tokens_per_s": self.decode_rate,
            "total_s": self.total_s,
            "tokens": [encode(token) for token in self.tokens],
            "split": encode(self.decode_split()),
            "prompt_split": encode(self.prompt_split()),
        }


class Profile:
    """Watch `engine` while the block runs. `operations=False` leaves the kernels' clock out of it.

    One at a time per engine, in the thread that generates. OptionError when the engine is being watched already.
    """

    def __init__(self, engine: Engine, *, operations: bool = True) -> None:
        self.engine = engine
        self.generations: list[Generation] = []
        self._marks = Marks(engine.model, operations=operations)

    def __enter__(self) -> Profile:
        if "stream" in vars(self.engine):
            raise OptionError("this engine is being profiled already: one profile at a time")
        self._marks.__enter__()
        self._stream, self._stream_ids = self.engine.stream, self.engine.stream_ids
        self.engine.stream = self._watch_text  # type: ignore[method-assign]
        self.engine.stream_ids = self._watch_ids  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        del self.engine.stream, self.engine.stream_ids
        self._marks.__exit__()

    def _watch_text(self, prompt: Any, **options: Any) -> Generator[Piece, None, None]:
        return self._watch(options.get("recipe"), self._stream(prompt, **options))

    def _watch_ids(self, ids: Any, **options: Any) -> Generator[Piece, None, None]:
        return self._watch(options.get("recipe"), self._stream_ids(ids, **options))

    def _watch(self, recipe: Recipe | None, pieces: Generator[Piece, None, None]) -> Generator[Piece, None, None]:
        marks = self._marks
        generation = Generation("zero_shot" if recipe is None else recipe.method, perf_counter())
        self.generations.append(generation)
        first = len(marks.steps)
        marks.ended = generation.start_s
        try:
            for piece in pieces:
                if not generation.tokens:
                    generation.prompt_steps = len(marks.steps) - first
                generation.tokens.append(piece.token)
                # The forward that this token was chosen from is the last one; a verified draft gives several tokens
                last = marks.steps[-1]
                last = replace(last, sample_s=last.sample_s + piece.token.sample_s)
                marks.steps[-1], marks.ended = last, last.end_s
                yield piece
        finally:
            pieces.close()
            generation.total_s = perf_counter() - generation.start_s
            generation.steps = marks.steps[first:]

    # -------------------------------------------------------------------------------------------------- results

    @property
    def latency(self) -> Summary | None:
        """Of every token but the first ones."""
        return summarize([generation.step_seconds for generation in self.generations])

    def split(self) -> Split:
        """Mean seconds per token by part, over all generations, first tokens left out."""
        total = Split()
        for generation in self.generations:
            total = total.plus(generation.decode_split())
        return total

    def trace(self) -> dict[str, Any]:
        """Chrome trace events."""
        spans = [
            Span(f"generation {i}", g.start_s, g.total_s, g.method, {"tokens": len(g.tokens)}, g.steps)
            for i, g in enumerate(self.generations)
        ]
        return trace(spans)

    def write_trace(self, path: str | Path) -> None:
        """Write the trace; StorageError when it cannot be written."""
        write_text(path, json.dumps(self.trace()))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        latency = self.latency
        return {
            "generations": [generation.to_dict() for generation in self.generations],
            "latency_s": latency.to_dict() if latency else None,
            "split": encode(self.split()),
        }
