"""Texts whose probability is asked for, made ready for `decoding/likelihood.py` as EleutherAI's harness does it."""

from __future__ import annotations

from collections.abc import Sequence

from .completion import numbered
from .decoding.likelihood import Forced, rolling_windows
from .errors import ContextLengthError, PromptError
from .text.tokenizer import Tokenizer


def forced_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], limit: int) -> list[Forced]:
    """The ids of each context and its continuation, of which the continuation's are in question.

    Both are encoded together; white space at the end of the context belongs to the continuation. ContextLengthError for
    more than a context of `limit` tokens holds, PromptError for an empty continuation; both count pairs from 1.
    """
    sequences = []
    for number, (context, continuation) in enumerate(pairs, 1):
        with numbered(number):
            sequences.append(_forced_pair(tokenizer, context, continuation, limit))
    return sequences


def forced_windows(tokenizer: Tokenizer, text: str, limit: int) -> list[Forced]:
    """Every token of a text once, in windows of `limit` tokens at most."""
    return rolling_windows(tokenizer.encode(text), _first_id(tokenizer), limit)


def _forced_pair(tokenizer: Tokenizer, context: str, continuation: str, limit: int) -> Forced:
    if not continuation:
        raise PromptError("the continuation is empty: there is nothing to score")
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    before = tokenizer.encode(kept)
    ids = tokenizer.encode(kept + continuation)
    start = len(before)
    if not start:
        ids, start = [_first_id(tokenizer), *ids], 1
    start = min(start, len(ids) - 1)
    if len(ids) - 1 > limit:
        raise ContextLengthError(f"it has {len(ids) - 1} tokens and the model's context {limit}")
    return Forced(tuple(ids), start)


def _first_id(tokenizer: Tokenizer) -> int:
    """What stands before a text: the tokenizer's beginning of text, else its end, as in the harness."""
    if tokenizer.bos_id is not None:
        return tokenizer.bos_id
    if not tokenizer.eos_ids:
        raise PromptError(f"{tokenizer.origin} names no token for the beginning or the end of a text")
    return min(tokenizer.eos_ids)
