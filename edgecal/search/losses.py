"""How well an adapter predicts given answers: the mean next-token loss of examples, without gradients.

An example is a prompt and its target. The prompt goes through the chat template, the target follows as the answer of
the assistant and ends with the end-of-sequence id; only the target's tokens count. That is the loss that the adapters
were trained with, so it ranks adapters and weights for a task on a handful of examples.

`decoding/likelihood.py` says how that is computed, and what of the work examples share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..adapters.compiled import RunningAdapter
from ..cache import KVCache
from ..decoding.likelihood import Forced, Likelihoods
from ..engine import Engine
from ..errors import ContextLengthError, PromptError
from ..text.json_lines import each_object, one_key, read_input, text_at
from ..text.prompts import Prompt
from ..text.tasks import user_message

_PROMPT_KEYS = ("prompt", "dialogue", "text")
_TARGET_KEYS = ("target", "summary")


class Example(NamedTuple):
    """What to ask (a string is one user message) and the answer that is wanted."""

    prompt: Prompt
    target: str


@dataclass(frozen=True)
class Losses:
    """Mean loss in nats per target token, float64, one per example in the order given; and what they cost.

    `tokens_saved` are those that the cache held already, `tokens_run` those that went through the model.
    """

    values: NDArray[np.float64]
    tokens_run: int
    tokens_saved: int
    seconds: float

    @property
    def mean(self) -> float:
        """Every example counts the same, however long its target."""
        return float(self.values.mean())


class ExampleLosses:
    """Examples made ready for one engine: encoded and sorted once, then called with one adapter after the other.

    Raises PromptError for no examples, an empty prompt or an empty target, ContextLengthError for an example that is
    longer than the model's context; both count examples from 1.
    """

    def __init__(self, engine: Engine, examples: Sequence[Example]) -> None:
        if not examples:
            raise PromptError("there are no examples to compute a loss of")
        self._sequences = [_encode(engine, number, *example) for number, example in enumerate(examples, 1)]
        self._likelihoods = Likelihoods(engine.model, KVCache(engine.model.config, engine.cache_dtype))

    def __call__(self, adapter: RunningAdapter | None) -> Losses:
        """The losses under `adapter`, None for the bare base."""
        began, score = perf_counter(), self._likelihoods
        totals = score(self._sequences, adapter)
        means = [-one.total / (len(s.ids) - s.start) for one, s in zip(totals, self._sequences, strict=True)]
        return Losses(np.array(means), score.tokens_run, score.tokens_saved, perf_counter() - began)


def example_losses(
    engine: Engine, examples: Sequence[Example | tuple[Prompt, str]], adapter: RunningAdapter | None
) -> NDArray[np.float64]:
    """Mean next-token loss of each example's target under `adapter`; see `ExampleLosses` for many adapters."""
    return ExampleLosses(engine, [Example(*example) for example in examples])(adapter).values


def read_examples(path: str | Path, instruction: str | None = None) -> list[Example]:
    """Examples of a JSON lines file: {"prompt", "target"}, or {"dialogue" or "text", "summary" or "target"}.

    The file - is standard input. A prompt is asked as it stands; a dialogue or text gets `instruction` in front, which
    it needs. Other keys are ignored. Raises PromptError naming the file and the line.
    """
    name, raw = read_input(path)
    examples = each_object(raw, name, lambda number, values: _example(values, instruction))
    if not examples:
        raise PromptError(f"{name} holds no examples")
    return examples


def fingerprint(examples: Sequence[Example]) -> str:
    """16 hex digits, equal for equal examples in equal order."""
    text = json.dumps([[example.prompt, example.target] for example in examples])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _example(values: dict[str, Any], instruction: str | None) -> Example:
    key = one_key(values, _PROMPT_KEYS)
    text, target = text_at(values, key), text_at(values, one_key(values, _TARGET_KEYS))
    if key == "prompt":
        if instruction is not None:
            raise PromptError("it has a 'prompt', which says all; a task is for lines with 'dialogue' or 'text'")
        return Example(text, target)
    if instruction is None:
        raise PromptError(f"it has a {key!r} but nothing says what to do with it: name a task, or give a 'prompt'")
    return Example(user_message(instruction, text), target)


def _encode(engine: Engine, number: int, prompt: Prompt, target: str) -> Forced:
    if not target.strip():
        raise PromptError(f"example {number}: the target is empty")
    try:
        # Encoded apart, as in generation: the model never sees a token that spans prompt and answer
        prompt_ids = engine.encode(prompt)
        ids = (*prompt_ids, *engine.tokenizer.encode(target), *_end(engine))
    except PromptError as error:
        raise PromptError(f"example {number}: {error}") from error
    limit = engine.model.config.max_position_embeddings
    if len(ids) - 1 > limit:
        raise ContextLengthError(f"example {number} has {len(ids) - 1} tokens and the model's context {limit}")
    return Forced(ids, len(prompt_ids))


def _end(engine: Engine) -> tuple[int, ...]:
    """The end-of-sequence id that the tokenizer names, or the only sensible one, or none for a model without."""
    tokenizer = engine.tokenizer
    name = tokenizer.named_tokens.get("eos_token")
    eos = tokenizer.backend.token_to_id(name) if name is not None else None
    return (eos,) if eos is not None else tuple(sorted(tokenizer.eos_ids)[:1])
