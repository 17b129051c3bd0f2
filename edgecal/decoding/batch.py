"""Several prompts in one loop: a forward pass reads the weights once and moves every one of them a token on.

Each has its own adapter, sampler and KV cache; an output row has the same bits in any company, so each gets the tokens
that it would get alone. Who is complete leaves at once and the next one takes the place (continuous batching; Orca, Yu
et al. 2022), so a long answer among short ones holds nobody up. Prompts are read one after the other: they keep all
cores busy by themselves. They are read at once, or in pieces between the steps of the others, so that nobody who is
being answered waits for a long one. A piece is as long as a pause may be; where the machine does not read enough in
that time to make a matrix product worth its while, it is the rows that a step leaves instead.

Whoever reads the records decides who takes part: between any two tokens a job may be added, and any job may be told to
stop.

Tokens are guessed ahead (see `speculation`) by a job that has the model to itself, where it allows it: in a batch the
rows that a draft would add are taken by others.
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
from .generate import PREFILL_CHUNK, FinishReason, SingleSequence, TokenRecord, finish_reason, prefill
from .sampler import Sampler
from .speculation import Speculate, StepCosts

BATCH_SIZE = 8
LARGEST_BATCH = 256
_ROWS, _LEAST = 16, 8  # of a pass of the compiled decoder; fewer of them for a prompt are not worth its reading
_PAUSE_S = 0.12  # that those who are being answered wait for a piece of a prompt
_CHUNK = 64  # tokens of a prompt below which the rows of a step read as fast as a matrix product


@dataclass(eq=False)
class Job:
    """One prompt to answer. `open` is called when its turn comes and gives a KV cache with a true prefix of `ids`.

    Set `stopped` at any time, and there are no more records of it. With `costs`, what passes of several tokens take, it
    guesses ahead as `speculate` says while no other job runs.
    """

    ids: list[int]
    sampler: Sampler
    open: Callable[[], KVCache]
    adapter: RunningAdapter | None = None
    max_tokens: int = 256
    chunk: int = PREFILL_CHUNK
    speculate: Speculate = "auto"
    costs: StepCosts | None = None
    stopped: bool = False
    _cache: KVCache | None = field(default=None, repr=False)
    _chosen: list[int] = field(default_factory=list, repr=False)
    _start: float = 0.0
    read_s: float = 0.0
    _single: SingleSequence | None = field(default=None, repr=False)

    @property
    def cache(self) -> KVCache:
        assert self._cache is not None, "the job has not begun"
        return self._cache

    @property
    def token(self) -> int:
        """The latest."""
        return self._chosen[-1]

    def begin(self) -> None:
        """Its turn has come."""
        if self._cache is None:
            self._start = perf_counter()
            self._cache = self.open()
            self._cache.truncate(len(self.ids) - 1)
            self._cache.reserve(len(self.ids))

    def next_ids(self, n_tokens: int) -> list[int]:
        """The next tokens of the prompt, at most so many."""
        return self.ids[self.cache.length : self.cache.length + n_tokens]

    @property
    def is_read(self) -> bool:
        return self.cache.length == len(self.ids)

    def read(self, model: Model, most: int | None) -> Array | None:
        """Read on in the prompt, by a chunk or by at most `most` tokens; logits (V,) once it is read."""
        began, n_tokens = perf_counter(), min(self.chunk, most or self.chunk)
        logits = prefill(model, self.next_ids(max(n_tokens, 1)), self.cache, self.adapter, chunk=n_tokens)
        self.read_s += perf_counter() - began
        return logits if self.is_read else None

    def choose(self, logits: Array, model_s: float, eos_ids: Collection[int], limit: int) -> TokenRecord:
        """The record of the next token, whose logits took `model_s`, or for the first the whole prompt."""
        began = perf_counter()
        token, index = self.sampler(logits), len(self._chosen)
        self.sampler.accept(token)
        now = perf_counter()
        reason: FinishReason | None = finish_reason(token, index, self.cache.length, eos_ids, self.max_tokens, limit)
        self._chosen.append(token)
        return TokenRecord(
            token,
            index,
            now - self._start,
            model_s if index else self.read_s,
            now - began,
            reason,
            logprobs=self.sampler.logprobs,
        )

    def advance(self, model: Model, eos_ids: Collection[int]) -> list[TokenRecord]:
        """A pass for this job alone, with tokens that were guessed ahead."""
        assert self.costs is not None
        if self._single is None:
            self._single = SingleSequence(
                model, self.ids, self.sampler, self.adapter, self.cache, eos_ids, self.max_tokens, self.speculate,
                self.costs, self._start, self._chosen,
            )  # fmt: skip
        records = self._single.advance()
        self._chosen += [record.id for record in records]
        return records

    def leave_alone(self) -> None:
        """Others have come: from now on it takes part in their steps."""
        self._single = None


def check_batch_size(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_BATCH:
        raise OptionError(f"the batch size must be a whole number from 1 to {LARGEST_BATCH}, found {value!r}")


class Batch:
    """Jobs that run together, at most `size` of them. `step` does a piece of work: a chunk of a prompt, or a token for
    every job whose prompt is read.

    `interleave`: while others are being answered prompts are read in pieces between their steps, each for at most
    `_PAUSE_S` by the speed of the last one, or in the rows that their passes leave; else they are read through, for
    when all answers are waited for anyway. Raises OptionError for an impossible size.
    """

    def __init__(
        self,
        model: Model,
        eos_ids: Collection[int] = (),
        size: int = BATCH_SIZE,
        interleave: bool = False,
    ) -> None:
        check_batch_size(size)
        self.size = size
        self._model, self._eos_ids, self._interleave = model, eos_ids, interleave
        self._limit = model.config.max_position_embeddings
        self._reading: deque[Job] = deque()
        self._answering: list[Job] = []
        self._read_next = True
        self._token_s = 0.0  # that a token of a prompt took in the last piece; 0: none was read

    def __len__(self) -> int:
        """Jobs that take part."""
        self._drop_stopped()
        return len(self._reading) + len(self._answering)

    def at_work(self) -> list[Job]:
        """Those for whom the next step may be."""
        self._drop_stopped()
        reading = list(self._reading)[:1]
        if self._interleave:
            return [*reading, *self._answering]
        return reading if self._reads_next() else list(self._answering)

    def _reads_next(self) -> bool:
        return bool(self._reading) and (self._read_next or not self._answering)

    def add(self, job: Job) -> None:
        assert len(self) < self.size, "the batch is full"
        self._reading.append(job)

    def _drop_stopped(self) -> None:
        if any(job.stopped for job in self._answering):
            self._answering = [job for job in self._answering if not job.stopped]
        while self._reading and self._reading[0].stopped:
            self._reading.popleft()
        if any(job.stopped for job in self._reading):
            self._reading = deque(job for job in self._reading if not job.stopped)

    def step(self) -> Iterator[tuple[Job, TokenRecord]]:
        """The tokens that a piece of work gave, often none.

        In a record `model_s` is the job's share of the pass, as many shares as jobs; `at_s` counts from the begin of
        its own prompt.
        """
        self._drop_stopped()
        if self._reading:
            self._reading[0].begin()
        if self._mixes():
            yield from self._read_and_decode(self._reading[0])
        elif self._reads_next():
            self._read_next = not self._interleave
            yield from self._read(self._reading[0])
        elif self._answering:
            self._read_next = True
            yield from self._decode()

    def _mixes(self) -> bool:
        """Whether the next step reads a prompt and moves the others on, all in the same passes."""
        if not (self._interleave and self._reading and self._answering) or self._in_a_pause() >= _CHUNK:
            return False
        jobs = [self._reading[0], *self._answering]
        return self._model.steps_reading([job.cache for job in jobs], [job.adapter for job in jobs])

    def _read_and_decode(self, reader: Job) -> Iterator[tuple[Job, TokenRecord]]:
        jobs, began = list(self._answering), perf_counter()
        room = -len(jobs) % _ROWS
        prompt = reader.next_ids(min(room if room >= _LEAST else room + _ROWS, reader.chunk))
        for job in jobs:
            job.leave_alone()
        behind, logits = self._model.step_reading(
            prompt,
            (reader.cache, reader.adapter),
            [job.token for job in jobs],
            [job.cache for job in jobs],
            [job.adapter for job in jobs],
        )
        share = (perf_counter() - began) / (len(jobs) + len(prompt))
        reader.read_s += share * len(prompt)
        self._token_s = share
        yield from self._choose(jobs, logits, share)
        if reader.is_read:
            yield from self._answer(reader, behind)

    def _in_a_pause(self) -> int:
        """Tokens of a prompt that are read in `_PAUSE_S`, in whole chunks; 0 while that is not known."""
        return int(_PAUSE_S / self._token_s) // _CHUNK * _CHUNK if self._token_s else 0

    def _read(self, job: Job) -> Iterator[tuple[Job, TokenRecord]]:
        before, read_s = job.cache.length, job.read_s
        others_wait = self._interleave and bool(self._answering)
        logits = job.read(self._model, max(self._in_a_pause(), _CHUNK) if others_wait else None)
        if (n_tokens := job.cache.length - before) >= _ROWS:  # fewer say little of many
            self._token_s = (job.read_s - read_s) / n_tokens
        if logits is not None:
            yield from self._answer(job, logits)

    def _answer(self, job: Job, logits: Array) -> Iterator[tuple[Job, TokenRecord]]:
        """Its prompt is read: the first token."""
        self._reading.popleft()
        self._answering.append(job)
        if not job.stopped:
            yield from self._told(job, job.choose(logits, 0.0, self._eos_ids, self._limit))

    def _decode(self) -> Iterator[tuple[Job, TokenRecord]]:
        jobs, model = list(self._answering), self._model
        if len(jobs) == 1 and jobs[0].costs is not None and not self._reading:
            for record in jobs[0].advance(model, self._eos_ids):
                yield from self._told(jobs[0], record)
            return
        began = perf_counter()
        for job in jobs:
            job.leave_alone()
        logits = model.step([job.token for job in jobs], [job.cache for job in jobs], [job.adapter for job in jobs])
        yield from self._choose(jobs, logits, (perf_counter() - began) / len(jobs))

    def _choose(self, jobs: list[Job], logits: Array, share: float) -> Iterator[tuple[Job, TokenRecord]]:
        for job, row in zip(jobs, logits, strict=True):
            if not job.stopped:  # since this step began, by the reader of another's record
                yield from self._told(job, job.choose(row, share, self._eos_ids, self._limit))

    @staticmethod
    def _told(job: Job, record: TokenRecord) -> Iterator[tuple[Job, TokenRecord]]:
        if not job.stopped:
            job.stopped = record.finish_reason is not None
            yield job, record
