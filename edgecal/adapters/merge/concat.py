"""Concatenation: the exact weighted sum of the changes, dW = sum_i w_i s_i B_i A_i.

Stacking the factors keeps every term apart: A* = vstack(A_i), B* = hstack(w_i s_i B_i). No cross terms, no
rounding beyond float32, any ranks; it costs their sum at run time. PEFT calls it `cat` and puts the factor on
A; mergekit's task_arithmetic is the same sum on whole models. The weights default to 1/N.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..compiled import CompiledPair
from ..lora import Array, LoraPair
from .context import PLAIN, Context
from .factors import check_shapes, transpose_into
from .registry import method


@method(
    "concat",
    title="exact weighted sum",
    paper="PEFT's add_weighted_adapter (combination_type='cat')",
    takes_weights=True,
)
def concat(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank sum_i r_i."""
    return CompiledPair(*stack_factors(pairs, weights, context))


def stack_factors(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> tuple[Array, Array]:
    """(A (R, k), B (d, R)) with B @ A = sum_i w_i s_i B_i A_i and R = sum_i r_i; B in Fortran order.

    AdapterError unless all pairs have the same (d, k).
    """
    d, k = check_shapes(pairs)
    total = sum(pair.shape.rank for pair in pairs)
    a, b_rows = context.empty(total, k), context.empty(total, d)
    start = 0
    for pair, weight in zip(pairs, weights, strict=True):
        stop = start + pair.shape.rank
        a[start:stop] = pair.a
        transpose_into(b_rows[start:stop], pair.b, weight * pair.scaling, context.kernels)
        start = stop
    return a, b_rows.T
