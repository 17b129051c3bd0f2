"""Activations rounded to int8, a scale per 32 columns: what the integer products multiply."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from . import blocks, simd
from .jit import kernel, parallel
from .quant import STEP, Array
from .simd import add, mul, splat

_WORTH_ROUNDING_TOGETHER = 1 << 16  # numbers; 20 us of work


@kernel
def quantize_row(x: int, k: int, rounded: Any) -> None:
    """One row of `reference.quantize_rows`, k a multiple of 32. `x` is its address, `rounded` those of the results:
    codes, scales and sums."""
    codes, scale, total = rounded
    for step in range(k // 32):
        at = step * 32
        a, b = simd.load(x, at), simd.load(x, at + 16)
        extreme = simd.max_lanes(simd.maximum(simd.absolute(a), simd.absolute(b)))
        inverse = np.float32(0.0)
        if extreme > 0:
            inverse = np.float32(127.0) / extreme
        a, b = simd.round_even(mul(a, splat(inverse))), simd.round_even(mul(b, splat(inverse)))
        simd.store_int8(codes, at, a)
        simd.store_int8(codes, at + 16, b)
        simd.store_one(scale, step, extreme / np.float32(127.0))
        simd.store_one_int32(total, step, simd.sum_lanes(add(a, b)))


@kernel
def further(rounded: Any, n: int) -> Any:
    """The addresses of rounded activations, n elements (whole steps of 32) later."""
    codes, scale, total = rounded
    return codes + n, scale + n // 8, total + n // 8


@kernel
def _quantize_one(x: Any, codes: Any, scale: Any, total: Any, row: int) -> None:
    k = x.shape[1]
    first = blocks.address(codes), blocks.address(scale), blocks.address(total)
    quantize_row(blocks.address(x) + row * k * 4, k, further(first, row * k))


@kernel
def _quantize_rows(x: Any, codes: Any, scale: Any, total: Any) -> None:
    for row in range(x.shape[0]):
        _quantize_one(x, codes, scale, total, row)


@parallel
def _quantize_rows_together(x: Any, codes: Any, scale: Any, total: Any) -> None:
    for row in prange(x.shape[0]):
        _quantize_one(x, codes, scale, total, np.int64(row))


def quantize_rows(x: Array) -> tuple[NDArray[np.int8], Array, NDArray[np.int32]]:
    """As `reference.quantize_rows`."""
    n, k = x.shape
    steps = -(-k // STEP)
    if k != steps * STEP:  # np.pad takes twenty times as long, and an adapter's inner product comes here in every layer
        padded = np.zeros((n, steps * STEP), np.float32)
        padded[:, :k] = x
        x = padded
    codes = np.empty((n, steps * STEP), np.int8)
    scale, total = np.empty((n, steps), np.float32), np.empty((n, steps), np.int32)
    run = _quantize_rows if x.size < _WORTH_ROUNDING_TOGETHER else _quantize_rows_together
    run(np.ascontiguousarray(x), codes, scale, total)
    return codes, scale, total
