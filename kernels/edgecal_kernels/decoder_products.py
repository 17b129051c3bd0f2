"""The products of a step: which part of the work is a thread's, and adapters on top.

`step` is what one thread is told: its number, how many there are, the rows of the step, whether any row has an adapter,
and the address of its clock's counters (0: no clock). Matrices lie at addresses, row after row; x is three of them, the
codes, scales and sums of activations in int8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from . import memory, simd
from .clock import LORA
from .compiled_clock import charge, now, tick
from .decoder_weights import N_COMPONENTS
from .jit import kernel
from .memory import pointer
from .packed_kernels import ZERO
from .packed_matmul import add_int8, add_row, multiply, multiply_quarters
from .records import FORMAT_NUMBER, LINEAR, PAIR, ROW, WORDS, Sizes
from .rounding import further, quantize_row
from .sync import barrier

# NumPy's integers, because Numba specializes on literal Python integers
ONE: Any = np.int64(1)
_INT8 = np.int64(FORMAT_NUMBER["int8"])


@kernel
def share(n: int, thread: int, n_threads: int) -> Any:
    """This thread's part of n."""
    return n * thread // n_threads, n * (thread + 1) // n_threads


@kernel
def rows_share(tiles: int, quarters: int, thread: int, n_threads: int) -> Any:
    """This thread's part of the tiles and of the quarter tiles that follow them."""
    first, last = share(4 * tiles + quarters, thread, n_threads)
    whole = (min((first + 2) // 4, tiles), min((last + 2) // 4, tiles))
    return whole, (max(first - 4 * tiles, 0), max(last - 4 * tiles, 0))


@kernel
def pairs_share(n: int, thread: int, n_threads: int) -> Any:
    """This thread's part of n tiles, in pairs: their 32 rows are a step of the next product."""
    first, last = share(n // 2, thread, n_threads)
    return 2 * first, 2 * last


@kernel
def heads_border(thread: int, n_threads: int, keys: int, queries: int, per_head: int) -> int:
    """Where a thread's share begins among the tiles of keys, queries and values, which follow one another.

    A head of keys or of values is not divided.
    """
    at = (2 * keys + queries) * thread // n_threads
    if at < keys:
        return (at + per_head // 2) // per_head * per_head
    if at > keys + queries:
        after = at - keys - queries
        return keys + queries + (after + per_head // 2) // per_head * per_head
    return at


@kernel
def within(first: int, last: int, start: int, n: int) -> Any:
    """The part of [first, last) that falls on the n tiles from `start`, counted from there."""
    return min(max(first - start, 0), n), min(max(last - start, 0), n)


@kernel
def round_rows(x: int, n: int, k: int, rounded: Any) -> None:
    """int8 codes, scales and sums of n rows of k columns at the address x, to those at `rounded`."""
    quantize_row(x, n * k, rounded)


@kernel
def _inner(plan: Any, row: int, of_group: int) -> int:
    """Where A* x of a row is, for a module at this place of its group."""
    return plan.inner + (of_group * plan.most + row) * plan.inner_width * 4


@kernel
def _pairs(plan: Any) -> Any:
    return carray(pointer(plan.pairs), (plan.n_slots, plan.n_layers, N_COMPONENTS), PAIR)


@kernel
def inner_products(plan: Any, step: Any, layer: int, first: int, last: int, k: int, x: Any, t: int) -> int:
    """A* x of modules [first, last) for each row that has an adapter; then a barrier.

    x: where the k columns of each row are in int8. The threads share the tiles of A*. Returns the time.
    """
    thread, n_threads, n, adapted, clock = step
    if not adapted:
        return t
    pairs, rows, d = _pairs(plan), carray(pointer(plan.rows), (n,), ROW), plan.inner_width
    for module in range(first, last):
        out = _inner(plan, ZERO, module - first)
        place = (thread + module) % n_threads
        row = 0
        while row < n:
            slot, end = rows[row].slot, row + 1
            while end < n and rows[end].slot == slot:
                end += 1
            pair = pairs[slot, layer, module]
            if pair.rank > 0:
                tiles, quarters = rows_share(pair.a_tiles, pair.quarters, place, n_threads)
                sizes, width = Sizes(pair.a_lines, pair.a_groups, ONE, k, d), pair.a_tiles * 16
                if tiles[0] < tiles[1]:
                    multiply(_INT8, pair.a_codes, pair.a_scale, ZERO, sizes, x, row, end, out, tiles)
                if quarters[0] < quarters[1]:
                    a, a_scale = pair.quarter_codes, pair.quarter_scale
                    multiply_quarters(a, a_scale, k, d, x, row, end, out, width, quarters)
                if place == n_threads - 1:  # it has the last rows
                    for i in range(row, end):
                        _clear(out + i * d * 4, width + pair.quarters * 4, pair.padded)
            row = end
    barrier(carray(pointer(plan.words), (n_threads * WORDS,), np.int64), thread, n_threads)
    return tick(clock, LORA, t)


@kernel
def _clear(x: int, start: int, stop: int) -> None:
    for i in range(start, stop):
        simd.store_one(x, i, np.float32(0))


@kernel
def _adapt(pair: Any, inner: int, rounded: Any, out: int, tiles: Any) -> None:
    """out += B* inner + bias* for one row; `rounded` is room for the inner vector in int8."""
    if pair.rank > 0:
        quantize_row(inner, pair.padded, rounded)
        scale, factor = rounded[1], np.float32(pair.scaling)
        for step in range(pair.padded // 32):  # a power of two: as good as scaling `inner`
            simd.store_one(scale, step, memory.read_float(scale + step * 4) * factor)
        add_int8(pair.b_codes, pair.b_scale, pair.b_lines, rounded, out, tiles)
    if pair.bias != 0:
        add_row(pair.bias, out, tiles)


@kernel
def product(linear: Any, n: int, x: Any, out: int, tiles: Any) -> None:
    """These tiles of out = W x + bias for n rows; x: where they are in int8."""
    d = linear.tiles * 16
    sizes = Sizes(linear.tile_lines, linear.groups, linear.per_group, linear.inputs, d)
    multiply(linear.format, linear.codes, linear.scale, linear.extra, sizes, x, ZERO, n, out, tiles)
    if linear.bias != 0:
        for row in range(n):
            add_row(linear.bias, out + row * d * 4, tiles)


@kernel
def adapted_product(
    plan: Any, step: Any, layer: int, module: int, first: int, x: Any, out: int, tiles: Any, part: int
) -> None:
    """These tiles of a module of the group that begins with `first`, with its adapters, whose time goes to LORA."""
    thread, _, n, adapted, clock = step
    linear = carray(pointer(plan.table), (plan.n_layers + 1, N_COMPONENTS), LINEAR)[layer, module]
    product(linear, n, x, out, tiles)
    if adapted:
        before = now() if clock != 0 else ZERO
        pairs, rows = _pairs(plan), carray(pointer(plan.rows), (n,), ROW)
        own = further((plan.inner_codes, plan.inner_scale, plan.inner_total), thread * plan.inner_width)
        for row in range(n):
            inner, target = _inner(plan, row, module - first), out + row * linear.tiles * 64
            _adapt(pairs[rows[row].slot, layer, module], inner, own, target, tiles)
        if clock != 0:
            spent = now() - before
            charge(clock, LORA, spent)
            charge(clock, part, -spent)


@kernel
def add_tiles(x: Any, y: Any, tiles: Any) -> None:
    """x += y, these tiles of each row."""
    for row in range(x.shape[0]):
        for i in range(tiles[0] * 16, tiles[1] * 16):
            x[row, i] += y[row, i]
