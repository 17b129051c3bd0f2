"""Several sequences in one loop: a forward pass reads the weights once and moves every one of them a token on.

Each sequence has its own prompt, adapter, sampler and KV cache; an output row has the same bits in any company, so each
gets the tokens that it would get alone. A sequence that is complete leaves at once and the next one waiting takes its
place (continuous batching; Orca, Yu et al. 2022), so a long answer among short ones holds nobody up. Prompts are read
one after the other between the steps: they keep all cores busy by themselves.

Nothing is drafted here (see `speculation`): the rows that a draft would add are taken by other sequences.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from time import perf_counter

from edgecal_kernels.quant import Array

from ..adapters.compiled import RunningAdapter
from ..cache import KVCache
from ..errors import OptionError
from ..model import Model
from .generate import PREFILL_CHUNK, FinishReason, TokenRecord, finish_reason, prefill
from .sampler import Sampler

BATCH_SIZE = 8
LARGEST_BATCH = 256


@dataclass(eq=False)
class Sequence:
    """One prompt on its way. `open` is called when its turn comes and gives a KV cache with a true prefix of `ids`.

    Whoever reads the records may set `stopped`; the sequence then leaves the batch.
    """

    ids: list[int]
    sampler: Sampler
    open: Callable[[], KVCache]
    adapter: RunningAdapter | None = None
    max_tokens: int = 256
    chunk: int = PREFILL_CHUNK
    stopped: bool = False
    _cache: KVCache | None = field(default=None, repr=False)
    _token: int = -1
    _index: int = -1
    _start: float = 0.0

    @property
    def cache(self) -> KVCache:
        assert self._cache is not None, "the sequence has not begun"
        return self._cache

    def begin(self, model: Model, eos_ids: Collection[int]) -> TokenRecord:
        """Read the prompt and choose the first token."""
        self._cache = self.open()
        self._cache.truncate(len(self.ids) - 1)
        self._start = perf_counter()
        logits = prefill(model, self.ids[self._cache.length :], self._cache, self.adapter, chunk=self.chunk)
        return self.choose(logits, perf_counter() - self._start, eos_ids, model.config.max_position_embeddings)

    def choose(self, logits: Array, model_s: float, eos_ids: Collection[int], limit: int) -> TokenRecord:
        """The record of the next token, whose logits took `model_s`."""
        began = perf_counter()
        self._token = self.sampler(logits)
        self.sampler.accept(self._token)
        now = perf_counter()
        self._index += 1
        reason: FinishReason | None = finish_reason(
            self._token, self._index, self.cache.length, eos_ids, self.max_tokens, limit
        )
        self.stopped = reason is not None
        return TokenRecord(self._token, self._index, now - self._start, model_s, now - began, reason)


def check_batch_size(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_BATCH:
        raise OptionError(f"the batch size must be a whole number from 1 to {LARGEST_BATCH}, found {value!r}")


def generate_batch(
    model: Model, waiting: deque[Sequence], *, eos_ids: Collection[int] = (), batch_size: int = BATCH_SIZE
) -> Iterator[tuple[Sequence, TokenRecord]]:
    """Answer all that `waiting` holds, at most `batch_size` at a time, one (sequence, record) per token.

    Sequences enter in the order of the queue; more may be appended while this runs. In a record `model_s` is the
    sequence's share of the pass, as many shares as sequences; `at_s` counts from the begin of its own prompt. Raises
    OptionError for an impossible batch size.
    """
    check_batch_size(batch_size)
    return _records(model, waiting, eos_ids, batch_size)


def _records(
    model: Model, waiting: deque[Sequence], eos_ids: Collection[int], batch_size: int
) -> Iterator[tuple[Sequence, TokenRecord]]:
    limit = model.config.max_position_embeddings
    active: list[Sequence] = []
    while active or waiting:
        while waiting and len(active) < batch_size:
            sequence = waiting.popleft()
            yield sequence, sequence.begin(model, eos_ids)
            if not sequence.stopped:
                active.append(sequence)
        if not active:
            continue
        began = perf_counter()
        tokens = [sequence._token for sequence in active]
        logits = model.step(tokens, [sequence.cache for sequence in active], [sequence.adapter for sequence in active])
        share = (perf_counter() - began) / len(active)
        for sequence, row in zip(active, logits, strict=True):
            yield sequence, sequence.choose(row, share, eos_ids, limit)
        active = [sequence for sequence in active if not sequence.stopped]
