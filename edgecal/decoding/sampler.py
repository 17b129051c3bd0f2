"""From logits to the next token, with the meaning and the order of Hugging Face's processors.

Order: repetition penalty, then (only when sampling) temperature, top-k, top-p, min-p. The order matters: top-p
sees the probabilities that temperature made and top-k left over, and so does min-p. Definitions, for
probabilities p sorted from the largest:

* repetition penalty r (Keskar et al. 2019, arXiv:1909.05858): logits of tokens in the prompt or the answer
  are divided by r where positive and multiplied by r where negative;
* top-k keeps the tokens not below the k-th, ties included;
* top-p (Holtzman et al. 2020, arXiv:1904.09751) keeps a token if those before it sum to less than top_p;
* min-p (Nguyen et al. 2024, arXiv:2407.01082) keeps p >= min_p * p[0].

A vocabulary has up to 152,000 entries and a phone has milliseconds, so nothing here sorts all of it, and nothing
adds all of it up one by one. The top k come from a partition; top-p estimates from a sorted sample between which two
weights its threshold lies, checks that by two sums, and sorts only the weights between; a draw first finds the block
of 256 tokens that it falls into. Equals at the edge of a top-p set are taken in the order of their ids, and a token
costs exactly one uniform number from PCG64, looked up in the cumulative sum over ascending ids. Weights are float32
as the logits are, sums float64: the same seed gives the same text on every platform, as far as its exp() agrees.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecal_weights.files import is_number

from ..errors import EdgecalError, OptionError
from .logprobs import TokenLogprobs, token_logprobs

_FEW = 16384  # so many numbers sort in the time of a pass over the vocabulary
_SAMPLE = 4096
_BLOCK = 256


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose the next token. The defaults are greedy decoding.

    Attributes:
        temperature: 0 takes the most probable token and ignores the three filters below; 1 samples as
            trained.
        top_k: how many of the most probable tokens to keep; 0 is off.
        top_p: keep the smallest set of tokens whose probability reaches this, in (0, 1]; 1 is off.
        min_p: drop tokens less probable than this share of the most probable one, in [0, 1]; 0 is off.
        repetition_penalty: above 1 discourages tokens that occurred; 1 is off.
        seed: makes sampling reproducible; None takes entropy from the system.

    Raises:
        OptionError: a value outside its range.
    """

    # Help and further spellings are for the command line, which makes its options from these fields
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy.", "spellings": ("--temp",)})
    top_k: int = field(default=0, metadata={"help": "0 is off."})
    top_p: float = field(default=1.0, metadata={"help": "1 is off."})
    min_p: float = field(default=0.0, metadata={"help": "0 is off."})
    repetition_penalty: float = field(default=1.0, metadata={"help": "1 is off."})
    seed: int | None = field(default=None, metadata={"help": "Makes sampling repeatable."})

    def __post_init__(self) -> None:
        self._require("temperature", is_number(self.temperature) and self.temperature >= 0, "at least 0")
        self._require("top_k", self._is_natural(self.top_k), "a whole number, at least 0 (0: off)")
        self._require("top_p", is_number(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1 (1: off)")
        self._require("min_p", is_number(self.min_p) and 0 <= self.min_p <= 1, "from 0 (off) to 1")
        penalty = self.repetition_penalty
        self._require("repetition_penalty", is_number(penalty) and penalty > 0, "above 0 (1: off)")
        self._require("seed", self.seed is None or self._is_natural(self.seed), "a whole number, at least 0, or None")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def _require(self, name: str, holds: bool, range_text: str) -> None:
        if not holds:
            raise OptionError(f"{name} must be {range_text}, found {getattr(self, name)!r}")

    @staticmethod
    def _is_natural(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# For talk with a model that advises nothing: small models answer greedily in loops, and at 1 lose the thread.
TALK = SamplingOptions(temperature=0.6, top_p=0.9, repetition_penalty=1.05)


def advised(generation_config: Mapping[str, Any]) -> SamplingOptions | None:
    """What a model's generation_config.json says of sampling, as transformers' `generate` takes it; None for nothing.

    Without `do_sample` it is greedy, whatever temperature stands there; with it, top_k is 50 unless given. OptionError
    for a value outside its range.
    """
    named = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    said = {name: generation_config[name] for name in named if generation_config.get(name) is not None}
    if not said and generation_config.get("do_sample") is None:
        return None
    if generation_config.get("do_sample") is not True:
        return SamplingOptions(repetition_penalty=said.get("repetition_penalty", 1.0))
    return SamplingOptions(**{"temperature": 1.0, "top_k": 50, **said})


class Sampler:
    """Chooses one token per call. Keeps the random state and the ids seen so far of one generation.

    Args:
        options: how to choose.
        prompt_ids: count for the repetition penalty.
        n_logprobs: keep the log-probability of every chosen token and of so many alternatives in `logprobs`, which is
            that of the latest; None keeps none.
    """

    def __init__(
        self, options: SamplingOptions, prompt_ids: Iterable[int] = (), n_logprobs: int | None = None
    ) -> None:
        self.options = options
        self.logprobs: TokenLogprobs | None = None
        self._n_logprobs = n_logprobs
        self._random = np.random.Generator(np.random.PCG64(options.seed))
        self._seen: dict[int, None] = {}  # ordered set; only kept if the penalty needs it
        for index in prompt_ids:
            self.accept(index)

    def accept(self, index: int) -> None:
        """Tell that this id is now part of the text."""
        if self.options.repetition_penalty != 1:
            self._seen[int(index)] = None

    def __call__(self, logits: np.ndarray) -> int:
        """The next id.

        Args:
            logits: (V,) float32, not changed; -inf forbids a token.

        Raises:
            EdgecalError: no token has a finite logit, or one is NaN.
        """
        token = self._choose(logits)
        if self._n_logprobs is not None:
            self.logprobs = token_logprobs(logits, token, self._n_logprobs)
        return token

    def _choose(self, logits: np.ndarray) -> int:
        if self.options.greedy:
            scores = self._penalized(logits)
            best = int(scores.argmax())
            self._check(scores[best])
            return best
        ids, weights = self._weights(logits)
        at = _draw(weights, self._random.random())
        return int(ids[at]) if ids is not None else at

    def distribution(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What sampling draws from: ids in ascending order and their probabilities (float64, sum 1)."""
        ids, weights = self._weights(logits)
        probabilities = weights.astype(np.float64)
        return np.arange(len(weights)) if ids is None else ids, probabilities / probabilities.sum()

    def _weights(self, logits: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Ids in ascending order, None for all, and probabilities up to a factor: float32, the largest 1."""
        scores = self._penalized(logits)
        options, ids = self.options, None
        top = scores.max()
        self._check(top)
        if 0 < options.top_k < len(scores):
            kth = np.partition(scores, -options.top_k)[-options.top_k]
            ids = np.flatnonzero(scores >= kth)
            scores = scores[ids]
        # Subtracting before dividing keeps exp() in range at any temperature; float32 has none below 1e-38
        weights = np.subtract(scores, top, dtype=np.float32)
        with np.errstate(over="ignore"):
            weights /= np.float32(max(options.temperature or 1.0, 1e-30))
        np.exp(weights, out=weights)
        if options.top_p < 1:
            kept = _nucleus(weights, options.top_p)
            ids, weights = kept if ids is None else ids[kept], weights[kept]
        if options.min_p > 0:
            kept = np.flatnonzero(weights >= options.min_p)
            ids, weights = kept if ids is None else ids[kept], weights[kept]
        return ids, weights

    def _penalized(self, logits: np.ndarray) -> np.ndarray:
        if not self._seen:
            return logits
        penalty = self.options.repetition_penalty
        ids = np.fromiter(self._seen, dtype=np.int64, count=len(self._seen))
        scores = logits.copy()
        seen = scores[ids]
        scores[ids] = np.where(seen < 0, seen * penalty, seen / penalty)
        return scores

    @staticmethod
    def _check(top: np.floating) -> None:
        if not np.isfinite(top):
            raise EdgecalError(
                f"the largest logit is {top}: the weights or an adapter hold NaN or infinite values, or overflow"
            )


def _draw(weights: np.ndarray, uniform: float) -> int:
    """The position that `uniform` in [0, 1) of the sum of `weights` falls into."""
    full = len(weights) // _BLOCK * _BLOCK
    sums = weights[:full].reshape(-1, _BLOCK).sum(axis=1, dtype=np.float64)
    edges = np.cumsum(np.append(sums, weights[full:].sum(dtype=np.float64)))
    wanted = uniform * edges[-1]
    block = min(int(np.searchsorted(edges, wanted, side="right")), len(edges) - 1)
    while block > 0 and not weights[block * _BLOCK :].any():  # by rounding: nothing lies behind the last weight
        block -= 1
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    cumulative = np.cumsum(inside, dtype=np.float64)
    rest = wanted - (edges[block - 1] if block else 0.0)
    last = int(np.flatnonzero(inside)[-1])
    return block * _BLOCK + min(int(np.searchsorted(cumulative, rest, side="right")), last)


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Positions, ascending, of the smallest set of largest weights (the largest is 1) that reaches top_p of the sum.

    Looks for the smallest weight of the set, the edge. `between` are the weights that it may still be, `taken` is the
    sum of all above them.
    """
    total = float(weights.sum(dtype=np.float64))
    target, taken = top_p * total, 0.0
    # All weights below this together are less than what the set leaves out
    spare = np.float32((1 - top_p) * total / len(weights) * 0.999)
    between = weights[weights >= spare] if len(weights) > _FEW else weights
    while len(between) > _FEW:
        sample = np.sort(between[:: len(between) // _SAMPLE])[::-1]
        sums, rest = np.cumsum(sample, dtype=np.float64), float(between.sum(dtype=np.float64))
        at = int(np.searchsorted(sums, (target - taken) / rest * sums[-1]))
        margin = 2 * math.isqrt(len(sample))
        low, high = sample[min(at + margin, len(sample) - 1)], sample[max(at - margin, 0)]
        over, under = between > high, between < low
        with_over = taken + float((between * over).sum(dtype=np.float64))
        with_middle = taken + rest - float((between * under).sum(dtype=np.float64))
        before = len(between)
        if with_over >= target:
            between = between[over]
        elif with_middle >= target or not under.any():  # sums are rounded
            taken, between = with_over, between[~(over | under)]
        else:
            taken, between = with_middle, between[under]
        if len(between) > before // 2:  # many equals
            break
    ordered = np.sort(between)[::-1]
    sums = taken + np.cumsum(ordered, dtype=np.float64)
    last = min(int(np.searchsorted(sums, target)), len(ordered) - 1)
    edge = ordered[last]
    kept = weights >= edge
    equals = np.flatnonzero(weights == edge)
    kept[equals[np.count_nonzero(ordered[: last + 1] == edge) :]] = False
    return np.flatnonzero(kept)
