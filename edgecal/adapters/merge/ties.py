"""TIES (arXiv 2306.01708): trim each tensor to its largest entries, elect a sign for each entry, average who agrees.

PEFT's variant (0.21.2): `ties` runs on the A's and on the B's with square roots of the weights, `ties_svd` on dW_i with
the weights themselves, followed by a truncated SVD. The paper keeps 20 % of the entries of full models.
A recipe of one adapter has nothing to resolve and leaves it whole, as in PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..compiled import CompiledPair
from ..lora import Array, LoraPair
from .context import PLAIN, Context
from .factors import Combine, merge_with_roots
from .peft_linear import peft_linear
from .pruning import DENSITY, find_largest
from .registry import method
from .sign_election import SIGN_METHOD, elect_and_average
from .truncation import SVD_RANK, merge_dense

_PAPER = "TIES-Merging (arXiv 2306.01708), PEFT's variant"


def _ties(context: Context, count: int) -> Combine:
    densities = DENSITY.each(context.options, context.placed(count))

    def combine(tensors: list[Array], weights: list[float], _factor: str, out: Array) -> None:
        largest = [find_largest(x, density, context.kernels) for x, density in zip(tensors, densities, strict=True)]
        elect_and_average(tensors, weights, SIGN_METHOD.of(context.options), out, largest, context.kernels)

    return combine


@method(
    "ties",
    title="largest entries of the factors that agree in sign",
    paper=_PAPER,
    takes_weights=True,
    equal_ranks=True,
    options=(DENSITY, SIGN_METHOD),
    alone=peft_linear,
)
def ties(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank r."""
    return merge_with_roots(pairs, weights, _ties(context, len(pairs)), context)


@method(
    "ties_svd",
    title="largest entries of dW that agree in sign, cut to a rank",
    paper=_PAPER,
    takes_weights=True,
    options=(DENSITY, SIGN_METHOD, SVD_RANK),
    alone=peft_linear,
)
def ties_svd(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank `svd_rank`, or the largest of the adapters'."""
    return merge_dense(pairs, weights, context, _ties(context, len(pairs)))
