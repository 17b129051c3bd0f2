"""Linear merging of the factors, paper 1 Eq. 5: A* = mean_i A_i, B* = mean_i s_i B_i.

The mean is taken of each factor, not of dW, so the product B* A* has the cross terms B_i A_j: they are
intended, and the calibrations were trained on top of them. It costs the rank of one adapter. With given
weights both factors carry them (A* = sum_i w_i A_i, B* = sum_i w_i s_i B_i), as the mean does with 1/N: for
one adapter of weight w, dW is w^2 times its own.

PEFT's `linear` is another formula (`peft_linear`: the square root of w_i s_i on each factor), and mergekit's, a mean of
whole models, is `concat`; neither is this one. A recipe in mergekit's spelling gets mergekit's (`mergekit_spelling`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..compiled import CompiledPair
from ..lora import Array, LoraPair
from .context import PLAIN, Context
from .factors import add_weighted, merge_factors
from .registry import method


@method(
    "linear",
    title="mean of the factors",
    paper="Efficient Compositional Multi-tasking for On-device LLMs (EMNLP 2025)",
    equation="Eq. 5",
    takes_weights=True,
    equal_ranks=True,
)
def linear(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank r; AdapterError unless all pairs have the same rank."""
    return CompiledPair(*mean_factors(pairs, weights, context))


def mean_factors(
    pairs: Sequence[LoraPair], weights: Sequence[float], context: Context, spare: int = 0
) -> tuple[Array, Array]:
    """(A* (r + spare, k), B* (d, r + spare)) of Eq. 5; the spare rows and columns are for the caller to fill.

    AdapterError unless all pairs have the same shapes.
    """
    scaled = [weight * pair.scaling for pair, weight in zip(pairs, weights, strict=True)]
    return merge_factors(pairs, weights, scaled, add_weighted(context), context, spare)
