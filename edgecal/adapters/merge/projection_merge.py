"""Projection merge, paper 2 Eq. 2: the exact sum of the changes seen through a trained projection of the output.

    dW = c P2 P1 (sum_i w_i s_i B_i A_i)      P1 (s, d), P2 (d, s), s = 4 in the paper

P1 multiplies from the left, so the product folds: A* = c sum_i w_i s_i (P1 B_i) A_i is (s, k), B* = P2 is
(d, s), c = calibration_scaling. Two adapters of rank 32 run at the cost of one of rank 4, and no d x d or d x k
matrix is ever formed. P1 and P2 belong to a shape, not to a module, so all modules of a shape share B*.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..compiled import CompiledPair
from ..lora import Array, LoraPair
from .context import PLAIN, Context
from .factors import check_shapes
from .registry import method


@method(
    "projection_merge",
    title="exact sum through a trained projection",
    paper="On-device System of Compositional Multi-tasking in LLMs (2025)",
    equation="Eq. 2",
    needs_calibration=True,
)
def projection_merge(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank s, whatever the ranks of the adapters."""
    calibration = context.needed_calibration("projection_merge")
    _d, k = check_shapes(pairs)
    p1, p2 = calibration.tensors["P1"], calibration.tensors["P2"]
    a: Array = context.empty(p1.shape[0], k)
    a[...] = 0
    for pair, weight in zip(pairs, weights, strict=True):
        a += (np.float32(calibration.scaling * weight * pair.scaling) * (p1 @ pair.b)) @ pair.a
    return CompiledPair(a, p2)
