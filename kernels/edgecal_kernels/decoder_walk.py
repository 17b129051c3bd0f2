"""What the threads do for a step: all layers, for one or a few tokens, in one compiled call.

Decoding runs some two hundred small products per token, and calling each from Python, with a parallel region of its
own, costs as much as the arithmetic. Here the threads enter once per step and walk through the layers together. Every
thread repeats the norms, which needs no waiting; the products are divided by tiles of rows, attention by heads, and
barriers (|) keep the threads in step:

    norm, round, q k v, norm and rope of keys, cache | norm and rope of queries, attention, round | o, add |
    norm, round, gate up, activation, round | down, add |

A thread has whole heads of keys and of values, so that it can rotate them and put them into the cache before the
barrier; a query is rotated by the thread that attends with it. Where what comes out of a half is normed before it is
added, every thread norms all of it, after one more barrier.

An adapter puts its A* x in front of each group of products, and a barrier after it, so that the threads can share it.

A row of a step is a token with a cache, a position and an adapter of its own: tokens of several sequences, or several
tokens of one. The arithmetic of a row is that of the single operations, in the same order, whatever rows are beside it.

Trap: constants that are handed to kernels are NumPy's integers: Numba compiles a function anew for every Python
integer that it finds in a call.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import carray, prange, types

from . import memory
from .attention import attend, attention_scratch
from .cache_write import KEY, VALUE, remember_head, rotate
from .cached import Addresses
from .clock import ATTENTION, DOWN, EMBED, GATE_UP, HEAD, NORM, OUTPUT, QKV, ROPE
from .compiled_clock import now, tick
from .decoder_products import (
    ONE,
    ZERO,
    adapted_product,
    add_tiles,
    heads_border,
    inner_products,
    pairs_share,
    product,
    round_rows,
    share,
    within,
)
from .decoder_weights import N_COMPONENTS
from .elementwise import gated_lanes, normalize, normalize_row
from .embedding import embed_row
from .function_pointer import by_address
from .jit import kernel, parallel
from .memory import floats, pointer
from .records import LAYER, LINEAR, PLAN, ROW, WORDS, Sizes, View
from .rounding import further, quantize_row
from .sync import barrier

Q_PROJ, K_PROJ, V_PROJ, O_PROJ, GATE_PROJ, UP_PROJ, DOWN_PROJ, _END = np.arange(N_COMPONENTS + 1)
HEAD_PROJ, EMBEDDING = 0, 1  # in the row of the table after the last layer
QUERY, KEY_NORM = np.arange(2)  # of a layer's norms of heads


class Step(NamedTuple):
    """What one thread is told: its number, of how many, rows, whether any has an adapter, its clock (0: none)."""

    thread: Any
    n_threads: Any
    n: Any
    adapted: Any
    clock: Any


class Shares(NamedTuple):
    """A thread's part of each group of products, in tiles; `items` are query heads of all rows. The same in every
    layer."""

    q: Any
    k: Any
    v: Any
    output: Any  # of o_proj and down_proj
    wide: Any  # of gate_proj and up_proj
    items: Any


@kernel
def _shares(plan: Any, step: Any) -> Any:
    thread, n_threads = step.thread, step.n_threads
    n_heads, n_kv_heads, width = plan.n_heads, plan.n_kv_heads, plan.head_dim
    kv_tiles, q_tiles, per_head = n_kv_heads * width // 16, n_heads * width // 16, width // 16
    first = heads_border(thread, n_threads, kv_tiles, q_tiles, per_head)
    last = heads_border(thread + 1, n_threads, kv_tiles, q_tiles, per_head)
    together = 1 if width % 32 == 0 else 2  # heads whose elements are whole steps
    items = share(step.n * n_heads // together, thread, n_threads)
    return Shares(
        within(first, last, kv_tiles, q_tiles),
        within(first, last, ZERO, kv_tiles),
        within(first, last, kv_tiles + q_tiles, kv_tiles),
        share(plan.hidden_size // 16, thread, n_threads),
        pairs_share(plan.intermediate_size // 16, thread, n_threads),
        (items[0] * together, items[1] * together),
    )


@kernel
def _wait(plan: Any, step: Any) -> None:
    """Until all threads have come here."""
    barrier(carray(pointer(plan.words), (step.n_threads * WORDS,), np.int64), step.thread, step.n_threads)


@kernel
def _rows(plan: Any, step: Any) -> Any:
    return carray(pointer(plan.rows), (step.n,), ROW)


@kernel
def _rotations(plan: Any, layer: int) -> Any:
    """cos and sin of a layer."""
    kind = carray(pointer(plan.layers), (plan.n_layers,), LAYER)[layer].rope
    at = kind * plan.positions * plan.half * 4
    return floats(plan.cos + at, plan.positions, plan.half), floats(plan.sin + at, plan.positions, plan.half)


@kernel
def _own_normed(plan: Any, step: Any) -> int:
    """Where a thread has its normed rows."""
    return plan.normed + step.thread * plan.most * plan.hidden_size * 4


@kernel
def _own_rounded(plan: Any, step: Any) -> Any:
    """Where it has them in int8."""
    return further((plan.codes, plan.scale, plan.total), step.thread * plan.most * plan.hidden_size)


@kernel
def _norm(plan: Any, step: Any, source: int, first: int, last: int, norm: int) -> None:
    """Rows [first, last) at an address through one of the norms of the residual stream, into a thread's own rows."""
    d, n_norms = plan.hidden_size, plan.norms_per_layer * plan.n_layers + 1
    weights, centered = floats(plan.norms, n_norms, d), plan.norm_biases != 0
    biases = floats(plan.norm_biases, n_norms, d) if centered else weights
    normed = floats(_own_normed(plan, step), last - first, d)
    normalize(floats(source + first * d * 4, last - first, d), weights[norm], biases[norm], plan.eps, centered, normed)


