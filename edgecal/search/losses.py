"""How well an adapter predicts given answers: the mean next-token loss of examples, without gradients.

An example is a prompt and its target. The prompt goes through the chat template, the target follows as the answer of
the assistant and ends with the end-of-sequence id; only the target's tokens count. That is the loss that the adapters
were trained with, so it ranks adapters and weights for a task on a handful of examples.

Teacher forcing runs all tokens of an example in one prefill, which keeps every core busy by itself: there is nothing to
gain from running two examples side by side. What can be saved is the work that examples share. Prompts for one task
begin with the same system message and instruction; their ids are sorted, so that those with the longest common
beginning follow each other, and the KV cache is cut back to that beginning instead of being filled anew. Keys and
values depend on the adapter, so nothing is kept from one adapter to the next but the memory.

Logits are made for the target only, a few positions at a time: a vocabulary of 128,000 makes half a megabyte per token.
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

from edgecal_kernels.quant import Array
from edgecal_weights.files import parse_json, read_bytes

from ..adapters.compiled import RunningAdapter
from ..cache import KVCache
from ..decoding.generate import prefill
from ..engine import Engine, Prompt
from ..errors import ContextLengthError, PromptError
from ..text.tasks import user_message

LOGIT_BYTES = 16 << 20  # of float32 logits at a time
_LARGEST_FILE = 64 << 20
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


class _Sequence(NamedTuple):
    ids: tuple[int, ...]  # prompt and target
    start: int  # index of the first target id


class ExampleLosses:
    """Examples made ready for one engine: encoded and sorted once, then called with one adapter after the other.

    Raises PromptError for no examples, an empty prompt or an empty target, ContextLengthError for an example that is
    longer than the model's context; both count examples from 1.
    """

    def __init__(self, engine: Engine, examples: Sequence[Example]) -> None:
        if not examples:
            raise PromptError("there are no examples to compute a loss of")
        self.model = engine.model
        self._sequences = [_encode(engine, number, *example) for number, example in enumerate(examples, 1)]
        self._order = sorted(range(len(examples)), key=lambda i: self._sequences[i].ids)
        self._cache = KVCache(engine.model.config, engine.cache_dtype)
        self._step = max(1, LOGIT_BYTES // (4 * engine.model.config.vocab_size))

    def __call__(self, adapter: RunningAdapter | None) -> Losses:
        """The losses under `adapter`, None for the bare base."""
        began = perf_counter()
        values = np.empty(len(self._sequences), np.float64)
        run = saved = 0
        held: tuple[int, ...] = ()
        self._cache.truncate(0)
        for index in self._order:
            ids, start = self._sequences[index]
            # The id before the target is run again even if it is held: its logits are what is asked for
            shared = min(_common_length(held, ids), start - 1)
            self._cache.truncate(shared)
            values[index] = self._mean_loss(ids, start, adapter)
            held = ids[:-1]  # nothing comes after the last one, so it is not run
            run, saved = run + len(held) - shared, saved + shared
        return Losses(values, run, saved, perf_counter() - began)

    def _mean_loss(self, ids: tuple[int, ...], start: int, adapter: RunningAdapter | None) -> float:
        """Of ids[start:]; the cache holds the beginning of `ids`."""
        prompt = ids[self._cache.length : start - 1]
        if prompt:
            prefill(self.model, prompt, self._cache, adapter)
        targets, total = np.asarray(ids[start:], np.int64), 0.0
        inputs = np.asarray(ids[start - 1 : -1], np.int64)
        for at in range(0, len(inputs), self._step):
            logits = self.model.forward(inputs[at : at + self._step], self._cache, adapter, all_logits=True)
            total += _summed_loss(logits, targets[at : at + self._step])
        return total / len(targets)


def example_losses(
    engine: Engine, examples: Sequence[Example | tuple[Prompt, str]], adapter: RunningAdapter | None
) -> NDArray[np.float64]:
    """Mean next-token loss of each example's target under `adapter`; see `ExampleLosses` for many adapters."""
    return ExampleLosses(engine, [Example(*example) for example in examples])(adapter).values


def read_examples(path: str | Path, instruction: str | None = None) -> list[Example]:
    """Examples of a JSON lines file: {"prompt", "target"}, or {"dialogue" or "text", "summary" or "target"}.

    A prompt is asked as it stands; a dialogue or text gets `instruction` in front, which it needs. Other keys are
    ignored. Raises PromptError naming the file and the line.
    """
    raw = read_bytes(path, _LARGEST_FILE, error=PromptError, pipe=True)
    examples = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            try:
                examples.append(_example(line, instruction))
            except PromptError as error:
                raise PromptError(f"{path}, line {number}: {error}") from error
    if not examples:
        raise PromptError(f"{path} holds no examples")
    return examples


def fingerprint(examples: Sequence[Example]) -> str:
    """16 hex digits, equal for equal examples in equal order."""
    text = json.dumps([[example.prompt, example.target] for example in examples])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _example(line: bytes, instruction: str | None) -> Example:
    try:
        values = parse_json(line)
    except ValueError as error:
        raise PromptError(f"not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise PromptError(f"a JSON {type(values).__name__}, expected an object")
    key, text = _one_of(_PROMPT_KEYS, values)
    _, target = _one_of(_TARGET_KEYS, values)
    if key == "prompt":
        if instruction is not None:
            raise PromptError("it has a 'prompt', which says all; a task is for lines with 'dialogue' or 'text'")
        return Example(text, target)
    if instruction is None:
        raise PromptError(f"it has a {key!r} but nothing says what to do with it: name a task, or give a 'prompt'")
    return Example(user_message(instruction, text), target)


def _one_of(keys: tuple[str, ...], values: dict[str, Any]) -> tuple[str, str]:
    found = [key for key in keys if key in values]
    if len(found) != 1:
        names = ", ".join(map(repr, list(values)[:8])) or "none"
        raise PromptError(f"expected one of the keys {', '.join(map(repr, keys))}; its keys are {names}")
    text = values[found[0]]
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"{found[0]!r} must be a text and not empty")
    return found[0], text


def _encode(engine: Engine, number: int, prompt: Prompt, target: str) -> _Sequence:
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
    return _Sequence(ids, len(prompt_ids))


def _end(engine: Engine) -> tuple[int, ...]:
    """The end-of-sequence id that the tokenizer names, or the only sensible one, or none for a model without."""
    tokenizer = engine.tokenizer
    name = tokenizer.named_tokens.get("eos_token")
    eos = tokenizer.backend.token_to_id(name) if name is not None else None
    return (eos,) if eos is not None else tuple(sorted(tokenizer.eos_ids)[:1])


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _summed_loss(logits: Array, targets: NDArray[np.int64]) -> float:
    """Sum over T of log(sum(exp(logits))) - logits[target], logits (T, V) overwritten, summed in float64."""
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(targets)), targets].astype(np.float64)
    np.exp(logits, out=logits)
    return float((np.log(logits.sum(axis=1, dtype=np.float64)) - chosen).sum())
