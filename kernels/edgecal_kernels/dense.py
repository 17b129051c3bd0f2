"""Float32 products: the verification mode's weights, and the two thin matrices of an adapter.

Not left to BLAS: its threads and those of the kernels would spin against each other on the same cores (measured: a
prefill with an adapter took ten times as long).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from . import simd
from .jit import kernel, parallel
from .simd import add, fma, load, splat, store


@kernel
def _dot(x: Any, x_at: int, w: Any, w_at: int, k: int) -> Any:
    acc = splat(np.float32(0))
    whole = k - k % 16
    for i in range(0, whole, 16):
        acc = fma(load(x, x_at + i), load(w, w_at + i), acc)
    total = simd.sum_lanes(acc)
    for i in range(whole, k):
        total += x[x_at + i] * simd.load_one(w, w_at + i)
    return total


@kernel
def _dot_four(x: Any, x_at: int, w: Any, w_at: int, k: int, out: Any, at: int) -> None:
    """Four rows of w against one x: each sum in the order of `_dot`, but four in flight."""
    a, b, c, d = splat(np.float32(0)), splat(np.float32(0)), splat(np.float32(0)), splat(np.float32(0))
    whole = k - k % 16
    for i in range(0, whole, 16):
        value = load(x, x_at + i)
        a = fma(value, load(w, w_at + i), a)
        b = fma(value, load(w, w_at + k + i), b)
        c = fma(value, load(w, w_at + 2 * k + i), c)
        d = fma(value, load(w, w_at + 3 * k + i), d)
    sums = (simd.sum_lanes(a), simd.sum_lanes(b), simd.sum_lanes(c), simd.sum_lanes(d))
    for row in range(4):
        total = sums[row]
        for i in range(whole, k):
            total += x[x_at + i] * simd.load_one(w, w_at + row * k + i)
        out[at + row] = total


@kernel
def dense_share(x: Any, w: Any, out: Any, n_tokens: int, d: int, k: int, share: int, shares: int) -> None:
    """out (T, d) = x (T, k) w^T, all flat; w (d, k): one thread's part of its rows, by fours."""
    blocks = (d + 3) // 4
    for block in range(blocks * share // shares, blocks * (share + 1) // shares):
        row = block * 4
        for token in range(n_tokens):
            if row + 4 <= d:
                _dot_four(x, token * k, w, row * k, k, out, token * d + row)
            else:
                for r in range(row, d):
                    out[token * d + r] = _dot(x, token * k, w, r * k, k)


@parallel
def dense_together(x: Any, w: Any, out: Any, n_tokens: int, d: int, k: int, shares: int) -> None:
    for share in prange(shares):
        dense_share(x, w, out, n_tokens, d, k, np.int64(share), shares)


@kernel
def lora_inner(x: Any, x_at: int, a: Any, k: int, rank: int, inner: Any) -> None:
    """inner (R,) = A* x; `a` (R, k), flat."""
    for r in range(0, rank - rank % 4, 4):
        _dot_four(x, x_at, a, r * k, k, inner, r)
    for r in range(rank - rank % 4, rank):
        inner[r] = _dot(x, x_at, a, r * k, k)


@kernel
def lora_lanes(inner: Any, b: Any, d: int, rank: int, out: Any, at: int, row: int) -> None:
    """out[at + row ... + 16] += those rows of B* inner; `b` (R, d), flat, the transpose of lora_b."""
    acc = splat(np.float32(0))
    for r in range(rank):
        acc = fma(splat(inner[r]), load(b, r * d + row), acc)
    store(out, at + row, add(load(out, at + row), acc))


@kernel
def _add_lora_row(x: Any, a: Any, b: Any, out: Any, token: int, inner: Any) -> None:
    """One token; x, out flat, a (R * k) flat, b (R * d) flat."""
    rank = inner.size
    k, d = a.size // rank, b.size // rank
    lora_inner(x, token * k, a, k, rank, inner)
    whole = d - d % 16
    for row in range(0, whole, 16):
        lora_lanes(inner, b, d, rank, out, token * d, row)
    for i in range(whole, d):
        total = np.float32(0)
        for r in range(rank):
            total += inner[r] * b[r * d + i]
        out[token * d + i] += total


@kernel
def add_lora_share(x: Any, a: Any, b: Any, out: Any, rank: int, n_tokens: int, share: int, shares: int) -> None:
    """`Operations.add_lora`: one thread's part of the tokens; all flat, b (R, d)."""
    inner = np.empty(rank, np.float32)
    for token in range(n_tokens * share // shares, n_tokens * (share + 1) // shares):
        _add_lora_row(x, a, b, out, token, inner)


@parallel
def add_lora_together(x: Any, a: Any, b: Any, out: Any, rank: int, n_tokens: int, shares: int) -> None:
    for share in prange(shares):
        add_lora_share(x, a, b, out, rank, n_tokens, np.int64(share), shares)
