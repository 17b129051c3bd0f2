"""Magnitude pruning: keep the largest entries of each adapter, then add.

PEFT's variant (0.21.2): `magnitude_prune` on the A's and on the B's with square roots of the weights,
`magnitude_prune_svd` on dW_i, followed by a truncated SVD. It is TIES without the election of signs.
A recipe of one adapter is left whole, as in PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..compiled import CompiledPair
from ..lora import Array, LoraPair
from .context import PLAIN, Context
from .factors import Combine, merge_with_roots, weighted_sum
from .peft_linear import peft_linear
from .pruning import DENSITY, find_largest
from .registry import method
from .truncation import SVD_RANK, merge_dense

_PAPER = "PEFT's add_weighted_adapter (combination_type='magnitude_prune')"


def _prune(context: Context, count: int) -> Combine:
    densities = DENSITY.each(context.options, context.placed(count))

    def combine(tensors: list[Array], weights: list[float], _factor: str, out: Array) -> None:
        largest = [find_largest(x, density, context.kernels) for x, density in zip(tensors, densities, strict=True)]
        weighted_sum(tensors, weights, out, largest, context.kernels)

    return combine


@method(
    "magnitude_prune",
    title="largest entries of the factors, added",
    paper=_PAPER,
    takes_weights=True,
    equal_ranks=True,
    options=(DENSITY,),
    alone=peft_linear,
)
def magnitude_prune(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank r."""
    return merge_with_roots(pairs, weights, _prune(context, len(pairs)), context)


@method(
    "magnitude_prune_svd",
    title="largest entries of dW, added, cut to a rank",
    paper=_PAPER,
    takes_weights=True,
    options=(DENSITY, SVD_RANK),
    alone=peft_linear,
)
def magnitude_prune_svd(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank `svd_rank`, or the largest of the adapters'."""
    return merge_dense(pairs, weights, context, _prune(context, len(pairs)))
