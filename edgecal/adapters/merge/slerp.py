"""Slerp: between the directions of the adapters, not between their values, so that a mean does not become short.

`slerp` takes the flattened factors A_i and s_i B_i, each kind as one vector per module; `slerp_svd` takes dW_i itself,
whose inner products come out of the factors (<dW_i, dW_j> = s_i s_j sum((B_i^T B_j) * (A_i A_j^T))), so that no dense
matrix is formed. Formula of mergekit's slerp for two adapters, and its extension to more in `spherical`.

`t` 0 is the first adapter and 1 the second; with weights instead, t = w_2 / (w_1 + w_2). Weights are shares here: only
their ratios count. At a module that one adapter alone changes it is taken whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import RecipeError
from ..compiled import CompiledPair
from ..lora import Array, LoraPair
from ..merge_kernels import Kernels, plain
from .concat import stack_factors
from .context import PLAIN, Context
from .factors import add_weighted, check_ranks, check_shapes, merge_factors
from .options import Option
from .registry import method
from .spherical import Doubles, spherical_weights
from .truncation import SVD_RANK, result_rank, truncate_product

T = Option("t", "where between two adapters: 0 is the first, 1 the second", low=0, high=1, instead_of_weights=True)
_PAPER = "Slerp (Shoemake 1985), mergekit's variant"
_BLOCK = 8192  # below the size from which BLAS would split a dot product among its threads


def shares_of_t(options: Mapping[str, Any], count: int) -> tuple[float, ...]:
    """The weights of a recipe that gives none: 1 - t and t, or 1/N."""
    t = T.of(options)
    if t is None:
        return (1 / count,) * count
    if count != 2:
        raise RecipeError(f"option 't' lies between two adapters, and there are {count}; give weights instead")
    return 1 - t, t


@method(
    "slerp",
    title="between the directions of the factors",
    paper=_PAPER,
    takes_weights=True,
    equal_ranks=True,
    options=(T,),
    weigh=shares_of_t,
    weights_are_shares=True,
)
def slerp(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank r."""
    check_ranks(pairs, "slerp of the factors")
    shares = _shares(weights)
    a_s, b_s = [pair.a for pair in pairs], [pair.b for pair in pairs]
    scalings = np.array([pair.scaling for pair in pairs])
    of_a = spherical_weights(_gram(a_s, context.kernels), shares)
    of_b = spherical_weights(_gram(b_s, context.kernels) * np.outer(scalings, scalings), shares) * scalings
    return CompiledPair(*merge_factors(pairs, of_a.tolist(), of_b.tolist(), add_weighted(context), context))


@method(
    "slerp_svd",
    title="between the directions of dW, cut to a rank",
    paper=_PAPER,
    takes_weights=True,
    options=(T, SVD_RANK),
    alone=slerp,
    weigh=shares_of_t,
    weights_are_shares=True,
)
def slerp_svd(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank `svd_rank`, or the largest of the adapters'."""
    check_shapes(pairs)
    between = spherical_weights(_delta_gram(pairs), _shares(weights))
    stacked = stack_factors(pairs, between.tolist(), context.without_arena())
    return truncate_product(*stacked, result_rank(pairs, context))


def _shares(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    if total <= 0:  # those of the adapters that change this module are all 0
        return [1 / len(weights)] * len(weights)
    return [weight / total for weight in weights]


def _gram(tensors: Sequence[Array], kernels: Kernels = None) -> Doubles:
    """Inner products of the flattened tensors: float32 blocks, added in float64."""
    flat = [plain(tensor).reshape(-1) for tensor in tensors]
    gram = np.zeros((len(flat), len(flat)))
    if kernels is not None:
        for i, x in enumerate(flat):
            for j in range(i + 1):
                gram[i, j] = kernels.dot(x, flat[j])
        return gram + np.tril(gram, -1).T
    for start in range(0, flat[0].size, _BLOCK):
        parts = [x[start : start + _BLOCK] for x in flat]
        for i, x in enumerate(parts):
            for j in range(i + 1):
                gram[i, j] += np.dot(x, parts[j])
    return gram + np.tril(gram, -1).T


def _delta_gram(pairs: Sequence[LoraPair]) -> Doubles:
    both = [(pair.a.astype(np.float64), pair.b.astype(np.float64) * pair.scaling) for pair in pairs]
    return np.array([[np.sum((b.T @ b2) * (a @ a2.T)) for a2, b2 in both] for a, b in both])
