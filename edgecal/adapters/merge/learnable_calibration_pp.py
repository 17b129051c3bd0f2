"""Learnable Calibration++, paper 1 Eq. 7: a trained low-rank matrix per component on top of the linear merge.

    dW = B' A' + c P2 P1      P1 (s, k), P2 (d, s), s = 4 in the paper

with A', B' the linear merge (Eq. 5) and c = calibration_scaling: A* = vstack(A', P1), B* = hstack(B', c P2).
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
    "learnable_calibration_pp",
    title="linear merge + a trained low-rank matrix per component",
    paper="Efficient Compositional Multi-tasking for On-device LLMs (EMNLP 2025)",
    equation="Eq. 7",
    needs_calibration=True,
    equal_ranks=True,
)
def learnable_calibration_pp(
    pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN
) -> CompiledPair:
    """Rank r + s."""
    calibration = context.needed_calibration("learnable_calibration_pp")
    p1, p2 = calibration.tensors["P1"], calibration.tensors["P2"]  # (s, k), (d, s)
    s = p1.shape[0]
    a, b = mean_factors(pairs, weights, context, spare=s)
    a[-s:] = p1
    np.multiply(p2, np.float32(calibration.scaling), out=b[:, -s:])
    return CompiledPair(a, b)
