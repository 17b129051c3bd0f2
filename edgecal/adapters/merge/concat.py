"""Concatenation: the exact weighted sum of the changes, dW = sum_i w_i s_i B_i A_i.

Stacking the factors keeps every term apart: A* = vstack(A_i), B* = hstack(w_i s_i B_i). No cross terms, no
rounding beyond float32, any ranks; it costs their sum at run time. PEFT calls it `cat` and puts the factor on
A. The weights default to 1/N.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import AdapterError
from ..calibration import ModuleCalibration
from ..lora import Array, CompiledPair, LoraPair
from .registry import method


@method(
    "concat",
    title="exact weighted sum",
    paper="PEFT's add_weighted_adapter (combination_type='cat')",
    takes_weights=True,
)
def concat(
    pairs: Sequence[LoraPair], weights: Sequence[float], calibration: ModuleCalibration | None = None
) -> CompiledPair:
    """Rank sum_i r_i."""
    return CompiledPair(*stack_factors(pairs, weights))


def stack_factors(pairs: Sequence[LoraPair], weights: Sequence[float]) -> tuple[Array, Array]:
    """(A (R, k), B (d, R)) with B @ A = sum_i w_i s_i B_i A_i and R = sum_i r_i.

    AdapterError unless all pairs have the same (d, k).
    """
    d, k, _rank = pairs[0].shape
    for pair in pairs:
        if pair.shape[:2] != (d, k):
            raise AdapterError(f"pairs of one module need one shape; found {(d, k)} and {pair.shape[:2]}")
    total = sum(pair.shape.rank for pair in pairs)
    a, b = np.empty((total, k), np.float32), np.empty((d, total), np.float32)
    start = 0
    for pair, weight in zip(pairs, weights, strict=True):
        stop = start + pair.shape.rank
        a[start:stop] = pair.a
        np.multiply(pair.b, np.float32(weight * pair.scaling), out=b[:, start:stop])
        start = stop
    return a, b
