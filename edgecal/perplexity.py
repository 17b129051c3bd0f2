"""How well a model predicts a text, alone and beside another: perplexity, KL divergence, the same top token.

As llama.cpp's tool of that name: the text is cut into windows that are scored independently. Every token of a window
after its first is scored, behind what the window has before it; llama.cpp scores the second half of each window only.

KL(P || Q) = sum_v P(v) (log P(v) - log Q(v)), in nats, of the other model's next-token distribution P to this one's Q:
what is lost where Q stands for P, whatever the text says next.

Tokens of one window depend on one another, so errors are computed from windows: with residuals r of their sums, the
variance of a mean over N tokens in n windows is n / (n - 1) sum(r^2) / N^2 (a ratio estimator: Cochran, Sampling
Techniques, 1977, section 6.4). Intervals are of 95 %, mean +- 1.96 errors; None where there is one window only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.quant import Array

from .adapters.recipe import Recipe
from .cache import KVCache
from .engine import Engine
from .errors import OptionError, RecipeError
from .text.corpus import windows

CONTEXT = 512
_LOGIT_BYTES = 64 << 20  # of one model's float32 logits at a time
_NORMAL = 1.96


class TokenScores(NamedTuple):
    """Of T tokens, float64 (T,) each: the loss in nats; beside another model its loss, KL(other || this), and whether
    both have the same most probable token."""

    loss: NDArray[np.float64]
    other_loss: NDArray[np.float64] | None = None
    kl: NDArray[np.float64] | None = None
    same_top: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error and the ends of its 95 % interval (None: one window, no error)."""

    value: float
    error: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """Beside another model: its perplexity, this one's by it, KL(other || this) in nats, its median and 99th percentile
    over all tokens, and the share of places with the same most probable token."""

    perplexity: float
    ratio: Estimate
    kl: Estimate
    kl_median: float
    kl_99: float
    same_top: Estimate


@dataclass(frozen=True)
class Perplexity:
    """Of `tokens` scored tokens in `windows` windows of up to `context`: exp of the mean loss."""

    perplexity: Estimate
    tokens: int
    windows: int
    context: int
    against: Comparison | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def token_scores(logits: Array, targets: NDArray[np.integer], other: Array | None = None) -> TokenScores:
    """Of float32 logits (T, V) before the T `targets`, and another model's logits at the same places."""
    rows = np.arange(len(targets))
    found = _log_softmax(logits)
    loss = -found[rows, targets].astype(np.float64)
    if other is None:
        return TokenScores(loss)
    exact = _log_softmax(other)
    same = (logits.argmax(axis=1) == other.argmax(axis=1)).astype(np.float64)
    found -= exact
    other_loss = -exact[rows, targets].astype(np.float64)
    kl = -np.einsum("tv,tv->t", np.exp(exact, out=exact), found, dtype=np.float64)
    return TokenScores(loss, other_loss, np.maximum(kl, 0), same)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    shifted -= np.log(total).astype(np.float32)
    return shifted


def summarize(scores: Sequence[TokenScores], context: int = CONTEXT) -> Perplexity:
    """What the scores of windows, one entry each, say together. ValueError for none."""
    losses = [one.loss for one in scores]
    loss = _estimate(losses)
    own = Perplexity(_exp(loss), sum(map(len, losses)), len(scores), context)
    if scores[0].kl is None:
        return own
    kls, tops, others = ([getattr(one, name) for one in scores] for name in ("kl", "same_top", "other_loss"))
    flat = np.concatenate(kls)
    compared = Comparison(
        perplexity=_exp(_estimate(others)).value,
        ratio=_exp(_estimate([a - b for a, b in zip(losses, others, strict=True)])),
        kl=_estimate(kls),
        kl_median=float(np.median(flat)),
        kl_99=float(np.percentile(flat, 99)),
        same_top=_estimate(tops),
    )
    return Perplexity(own.perplexity, own.tokens, own.windows, context, compared)


def _estimate(values: Sequence[NDArray[np.float64]]) -> Estimate:
    """The mean of all values, with the error that windows give."""
    if not values:
        raise ValueError("no windows")
    sums, counts = np.array([v.sum() for v in values]), np.array([len(v) for v in values])
    mean, n = sums.sum() / counts.sum(), len(values)
    if n < 2:
        return Estimate(float(mean), None, None, None)
    error = math.sqrt(n / (n - 1) * np.square(sums - mean * counts).sum()) / counts.sum()
    return Estimate(float(mean), float(error), float(mean - _NORMAL * error), float(mean + _NORMAL * error))


