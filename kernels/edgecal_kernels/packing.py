"""Rounding adapters to int8 when they are first used: the loops of `Operations.pack_int8`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from . import simd
from .jit import kernel, parallel

INFINITY = 0x7F800000  # the bits of float32's; those of NaN are above


@kernel
def _pack_tile(w: Any, factor: Any, first_row: int, bits: int, codes: Any, scale: Any, finite: Any, tile: int) -> None:
    """Rows of w (d, k) from `first_row` on, times `factor`, into tiles whose lines have 2**bits quads of columns of
    each row: codes (tiles, lines, 16), four int8 in an int32, and scale (tiles, steps, rows), bits of float16."""
    d, k = w.shape
    height, mask = 16 >> bits, (1 << bits) - 1
    values, line = np.zeros((height, 32), np.float32), np.zeros(32, np.int8)
    bits_of_values, quads = values.view(np.int32), line.view(np.int32)
    extreme, rounded, halves = np.zeros(16, np.float32), np.zeros(16, np.float32), np.zeros(16, np.uint16)
    bits_of_extreme = extreme.view(np.int32)
    start = first_row + tile * height
    rows = min(height, d - start)
    for step in range(scale.shape[1]):
        columns = min(32, k - step * 32)
        if columns < 32:
            line[:] = 0
        for row in range(rows):
            for column in range(columns):
                values[row, column] = w[start + row, step * 32 + column] * factor
            largest = np.int32(0)  # as bits, whose order is that of the numbers: floats would be taken one by one
            for column in range(columns):
                largest = max(largest, np.int32(bits_of_values[row, column] & 0x7FFFFFFF))
            if largest >= INFINITY:
                finite[tile] = False
            bits_of_extreme[row] = largest
            extreme[row] /= np.float32(127)
        simd.store_half(halves, 0, simd.load(extreme, 0))
        simd.store(rounded, 0, simd.load_half(halves, 0))
        for row in range(rows):
            scale[tile, step, row] = halves[row]
            reciprocal = np.float32(1) / rounded[row] if rounded[row] != 0 else np.float32(0)
            for column in range(columns):
                code = np.rint(values[row, column] * reciprocal)
                line[column] = np.int8(min(max(code, np.float32(-127)), np.float32(127)))
            for quad in range((columns + 3) // 4):
                codes[tile, (step * 8 + quad) >> bits, (row << bits) + (quad & mask)] = quads[quad]


@kernel
def pack_share(
    w: Any, factor: Any, first_row: int, bits: int, codes: Any, scale: Any, finite: Any, share: int, shares: int
) -> None:
    """One thread's part of the tiles."""
    n = codes.shape[0]
    for tile in range(n * share // shares, n * (share + 1) // shares):
        _pack_tile(w, factor, first_row, bits, codes, scale, finite, tile)


@parallel
def pack_together(
    w: Any, factor: Any, first_row: int, bits: int, codes: Any, scale: Any, finite: Any, shares: int
) -> None:
    for share in prange(shares):
        pack_share(w, factor, first_row, bits, codes, scale, finite, np.int64(share), shares)
