"""Paper 2's system analysis: methods on the same dialogues, with inference time and memory.

Inference time goes from the text to the end of the answer: template, tokens, prefill and decoding of all passes. The
methods answer each dialogue in turn, beginning with another one each time, so that none has always the warm caches.
Answers end where the model ends them (or at `max_tokens`), as in use; their lengths differ between methods, so they
stand beside. Drafts are off and no prefix is reused: both help by what a text happens to repeat. Memory is measured
before, each method alone, on the longest dialogue: its peak while it answers, and what is resident afterwards, idle,
with its adapters compiled.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from .. import machine
from ..adapters.recipe import Recipe
from ..engine import Engine, Settings
from ..errors import OptionError
from ..memory import peak_resident, release_free, reset_peak, resident
from ..text.tasks import user_message
from .footprint import model_facts
from .schema import encode


@dataclass
class SystemRow:
    """One method; a value per answer. Bytes and seconds."""

    name: str
    method: str
    n_passes: int
    rank: int
    extra_parameters: int
    extra_bytes: int
    peak_bytes: int
    idle_bytes: int
    peak_is_exact: bool
    total_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)

    @property
    def mean_s(self) -> float:
        return float(np.mean(self.total_s)) if self.total_s else 0.0

    @property
    def std_s(self) -> float:
        """With n - 1 below; 0 for a single answer."""
        return float(np.std(self.total_s, ddof=1)) if len(self.total_s) > 1 else 0.0

    @property
    def mean_new(self) -> float:
        return float(np.mean(self.new_tokens)) if self.new_tokens else 0.0

    @property
    def mean_first_s(self) -> float:
        return float(np.mean(self.first_token_s)) if self.first_token_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        computed = {"mean_s": self.mean_s, "std_s": self.std_s, "mean_new_tokens": self.mean_new}
        return {**vars(self), **computed, "mean_first_token_s": self.mean_first_s}


class SystemAnalysis:
    """`rows` are filled by `run`, and hold what there is when that is interrupted."""

    def __init__(
        self,
        engine: Engine,
        recipes: Mapping[str, Recipe | None],
        dialogues: Sequence[str],
        instruction: str,
        *,
        repeats: int = 3,
        max_tokens: int = 80,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        if not dialogues:
            raise OptionError("no dialogue to answer")
        if not recipes:
            raise OptionError("no recipe to profile")
        if repeats < 1:
            raise OptionError(f"repeats must be at least 1, found {repeats}")
        self.engine, self.recipes, self.dialogues = engine, dict(recipes), list(dialogues)
        self.instruction, self.repeats, self.progress = instruction, repeats, progress
        self.settings = Settings(max_tokens=max_tokens, speculate="off", stop_at_repetition=False)
        self.rows: list[SystemRow] = []
        self.interrupted = False
        self.disturbance: dict[str, Any] = {}

    def _answer(self, recipe: Recipe | None, text: str) -> Any:
        self.engine.prefixes.clear()  # an answer must not find what an earlier one has read
        prompt = text if recipe is not None and recipe.steps else user_message(self.instruction, text)
        return self.engine.generate(prompt, recipe=recipe, settings=self.settings)

    def run(self) -> list[SystemRow]:
        """Measure; raises what compiling and answering raise."""
        watch, done = machine.Watch(), 0
        total = len(self.recipes) * (1 + self.repeats * len(self.dialogues))

        def tell(what: str) -> None:
            nonlocal done
            done += 1
            if self.progress is not None:
                self.progress(done, total, what)

        try:
            for recipe in self.recipes.values():
                self.engine.compile(recipe)
            longest = max(self.dialogues, key=len)
            for name, recipe in self.recipes.items():
                self.rows.append(self._alone(name, recipe, longest))
                tell(name)
            for recipe in self.recipes.values():
                self.engine.compile(recipe)
            methods = list(zip(self.rows, self.recipes.values(), strict=True))
            for index in range(self.repeats * len(self.dialogues)):
                text, turn = self.dialogues[index % len(self.dialogues)], index % len(methods)
                for row, recipe in methods[turn:] + methods[:turn]:
                    gc.collect()
                    started = perf_counter()
                    answer = self._answer(recipe, text)
                    row.total_s.append(perf_counter() - started)
                    row.first_token_s.append(answer.first_token_s)
                    row.prompt_tokens.append(answer.prompt_tokens)
                    row.new_tokens.append(sum(p.new_tokens for p in answer.passes))
                    tell(row.name)
        except KeyboardInterrupt:
            self.interrupted = True
            raise
        finally:
            self.disturbance = watch.report()
        return self.rows

    def _alone(self, name: str, recipe: Recipe | None, text: str) -> SystemRow:
        self.engine.forget_compiled()
        exact = reset_peak()
        compiled = [adapter for adapter in self.engine.compile(recipe) if adapter is not None]
        self._answer(recipe, text)
        peak = peak_resident()
        gc.collect()
        release_free()
        return SystemRow(
            name=name,
            method="zero_shot" if recipe is None else recipe.method,
            n_passes=1 if recipe is None else recipe.passes,
            rank=max((adapter.rank for adapter in compiled), default=0),
            extra_parameters=max((adapter.extra_parameters for adapter in compiled), default=0),
            extra_bytes=max((adapter.extra_bytes for adapter in compiled), default=0),
            peak_bytes=peak,
            idle_bytes=resident(),
            peak_is_exact=exact,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "schema": "edgecal-system-analysis",
            "schema_version": 1,
            "model": encode(model_facts(self.engine, self.engine.tokenizer.origin)),
            "machine": machine.facts(),
            "disturbance": self.disturbance,
            "instruction": self.instruction,
            "dialogues": len(self.dialogues),
            "repeats": self.repeats,
            "max_tokens": self.settings.max_tokens,
            "interrupted": self.interrupted,
            "rows": [row.to_dict() for row in self.rows],
        }
