"""The best approximation of rank r to a dW (Eckart-Young): B* = U_r S_r, A* = V_r^T, as PEFT splits it.

`truncate_product` never forms dW: with B = Q_b R_b and A^T = Q_a R_a, the SVD of the small core R_b R_a^T gives that of
the product, at the cost of thin QRs. `truncate_dense` takes a (d, k) matrix whose rank is full, as pruned ones are: it
diagonalizes the Gram matrix of the shorter side and projects on the leading eigenvectors, four times faster than an SVD
at the sizes of real models. All in float64: squaring the condition then costs nothing that float32 could show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compiled import CompiledPair
from ..lora import Array, LoraPair
from .context import Context
from .factors import Combine, check_shapes
from .options import Option

SVD_RANK = Option(
    "svd_rank",
    "rank of the result (the largest of the adapters unless given; one adapter alone stays whole)",
    kind="whole",
    low=1,
    high=16_384,
)


def result_rank(pairs: Sequence[LoraPair], context: Context) -> int:
    """`svd_rank`, or the largest rank of the adapters over all modules, as in PEFT."""
    wanted: int | None = SVD_RANK.of(context.options)
    return wanted or context.largest_rank or max(pair.shape.rank for pair in pairs)


def truncate_product(a: Array, b: Array, rank: int) -> CompiledPair:
    """For dW = b @ a; exact when `rank` is not below a's. At most min(rank, R, d, k) in the result."""
    q_b, r_b = np.linalg.qr(b.astype(np.float64))
    q_a, r_a = np.linalg.qr(a.T.astype(np.float64))
    u, s, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return _pair(vt[:rank] @ q_a.T, q_b @ (u[:, :rank] * s[:rank]))


def truncate_dense(delta: Array, rank: int) -> CompiledPair:
    """For delta of (d, k); at most min(rank, d, k) in the result."""
    wide = delta.astype(np.float64)
    if wide.shape[0] >= wide.shape[1]:
        _, vectors = np.linalg.eigh(wide.T @ wide)
        v = vectors[:, : -rank - 1 : -1]
        return _pair(v.T, wide @ v)
    _, vectors = np.linalg.eigh(wide @ wide.T)
    u = vectors[:, : -rank - 1 : -1]
    a = u.T @ wide
    s = np.linalg.norm(a, axis=1)
    return _pair(a / np.where(s > 0, s, 1)[:, None], u * s)


def _pair(a: NDArray[Any], b: NDArray[Any]) -> CompiledPair:
    return CompiledPair(a.astype(np.float32), b.astype(np.float32))


def merge_dense(
    pairs: Sequence[LoraPair], weights: Sequence[float], context: Context, combine: Combine
) -> CompiledPair:
    """`combine` on the dW_i of one module, formed here and dropped again, then truncated."""
    merged = np.empty(check_shapes(pairs), np.float32)
    combine([pair.delta() for pair in pairs], list(weights), "dW", merged)
    return truncate_dense(merged, result_rank(pairs, context))
