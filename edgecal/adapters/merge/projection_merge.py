"""Projection merge, paper 2 Eq. 2: the exact sum of the changes seen through a trained projection of the output.

    dW = c P2 P1 (sum_i w_i s_i B_i A_i)      P1 (s, d), P2 (d, s), s = 4 in the paper

P1 multiplies from the left, so the product folds: A* = c (P1 hstack(w_i s_i B_i)) vstack(A_i) is (s, k), B* = P2 is
(d, s), c = calibration_scaling. Two adapters of rank 32 run at the cost of one of rank 4, and no d x d or d x k
matrix is ever formed. P1 and P2 belong to a shape, not to a module, so all modules of a shape share B*.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..calibration import ModuleCalibration
from ..lora import Array, CompiledPair, LoraPair
from .concat import stack_factors
from .registry import method


@method(
    "projection_merge",
    title="exact sum through a trained projection",
    paper="On-device System of Compositional Multi-tasking in LLMs (2025)",
    equation="Eq. 2",
    needs_calibration=True,
)
def projection_merge(
    pairs: Sequence[LoraPair], weights: Sequence[float], calibration: ModuleCalibration | None = None
) -> CompiledPair:
    """Rank s, whatever the ranks of the adapters."""
    if calibration is None:
        raise ValueError("projection_merge without its calibration")
    a, b = stack_factors(pairs, weights)  # (R, k), (d, R)
    p1, p2 = calibration.tensors["P1"], calibration.tensors["P2"]
    projected: Array = np.float32(calibration.scaling) * (p1 @ b)  # (s, R)
    return CompiledPair(projected @ a, p2)
