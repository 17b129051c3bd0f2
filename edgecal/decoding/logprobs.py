"""How probable the model found a token, and which ones it found more probable: log-probabilities in nats, of the logits
as the model gives them, before any temperature or penalty."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgecal_kernels.quant import Array

MOST = 20
"""The longest list of alternatives that can be asked for, as with OpenAI."""


class TokenLogprobs(NamedTuple):
    """Of one token, and of the most probable ones at its place, (id, log-probability) from the top."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprobs(logits: Array, token: int, n_top: int) -> TokenLogprobs:
    """`logits` (V,) float32 are not changed. Equals among the alternatives come in the order of their ids."""
    largest = float(logits.max())
    total = largest + float(np.log(np.exp(logits - np.float32(largest)).sum(dtype=np.float64)))
    top: tuple[tuple[int, float], ...] = ()
    if n_top:
        edge = np.partition(logits, -n_top)[-n_top] if n_top < len(logits) else logits.min()
        ids = np.flatnonzero(logits >= edge)
        order = ids[np.argsort(-logits[ids], kind="stable")][:n_top]
        top = tuple((int(index), float(logits[index]) - total) for index in order)
    return TokenLogprobs(float(logits[token]) - total, top)