@kernel
def _norm_in(plan: Any, step: Any, first_row: int, norm: int, t: int) -> int:
    """The residual stream from a row on, normed and rounded for the products; the time."""
    _norm(plan, step, plan.x, first_row, step.n, norm)
    round_rows(_own_normed(plan, step), step.n - first_row, plan.hidden_size, _own_rounded(plan, step))
    return tick(step.clock, NORM, t)


@kernel
def _add_output(plan: Any, step: Any, tiles: Any, norm: int, part: int, t: int) -> int:
    """What a half of a layer gives, in `down`, to the residual stream; the time."""
    x = floats(plan.x, step.n, plan.hidden_size)
    if plan.norms_per_layer == 4:
        _wait(plan, step)
        _norm(plan, step, plan.down, ZERO, step.n, norm)
        add_tiles(x, floats(_own_normed(plan, step), step.n, plan.hidden_size), tiles)
    else:
        add_tiles(x, floats(plan.down, step.n, plan.hidden_size), tiles)
    _wait(plan, step)
    return tick(step.clock, part, t)


@kernel
def _norm_head(plan: Any, layer: int, which: int, x: Any, at: int) -> None:
    """A head's query or key in flat x, in place, where the model norms them."""
    if plan.head_norms != 0:
        width = plan.head_dim
        weights = floats(plan.head_norms, 2 * plan.n_layers, width).reshape(-1)
        normalize_row(x, at, width, weights, weights, (2 * layer + which) * width, plan.eps, False, x, at)


@kernel
def _place(row: Any) -> Any:
    """`Cached.addresses` of a row."""
    return Addresses(row.keys, row.values, row.key_scales, row.value_scales, row.kind, row.capacity)


