"""What the threads do for a step: all layers, for one or a few tokens, in one compiled call.

Decoding runs some two hundred small products per token, and calling each from Python, with a parallel region of its
own, costs as much as the arithmetic. Here the threads enter once per step and walk through the layers together. Every
thread repeats the cheap parts (norms, rounding the activations), which needs no waiting; the products are divided by
tiles of rows, attention by heads, and barriers (the bars) keep the threads in step:

    norm, round, q k v | rope, cache | attention | round, o, add | norm, round, gate up, swiglu | round, down, add |

An adapter puts its A* x in front of each group of products and a bar behind it, so that the threads can share it.

A row of a step is a token with a cache, a position and an adapter of its own: tokens of several sequences, or several
tokens of one. The arithmetic of a row is that of the single operations, in the same order, whatever rows are beside it.

Traps: addresses are int64, because Numba adds an unsigned and a signed integer as float64. Constants that are handed
to kernels are NumPy's integers: Numba compiles a function anew for every Python integer that it finds in a call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, prange, types
from numba.extending import intrinsic as _numba_intrinsic

from . import simd
from .attention import attend, attention_scratch
from .clock import ATTENTION, DOWN, EMBED, GATE_UP, HEAD, LORA, NORM, OUTPUT, QKV, ROPE
from .elementwise import normalize, swiglu_lanes
from .isa import declare
from .jit import kernel, parallel
from .packed_kernels import AFFINE, INT4, INT6, INT8
from .packed_matmul import add_int8, multiply
from .remembering import remember_head, rotate
from .rounding import quantize_row
from .sync import barrier

Q_PROJ, K_PROJ, V_PROJ, O_PROJ, GATE_PROJ, UP_PROJ, DOWN_PROJ, _END = np.arange(8)
_ZERO, _ONE = np.arange(2)
_INT8 = np.int64(INT8)
HEAD_PROJ, EMBEDDING = 0, 1  # in the row of the table behind the last layer

# A packed matrix as the kernels see it: addresses of its arrays and of its bias (0: not there), and sizes.
LINEAR = np.dtype(
    [(name, np.int64) for name in ("codes", "scale", "minimum", "bias", "format")]
    + [(name, np.int64) for name in ("tiles", "steps", "groups", "per_group", "inputs")]
)
# An adapter's two int8 matrices for a module; `padded` is the rank in whole steps.
PAIR = np.dtype(
    [(name, np.int64) for name in ("a_codes", "a_scale", "b_codes", "b_scale", "bias")]
    + [(name, np.int64) for name in ("rank", "padded", "a_tiles", "steps")]
    + [("scaling", np.float64)]
)
# Where a token's keys and values lie, which adapter it has (0: none), and the token.
ROW = np.dtype(
    [(name, np.int64) for name in ("keys", "values", "key_scales", "value_scales", "kind", "capacity")]
    + [(name, np.int64) for name in ("pos", "slot", "id")]
)
# All that stays the same from step to step: addresses and sizes. One record, because every array that is handed to a
# compiled function costs the interpreter a microsecond, many when the weights have just swept the processor's caches.
PLAN = np.dtype(
    [(name, np.int64) for name in ("x", "q", "k", "v", "gate", "up", "down", "mixed", "inner", "inner_width")]
    + [(name, np.int64) for name in ("most", "normed", "codes", "scale", "total", "inner_codes", "inner_scale")]
    + [
        (name, np.int64)
        for name in ("inner_total", "widest", "norms", "norm_biases", "cos", "sin", "positions", "half")
    ]
    + [(name, np.int64) for name in ("hidden_size", "intermediate_size", "n_heads", "n_kv_heads", "head_dim")]
    + [("eps", np.float64), ("scaling", np.float64)]
)

intrinsic: Any = _numba_intrinsic


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        return builder.inttoptr(v[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@kernel
def _floats(address: int, n: int, width: int) -> Any:
    """The float32 (n, width) at an address."""
    return carray(_pointer(address), (n, width), np.float32)


@intrinsic
def _now(context: Any) -> Any:
    """Nanoseconds of the monotonic clock, Python's perf_counter_ns."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        i32, i64 = ir.IntType(32), ir.IntType(64)
        time = builder.alloca(i64, 2)
        monotonic = i32(6 if _is_darwin() else 1)
        builder.call(declare(builder, "clock_gettime", i32, [i32, i64.as_pointer()]), [monotonic, time])
        seconds = builder.load(time)
        nanoseconds = builder.load(builder.gep(time, [i32(1)]))
        return builder.add(builder.mul(seconds, i64(1_000_000_000)), nanoseconds)

    return types.int64(), generate


