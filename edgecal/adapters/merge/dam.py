"""DAM and ZipLoRA: a trained scale for every column (input) of each adapter's change.

    dW = sum_i s_i B_i A_i diag(m_i)      m_i in R^k

so A* = vstack(A_i diag(m_i)), B* = hstack(s_i B_i). DAM (Differentiable Adaptive Merging, arXiv 2410.08371) trains the
scales on the tasks' logits, ZipLoRA (arXiv 2311.13600) on keeping subject and style apart; at run time they are one
formula. The scales take the place of weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..compiled import CompiledPair
from ..lora import LoraPair
from .concat import stack_factors
from .context import PLAIN, Context
from .registry import method


@method(
    "dam",
    title="exact sum with a trained scale per column",
    paper="DAM (arXiv 2410.08371), ZipLoRA (arXiv 2311.13600)",
    needs_calibration=True,
)
def dam(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank sum_i r_i."""
    scales = context.needed_calibration("dam").tensors
    a, b = stack_factors(pairs, weights, context)
    start = 0
    for pair, position in zip(pairs, context.placed(len(pairs)), strict=True):
        stop = start + pair.shape.rank
        a[start:stop] *= scales[f"m{position + 1}"]
        start = stop
    return CompiledPair(a, b)
