"""Prefill, decode, generate: token ids only.

`prefill` runs a prompt in chunks, so that memory grows with the context and not with its square. `decode` runs one
token. `generate` joins them with a sampler and yields one record per token that carries its own timings; text is the
engine's business. A caller may stop reading at any token: the generator holds nothing that needs closing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np

from edgecal_kernels.quant import Array

from .cache import KVCache
from .errors import ContextLengthError, OptionError, PromptError
from .model import Adapter, Model
from .sampler import Sampler

PREFILL_CHUNK = 256

FinishReason = Literal["stop", "length", "context"]


@dataclass(frozen=True)
class TokenRecord:
    """One generated token. Times in seconds.

    `model_s` is the forward pass that gave its logits (for the first token the whole prefill), `sample_s` choosing
    it, `at_s` when it was ready, counted from the start of the prefill. `finish_reason` is set on the last record:
    "stop" (an end-of-sequence id, which is then the record's id), "length" (max_tokens) or "context" (no room left).
    """

    id: int
    index: int
    at_s: float
    model_s: float
    sample_s: float
    finish_reason: FinishReason | None = None


def check_prompt(model: Model, n_tokens: int, max_tokens: int) -> None:
    """Raises PromptError for an empty prompt, ContextLengthError where no token of answer would fit."""
    if n_tokens == 0:
        raise PromptError("the prompt is empty: give at least one token of text")
    if max_tokens < 1:
        raise OptionError(f"max_tokens must be at least 1, found {max_tokens}")
    limit = model.config.max_position_embeddings
    if n_tokens >= limit:
        raise ContextLengthError(
            f"the prompt has {n_tokens} tokens and the model's context {limit}: "
            f"shorten it by {n_tokens - limit + 1} or more"
        )


def prefill(
    model: Model,
    ids: Sequence[int],
    cache: KVCache,
    adapter: Adapter | None = None,
    *,
    chunk: int = PREFILL_CHUNK,
    progress: Callable[[int], None] | None = None,
) -> Array:
    """Run the prompt `ids` after what the cache holds; float32 logits (V,) of its last token.

    `progress` is called with the number of prompt tokens done after each chunk.
    """
    if chunk < 1:
        raise OptionError(f"the prefill chunk must be at least 1 token, found {chunk}")
    if len(ids) == 0:
        raise PromptError("nothing to prefill: the prompt is empty")
    cache.reserve(cache.length + len(ids))
    tokens = np.asarray(ids, np.int64)
    for start in range(0, len(tokens), chunk):
        logits = model.forward(tokens[start : start + chunk], cache, adapter)
        if progress is not None:
            progress(min(start + chunk, len(tokens)))
    return logits


def decode(model: Model, token: int, cache: KVCache, adapter: Adapter | None = None) -> Array:
    """Run one token; float32 logits (V,) for the next."""
    return model.forward(np.array([token], np.int64), cache, adapter)


def generate(
    model: Model,
    ids: Sequence[int],
    sampler: Sampler,
    *,
    adapter: Adapter | None = None,
    cache: KVCache | None = None,
    eos_ids: Collection[int] = (),
    max_tokens: int = 256,
    chunk: int = PREFILL_CHUNK,
    progress: Callable[[int], None] | None = None,
) -> Iterator[TokenRecord]:
    """Answer the prompt `ids`, one record per token; the last carries the finish reason.

    A given `cache` must hold a true prefix of `ids` (or nothing); only what follows it is computed, and at least the
    last token. Raises PromptError, ContextLengthError, OptionError before the first record.
    """
    check_prompt(model, len(ids), max_tokens)
    cache = KVCache(model.config) if cache is None else cache
    cache.truncate(len(ids) - 1)
    return _records(model, ids, sampler, adapter, cache, eos_ids, max_tokens, chunk, progress)


def _records(
    model: Model,
    ids: Sequence[int],
    sampler: Sampler,
    adapter: Adapter | None,
    cache: KVCache,
    eos_ids: Collection[int],
    max_tokens: int,
    chunk: int,
    progress: Callable[[int], None] | None,
) -> Iterator[TokenRecord]:
    start = before = perf_counter()
    logits = prefill(model, ids[cache.length :], cache, adapter, chunk=chunk, progress=progress)
    for index in range(max_tokens):
        computed = perf_counter()
        token = sampler(logits)
        sampler.accept(token)
        now = perf_counter()
        reason: FinishReason | None = None
        if token in eos_ids:
            reason = "stop"
        elif index == max_tokens - 1:
            reason = "length"
        elif cache.length >= model.config.max_position_embeddings:
            reason = "context"
        yield TokenRecord(token, index, now - start, computed - before, now - computed, reason)
        if reason is not None:
            return
        before = perf_counter()
        logits = decode(model, token, cache, adapter)
