"""The two things that are timed: reading a prompt, and writing tokens.

They do what `generate` does, with given ids: the sampler chooses a token in every step, as in an answer, but the next
step is fed the prompt's own, so that all methods do the same work and no end of sequence cuts a run short. Writing is
thereby defined as in `bench/peers`: n tokens behind `depth` others, one at a time, the choice of a token included.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from ..adapters.compiled import RunningAdapter
from ..cache import KVCache
from ..decoding.generate import decode, prefill
from ..decoding.sampler import Sampler
from ..model import Model
from .split import Marks


def read_prompt(
    model: Model,
    ids: Sequence[int],
    cache: KVCache,
    adapter: RunningAdapter | None,
    sampler: Sampler,
    marks: Marks | None = None,
) -> tuple[float, float]:
    """Seconds until the last token's logits are there, and until the first token of the answer is chosen."""
    start = perf_counter()
    logits = prefill(model, ids, cache, adapter)
    read = perf_counter()
    sampler.accept(sampler(logits))
    if marks is not None:
        marks.sampled()
    return read - start, perf_counter() - start


def write_tokens(
    model: Model,
    ids: Sequence[int],
    cache: KVCache,
    adapter: RunningAdapter | None,
    sampler: Sampler,
    marks: Marks | None = None,
) -> list[float]:
    """Seconds of each step, from the end of the one before."""
    steps = []
    before = perf_counter()
    for token in ids:
        sampler.accept(sampler(decode(model, token, cache, adapter)))
        if marks is not None:
            marks.sampled()
        now = perf_counter()
        steps.append(now - before)
        before = now
    return steps
