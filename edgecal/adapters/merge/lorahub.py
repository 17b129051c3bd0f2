"""LoraHub (arXiv 2307.13269): weights found by a gradient-free search on a few examples, w on both factors.

    A* = sum_j w_j A_j      B* = sum_i w_i s_i B_i

in the authors' code, where all adapters have one scaling s; with several, each B_i keeps its own. The formula is that
of `linear` with given weights; what makes it LoraHub is where they come from (bounds of 1.5 on both sides, a penalty on
their size), so a recipe must have them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..compiled import CompiledPair
from ..lora import LoraPair
from .context import PLAIN, Context
from .linear import mean_factors
from .registry import method


@method(
    "lorahub",
    title="sum of the factors with searched weights",
    paper="LoraHub (arXiv 2307.13269)",
    takes_weights=True,
    needs_weights=True,
    equal_ranks=True,
)
def lorahub(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank r."""
    return CompiledPair(*mean_factors(pairs, weights, context))
