"""LM-Cocktail (arXiv 2311.13534): the exact sum, weighted by how well each adapter alone does on a few examples.

    dW = sum_i w_i s_i B_i A_i      w = softmax(-loss / T)      T = 5 in the authors' code

A recipe gives the losses, one per adapter, or the weights that came of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import RecipeError
from ..compiled import CompiledPair
from ..lora import LoraPair
from .concat import stack_factors
from .context import PLAIN, Context
from .options import Option
from .registry import method

LOSSES = Option(
    "losses",
    "mean loss of each adapter alone on the examples",
    several="always",
    low=0,
    high=1e9,
    instead_of_weights=True,
)
TEMPERATURE = Option("temperature", "T of softmax(-loss / T)", default=5.0, low=0, above_low=True)


def weights_of_losses(options: Mapping[str, Any], count: int) -> tuple[float, ...]:
    """softmax(-loss / T); RecipeError when there are no losses."""
    losses = LOSSES.of(options)
    if losses is None:
        raise RecipeError("lm_cocktail needs the option 'losses', one number per adapter, or weights")
    temperature = TEMPERATURE.of(options)
    smallest = min(losses)
    terms = [math.exp((smallest - loss) / temperature) for loss in losses]
    return tuple(term / sum(terms) for term in terms)


@method(
    "lm_cocktail",
    title="exact sum, weighted by losses on examples",
    paper="LM-Cocktail (arXiv 2311.13534)",
    takes_weights=True,
    options=(LOSSES, TEMPERATURE),
    weigh=weights_of_losses,
)
def lm_cocktail(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank sum_i r_i."""
    return CompiledPair(*stack_factors(pairs, weights, context))
