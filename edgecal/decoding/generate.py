"""Prefill, decode, generate: token ids only.

`prefill` runs a prompt in chunks, so that memory grows with the context and not with its square. `decode` runs one
token. `generate` joins them with a sampler, runs several tokens at once where they can be guessed (`speculation`), and
yields one record per token that carries its own timings; text is the engine's business. A caller may stop reading at
any token: the generator holds nothing that needs closing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import numpy as np

from edgecal_kernels.quant import Array

from ..adapters.compiled import RunningAdapter
from ..cache import KVCache
from ..errors import ContextLengthError, OptionError, PromptError
from ..model import Model
from .logprobs import TokenLogprobs
from .sampler import Sampler
from .speculation import Speculate, Speculator, StepCosts, check_speculate

PREFILL_CHUNK = 256

FinishReason = Literal["stop", "length", "context", "repetition"]


@dataclass(frozen=True)
class TokenRecord:
    """One generated token. Times in seconds.

    `model_s` is its share of the forward pass that gave its logits (for the first token the whole prefill): tokens of
    one pass share it equally, and drafting counts as part of it. `sample_s` is choosing it, `at_s` when it was ready,
    counted from the start of the prefill; tokens of one pass are ready almost together. The sum of all model_s and
    sample_s is the time of the whole answer, without what the reader of the records did between them.

    `drafted` tokens were verified by the pass that begins with this record (0 on the others); `accepted` says that
    this token was one of them, so accepted / drafted, summed over the records, is the rate of acceptance.

    `logprobs` are there where the sampler was told to keep them.

    `finish_reason` is set on the last record: "stop" (an end-of-sequence id, which is then the record's id), "length"
    (max_tokens) or "context" (no room left). "repetition" is of those who read the text of it.
    """

    id: int
    index: int
    at_s: float
    model_s: float
    sample_s: float
    finish_reason: FinishReason | None = None
    drafted: int = 0
    accepted: bool = False
    logprobs: TokenLogprobs | None = None


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
            f"shorten it by {n_tokens - limit + 1} or more",
            n_tokens,
            limit,
        )


def prefill(
    model: Model,
    ids: Sequence[int],
    cache: KVCache,
    adapter: RunningAdapter | None = None,
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


def decode(model: Model, token: int, cache: KVCache, adapter: RunningAdapter | None = None) -> Array:
    """Run one token; float32 logits (V,) for the next."""
    return model.forward(np.array([token], np.int64), cache, adapter)


def generate(
    model: Model,
    ids: Sequence[int],
    sampler: Sampler,
    *,
    adapter: RunningAdapter | None = None,
    cache: KVCache | None = None,
    eos_ids: Collection[int] = (),
    max_tokens: int = 256,
    chunk: int = PREFILL_CHUNK,
    progress: Callable[[int], None] | None = None,
    speculate: Speculate = "auto",
    costs: StepCosts | None = None,
) -> Iterator[TokenRecord]:
    """Answer the prompt `ids`, one record per token; the last carries the finish reason.

    A given `cache` must hold a true prefix of `ids` (or nothing); only what follows it is computed, and at least the
    last token. After each record it holds the prompt and the tokens of the records so far (but the latest), and
    maybe more of the answer. `speculate` is as in Settings; `costs` keeps what passes of several tokens take, from one
    answer to the next. Raises PromptError, ContextLengthError, OptionError before the first record.
    """
    check_prompt(model, len(ids), max_tokens)
    drafts = drafts_allowed(model, speculate)
    cache = KVCache(model.config) if cache is None else cache
    cache.truncate(len(ids) - 1)
    costs = (StepCosts() if costs is None else costs) if drafts else None
    return _records(model, ids, sampler, adapter, cache, eos_ids, max_tokens, chunk, progress, speculate, costs)


def drafts_allowed(model: Model, speculate: Speculate) -> bool:
    """Whether `speculate` asks for drafts and the model gives them exactly. OptionError for a setting that cannot be.

    Only the compiled kernels give a token the same bits alone and among others. NumPy's products go through BLAS,
    which does not, so there a draft could change the text: "auto" is off, a length is refused.
    """
    check_speculate(speculate)
    if speculate in ("off", 0):
        return False
    if model.ops.NAME != "numpy":
        return True
    if speculate != "auto":
        raise OptionError(f"speculate {speculate} needs compiled kernels: with {model.ops.NAME} it is not exact")
    return False


def _records(
    model: Model,
    ids: Sequence[int],
    sampler: Sampler,
    adapter: RunningAdapter | None,
    cache: KVCache,
    eos_ids: Collection[int],
    max_tokens: int,
    chunk: int,
    progress: Callable[[int], None] | None,
    speculate: Speculate,
    costs: StepCosts | None,
) -> Iterator[TokenRecord]:
    start = perf_counter()
    logits = prefill(model, ids[cache.length :], cache, adapter, chunk=chunk, progress=progress)
    single = SingleSequence(model, ids, sampler, adapter, cache, eos_ids, max_tokens, speculate, costs, start)
    yield from single.choose(logits[None], start)
    while not single.finished:
        yield from single.advance()


class SingleSequence:
    """An answer that has the model to itself, once its prompt is read: passes of one token, or of several where the
    next ones can be guessed.

    `chosen` are tokens of the answer that are there already. `costs` None: no drafts. `start` is when the prompt began
    to be read, on perf_counter's clock. The cache holds the prompt and all tokens but the latest before and after every
    pass.
    """

    def __init__(
        self,
        model: Model,
        ids: Sequence[int],
        sampler: Sampler,
        adapter: RunningAdapter | None,
        cache: KVCache,
        eos_ids: Collection[int],
        max_tokens: int,
        speculate: Speculate,
        costs: StepCosts | None,
        start: float,
        chosen: Sequence[int] = (),
    ) -> None:
        self.finished = False
        self._model, self._ids, self._sampler, self._adapter, self._cache = model, ids, sampler, adapter, cache
        self._eos_ids, self._max_tokens, self._limit = eos_ids, max_tokens, model.config.max_position_embeddings
        self._speculate, self._costs, self._start = speculate, costs, start
        self._speculator: Speculator | None = None
        self._index = len(chosen)  # of the next token
        self._latest = list(chosen)  # tokens that the speculator has not seen; its end is what the next pass is given

    def advance(self) -> list[TokenRecord]:
        """The tokens of the next pass, at least one."""
        before = perf_counter()
        token, model, cache, costs = self._latest[-1], self._model, self._cache, self._costs
        if costs is None:
            return self.choose(decode(model, token, cache, self._adapter)[None], before)
        if self._speculator is None:  # only now: the first token need not wait for it
            self._speculator = Speculator(self._ids, self._speculate, costs)
        # The pass gives a token beyond its draft, and none may be useless
        room = min(self._max_tokens - self._index, self._limit - cache.length) - 1
        draft = self._speculator.draft(self._latest, room)
        began = perf_counter()
        if draft:
            rows = model.forward(np.array([token, *draft], np.int64), cache, self._adapter, all_logits=True)
        else:
            rows = decode(model, token, cache, self._adapter)[None]
        costs.measured(len(rows), perf_counter() - began)
        return self.choose(rows, before, draft)

    def choose(self, rows: Array, before: float, draft: Sequence[int] = ()) -> list[TokenRecord]:
        """The records of a pass that began at `before` and gave `rows`, logits (1 + len(draft), V)."""
        now = computed = perf_counter()
        cache, index = self._cache, self._index
        held = cache.length - len(draft)
        chosen: list[TokenRecord] = []
        # Row i is what follows i tokens of the draft: it is looked at while these are the tokens that were chosen
        for i, logits in enumerate(rows):
            token = self._sampler(logits)
            self._sampler.accept(token)
            began, now = now, perf_counter()
            reason = finish_reason(token, index + i, held + i, self._eos_ids, self._max_tokens, self._limit)
            accepted = i < len(draft) and token == draft[i]
            drafted = 0 if i else len(draft)
            at_s = now - self._start
            chosen.append(
                TokenRecord(
                    token, index + i, at_s, 0.0, now - began, reason, drafted, accepted, self._sampler.logprobs
                )
            )
            if reason is not None or not accepted:
                break
        cache.truncate(held + len(chosen) - 1)
        self.finished = reason is not None
        self._index += len(chosen)
        self._latest = [record.id for record in chosen]
        share = (computed - before) / len(chosen)
        return [replace(record, model_s=share) for record in chosen]


def finish_reason(
    token: int, index: int, held: int, eos_ids: Collection[int], max_tokens: int, limit: int
) -> FinishReason | None:
    """Of the token `index` of an answer, with `held` positions filled before it."""
    if token in eos_ids:
        return "stop"
    if index == max_tokens - 1:
        return "length"
    return "context" if held >= limit else None
