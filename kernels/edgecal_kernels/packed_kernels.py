"""The inner loop of a product with packed weights for one token: rounded activations in, float32 sums out.

Sums stay in registers while the weights stream by. Each number format has its kernel, made from its entry in the table
of formats. Groups are added from left to right, each with one fused multiply-add, as in `packed_tiles`: the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from . import memory, simd
from .formats import SPECS, FormatSpec
from .jit import inlined, kernel, kernel_for
from .kernel_choice import one_of
from .packed_steps import AHEAD, FACTORS, PREFETCH_ONCE, next_step, operand_offset, super_place
from .packed_tokens import read_total
from .records import Sizes
from .simd import begin_dots, end_dots, fma, mul, splat, store

ZERO: Any = np.int64(0)
SIZES = types.NamedUniTuple(types.int64, len(Sizes._fields), Sizes)


def _vector_kernel(format: FormatSpec) -> Any:
    """One token against a range of tiles: accumulators stay in registers, weights stream once.

    Arrays are given by their addresses, `extra` as `records.extra_address` says. `sizes` are Sizes. x may have fewer
    steps than `codes`, whose columns are padded to groups, or more, which are zeros: an adapter's tiles may end within
    a step, and what is read after them is multiplied by 0.
    """
    has_minimum, has_row_scale, halves = format.has_minimum, format.has_row_scale, format.halves
    lines, parts, offset = format.packing.step_bytes // 64, format.super_parts, operand_offset(format)
    dot32, factors = simd.DOT32[format.bits, halves], FACTORS[format.name]
    prefetch, has_super_scale = PREFETCH_ONCE[format.name], format.has_super_scale

    @kernel_for(format.name)
    def vector(
        codes: int, scale: int, extra: int, sizes: Any, x: int, x_scale: int, x_total: int, out: int, tiles: Any
    ) -> None:
        tile_lines, n_groups, per_group, k, _d = sizes
        for tile in range(tiles[0], tiles[1]):
            acc = splat(np.float32(0))
            group, inside = tile * n_groups * 16, 0
            for step in range(k // 32):
                at = (tile * tile_lines + step * lines) * 64
                unit = super_place(tile, n_groups, step, parts) if has_super_scale else ZERO
                prefetch(codes + at, scale, extra, group, unit)
                total = read_total(x_total + step * 4)
                first_total = memory.read_short(x_total + step * 4) if halves else total
                start = np.int32(-offset * first_total)
                if halves:
                    second_start = np.int32(-offset * (total - first_total))
                    both = begin_dots(start), begin_dots(second_start)
                    dots, second_dots = dot32(both, codes + at, x, step * 32)
                else:
                    (dots,) = dot32((begin_dots(start),), codes + at, x, step * 32)
                xs, (w_scale, other) = memory.read_float(x_scale + step * 4), factors(scale, extra, group, unit)
                acc = fma(end_dots(dots, start), mul(w_scale, splat(xs)), acc)
                if halves:
                    acc = fma(end_dots(second_dots, second_start), mul(other, splat(xs)), acc)
                elif has_minimum:
                    acc = fma(other, splat(xs * np.float32(total)), acc)
                group, inside = next_step(group, inside, per_group)
            if has_row_scale:
                acc = mul(acc, simd.load(extra, tile * 16))
            store(out, tile * 16, acc)

    return vector


VECTORS = {name: _vector_kernel(format) for name, format in SPECS.items()}
vector = one_of(list(VECTORS.values()))


@inlined
def _quarter_step(acc: Any, start: Any, one: Any, two: Any, w_scale: Any, x: int, x_scale: int, step: int) -> Any:
    """acc + a step of a quarter tile, whose two lines are given with the start of their sums, times one token."""
    dots = simd.dot16_int8(simd.dot16_int8(start, one, x, step * 32), two, x, step * 32 + 16)
    return fma(end_dots(dots, np.int32(0)), mul(w_scale, splat(memory.read_float(x_scale + step * 4))), acc)


@kernel
def quarter_tiles(
    codes: int, scale: int, steps: int, x: int, x_scale: int, out: int, d: int, n: int, tiles: Any
) -> None:
    """One token, or four, against a range of quarter tiles of int8, four sums for each; otherwise as `vector`.

    The tokens follow one another: rows of `steps` steps at x, of as many scales at `x_scale`, of d floats at `out`.
    """
    for tile in range(tiles[0], tiles[1]):
        a = b = c = e = splat(np.float32(0))
        for step in range(steps):
            place = tile * steps + step
            at = codes + place * 128
            simd.prefetch_once(at, AHEAD)
            simd.prefetch_once(at, 64 + AHEAD)
            one, two, w_scale = simd.load_bytes(at, 0), simd.load_bytes(at, 64), simd.load_half_fours(scale, place * 4)
            start = simd.begin_fours(one, two)
            a = _quarter_step(a, start, one, two, w_scale, x, x_scale, step)
            if n == 4:
                b = _quarter_step(b, start, one, two, w_scale, x + steps * 32, x_scale + steps * 4, step)
                c = _quarter_step(c, start, one, two, w_scale, x + steps * 64, x_scale + steps * 8, step)
                e = _quarter_step(e, start, one, two, w_scale, x + steps * 96, x_scale + steps * 12, step)
        simd.store_sums_of_four(out, tile * 4, a)
        if n == 4:
            simd.store_sums_of_four(out, d + tile * 4, b)
            simd.store_sums_of_four(out, 2 * d + tile * 4, c)
            simd.store_sums_of_four(out, 3 * d + tile * 4, e)
