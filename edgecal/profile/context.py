"""Profile: watches an engine's own generations, whoever asks for them.

    with Profile(engine) as p:
        for piece in engine.stream(prompt, recipe=recipe):
            ...
    p.generations[0].decode_rate, p.latency, p.split(), p.write_trace("trace.json")

Inside the block the engine tells of every forward and every token (`serving.Observer`), every forward is timed and the
kernels' clock runs; the token records that the engine gives anyway tell what sampling took. What a program does between
two tokens (printing them, say) counts as "python" in the split, for the token after it.

The answers of a batch are generations of their own, and their forwards are shared: a step has as many rows as answers
took part. A generation's steps are all those from its begin to its end, the reading of other prompts included, for that
is what its next token waited for. So its split says where the time between its tokens went, and not what it cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from edgecal_kernels.clock import Clock
from edgecal_weights.files import write_json

from ..completion import Request
from ..decoding.generate import TokenRecord
from ..engine import Engine
from .schema import encode
from .split import Marks, Split, TimedStep, split_of
from .statistics import Summary, summarize
from .trace import Span, trace


@dataclass(eq=False)
class Generation:
    """One answer. `steps` are the forwards while it ran (all passes'), `tokens` the records of the tokens that it gave.

    Seconds; `start_s` as `perf_counter` counts, `total_s` by a clock around the whole answer, its consumer included.
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


class _Watch(Marks):
    """`serving.Observer`: marks, and the generations that they belong to."""

    def __init__(self, clock: Clock | None) -> None:
        super().__init__(clock)
        self.groups: list[list[Generation]] = []  # each of generations that ran at the same time
        self._running: dict[Generation, int] = {}  # to the number of steps before it

    def request_began(self, request: Request) -> Generation:
        generation = Generation(request.method, perf_counter())
        if not self._running:  # what passed before is nobody's
            self.ended = generation.start_s
            self.groups.append([])
        self.groups[-1].append(generation)
        self._running[generation] = len(self.steps)
        return generation

    def token_chosen(self, running: object, token: TokenRecord, last_pass: bool) -> None:
        if not isinstance(running, Generation) or running not in self._running:  # goes on behind the block
            return
        self.sampled_in(token.sample_s)
        if last_pass:
            if not running.tokens:
                running.prompt_steps = len(self.steps) - self._running[running]
            running.tokens.append(token)

    def request_ended(self, running: object) -> None:
        if isinstance(running, Generation) and running in self._running:
            running.total_s = perf_counter() - running.start_s
            running.steps = self.steps[self._running.pop(running) :]

    def end(self) -> None:
        """Of what is still running, this was all."""
        for generation in list(self._running):
            self.request_ended(generation)


class Profile:
    """Watch `engine` while the block runs. `operations=False` leaves the kernels' clock out of it.

    One at a time per engine, in the thread that generates. OptionError when the engine is being watched already.
    """

    def __init__(self, engine: Engine, *, operations: bool = True) -> None:
        self.engine = engine
        self._watch = _Watch(engine.model.clock if operations else None)
        self._block = ExitStack()

    def __enter__(self) -> Profile:
        with ExitStack() as block:
            block.enter_context(self.engine.runner.observed(self._watch))
            block.enter_context(self._watch.running())
            self._block = block.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._block.close()
        self._watch.end()

    @property
    def generations(self) -> list[Generation]:
        """In the order in which they began."""
        return [generation for group in self._watch.groups for generation in group]

    @property
    def steps(self) -> list[TimedStep]:
        """Every forward, each once."""
        return self._watch.steps

    # -------------------------------------------------------------------------------------------------- results

    @property
    def latency(self) -> Summary | None:
        """Of every token but the first ones."""
        return summarize([generation.step_seconds for generation in self.generations])

    def split(self) -> Split:
        """Mean seconds from one token of an answer to the next by part, over all generations, first tokens left out."""
        total = Split()
        for generation in self.generations:
            total = total.plus(generation.decode_split())
        return total

    def trace(self) -> dict[str, Any]:
        """Chrome trace events."""
        return trace(list(self._spans()))

    def _spans(self) -> Iterator[Span]:
        """A track per method; generations that ran together have a track each, and share one of their steps."""
        number = 0
        for group in self._watch.groups:
            for generation in group:
                name, track = f"generation {number}", generation.method
                steps = generation.steps if len(group) == 1 else ()
                if len(group) > 1:
                    track = f"{track}, {name}"
                tokens = {"tokens": len(generation.tokens)}
                yield Span(name, generation.start_s, generation.total_s, track, tokens, steps)
                number += 1
            if len(group) > 1:
                start, end = group[0].start_s, max(g.start_s + g.total_s for g in group)
                shared = [step for step in self.steps if start <= step.start_s and step.end_s <= end]
                answers = {"answers": len(group)}
                yield Span(f"{len(group)} at a time", start, end - start, "batch", answers, shared)

    def write_trace(self, path: str | Path) -> None:
        """Write the trace; StorageError when it cannot be written."""
        write_json(path, self.trace())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        latency = self.latency
        return {
            "generations": [generation.to_dict() for generation in self.generations],
            "latency_s": latency.to_dict() if latency else None,
            "split": encode(self.split()),
        }
