"""Rows of a packed embedding table as float32: the bits of `quant.dequantize_rows`."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import memory, simd
from .jit import kernel
from .packed_steps import super_place
from .quant import SPECS

_BITS, _OFFSETS = zip(*((spec.bits, float(spec.code_offset)) for spec in SPECS.values()), strict=True)
_HAVE_MINIMUM, _HAVE_ROW_SCALE, _HAVE_SUPER_SCALE = zip(
    *((spec.has_minimum, spec.has_row_scale, spec.has_super_scale) for spec in SPECS.values()), strict=True
)
_HALVES, _PARTS = zip(*((spec.halves, spec.super_parts) for spec in SPECS.values()), strict=True)


@kernel
def embed_row(format: int, codes: int, scale: int, extra: int, sizes: Any, token: int, out: int) -> None:
    """Row `token` to the address `out`. The other arguments are those of `packed_matmul.multiply`."""
    bits, has_minimum, offset = _BITS[format], _HAVE_MINIMUM[format], np.float32(_OFFSETS[format])
    tile, lane = token // 16, token % 16
    for step in range(sizes.k // 32):
        at = (tile * sizes.tile_lines + step * bits) * 64  # a step has as many lines as a code has bits
        group = (tile * sizes.n_groups + step // sizes.per_group) * 16 + lane
        other = np.float32(0)  # the minimum, or the second half's scale
        if _HAVE_SUPER_SCALE[format]:
            unit, multiples = super_place(tile, sizes.n_groups, step, _PARTS[format]) + lane, simd.whole(scale)
            place = (group - lane) * 2 + lane
            factor = np.float32(multiples[place]) * simd.load_one_half(extra, unit)
            other = np.float32(multiples[place + 16]) * simd.load_one_half(extra, unit + 16 * (_PARTS[format] - 1))
        elif _HAVE_ROW_SCALE[format]:
            root = np.float32(simd.whole(scale)[group])
            factor = root * abs(root) * simd.load_one(extra, token)
        else:
            factor = simd.load_one_half(scale, group)
            if has_minimum:
                other = simd.load_one_half(extra, group)
        for column in range(32):
            code = _code(codes + at + lane * 4 + column % 4, column, bits) - offset
            if has_minimum:
                simd.store_one(out, step * 32 + column, code * factor + other)
            else:
                simd.store_one(out, step * 32 + column, code * (other if _HALVES[format] and column >= 16 else factor))


@kernel
def _code(at: int, column: int, bits: int) -> Any:
    """The code of a column of a step; `at` is where its byte of the first line is."""
    stored = simd.whole(at)
    if bits == 8:
        return np.float32(stored[column // 4 * 64])
    both = np.uint8(stored[column % 16 // 4 * 64])
    code = both & 15 if column < 16 else both >> 4
    if bits == 6:
        upper = np.uint8(stored[256 + column // 16 * 64]) >> (column % 16 // 4 * 2)
        code += (upper & 3) * 16
    if bits == 5:
        code += (np.uint8(stored[256]) >> (column // 4) & 1) * 16
    return np.float32(code)


@kernel
def embed_rows(format: int, places: Any, sizes: Any, ids: Any, out: Any) -> None:
    """`Operations.embed`."""
    for i in range(len(ids)):
        embed_row(format, places[0], places[1], places[2], sizes, ids[i], memory.address(out) + i * sizes.k * 4)