def _is_darwin() -> bool:
    import sys

    return sys.platform == "darwin"


@kernel
def _tick(clock: Any, part: int, last: int) -> int:
    """Charge the time since `last` to `part`; the time now. Nothing when `clock` is empty."""
    if clock.size == 0:
        return last
    now = _now()
    clock[part] += now - last
    return now


@kernel
def _share(n: int, thread: int, n_threads: int) -> Any:
    """This thread's part of so many."""
    return n * thread // n_threads, n * (thread + 1) // n_threads


@kernel
def _round(x: Any, n: int, k: int, rounded: Any) -> None:
    """int8 codes, scales and sums of n rows of x, k columns each, into this thread's buffers."""
    codes, scale, total = rounded
    for row in range(n):
        quantize_row(x, row * x.shape[1], k, codes, scale, total, row)


@kernel
def _inner(step: Any, space: Any, words: Any, layer: int, first: int, last: int, k: int, clock: Any, t: int) -> int:
    """A* x of modules [first, last) for each row that has an adapter: inner[module - first, row]; then a barrier.

    The threads share the tiles of A*. Returns the time.
    """
    _, pairs, rows, adapted, thread, n_threads = step
    if not adapted:
        return t
    (codes, scale, total), inner, _ = space
    n = rows.shape[0]
    for module in range(first, last):
        out = inner[module - first]
        row = 0
        while row < n:
            slot, end = rows[row].slot, row + 1
            while end < n and rows[end].slot == slot:
                end += 1
            pair = pairs[slot, layer, module]
            if pair.rank > 0:
                sizes = (pair.steps, pair.steps, _ONE, k, out.shape[1])
                tiles = _share(pair.a_tiles, (thread + module) % n_threads, n_threads)
                a, a_scale, own = pair.a_codes, pair.a_scale, (row, end)
                multiply(_INT8, a, a_scale, _ZERO, sizes, codes, scale, total, own, out, tiles)
                if thread == 0:
                    for i in range(row, end):
                        out[i, pair.a_tiles * 16 : pair.padded] = np.float32(0)
            row = end
    barrier(words, n_threads)
    return _tick(clock, LORA, t)


@kernel
def _adapt(pair: Any, row: int, inner: Any, rounded: Any, out: Any, tiles: Any) -> None:
    """out += B* inner + bias* for one row; `rounded` are buffers for the inner vector in int8."""
    codes, scale, total = rounded
    if pair.rank > 0:
        quantize_row(inner, row * inner.shape[1], pair.padded, codes, scale, total, _ZERO)
        steps = pair.padded // 32
        for step in range(steps):
            scale[0, step] *= np.float32(pair.scaling)  # a power of two: as good as scaling `inner`
        quads = (pair.rank + 3) // 4
        target = out[row]
        sizes = (steps, steps, _ONE, pair.padded, _ZERO)
        add_int8(pair.b_codes, pair.b_scale, sizes, codes, scale, total, _ZERO, target, tiles, quads)
    if pair.bias != 0:
        _add_bias(out, row, pair.bias, tiles)


