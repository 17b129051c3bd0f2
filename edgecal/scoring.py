"""How probable a model finds given texts, asked as EleutherAI's harness does: `TextScorer` makes ids of them, and
`decoding/likelihood.py` runs these."""

from __future__ import annotations

from collections.abc import Sequence

from .adapters.compiled import RunningAdapter
from .cache import KVCache
from .completion import numbered
from .decoding.likelihood import Forced, Likelihood, Likelihoods, rolling_windows
from .errors import ContextLengthError, PromptError
from .model import Model
from .text.tokenizer import Tokenizer


class TextScorer:
    """Log-probabilities of texts under one model and adapter (None: the bare base). `cache` is taken for the work."""

    def __init__(self, model: Model, tokenizer: Tokenizer, cache: KVCache, adapter: RunningAdapter | None) -> None:
        self._tokenizer, self._adapter = tokenizer, adapter
        self._limit = model.config.max_position_embeddings
        self._likelihoods = Likelihoods(model, cache)

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Of each (context, continuation) the continuation's.

        Both are encoded together; white space at the end of the context belongs to the continuation.
        ContextLengthError for more than a context of the model holds, PromptError for an empty continuation; both
        count pairs from 1.
        """
        sequences = []
        for number, (context, continuation) in enumerate(pairs, 1):
            with numbered(number):
                sequences.append(self._forced(context, continuation))
        return self.ids(sequences)

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Of each text the sum over all of its tokens, in nats: windows of as much as the model's context holds."""
        windows = [rolling_windows(self._tokenizer.encode(text), self._first_id(), self._limit) for text in texts]
        scores = iter(self.ids([one for each in windows for one in each]))
        return [sum(next(scores).total for _ in each) for each in windows]

    def ids(self, sequences: Sequence[Forced]) -> list[Likelihood]:
        """Of texts that are encoded already."""
        return self._likelihoods(sequences, self._adapter)

    def _forced(self, context: str, continuation: str) -> Forced:
        if not continuation:
            raise PromptError("the continuation is empty: there is nothing to score")
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        before = self._tokenizer.encode(kept)
        ids = self._tokenizer.encode(kept + continuation)
        start = len(before)
        if not start:
            ids, start = [self._first_id(), *ids], 1
        start = min(start, len(ids) - 1)
        if len(ids) - 1 > self._limit:
            raise ContextLengthError(f"it has {len(ids) - 1} tokens and the model's context {self._limit}")
        return Forced(tuple(ids), start)

    def _first_id(self) -> int:
        """What stands before a text: the tokenizer's beginning of text, else its end, as in the harness."""
        if self._tokenizer.bos_id is not None:
            return self._tokenizer.bos_id
        if not self._tokenizer.eos_ids:
            raise PromptError(f"{self._tokenizer.origin} names no token for the beginning or the end of a text")
        return min(self._tokenizer.eos_ids)
