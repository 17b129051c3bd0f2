"""What the methods that work on the factors share: the checks of shape, and weighted sums of whole arrays.

Sums run over arrays as they lie in memory (B is (d, r) in C order in every file), in scratch that stays warm, and the
result is transposed once at the end, into the order that the kernels want.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ...errors import AdapterError
from ..compiled import CompiledPair
from ..lora import Array, LoraPair
from ..merge_kernels import Kernels, plain
from .context import Context
from .pruning import Trim, trim_arguments, trimmed
from .workspace import BLOCK, scratch

Combine = Callable[[list[Array], list[float], str, Array], None]
"""(tensors of one shape, a weight for each, "A", "B" or "dW", where the merged tensor goes)."""

_ROWS = 256


def check_shapes(pairs: Sequence[LoraPair]) -> tuple[int, int]:
    """The common (d, k); AdapterError when they differ."""
    d, k, _rank = pairs[0].shape
    for pair in pairs:
        if pair.shape[:2] != (d, k):
            raise AdapterError(f"pairs of one module need one shape; found {(d, k)} and {pair.shape[:2]}")
    return d, k


def check_ranks(pairs: Sequence[LoraPair], what: str) -> tuple[int, int, int]:
    """The common (d, k, r); AdapterError, beginning with `what` needs it, when they differ."""
    d, k, rank = pairs[0].shape
    for pair in pairs:
        if pair.shape != (d, k, rank):
            raise AdapterError(
                f"{what} needs equal shapes and ranks; found a (d, k) of {(d, k)} with rank {rank} "
                f"and of {pair.shape[:2]} with rank {pair.shape.rank}; `concat` and `svd` allow different ranks"
            )
    return d, k, rank


def weighted_sum(
    tensors: Sequence[Array],
    weights: Sequence[float],
    out: Array,
    trims: Sequence[Trim] | None = None,
    kernels: Kernels = None,
) -> None:
    """out = sum_i w_i x_i, all float32 and C-contiguous; of the tensors only what `trims` keep."""
    total, flat = out.reshape(-1), [plain(tensor).reshape(-1) for tensor in tensors]
    factors = [np.float32(weight) for weight in weights]
    if kernels is not None and trims is not None:
        kernels.sum_trimmed(*trim_arguments(flat, trims), np.array(factors), total)
        return
    if kernels is not None:
        if len(flat) == 1:
            kernels.scaled(flat[0], factors[0], total)
        else:
            kernels.sum_of_two(flat[0], factors[0], flat[1], factors[1], total)
        for tensor, factor in zip(flat[2:], factors[2:], strict=True):
            kernels.add_scaled(tensor, factor, total)
        return
    term = scratch("term", (min(BLOCK, total.size),))
    for start in range(0, total.size, BLOCK):
        part = total[start : start + BLOCK]
        terms = [tensor[start : start + BLOCK] for tensor in flat]
        if trims is not None:
            terms = [trimmed(piece, kept, start) for piece, kept in zip(terms, trims, strict=True)]
        np.multiply(terms[0], factors[0], out=part)
        for piece, factor in zip(terms[1:], factors[1:], strict=True):
            part += np.multiply(piece, factor, out=term[: part.size])


def transpose_into(rows: Array, b: Array, factor: float = 1.0, kernels: Kernels = None) -> None:
    """rows (r, d) = factor * b (d, r) transposed, in pieces that fit the cache."""
    scale = np.float32(factor)
    if kernels is not None:
        kernels.transpose(plain(b), scale, rows)
        return
    for start in range(0, len(b), _ROWS):
        np.multiply(b[start : start + _ROWS].T, scale, out=rows[:, start : start + _ROWS])


def merge_factors(
    pairs: Sequence[LoraPair],
    weights_a: Sequence[float],
    weights_b: Sequence[float],
    combine: Combine,
    context: Context,
    spare: int = 0,
) -> tuple[Array, Array]:
    """`combine` on the A's and on the B's: (A* (r + spare, k), B* (d, r + spare)), B* in Fortran order. The spare rows
    and columns are for the caller to fill. AdapterError unless all pairs have one shape and rank."""
    d, k, rank = check_ranks(pairs, "merging the factors")
    a, b_rows = context.empty(rank + spare, k), context.empty(rank + spare, d)
    combine([pair.a for pair in pairs], list(weights_a), "A", a[:rank])
    b = scratch("merged b", (d, rank))
    combine([pair.b for pair in pairs], list(weights_b), "B", b)
    transpose_into(b_rows[:rank], b, kernels=context.kernels)
    return a, b_rows.T


def merge_with_roots(
    pairs: Sequence[LoraPair], weights: Sequence[float], combine: Combine, context: Context
) -> CompiledPair:
    """PEFT's rule: with c_i = w_i s_i, A's are weighted by sgn(c_i) sqrt|c_i| and B's by sqrt|c_i|, so that each
    product B_i A_i comes out with weight c_i. Equal ranks."""
    products = [weight * pair.scaling for pair, weight in zip(pairs, weights, strict=True)]
    roots = [math.sqrt(abs(c)) for c in products]
    signed = [root if c >= 0 else -root for root, c in zip(roots, products, strict=True)]
    return CompiledPair(*merge_factors(pairs, signed, roots, combine, context))


def add_weighted(context: Context) -> Combine:
    """The plainest way to combine."""

    def combine(tensors: list[Array], weights: list[float], _factor: str, out: Array) -> None:
        weighted_sum(tensors, weights, out, kernels=context.kernels)

    return combine
