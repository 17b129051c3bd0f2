"""SVD of the exact weighted sum: the closest dW of a chosen rank to sum_i w_i s_i B_i A_i.

`concat` pays for the sum with the sum of the ranks; this cuts it back to one adapter's (or `svd_rank`), with the least
error that any pair of that rank can have. PEFT's `svd` in 0.21.2, whose dense d x k matrix is not formed here.
A recipe of one adapter is left whole, whatever `svd_rank` says, as in PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..compiled import CompiledPair
from ..lora import LoraPair
from .concat import stack_factors
from .context import PLAIN, Context
from .peft_linear import peft_linear
from .registry import method
from .truncation import SVD_RANK, result_rank, truncate_product


@method(
    "svd",
    title="exact weighted sum, cut to a rank",
    paper="PEFT's add_weighted_adapter (combination_type='svd')",
    takes_weights=True,
    options=(SVD_RANK,),
    alone=peft_linear,
)
def svd(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank `svd_rank`, or the largest of the adapters'."""
    stacked = stack_factors(pairs, weights, context.without_arena())
    return truncate_product(*stacked, result_rank(pairs, context))
