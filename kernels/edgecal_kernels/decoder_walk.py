"""What the threads do for a step: all layers, for one or a few tokens, in one compiled call.

Decoding runs some two hundred small products per token, and calling each from Python, with a parallel region of its
own, costs as much as the arithmetic. Here the threads enter once per step and walk through the layers together. Every
thread repeats the norms, which needs no waiting; the products are divided by tiles of rows, attention by heads, and
barriers (the bars) keep the threads in step:

    norm, round, q k v, keys' rope, cache | queries' rope, attention, round | o, add |
    norm, round, gate up, swiglu, round | down, add |

A thread has whole heads of keys and of values, so that it can rotate them and put them into the cache before the bar;
a query is rotated by the thread that attends with it.

An adapter puts its A* x in front of each group of products and a bar behind it, so that the threads can share it.

A row of a step is a token with a cache, a position and an adapter of its own: tokens of several sequences, or several
tokens of one. The arithmetic of a row is that of the single operations, in the same order, whatever rows are beside it.

Trap: constants that are handed to kernels are NumPy's integers: Numba compiles a function anew for every Python
integer that it finds in a call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, prange, types

from . import blocks
from .attention import attend, attention_scratch
from .cache_write import KEY, VALUE, remember_head, rotate
from .clock import ATTENTION, DOWN, EMBED, GATE_UP, HEAD, NORM, OUTPUT, QKV, ROPE
from .decoder_plan import LINEAR, PLAN, ROW, floats, now, pointer, tick
from .decoder_products import (
    ONE,
    ZERO,
    adapted_product,
    add_tiles,
    embed,
    heads_border,
    inner_products,
    pairs_share,
    product,
    round_rows,
    share,
    within,
)
from .elementwise import normalize, swiglu_lanes
from .function_pointer import by_address
from .jit import kernel, parallel
from .rounding import further, quantize_row
from .sync import WORDS, barrier

Q_PROJ, K_PROJ, V_PROJ, O_PROJ, GATE_PROJ, UP_PROJ, DOWN_PROJ, _END = np.arange(8)
HEAD_PROJ, EMBEDDING = 0, 1  # in the row of the table behind the last layer


@kernel
def _place(row: Any) -> Any:
    """`Cached.addresses` of a row."""
    return row.keys, row.values, row.key_scales, row.value_scales, row.kind, row.capacity


@kernel
def _remember(plan: Any, rows: Any, layer: int, key: bool, x: Any, tiles: Any, cos: Any, sin: Any) -> None:
    """The heads of these tiles of flat keys or values of each row into its cache, keys rotated."""
    width, n_kv_heads = plan.head_dim, plan.n_kv_heads
    for row in range(rows.shape[0]):
        place, pos = _place(rows[row]), rows[row].pos
        for head in range(tiles[0] * 16 // width, tiles[1] * 16 // width):
            element, at = (row * n_kv_heads + head) * width, (layer * n_kv_heads + head) * rows[row].capacity + pos
            if key:
                rotate(x, element, cos, sin, pos)
            remember_head(x, element, width, width, place, at, key)


@kernel
def _attend_share(plan: Any, rows: Any, layer: int, q: Any, items: Any, cos: Any, sin: Any, scratch: int) -> None:
    """Items [first, last) of the query heads of all rows. A share that ends within the heads of a key head takes some
    of them."""
    n_heads, n_kv_heads, width = plan.n_heads, plan.n_kv_heads, plan.head_dim
    per_kv = n_heads // n_kv_heads
    item, last = items
    for i in range(item, last):
        rotate(q, i * width, cos, sin, rows[i // n_heads].pos)
    while item < last:
        row, head = item // n_heads, item % n_heads
        heads = min(last - item, per_kv - head % per_kv)
        at = (layer * n_kv_heads + head // per_kv) * rows[row].capacity
        sizes = (rows[row].pos, width, width, plan.scaling)
        attend(plan.q, plan.mixed, item * width, ONE, heads, n_heads * width, sizes, _place(rows[row]), at, scratch)
        item += heads


@kernel
def _round_wide(plan: Any, x: int, start: int, stop: int) -> None:
    """Elements [start, stop) of x, of whole steps, into the buffers that all threads see."""
    wide = plan.wide_codes, plan.wide_scale, plan.wide_total
    quantize_row(x + start * 4, stop - start, further(wide, start))


@kernel
def _walk(
    thread: int, n_threads: int, address: int, n: int, first_logit: int, adapted: int, clock: int, logits: int
) -> None:
    """What one thread does for a step; the arguments are those of `Decoder.step`."""
    plan = carray(pointer(address), (1,), PLAN)[0]
    n_layers, n_heads, n_kv_heads, width = plan.n_layers, plan.n_heads, plan.n_kv_heads, plan.head_dim
    hidden_size, wide, eps = plan.hidden_size, plan.intermediate_size, plan.eps
    words = carray(pointer(plan.words), (n_threads * WORDS,), np.int64)
    table = carray(pointer(plan.table), (n_layers + 1, 7), LINEAR)
    rows = carray(pointer(plan.rows), (n,), ROW)
    ticks = clock if thread == 0 else ZERO
    x, down = floats(plan.x, n, hidden_size), floats(plan.down, n, hidden_size)
    q = floats(plan.q, n, n_heads * width)
    k, v = floats(plan.k, n, n_kv_heads * width), floats(plan.v, n, n_kv_heads * width)
    own_normed = plan.normed + thread * plan.most * hidden_size * 4
    normed = floats(own_normed, n, hidden_size)
    of_normed = further((plan.codes, plan.scale, plan.total), thread * plan.most * hidden_size)
    of_wide = plan.wide_codes, plan.wide_scale, plan.wide_total
    norms = floats(plan.norms, 2 * n_layers + 1, hidden_size)
    centered = plan.norm_biases != 0
    norm_biases = floats(plan.norm_biases, 2 * n_layers + 1, hidden_size) if centered else norms
    cos, sin = floats(plan.cos, plan.positions, plan.half), floats(plan.sin, plan.positions, plan.half)
    flat_q, flat_k, flat_v = q.reshape(-1), k.reshape(-1), v.reshape(-1)
    step = (thread, n_threads, n, adapted, ticks)
    scratch = attention_scratch(n_heads // n_kv_heads, width)
    # The same in every layer: a thread's share of each group of products
    kv_tiles, q_tiles, per_head = n_kv_heads * width // 16, n_heads * width // 16, width // 16
    first = heads_border(thread, n_threads, kv_tiles, q_tiles, per_head)
    last = heads_border(thread + 1, n_threads, kv_tiles, q_tiles, per_head)
    k_share, q_share = within(first, last, ZERO, kv_tiles), within(first, last, kv_tiles, q_tiles)
    v_share = within(first, last, kv_tiles + q_tiles, kv_tiles)
    x_share, wide_share = share(hidden_size // 16, thread, n_threads), pairs_share(wide // 16, thread, n_threads)
    together = 1 if width % 32 == 0 else 2  # heads whose elements are whole steps
    items = share(n * n_heads // together, thread, n_threads)
    items = items[0] * together, items[1] * together
    head = table[n_layers, HEAD_PROJ]
    head_share = share(head.tiles, thread, n_threads)

    t = now() if ticks != 0 else ZERO
    for row in range(thread, n, n_threads):
        embed(table[n_layers, EMBEDDING], rows[row].id, x, row)
    barrier(words, thread, n_threads)
    t = tick(ticks, EMBED, t)
    for layer in range(n_layers):
        normalize(x, norms[2 * layer], norm_biases[2 * layer], eps, centered, normed)
        round_rows(own_normed, n, hidden_size, of_normed)
        t = tick(ticks, NORM, t)
        t = inner_products(plan, step, layer, Q_PROJ, O_PROJ, hidden_size, of_normed, t)
        adapted_product(plan, step, layer, Q_PROJ, Q_PROJ, of_normed, plan.q, q_share, QKV)
        adapted_product(plan, step, layer, K_PROJ, Q_PROJ, of_normed, plan.k, k_share, QKV)
        adapted_product(plan, step, layer, V_PROJ, Q_PROJ, of_normed, plan.v, v_share, QKV)
        t = tick(ticks, QKV, t)
        _remember(plan, rows, layer, KEY, flat_k, k_share, cos, sin)
        _remember(plan, rows, layer, VALUE, flat_v, v_share, cos, sin)
        t = tick(ticks, ROPE, t)
        barrier(words, thread, n_threads)
        t = tick(ticks, QKV, t)
        _attend_share(plan, rows, layer, flat_q, items, cos, sin, blocks.address(scratch))
        _round_wide(plan, plan.mixed, items[0] * width, items[1] * width)
        barrier(words, thread, n_threads)
        t = tick(ticks, ATTENTION, t)
        t = inner_products(plan, step, layer, O_PROJ, GATE_PROJ, n_heads * width, of_wide, t)
        adapted_product(plan, step, layer, O_PROJ, O_PROJ, of_wide, plan.down, x_share, OUTPUT)
        add_tiles(x, down, x_share)
        barrier(words, thread, n_threads)
        t = tick(ticks, OUTPUT, t)
        normalize(x, norms[2 * layer + 1], norm_biases[2 * layer + 1], eps, centered, normed)
        round_rows(own_normed, n, hidden_size, of_normed)
        t = tick(ticks, NORM, t)
        t = inner_products(plan, step, layer, GATE_PROJ, DOWN_PROJ, hidden_size, of_normed, t)
        adapted_product(plan, step, layer, GATE_PROJ, GATE_PROJ, of_normed, plan.gate, wide_share, GATE_UP)
        adapted_product(plan, step, layer, UP_PROJ, GATE_PROJ, of_normed, plan.up, wide_share, GATE_UP)
        for row in range(n):
            start, stop = row * wide + wide_share[0] * 16, row * wide + wide_share[1] * 16
            for i in range(start, stop, 16):
                swiglu_lanes(plan.gate, plan.up, i)
            _round_wide(plan, plan.gate, start, stop)
        barrier(words, thread, n_threads)
        t = tick(ticks, GATE_UP, t)
        t = inner_products(plan, step, layer, DOWN_PROJ, _END, wide, of_wide, t)
        adapted_product(plan, step, layer, DOWN_PROJ, DOWN_PROJ, of_wide, plan.down, x_share, DOWN)
        add_tiles(x, down, x_share)
        barrier(words, thread, n_threads)
        t = tick(ticks, DOWN, t)
    wanted = x[first_logit:]
    normalize(wanted, norms[2 * n_layers], norm_biases[2 * n_layers], eps, centered, normed)
    round_rows(own_normed, n - first_logit, hidden_size, of_normed)
    t = tick(ticks, NORM, t)
    product(head, n - first_logit, of_normed, logits, head_share)
    if clock != 0:
        barrier(words, thread, n_threads)
    tick(ticks, HEAD, t)


call_walk, walk_code = by_address(_walk, *[types.int64] * 8)


@parallel
def _share_out(
    code: int, n_threads: int, plan: int, n: int, first_logit: int, adapted: int, clock: int, logits: int
) -> None:
    for thread in prange(n_threads):
        call_walk(code, np.int64(thread), n_threads, plan, n, first_logit, adapted, clock, logits)


def walk(n_threads: int, plan: int, n: int, first_logit: int, adapted: int, clock: int, logits: int) -> None:
    """A step, by so many threads; the arguments are those of `Decoder.step`."""
    _share_out(walk_code(), n_threads, plan, n, first_logit, adapted, clock, logits)
