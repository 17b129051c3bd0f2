"""Rounding adapters to int8 when they are first used: the numbers of `quant.quantize(w, "int8")`, on all cores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from . import simd
from .errors import QuantizationError
from .jit import parallel
from .quant import STEP, Array, QuantizedTensor, packed_shapes


@parallel
def _pack_int8(w: Any, factor: Any, codes: Any, scale: Any, finite: Any) -> None:
    """w (d, k) times `factor` into codes (tiles, quads, 64) int8 and scale (tiles, steps, 16), bits of float16."""
    d, k = w.shape
    for tile in prange(codes.shape[0]):
        extreme, rounded = np.zeros(16, np.float32), np.zeros(16, np.float32)
        rows = min(16, d - tile * 16)
        for step in range(scale.shape[1]):
            columns = min(32, k - step * 32)
            for row in range(rows):
                largest = np.float32(0)
                for column in range(columns):
                    value = abs(w[tile * 16 + row, step * 32 + column] * factor)
                    if not value <= np.float32(3.4028235e38):
                        finite[tile] = False
                    largest = max(largest, value)
                extreme[row] = largest / np.float32(127)
            at = (tile * scale.shape[1] + step) * 16
            simd.store_half(scale, at, simd.load(extreme, 0))
            simd.store(rounded, 0, simd.load_half(scale, at))
            for row in range(rows):
                reciprocal = np.float32(1) / rounded[row] if rounded[row] != 0 else np.float32(0)
                for column in range(columns):
                    code = np.rint(w[tile * 16 + row, step * 32 + column] * factor * reciprocal)
                    code = min(max(code, np.float32(-127)), np.float32(127))
                    codes[tile, step * 8 + column // 4, row * 4 + column % 4] = np.int8(code)


def pack_int8(w: Array, factor: float = 1.0) -> QuantizedTensor:
    """As `reference.pack_int8`, but that a tile ends with its last column quad: what follows is not there to be read.

    B* has the rank for its columns, which seldom fills whole steps.
    """
    (_, (n_tiles, n_groups, rows)), quads = packed_shapes("int8", w.shape, STEP)["scale"], -(-w.shape[1] // 4)
    memory = np.zeros((n_tiles * quads + 7) * 64, np.uint8)  # kernels read whole steps, behind the last tile too
    codes = memory[: n_tiles * quads * 64].reshape(n_tiles, quads, 64)
    scale = np.zeros((n_tiles, n_groups, rows), np.float16)
    finite = np.ones(n_tiles, np.bool_)
    _pack_int8(w, np.float32(factor), codes.view(np.int8), scale.view(np.uint16), finite)
    if not finite.all():
        raise QuantizationError("a weight is NaN or infinite; quantization needs finite values")
    return QuantizedTensor("int8", (w.shape[0], w.shape[1]), STEP, codes.reshape(n_tiles, 1, -1), scale)
