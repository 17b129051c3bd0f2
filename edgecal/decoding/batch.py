"""Several prompts in one loop: a forward pass reads the weights once and moves every one of them a token on.

Each has its own adapter, sampler and KV cache; an output row has the same bits in any company, so each gets the tokens
that it would get alone. Who is complete leaves at once and the next one waiting takes the place (continuous batching;
Orca, Yu et al. 2022), so a long answer among short ones holds nobody up. Prompts are read one after the other between
the steps: they keep all cores busy by themselves.

Whoever reads the records decides who takes part: between any two tokens a job may be appended to the queue, and any
job, running or waiting, may be told to stop.

Nothing is drafted here (see `speculation`): the rows that a draft would add are taken by other prompts.
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
class Job:
    """One prompt to answer. `open` is called when its turn comes and gives a KV cache with a true prefix of `ids`.

    Set `stopped` at any time, and there are no more records of it.
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
        assert self._cache is not None, "the job has not begun"
        return self._cache

    def begin(self, model: Model, eos_ids: Collection[int]) -> TokenRecord:
        """Read the prompt and choose the first token."""
        self._cache = self.open()
        self._cache.truncate(len(self.ids) - 1)
        self._start = perf_counter()
        logits = prefill(model, self.ids[self._cache.length :], self._cache, self.adapter, chunk=self.chunk)
        return self.choose(logits, perf_counter() - self._start, eos_ids, model.config.max_position_embeddings)

    def choose(self, logits: Array, model_s: float, eos_ids: Collection[int], limit: int) -> TokenRecord:
        """The record of the next token, whose logits took `model_s`; stopped if it is the last."""
        began = perf_counter()
        self._token = self.sampler(logits)
        self.sampler.accept(self._token)
        now = perf_counter()
        self._index += 1
        reason: FinishReason | None = finish_reason(
            self._token, self._index, self.cache.length, eos_ids, self.max_tokens, limit
        )
        if reason is not None:
            self.stopped = True
        return TokenRecord(self._token, self._index, now - self._start, model_s, now - began, reason)


def check_batch_size(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_BATCH:
        raise OptionError(f"the batch size must be a whole number from 1 to {LARGEST_BATCH}, found {value!r}")


def generate_batch(
    model: Model, waiting: deque[Job], *, eos_ids: Collection[int] = (), batch_size: int = BATCH_SIZE
) -> Iterator[tuple[Job, TokenRecord]]:
    """Answer all that `waiting` holds, at most `batch_size` at a time, one (job, record) per token.

    Jobs enter in the order of the queue; more may be appended while this runs. In a record `model_s` is the job's
    share of the pass, as many shares as jobs; `at_s` counts from the begin of its own prompt. Raises OptionError for an
    impossible batch size.
    """
    check_batch_size(batch_size)
    return _records(model, waiting, eos_ids, batch_size)


def _records(
    model: Model, waiting: deque[Job], eos_ids: Collection[int], batch_size: int
) -> Iterator[tuple[Job, TokenRecord]]:
    limit = model.config.max_position_embeddings
    active: list[Job] = []
    while True:
        active = [job for job in active if not job.stopped]
        if waiting and len(active) < batch_size:
            job = waiting.popleft()
            if not job.stopped:
                active.append(job)
                yield job, job.begin(model, eos_ids)
            continue
        if not active:
            return
        began = perf_counter()
        logits = model.step([job._token for job in active], [job.cache for job in active], [j.adapter for j in active])
        share = (perf_counter() - began) / len(active)
        for job, row in zip(active, logits, strict=True):
            if not job.stopped:  # since this step began, by the reader of another's record
                yield job, job.choose(row, share, eos_ids, limit)