def _exp(of: Estimate) -> Estimate:
    """exp of a mean; the error by the delta method, the interval's ends as they are mapped."""
    value = math.exp(of.value)
    if of.error is None or of.low is None or of.high is None:
        return Estimate(value, None, None, None)
    return Estimate(value, value * of.error, math.exp(of.low), math.exp(of.high))


def measure(
    engine: Engine,
    documents: Sequence[str],
    *,
    against: Engine | None = None,
    recipe: Recipe | str | None = None,
    context: int = CONTEXT,
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Score `documents` (see `edgecal.text.corpus`) under `engine`, and beside `against`, of the same vocabulary.

    `recipe` is used on both, so that a comparison says what their weights do. `progress(done, total)` counts windows.
    Logits take 64 MiB at a time for each model. OptionError for a context that the model does not have and for models
    of different vocabularies, RecipeError for multi_step and in_context, PromptError for fewer than two tokens.
    """
    most = min(e.model.config.max_position_embeddings for e in (engine, against or engine))
    if not 2 <= context <= most:
        raise OptionError(f"a context of {context} tokens: choose 2 to {most}, what the model was trained on")
    if max_tokens is not None and max_tokens < 2:
        raise OptionError(f"max_tokens must be 2 or more, found {max_tokens}")
    if against is not None:
        _check_vocabulary(engine, against)
    scored = Scorer(engine, recipe)
    beside = None if against is None else Scorer(against, recipe)
    texts = windows(engine.tokenizer, list(documents), context, max_tokens)
    scores = []
    for number, ids in enumerate(texts):
        if progress is not None:
            progress(number, len(texts))
        others = iter(()) if beside is None else beside(ids)
        parts = [token_scores(logits, targets, next(others, (None,))[0]) for logits, targets in scored(ids)]
        scores.append(_joined(parts))
    if progress is not None:
        progress(len(texts), len(texts))
    return summarize(scores, context)


def _joined(parts: Sequence[TokenScores]) -> TokenScores:
    joined: list[Any] = [None if field[0] is None else np.concatenate(field) for field in zip(*parts, strict=True)]
    return TokenScores(*joined)


def _check_vocabulary(engine: Engine, other: Engine) -> None:
    sizes = engine.model.config.vocab_size, other.model.config.vocab_size
    if sizes[0] != sizes[1]:
        raise OptionError(f"models of one vocabulary are compared, found {sizes[0]} and {sizes[1]} tokens")
    if engine.tokenizer.backend.get_vocab() != other.tokenizer.backend.get_vocab():
        raise OptionError("models of one vocabulary are compared: here the same ids stand for different tokens")


class Scorer:
    """A window's ids in, its logits out, as many positions at a time as 64 MiB hold, each with the ids that follow.

    `step`: how many. RecipeError for a recipe that makes prompts of its own.
    """

    def __init__(self, engine: Engine, recipe: Recipe | str | None = None, cache_dtype: str | None = None) -> None:
        recipe = engine.find_recipe(recipe)
        if recipe is not None and (recipe.steps or recipe.shots):
            raise RecipeError(f"{recipe.method} makes prompts of its own: a given text has no perplexity under it")
        self._model, self._adapter = engine.model, engine.compile(recipe)[0]
        self._cache = KVCache(engine.model.config, cache_dtype or engine.cache_dtype)
        # a step that other models of this vocabulary have, too: their pieces belong together
        self.step = max(1, _LOGIT_BYTES // (4 * engine.model.config.vocab_size))

    def __call__(self, ids: NDArray[np.integer]) -> Iterator[tuple[Array, NDArray[np.integer]]]:
        """Pieces of logits (t, V) and targets (t,), of all positions but the last."""
        self._cache.truncate(0)
        for start in range(0, len(ids) - 1, self.step):
            stop = min(start + self.step, len(ids) - 1)
            logits = self._model.forward(ids[start:stop], self._cache, self._adapter, all_logits=True)
            yield logits, ids[start + 1 : stop + 1]
