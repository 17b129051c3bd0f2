"""PEFT's linear merge: the factors weighted by roots, A* = sum_i sgn(c_i) sqrt|c_i| A_i, B* = sum_i sqrt|c_i| B_i.

c_i = w_i s_i. Each product B_i A_i comes out with weight c_i, and the cross terms with sqrt|c_i c_j|. It differs from
Eq. 5 (`linear`): for N equal adapters of weight 1/N, this dW is N times that one's. Formula of
`add_weighted_adapter(combination_type="linear")` in peft 0.21.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..compiled import CompiledPair
from ..lora import LoraPair
from .context import PLAIN, Context
from .factors import add_weighted, merge_with_roots
from .registry import method


@method(
    "peft_linear",
    title="sum of the factors with square roots of the weights",
    paper="PEFT's add_weighted_adapter (combination_type='linear')",
    takes_weights=True,
    equal_ranks=True,
)
def peft_linear(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank r."""
    return merge_with_roots(pairs, weights, add_weighted(context), context)
