"""One adapter alone: A* = A, B* = w s B, with weight 1 unless the recipe says otherwise.

Paper 1's single-task baselines (the main or the auxiliary adapter) and its joint expert are this. Unlike in
`linear` with one adapter, a weight w scales dW by w.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..calibration import ModuleCalibration
from ..lora import CompiledPair, LoraPair
from .concat import stack_factors
from .registry import method


@method(
    "single",
    title="one adapter",
    paper="LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685)",
    takes_weights=True,
    max_adapters=1,
)
def single(
    pairs: Sequence[LoraPair], weights: Sequence[float], calibration: ModuleCalibration | None = None
) -> CompiledPair:
    """Rank r."""
    return CompiledPair(*stack_factors(pairs, weights))
