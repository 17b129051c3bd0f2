"""How probable a model finds given tokens: teacher forcing of many sequences, without gradients.

Teacher forcing runs all tokens of a sequence in one prefill, which keeps every core busy by itself: there is nothing to
gain from running two side by side. What can be saved is the work that sequences share. They are sorted by their ids,
so that those with the longest common beginning follow each other, and the KV cache is cut back to that beginning
instead of being filled anew. Keys and values depend on the adapter, so nothing is kept from one call to the next but
the memory.

Logits are made for the tokens in question only, a few positions at a time: a vocabulary of 128,000 makes half a
megabyte per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.quant import Array

from ..adapters.compiled import RunningAdapter
from ..cache import KVCache
from ..model import Model
from .generate import prefill
from .logprobs import TokenLogprobs, token_logprobs

LOGIT_BYTES = 16 << 20  # of float32 logits at a time


class Forced(NamedTuple):
    """A sequence of which ids[start:] are in question, start >= 1."""

    ids: tuple[int, ...]
    start: int


class Likelihood(NamedTuple):
    """`total`: the sum of the log-probabilities, in nats. `greedy`: each id is the most probable one at its place."""

    total: float
    greedy: bool


class Likelihoods:
    """Scores sequences on one model with one KV cache. `tokens_run` and `tokens_saved` are of the last call: what went
    through the model, and what the cache held already."""

    def __init__(self, model: Model, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        self._step = max(1, LOGIT_BYTES // (4 * model.config.vocab_size))
        self.tokens_run = self.tokens_saved = 0

    def __call__(self, sequences: Sequence[Forced], adapter: RunningAdapter | None) -> list[Likelihood]:
        """In the order given, under `adapter` (None: the bare base)."""
        found = [Likelihood(0.0, True)] * len(sequences)
        self.tokens_run = self.tokens_saved = 0
        held: tuple[int, ...] = ()
        self._cache.truncate(0)
        for index in sorted(range(len(sequences)), key=lambda i: sequences[i].ids):
            ids, start = sequences[index]
            # The id before those in question is run again even if it is held: its logits are what is asked for
            shared = min(_common_length(held, ids), start - 1)
            self._cache.truncate(shared)
            found[index] = self._score(ids, start, adapter)
            held = ids[:-1]  # nothing comes after the last one, so it is not run
            self.tokens_run += len(held) - shared
            self.tokens_saved += shared
        return found

    def _score(self, ids: tuple[int, ...], start: int, adapter: RunningAdapter | None) -> Likelihood:
        """Of ids[start:]; the cache holds the beginning of `ids`."""
        prompt = ids[self._cache.length : start - 1]
        if prompt:
            prefill(self._model, prompt, self._cache, adapter)
        targets, total, greedy = np.asarray(ids[start:], np.int64), 0.0, True
        inputs = np.asarray(ids[start - 1 : -1], np.int64)
        for at in range(0, len(inputs), self._step):
            logits = self._model.forward(inputs[at : at + self._step], self._cache, adapter, all_logits=True)
            wanted = targets[at : at + self._step]
            greedy = greedy and bool((logits.argmax(axis=1) == wanted).all())
            total -= _summed_loss(logits, wanted)
        return Likelihood(total, greedy)


class PromptScores:
    """The log-probabilities of all tokens of a prompt but its first, found a few positions at a time.

    `tokens` has an entry for each of ids[1:] that is known, with `n_top` alternatives; `last_logits`, float32 (V,), are
    those behind the last token, once all are.
    """

    def __init__(
        self, model: Model, cache: KVCache, ids: Sequence[int], adapter: RunningAdapter | None, n_top: int
    ) -> None:
        self.ids = list(ids)
        self.tokens: list[TokenLogprobs] = []
        self.last_logits = np.zeros(0, np.float32)
        self._model, self._cache, self._adapter, self._n_top = model, cache, adapter, n_top

    def step(self, n_tokens: int) -> bool:
        """Go on by `n_tokens`; whether there are more."""
        at = self._cache.length
        logits = self._model.forward(
            np.asarray(self.ids[at : at + n_tokens], np.int64), self._cache, self._adapter, all_logits=True
        )
        following = self.ids[at + 1 : at + 1 + len(logits)]
        self.tokens += [
            token_logprobs(row, token, self._n_top) for row, token in zip(logits, following, strict=False)
        ]
        self.last_logits = logits[-1]
        return self._cache.length < len(self.ids)


def rolling_windows(ids: Sequence[int], first: int, most: int) -> list[Forced]:
    """Every id of a text once, behind as much of the text as fits into a context of `most`: windows that begin with the
    id `first` or with the last one of the window before, as EleutherAI's harness cuts a text."""
    windows, ids = [], tuple(ids)
    for at in range(0, len(ids), most):
        end = min(at + most, len(ids))
        if not at:
            windows.append(Forced((first, *ids[:end]), 1))
        else:  # the last one is filled up with what came before
            begin = max(0, end - most - 1)
            windows.append(Forced(ids[begin:end], at - begin))
    return windows


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _summed_loss(logits: Array, targets: NDArray[np.int64]) -> float:
    """Sum over T of log(sum(exp(logits))) - logits[target], logits (T, V) overwritten, summed in float64."""
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(targets)), targets].astype(np.float64)
    np.exp(logits, out=logits)
    return float((np.log(logits.sum(axis=1, dtype=np.float64)) - chosen).sum())
