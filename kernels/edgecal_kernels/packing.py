"""Rounding adapters to int8 when they are first used: the numbers of `quant.quantize(w, "int8")`, on all cores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numba import prange

from . import simd
from .errors import QuantizationError
from .jit import kernel, parallel
from .quant import QUARTER_ROWS, STEP, TILE_ROWS, Array, QuantizedTensor

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


@parallel
def _pack_int8(w: Any, factor: Any, first_row: int, bits: int, codes: Any, scale: Any, finite: Any) -> None:
    for tile in prange(codes.shape[0]):
        _pack_tile(w, factor, first_row, bits, codes, scale, finite, np.int64(tile))


def pack_int8(w: Array, factor: float = 1.0) -> QuantizedTensor:
    """As `reference.pack_int8`, without padding that no product needs: see QuantizedTensor on adapters.

    The rank is the number of rows of A* and of columns of B*, which seldom fills whole tiles or steps. More than twelve
    rows after the last whole tile make another one.
    """
    d, k = w.shape
    n_tiles, n_quarters = d // TILE_ROWS, -(-(d % TILE_ROWS) // QUARTER_ROWS)
    if n_quarters == TILE_ROWS // QUARTER_ROWS:
        n_tiles, n_quarters = n_tiles + 1, 0
    n_groups, quads = -(-k // STEP), -(-k // 4)
    memory = np.zeros((n_tiles * quads + 7) * 64, np.uint8)  # kernels read whole steps, past the last tile too
    codes = memory[: n_tiles * quads * 64].reshape(n_tiles, quads, 64)
    scale = np.zeros((n_tiles, n_groups, TILE_ROWS), np.float16)
    quarter_codes = np.zeros((n_quarters, 2 * n_groups, 64), np.uint8)
    quarter_scale = np.zeros((n_quarters, n_groups, QUARTER_ROWS), np.float16)
    finite = np.ones(n_tiles + n_quarters, np.bool_)
    for start, bits, own_codes, own_scale, own_finite in (
        (0, 0, codes, scale, finite[:n_tiles]),
        (n_tiles * TILE_ROWS, 2, quarter_codes, quarter_scale, finite[n_tiles:]),
    ):
        if len(own_codes):
            _pack_int8(
                w, np.float32(factor), start, bits, own_codes.view(np.int32), own_scale.view(np.uint16), own_finite
            )
    if not finite.all():
        raise QuantizationError("a weight is NaN or infinite; quantization needs finite values")
    whole = codes.reshape(n_tiles, 1, -1) if n_tiles else np.zeros((0, 1, quads * 64), np.uint8)
    packed = QuantizedTensor("int8", (d, k), STEP, whole, scale)
    return replace(packed, quarter_codes=quarter_codes, quarter_scale=quarter_scale) if n_quarters else packed