@kernel
def _add_bias(out: Any, row: int, bias: Any, tiles: Any) -> None:
    for tile in range(tiles[0], tiles[1]):
        at = row * out.shape[1] + tile * 16
        simd.store(out, at, simd.add(simd.load(out, at), simd.load(bias, tile * 16)))


@kernel
def _product(linear: Any, n: int, rounded: Any, out: Any, tiles: Any) -> None:
    """These tiles of out = W x + bias for n rows; `rounded` is x in int8."""
    codes, x_scale, total = rounded
    sizes = (linear.steps, linear.groups, linear.per_group, linear.inputs, out.shape[1])
    weight, scale, minimum = linear.codes, linear.scale, linear.minimum
    multiply(linear.format, weight, scale, minimum, sizes, codes, x_scale, total, (_ZERO, n), out, tiles)
    if linear.bias != 0:
        for row in range(n):
            _add_bias(out, row, linear.bias, tiles)


@kernel
def _linear(
    step: Any, space: Any, layer: int, module: int, first: int, out: Any, tiles: Any, clock: Any, part: int
) -> None:
    """These tiles of a module of the group that begins with `first`, with its adapters, whose time goes to LORA."""
    table, pairs, rows, adapted, _, _ = step
    rounded, inner, inner_rounded = space
    n = rows.shape[0]
    _product(table[layer, module], n, rounded, out, tiles)
    if adapted:
        before = _now() if clock.size else _ZERO
        for row in range(n):
            _adapt(pairs[rows[row].slot, layer, module], row, inner[module - first], inner_rounded, out, tiles)
        if clock.size:
            spent = _now() - before
            clock[LORA] += spent
            clock[part] -= spent


@kernel
def _place(row: Any) -> Any:
    """`Cached.addresses` of a row."""
    return row.keys, row.values, row.key_scales, row.value_scales, row.kind, row.capacity


