"""Learnable Calibration, paper 1 Eq. 6: one trained vector per component on top of the linear merge.

With A', B' the linear merge (Eq. 5), the vector p in R^d is added to every column of dW' = B' A':

    dW = dW' + c p 1_k^T      so that      h = W x + dW' x + c p (x_1 + ... + x_k)

which is one more rank: A* = vstack(A', 1_k^T), B* = hstack(B', c p), c = calibration_scaling. Where the file
says bias_mode "output", p was trained as a bias instead (h += c p) and stays one: the
parameter counts of the paper fit both readings, so the file has to say which it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..compiled import CompiledPair
from ..lora import LoraPair
from .context import PLAIN, Context
from .linear import mean_factors
from .registry import method


@method(
    "learnable_calibration",
    title="linear merge + a trained vector per component",
    paper="Efficient Compositional Multi-tasking for On-device LLMs (EMNLP 2025)",
    equation="Eq. 6",
    needs_calibration=True,
    equal_ranks=True,
)
def learnable_calibration(
    pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN
) -> CompiledPair:
    """Rank r + 1 (bias_mode "columns") or r with a bias ("output")."""
    calibration = context.needed_calibration("learnable_calibration")
    p = calibration.tensors["p"] * np.float32(calibration.scaling)
    if calibration.bias_mode == "output":
        return CompiledPair(*mean_factors(pairs, weights, context), bias=p)
    a, b = mean_factors(pairs, weights, context, spare=1)
    a[-1] = 1
    b[:, -1] = p
    return CompiledPair(a, b)
