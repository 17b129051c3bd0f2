"""Linear merging of the factors, paper 1 Eq. 5: A* = mean_i A_i, B* = mean_i s_i B_i.

The mean is taken of each factor, not of dW, so the product B* A* has the cross terms B_i A_j: they are
intended, and the calibrations were trained on top of them. It costs the rank of one adapter. With given
weights both factors carry them (A* = sum_i w_i A_i, B* = sum_i w_i s_i B_i), as the mean does with 1/N: for
one adapter of weight w, dW is w^2 times its own.

PEFT's `linear` is another formula (the square root of w_i s_i on each factor); it is not this one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import AdapterError
from ..calibration import ModuleCalibration
from ..lora import Array, CompiledPair, LoraPair
from .registry import method


@method(
    "linear",
    title="mean of the factors",
    paper="Efficient Compositional Multi-tasking for On-device LLMs (EMNLP 2025)",
    equation="Eq. 5",
    takes_weights=True,
)
def linear(
    pairs: Sequence[LoraPair], weights: Sequence[float], calibration: ModuleCalibration | None = None
) -> CompiledPair:
    """Rank r; AdapterError unless all pairs have the same rank."""
    return CompiledPair(*mean_factors(pairs, weights))


def mean_factors(pairs: Sequence[LoraPair], weights: Sequence[float], spare: int = 0) -> tuple[Array, Array]:
    """(A* (r + spare, k), B* (d, r + spare)) of Eq. 5; the spare rows and columns are for the caller to fill.

    AdapterError unless all pairs have the same shapes.
    """
    d, k, rank = pairs[0].shape
    for pair in pairs:
        if pair.shape != (d, k, rank):
            raise AdapterError(
                f"the mean of the factors needs equal shapes and ranks; found a (d, k) of {(d, k)} with rank "
                f"{rank} "
                f"and of {pair.shape[:2]} with rank {pair.shape.rank}; `concat` allows different ranks"
            )
    a, b = np.empty((rank + spare, k), np.float32), np.empty((d, rank + spare), np.float32)
    mean_a, mean_b = a[:rank], b[:, :rank]
    np.multiply(pairs[0].a, np.float32(weights[0]), out=mean_a)
    np.multiply(pairs[0].b, np.float32(weights[0] * pairs[0].scaling), out=mean_b)
    for pair, weight in zip(pairs[1:], weights[1:], strict=True):
        mean_a += np.float32(weight) * pair.a
        mean_b += np.float32(weight * pair.scaling) * pair.b
    return a, b