@kernel
def _embed(linear: Any, token: int, x: Any, row: int) -> None:
    """The bits of `quant.dequantize_rows` for one row of the embedding table."""
    tile, lane = token // 16, token % 16
    step_bytes = 512 if linear.format == INT8 else 384 if linear.format == INT6 else 256
    codes = carray(_pointer(linear.codes), (linear.tiles, linear.steps, step_bytes), np.uint8)
    for step in range(linear.inputs // 32):
        group = (tile * linear.groups + step // linear.per_group) * 16 + lane
        scale = simd.load_one_half(linear.scale, group)
        minimum = simd.load_one_half(linear.minimum, group) if linear.format == AFFINE else np.float32(0)
        for column in range(32):
            if linear.format == INT8:
                value = np.float32(np.int8(codes[tile, step, column // 4 * 64 + lane * 4 + column % 4]))
            else:
                both = codes[tile, step, column % 16 // 4 * 64 + lane * 4 + column % 4]
                value = np.float32(both & 15 if column < 16 else both >> 4)
            if linear.format == INT4:
                value -= np.float32(8)
            elif linear.format == INT6:
                upper = codes[tile, step, 256 + column // 16 * 64 + lane * 4 + column % 4] >> (column % 16 // 4 * 2)
                value += np.float32((upper & 3) * 16) - np.float32(32)
            value *= scale
            x[row, step * 32 + column] = value + minimum if linear.format == AFFINE else value


@kernel
def _walk(
    thread: int,
    n_threads: int,
    words: Any,
    plan: Any,
    table: Any,
    pairs: Any,
    rows: Any,
    clock: Any,
    options: Any,
    logits: Any,
) -> None:
    """What one thread does for a step; the arguments are those of `Decoder.step`."""
    first_logit, adapted = options
    n, n_layers = rows.shape[0], table.shape[0] - 1
    n_heads, n_kv_heads, width, hidden_size = plan.n_heads, plan.n_kv_heads, plan.head_dim, plan.hidden_size
    eps, scaling = plan.eps, plan.scaling
    x, down = _floats(plan.x, n, hidden_size), _floats(plan.down, n, hidden_size)
    q, mixed = _floats(plan.q, n, n_heads * width), _floats(plan.mixed, n, n_heads * width)
    k, v = _floats(plan.k, n, n_kv_heads * width), _floats(plan.v, n, n_kv_heads * width)
    gate, up = _floats(plan.gate, n, plan.intermediate_size), _floats(plan.up, n, plan.intermediate_size)
    inner = carray(_pointer(plan.inner), (3, plan.most, plan.inner_width), np.float32)
    normed = carray(_pointer(plan.normed), (n_threads, plan.most, hidden_size), np.float32)[thread]
    rounded = _rounded(plan.codes, plan.scale, plan.total, n_threads, plan.most, plan.widest, thread)
    inner_rounded = _rounded(
        plan.inner_codes, plan.inner_scale, plan.inner_total, n_threads, _ONE, plan.inner_width, thread
    )
    norms = _floats(plan.norms, 2 * n_layers + 1, hidden_size)
    centered = plan.norm_biases != 0
    norm_biases = _floats(plan.norm_biases, 2 * n_layers + 1, hidden_size) if centered else norms
    cos, sin = _floats(plan.cos, plan.positions, plan.half), _floats(plan.sin, plan.positions, plan.half)
    flat_q, flat_k, flat_v = q.reshape(-1), k.reshape(-1), v.reshape(-1)
    flat_gate, flat_up = gate.reshape(-1), up.reshape(-1)
    ticks = clock if thread == 0 else clock[:0]
    step, space = (table, pairs, rows, adapted, thread, n_threads), (rounded, inner, inner_rounded)
    flat_mixed, per_kv = mixed.reshape(-1), n_heads // n_kv_heads
    scratch = attention_scratch(per_kv, width)
    t = _now() if ticks.size else 0
    for row in range(thread, n, n_threads):
        _embed(table[n_layers, EMBEDDING], rows[row].id, x, row)
    barrier(words, n_threads)
    t = _tick(ticks, EMBED, t)
    for layer in range(n_layers):
        normalize(x, norms[2 * layer], norm_biases[2 * layer], eps, centered, normed)
        _round(normed, n, hidden_size, rounded)
        t = _tick(ticks, NORM, t)
        t = _inner(step, space, words, layer, Q_PROJ, O_PROJ, hidden_size, ticks, t)
        for module, out in ((Q_PROJ, q), (K_PROJ, k), (V_PROJ, v)):
            tiles = _share(table[layer, module].tiles, thread, n_threads)
            _linear(step, space, layer, module, Q_PROJ, out, tiles, ticks, QKV)
        barrier(words, n_threads)
        t = _tick(ticks, QKV, t)
        for item in range(thread, n * n_heads, n_threads):
            rotate(flat_q, item * width, cos, sin, rows[item // n_heads].pos)
        for item in range(thread, n * n_kv_heads, n_threads):
            row, head = item // n_kv_heads, item % n_kv_heads
            rotate(flat_k, item * width, cos, sin, rows[row].pos)
            place, at = _place(rows[row]), (layer * n_kv_heads + head) * rows[row].capacity + rows[row].pos
            remember_head(flat_k, item * width, width, width, place, at, True)
            remember_head(flat_v, item * width, width, width, place, at, False)
        barrier(words, n_threads)
        t = _tick(ticks, ROPE, t)
        # Even shares of the query heads; a share that ends within the heads of a key head takes some of them
        item, last = _share(n * n_heads, thread, n_threads)
        while item < last:
            row, head = item // n_heads, item % n_heads
            heads = min(last - item, per_kv - head % per_kv)
            at = (layer * n_kv_heads + head // per_kv) * rows[row].capacity
            sizes = (rows[row].pos, width, width, scaling)
            attend(flat_q, flat_mixed, item * width, 1, heads, n_heads * width, sizes, _place(rows[row]), at, scratch)
            item += heads
        barrier(words, n_threads)
        t = _tick(ticks, ATTENTION, t)
        _round(mixed, n, n_heads * width, rounded)
        t = _tick(ticks, OUTPUT, t)
        t = _inner(step, space, words, layer, O_PROJ, GATE_PROJ, n_heads * width, ticks, t)
        tiles = _share(table[layer, O_PROJ].tiles, thread, n_threads)
        _linear(step, space, layer, O_PROJ, O_PROJ, down, tiles, ticks, OUTPUT)
        _add(x, down, tiles)
        barrier(words, n_threads)
        t = _tick(ticks, OUTPUT, t)
        normalize(x, norms[2 * layer + 1], norm_biases[2 * layer + 1], eps, centered, normed)
        _round(normed, n, hidden_size, rounded)
        t = _tick(ticks, NORM, t)
        t = _inner(step, space, words, layer, GATE_PROJ, DOWN_PROJ, hidden_size, ticks, t)
        tiles = _share(table[layer, GATE_PROJ].tiles, thread, n_threads)
        for module, out in ((GATE_PROJ, gate), (UP_PROJ, up)):
            _linear(step, space, layer, module, GATE_PROJ, out, tiles, ticks, GATE_UP)
        for row in range(n):
            for tile in range(tiles[0], tiles[1]):
                swiglu_lanes(flat_gate, flat_up, row * gate.shape[1] + tile * 16)
        barrier(words, n_threads)
        t = _tick(ticks, GATE_UP, t)
        wide = table[layer, DOWN_PROJ].inputs
        _round(gate, n, wide, rounded)
        t = _tick(ticks, DOWN, t)
        t = _inner(step, space, words, layer, DOWN_PROJ, _END, wide, ticks, t)
        tiles = _share(table[layer, DOWN_PROJ].tiles, thread, n_threads)
        _linear(step, space, layer, DOWN_PROJ, DOWN_PROJ, down, tiles, ticks, DOWN)
        _add(x, down, tiles)
        barrier(words, n_threads)
        t = _tick(ticks, DOWN, t)
    wanted = x[first_logit:]
    normalize(wanted, norms[2 * n_layers], norm_biases[2 * n_layers], eps, centered, normed)
    _round(normed, n - first_logit, hidden_size, rounded)
    t = _tick(ticks, NORM, t)
    head = table[n_layers, HEAD_PROJ]
    _product(head, n - first_logit, rounded, logits, _share(head.tiles, thread, n_threads))
    if clock.size:
        barrier(words, n_threads)
    _tick(ticks, HEAD, t)


@kernel
def _add(x: Any, y: Any, tiles: Any) -> None:
    """x += y, these tiles of each row."""
    for row in range(x.shape[0]):
        for i in range(tiles[0] * 16, tiles[1] * 16):
            x[row, i] += y[row, i]


@kernel
def _rounded(codes: int, scale: int, total: int, n_threads: int, n: int, width: int, thread: int) -> Any:
    """A thread's buffers for n rows in int8, at the addresses of those of all threads."""
    steps = width // 32
    return (
        carray(_pointer(codes), (n_threads, n * width), np.int8)[thread],
        carray(_pointer(scale), (n_threads, n, steps), np.float32)[thread],
        carray(_pointer(total), (n_threads, n, steps), np.int32)[thread],
    )


@kernel
def alone(
    n_threads: int, words: Any, plan: Any, table: Any, pairs: Any, rows: Any, clock: Any, options: Any, logits: Any
) -> None:
    _walk(_ZERO, _ONE, words, plan[0], table, pairs, rows, clock, options, logits)


@parallel
def together(
    n_threads: int, words: Any, plan: Any, table: Any, pairs: Any, rows: Any, clock: Any, options: Any, logits: Any
) -> None:
    for thread in prange(n_threads):
        _walk(np.int64(thread), n_threads, words, plan[0], table, pairs, rows, clock, options, logits)