@kernel
def _remember(plan: Any, step: Any, layer: int, key: bool, x: int, tiles: Any) -> None:
    """The heads of these tiles of keys or values of each row into its cache; keys are normed and rotated first."""
    width, n_kv_heads, rows = plan.head_dim, plan.n_kv_heads, _rows(plan, step)
    flat = floats(x, step.n, n_kv_heads * width).reshape(-1)
    cos, sin = _rotations(plan, layer)
    for row in range(step.n):
        place, pos = _place(rows[row]), rows[row].pos
        for head in range(tiles[0] * 16 // width, tiles[1] * 16 // width):
            element, at = (row * n_kv_heads + head) * width, (layer * n_kv_heads + head) * rows[row].capacity + pos
            if key:
                _norm_head(plan, layer, KEY_NORM, flat, element)
                rotate(flat, element, cos, sin, pos)
            remember_head(flat, element, width, width, place, at, key)


@kernel
def _attend_share(plan: Any, step: Any, layer: int, items: Any, scratch: int) -> None:
    """Items [first, last) of the query heads of all rows. A share that ends within the heads of a key head takes some
    of them."""
    n_heads, n_kv_heads, width, rows = plan.n_heads, plan.n_kv_heads, plan.head_dim, _rows(plan, step)
    q = floats(plan.q, step.n, n_heads * width).reshape(-1)
    cos, sin = _rotations(plan, layer)
    window = carray(pointer(plan.layers), (plan.n_layers,), LAYER)[layer].window
    per_kv = n_heads // n_kv_heads
    item, last = items
    for i in range(item, last):
        _norm_head(plan, layer, QUERY, q, i * width)
        rotate(q, i * width, cos, sin, rows[i // n_heads].pos)
    while item < last:
        row, head = item // n_heads, item % n_heads
        heads = min(last - item, per_kv - head % per_kv)
        at = (layer * n_kv_heads + head // per_kv) * rows[row].capacity
        view = View(rows[row].pos, width, width, plan.scaling, window)
        attend(plan.q, plan.mixed, item * width, ONE, heads, n_heads * width, view, _place(rows[row]), at, scratch)
        item += heads


@kernel
def _round_wide(plan: Any, x: int, start: int, stop: int) -> None:
    """Elements [start, stop) of x, of whole steps, into the buffers that all threads see."""
    wide = plan.wide_codes, plan.wide_scale, plan.wide_total
    quantize_row(x + start * 4, stop - start, further(wide, start))


@kernel
def _attention(plan: Any, step: Any, shares: Any, layer: int, scratch: int, t: int) -> int:
    """The first half of a layer; the time."""
    width, norm = plan.head_dim, layer * plan.norms_per_layer
    rounded, mixed = _own_rounded(plan, step), (plan.wide_codes, plan.wide_scale, plan.wide_total)
    t = _norm_in(plan, step, ZERO, norm, t)
    t = inner_products(plan, step, layer, Q_PROJ, O_PROJ, plan.hidden_size, rounded, t)
    adapted_product(plan, step, layer, Q_PROJ, Q_PROJ, rounded, plan.q, shares.q, QKV)
    adapted_product(plan, step, layer, K_PROJ, Q_PROJ, rounded, plan.k, shares.k, QKV)
    adapted_product(plan, step, layer, V_PROJ, Q_PROJ, rounded, plan.v, shares.v, QKV)
    t = tick(step.clock, QKV, t)
    _remember(plan, step, layer, KEY, plan.k, shares.k)
    _remember(plan, step, layer, VALUE, plan.v, shares.v)
    t = tick(step.clock, ROPE, t)
    _wait(plan, step)
    t = tick(step.clock, QKV, t)
    _attend_share(plan, step, layer, shares.items, scratch)
    _round_wide(plan, plan.mixed, shares.items[0] * width, shares.items[1] * width)
    _wait(plan, step)
    t = tick(step.clock, ATTENTION, t)
    t = inner_products(plan, step, layer, O_PROJ, GATE_PROJ, plan.n_heads * width, mixed, t)
    adapted_product(plan, step, layer, O_PROJ, O_PROJ, mixed, plan.down, shares.output, OUTPUT)
    return _add_output(plan, step, shares.output, norm + 1, OUTPUT, t)


@kernel
def _mlp(plan: Any, step: Any, shares: Any, layer: int, t: int) -> int:
    """The second half of a layer; the time."""
    wide, norm = plan.intermediate_size, layer * plan.norms_per_layer + plan.norms_per_layer // 2
    rounded, hidden = _own_rounded(plan, step), (plan.wide_codes, plan.wide_scale, plan.wide_total)
    t = _norm_in(plan, step, ZERO, norm, t)
    t = inner_products(plan, step, layer, GATE_PROJ, DOWN_PROJ, plan.hidden_size, rounded, t)
    adapted_product(plan, step, layer, GATE_PROJ, GATE_PROJ, rounded, plan.gate, shares.wide, GATE_UP)
    adapted_product(plan, step, layer, UP_PROJ, GATE_PROJ, rounded, plan.up, shares.wide, GATE_UP)
    for row in range(step.n):
        start, stop = row * wide + shares.wide[0] * 16, row * wide + shares.wide[1] * 16
        for i in range(start, stop, 16):
            gated_lanes(plan.activation, plan.gate, plan.up, i)
        _round_wide(plan, plan.gate, start, stop)
    _wait(plan, step)
    t = tick(step.clock, GATE_UP, t)
    t = inner_products(plan, step, layer, DOWN_PROJ, _END, wide, hidden, t)
    adapted_product(plan, step, layer, DOWN_PROJ, DOWN_PROJ, hidden, plan.down, shares.output, DOWN)
    return _add_output(plan, step, shares.output, norm + 1, DOWN, t)


@kernel
def _embed(plan: Any, step: Any) -> None:
    """A thread's rows of the embedding, into the residual stream."""
    table = carray(pointer(plan.table), (plan.n_layers + 1, N_COMPONENTS), LINEAR)
    x, rows = floats(plan.x, step.n, plan.hidden_size), _rows(plan, step)
    for row in range(step.thread, step.n, step.n_threads):
        of = table[plan.n_layers, EMBEDDING]
        sizes = Sizes(of.tile_lines, of.groups, of.per_group, of.inputs, of.tiles * 16)
        place = memory.address(x) + row * x.shape[1] * 4
        embed_row(of.format, of.codes, of.scale, of.extra, sizes, rows[row].id, place)
        if plan.embedding_scale != 1:
            for i in range(plan.hidden_size):
                x[row, i] *= np.float32(plan.embedding_scale)


@kernel
def walk(
    address: int, n: int, first_logit: int, adapted: int, clock: int, logits: int, thread: int, n_threads: int
) -> None:
    """What one thread does for a step; the arguments are those of `Decoder.step`."""
    plan = carray(pointer(address), (1,), PLAN)[0]
    step = Step(thread, n_threads, n, adapted, clock if thread == 0 else ZERO)
    shares = _shares(plan, step)
    scratch = attention_scratch(plan.n_heads // plan.n_kv_heads, plan.head_dim)
    t = now() if step.clock != 0 else ZERO
    _embed(plan, step)
    _wait(plan, step)
    t = tick(step.clock, EMBED, t)
    for layer in range(plan.n_layers):
        t = _attention(plan, step, shares, layer, memory.address(scratch), t)
        t = _mlp(plan, step, shares, layer, t)
    t = _norm_in(plan, step, first_logit, plan.norms_per_layer * plan.n_layers, t)
    head = carray(pointer(plan.table), (plan.n_layers + 1, N_COMPONENTS), LINEAR)[plan.n_layers, HEAD_PROJ]
    product(head, n - first_logit, _own_rounded(plan, step), logits, share(head.tiles, thread, n_threads))
    if clock != 0:
        _wait(plan, step)
    tick(step.clock, HEAD, t)


call_walk, walk_code = by_address(walk, *[types.int64] * 8)


@parallel
def walk_together(
    code: int, plan: int, n: int, first_logit: int, adapted: int, clock: int, logits: int, n_threads: int
) -> None:
    for thread in prange(n_threads):
        call_walk(code, plan, n, first_logit, adapted, clock, logits, np.int64(thread), n_threads)
