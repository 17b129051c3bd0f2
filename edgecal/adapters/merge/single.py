"""One adapter alone: A* = A, B* = w s B, with weight 1 unless the recipe says otherwise.

Paper 1's single-task baselines (the main or the auxiliary adapter) are this, and so is its joint expert: one
adapter that was trained on the composed task itself. Unlike in `linear` with one adapter, a weight w scales
dW by w.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..compiled import CompiledPair
from ..lora import LoraPair
from .concat import stack_factors
from .context import PLAIN, Context
from .registry import method


@method(
    "joint_expert",
    title="one adapter, trained on the composed task",
    paper="Efficient Compositional Multi-tasking for On-device LLMs (EMNLP 2025)",
    takes_weights=True,
    max_adapters=1,
)
@method(
    "single",
    title="one adapter",
    paper="LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685)",
    takes_weights=True,
    max_adapters=1,
)
def single(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank r."""
    return CompiledPair(*stack_factors(pairs, weights, context))
