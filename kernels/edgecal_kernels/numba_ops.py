"""The operations of reference.py as compiled kernels.

Every kernel is written once, against the vectors of `simd`; the instruction set is chosen when it is compiled. The
arithmetic of an output element does not depend on how many tokens or threads share the work: a group's integer
dot product, then one fused multiply-add per group, from left to right. So a prompt gives the same bits in one chunk,
in several, or token by token.

Trap: Numba's disk cache notices changes of this file but not of `simd` or `isa`; dispatch.py therefore keeps a
cache directory per content of these files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import prange
from numpy.typing import NDArray

from . import isa, reference, simd
from .quant import STEP, TILE_ROWS, Array, QuantizedTensor
from .simd import add, dot4_int8, dot4_nibbles, fma, high_nibbles, load, low_nibbles, mul, splat, splat_int, store

NAME = "numba"
INT8_OFFSET: int = isa.active().INT8_OFFSET
_TOKENS = 16  # tokens whose accumulators share one pass over a tile
_NO_MINIMUM = np.zeros((0, 0, 0), np.uint16)

embed = reference.embed
rope = reference.rope


def _kernel(function: Callable) -> Any:
    """Compiled once, kept on disk, IEEE arithmetic (no reassociation), no bounds checks."""
    return numba.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)(function)


def _parallel(function: Callable) -> Any:
    return numba.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False, parallel=True)(function)


# --------------------------------------------------------------------------------------------- activations


@_kernel
def _quantize_row(x: Any, start: int, k: int, codes: Any, scale: Any, total: Any, row: int) -> None:
    """One row of `reference.quantize_rows`; `x` is flat, k a multiple of 32."""
    for step in range(k // 32):
        at = start + step * 32
        a, b = simd.load(x, at), simd.load(x, at + 16)
        extreme = simd.max_lanes(simd.maximum(simd.absolute(a), simd.absolute(b)))
        inverse = np.float32(0.0)
        if extreme > 0:
            inverse = np.float32(127.0) / extreme
        a, b = simd.round_even(mul(a, splat(inverse))), simd.round_even(mul(b, splat(inverse)))
        simd.store_int8(codes, row * k + step * 32, a)
        simd.store_int8(codes, row * k + step * 32 + 16, b)
        scale[row, step] = extreme / np.float32(127.0)
        total[row, step] = np.int32(simd.sum_lanes(add(a, b)))


@_kernel
def _quantize_rows(x: Any, codes: Any, scale: Any, total: Any) -> None:
    for row in range(x.shape[0]):
        _quantize_row(x, row * x.shape[1], x.shape[1], codes, scale, total, row)


def quantize_rows(x: Array) -> tuple[NDArray[np.int8], Array, NDArray[np.int32]]:
    """As `reference.quantize_rows`."""
    n, k = x.shape
    steps = -(-k // STEP)
    if k != steps * STEP:
        x = np.pad(x, ((0, 0), (0, steps * STEP - k)))
    codes = np.empty((n, steps * STEP), np.int8)
    scale, total = np.empty((n, steps), np.float32), np.empty((n, steps), np.int32)
    _quantize_rows(np.ascontiguousarray(x), codes, scale, total)
    return codes, scale, total


class Activations(reference.Activations):
    __slots__ = ()

    def rounded(self) -> tuple[NDArray[np.int8], Array, NDArray[np.int32]]:
        if self._rounded is None:
            self._rounded = quantize_rows(self.x)
        return self._rounded


# -------------------------------------------------------------------------------------------------- matmul


@_parallel
def _matvec_int4(
    codes: Any, scale: Any, minimum: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any
) -> None:
    """One token: accumulators stay in registers, weights stream once.

    `x` may have fewer steps than `codes`, whose columns are padded to whole groups.
    """
    n_tiles, n_steps = codes.shape[0], codes.shape[1]
    n_groups = scale.shape[1]
    affine = minimum.shape[0] > 0
    for tile in prange(n_tiles):
        acc = splat(np.float32(0))
        for step in range(x_scale.shape[1]):
            at = (tile * n_steps + step) * 256
            total = x_total[0, step]
            dots = splat_int(np.int32(0) if affine else np.int32(-8) * total)
            for quad in range(4):
                line = simd.load_bytes(codes, at + quad * 64)
                dots = dot4_nibbles(dots, low_nibbles(line), x, step * 32 + quad * 4)
                dots = dot4_nibbles(dots, high_nibbles(line), x, step * 32 + 16 + quad * 4)
            group = (tile * n_groups + step // per_group) * 16
            xs = x_scale[0, step]
            acc = fma(simd.to_float(dots), mul(load(scale, group), splat(xs)), acc)
            if affine:
                acc = fma(load(minimum, group), splat(xs * np.float32(total)), acc)
        store(out, tile * 16, acc)


@_parallel
def _matmul_int4(
    codes: Any, scale: Any, minimum: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any
) -> None:
    """Many tokens: a step's weights are unpacked once for a block of tokens."""
    n_tiles, n_steps = codes.shape[0], codes.shape[1]
    n_groups, n_tokens, k, d = scale.shape[1], x.shape[0], x.shape[1], out.shape[1]
    affine = minimum.shape[0] > 0
    for tile in prange(n_tiles):
        sums = np.empty(16 * 16, np.float32)
        for first in range(0, n_tokens, 16):
            block = min(16, n_tokens - first)
            for t in range(block):
                store(sums, t * 16, splat(np.float32(0)))
            for step in range(x_scale.shape[1]):
                at = (tile * n_steps + step) * 256
                line0, line1 = simd.load_bytes(codes, at), simd.load_bytes(codes, at + 64)
                line2, line3 = simd.load_bytes(codes, at + 128), simd.load_bytes(codes, at + 192)
                low0, low1, low2, low3 = (
                    low_nibbles(line0),
                    low_nibbles(line1),
                    low_nibbles(line2),
                    low_nibbles(line3),
                )
                high0, high1, high2, high3 = (
                    high_nibbles(line0),
                    high_nibbles(line1),
                    high_nibbles(line2),
                    high_nibbles(line3),
                )
                group = (tile * n_groups + step // per_group) * 16
                row_scale = load(scale, group)
                for t in range(block):
                    token = first + t
                    i = token * k + step * 32
                    total = x_total[token, step]
                    dots = splat_int(np.int32(0) if affine else np.int32(-8) * total)
                    dots = dot4_nibbles(dots, low0, x, i)
                    dots = dot4_nibbles(dots, high0, x, i + 16)
                    dots = dot4_nibbles(dots, low1, x, i + 4)
                    dots = dot4_nibbles(dots, high1, x, i + 20)
                    dots = dot4_nibbles(dots, low2, x, i + 8)
                    dots = dot4_nibbles(dots, high2, x, i + 24)
                    dots = dot4_nibbles(dots, low3, x, i + 12)
                    dots = dot4_nibbles(dots, high3, x, i + 28)
                    xs = x_scale[token, step]
                    acc = fma(simd.to_float(dots), mul(row_scale, splat(xs)), load(sums, t * 16))
                    if affine:
                        acc = fma(load(minimum, group), splat(xs * np.float32(total)), acc)
                    store(sums, t * 16, acc)
            for t in range(block):
                store(out, (first + t) * d + tile * 16, load(sums, t * 16))


@_parallel
def _matvec_int8(codes: Any, scale: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any) -> None:
    n_tiles, n_steps = codes.shape[0], codes.shape[1]
    n_groups = scale.shape[1]
    for tile in prange(n_tiles):
        acc = splat(np.float32(0))
        for step in range(x_scale.shape[1]):
            at = (tile * n_steps + step) * 512
            dots = splat_int(np.int32(-INT8_OFFSET) * x_total[0, step])
            for quad in range(8):
                line = simd.as_operand(simd.load_bytes(codes, at + quad * 64))
                dots = dot4_int8(dots, line, x, step * 32 + quad * 4)
            group = (tile * n_groups + step // per_group) * 16
            acc = fma(simd.to_float(dots), mul(load(scale, group), splat(x_scale[0, step])), acc)
        store(out, tile * 16, acc)


@_parallel
def _matmul_int8(codes: Any, scale: Any, per_group: int, x: Any, x_scale: Any, x_total: Any, out: Any) -> None:
    n_tiles, n_steps = codes.shape[0], codes.shape[1]
    n_groups, n_tokens, k, d = scale.shape[1], x.shape[0], x.shape[1], out.shape[1]
    for tile in prange(n_tiles):
        sums = np.empty(16 * 16, np.float32)
        for first in range(0, n_tokens, 16):
            block = min(16, n_tokens - first)
            for t in range(block):
                store(sums, t * 16, splat(np.float32(0)))
            for step in range(x_scale.shape[1]):
                at = (tile * n_steps + step) * 512
                w0, w1 = (
                    simd.as_operand(simd.load_bytes(codes, at)),
                    simd.as_operand(simd.load_bytes(codes, at + 64)),
                )
                w2, w3 = (
                    simd.as_operand(simd.load_bytes(codes, at + 128)),
                    simd.as_operand(simd.load_bytes(codes, at + 192)),
                )
                w4, w5 = (
                    simd.as_operand(simd.load_bytes(codes, at + 256)),
                    simd.as_operand(simd.load_bytes(codes, at + 320)),
                )
                w6, w7 = (
                    simd.as_operand(simd.load_bytes(codes, at + 384)),
                    simd.as_operand(simd.load_bytes(codes, at + 448)),
                )
                row_scale = load(scale, (tile * n_groups + step // per_group) * 16)
                for t in range(block):
                    token = first + t
                    i = token * k + step * 32
                    dots = splat_int(np.int32(-INT8_OFFSET) * x_total[token, step])
                    dots = dot4_int8(dots, w0, x, i)
                    dots = dot4_int8(dots, w1, x, i + 4)
                    dots = dot4_int8(dots, w2, x, i + 8)
                    dots = dot4_int8(dots, w3, x, i + 12)
                    dots = dot4_int8(dots, w4, x, i + 16)
                    dots = dot4_int8(dots, w5, x, i + 20)
                    dots = dot4_int8(dots, w6, x, i + 24)
                    dots = dot4_int8(dots, w7, x, i + 28)
                    weight = mul(row_scale, splat(x_scale[token, step]))
                    store(sums, t * 16, fma(simd.to_float(dots), weight, load(sums, t * 16)))
            for t in range(block):
                store(out, (first + t) * d + tile * 16, load(sums, t * 16))


def matmul(activations: reference.Activations, weight: QuantizedTensor | Array) -> Array:
    """As `reference.matmul`."""
    if isinstance(weight, np.ndarray):
        return _dense_product(activations.x, weight)
    x, x_scale, x_total = activations.rounded()
    out = np.empty((len(x), weight.n_tiles * TILE_ROWS), np.float32)
    scale, per_group = weight.scale.view(np.uint16), weight.group_size // STEP
    if weight.format == "int8":
        multiply = _matvec_int8 if len(x) == 1 else _matmul_int8
        multiply(weight.codes, scale, per_group, x, x_scale, x_total, out)
    else:
        minimum = _NO_MINIMUM if weight.minimum is None else weight.minimum.view(np.uint16)
        multiply = _matvec_int4 if len(x) == 1 else _matmul_int4
        multiply(weight.codes, scale, minimum, per_group, x, x_scale, x_total, out)
    d = weight.shape[0]
    return out if out.shape[1] == d else np.ascontiguousarray(out[:, :d])


# ------------------------------------------------------------------------------------------- float32 products
#
# Not left to BLAS: its threads and those of the kernels would wait for each other, spinning, on the same cores.


@_kernel
def _dot(x: Any, x_at: int, w: Any, w_at: int, k: int) -> Any:
    acc = splat(np.float32(0))
    whole = k - k % 16
    for i in range(0, whole, 16):
        acc = fma(load(x, x_at + i), load(w, w_at + i), acc)
    total = simd.sum_lanes(acc)
    for i in range(whole, k):
        total += x[x_at + i] * w[w_at + i]
    return total


@_kernel
def _dot_four(x: Any, x_at: int, w: Any, w_at: int, k: int, out: Any, at: int) -> None:
    """Four rows of w against one x: each sum in the order of `_dot`, but four in flight."""
    a, b, c, d = splat(np.float32(0)), splat(np.float32(0)), splat(np.float32(0)), splat(np.float32(0))
    whole = k - k % 16
    for i in range(0, whole, 16):
        value = load(x, x_at + i)
        a = fma(value, load(w, w_at + i), a)
        b = fma(value, load(w, w_at + k + i), b)
        c = fma(value, load(w, w_at + 2 * k + i), c)
        d = fma(value, load(w, w_at + 3 * k + i), d)
    sums = (simd.sum_lanes(a), simd.sum_lanes(b), simd.sum_lanes(c), simd.sum_lanes(d))
    for row in range(4):
        total = sums[row]
        for i in range(whole, k):
            total += x[x_at + i] * w[w_at + row * k + i]
        out[at + row] = total


@_parallel
def _dense(x: Any, w: Any, out: Any, n_tokens: int, d: int, k: int) -> None:
    """out (T, d) = x (T, k) w^T, all flat; w (d, k)."""
    for block in prange((d + 3) // 4):
        row = block * 4
        for token in range(n_tokens):
            if row + 4 <= d:
                _dot_four(x, token * k, w, row * k, k, out, token * d + row)
            else:
                for r in range(row, d):
                    out[token * d + r] = _dot(x, token * k, w, r * k, k)


def _dense_product(x: Array, weight: Array) -> Array:
    out = np.empty((len(x), len(weight)), np.float32)
    x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
    _dense(x.reshape(-1), weight.reshape(-1), out.reshape(-1), len(x), *weight.shape)
    return out


@_kernel
def _add_lora_row(x: Any, a: Any, b: Any, out: Any, token: int, inner: Any) -> None:
    """One token; x, out flat, a (R * k) flat, b (R * d) flat: the transpose of lora_b."""
    rank = inner.size
    k, d = a.size // rank, b.size // rank
    for r in range(0, rank - rank % 4, 4):
        _dot_four(x, token * k, a, r * k, k, inner, r)
    for r in range(rank - rank % 4, rank):
        inner[r] = _dot(x, token * k, a, r * k, k)
    whole = d - d % 16
    for i in range(0, whole, 16):
        acc = splat(np.float32(0))
        for r in range(rank):
            acc = fma(splat(inner[r]), load(b, r * d + i), acc)
        store(out, token * d + i, add(load(out, token * d + i), acc))
    for i in range(whole, d):
        total = np.float32(0)
        for r in range(rank):
            total += inner[r] * b[r * d + i]
        out[token * d + i] += total


@_kernel
def _add_lora_one(x: Any, a: Any, b: Any, out: Any, rank: int) -> None:
    """A single token is too little work to wake another thread."""
    _add_lora_row(x, a, b, out, 0, np.empty(rank, np.float32))


@_parallel
def _add_lora_many(x: Any, a: Any, b: Any, out: Any, rank: int, n_tokens: int) -> None:
    for token in prange(n_tokens):
        _add_lora_row(x, a, b, out, token, np.empty(rank, np.float32))


def add_lora(x: Array, a: Array, b: Array, out: Array) -> None:
    """As `reference.add_lora`; fastest when b is in Fortran order (the engine's pairs are)."""
    rank = len(a)
    if rank == 0:
        return
    flat = (np.ascontiguousarray(x).reshape(-1), np.ascontiguousarray(a).reshape(-1))
    transposed = np.ascontiguousarray(b.T).reshape(-1)
    if len(x) == 1:
        _add_lora_one(*flat, transposed, out.reshape(-1), rank)
    else:
        _add_lora_many(*flat, transposed, out.reshape(-1), rank, len(x))


# ------------------------------------------------------------------------------------- element-wise functions


@_kernel
def _exp(x: Any) -> Any:
    """exp of 16 floats within 2 ulp for x <= 88: range reduction by ln 2 in two parts, degree-6 polynomial."""
    x = simd.maximum(x, splat(np.float32(-87.0)))
    n = simd.round_even(mul(x, splat(np.float32(1.4426950408889634))))
    r = fma(n, splat(np.float32(-0.693359375)), x)
    r = fma(n, splat(np.float32(2.12194440e-4)), r)
    p = splat(np.float32(1.9875691500e-4))
    p = fma(p, r, splat(np.float32(1.3981999507e-3)))
    p = fma(p, r, splat(np.float32(8.3334519073e-3)))
    p = fma(p, r, splat(np.float32(4.1665795894e-2)))
    p = fma(p, r, splat(np.float32(1.6666665459e-1)))
    p = fma(p, r, splat(np.float32(5.0000001201e-1)))
    p = fma(p, mul(r, r), add(r, splat(np.float32(1.0))))
    return mul(p, simd.power_of_two(n))


@_kernel
def _swiglu_lanes(gate: Any, up: Any, i: int) -> None:
    g = load(gate, i)
    # _exp holds at -87 below, so the argument is held above too: silu is 0 there in float32
    negative = simd.sub(splat(np.float32(0)), simd.maximum(g, splat(np.float32(-87.0))))
    store(gate, i, mul(simd.div(g, add(splat(np.float32(1.0)), _exp(negative))), load(up, i)))


@_kernel
def _swiglu(gate: Any, up: Any) -> None:
    """Flat arrays. The tail takes the same lanes through a buffer, so an element's bits do not depend on its place."""
    n = gate.size
    whole = n - n % 16
    for i in range(0, whole, 16):
        _swiglu_lanes(gate, up, i)
    if whole < n:
        tail = np.zeros((2, 16), np.float32)
        tail[0, : n - whole], tail[1, : n - whole] = gate[whole:], up[whole:]
        _swiglu_lanes(tail[0], tail[1], 0)
        gate[whole:] = tail[0, : n - whole]


def swiglu(gate: Array, up: Array) -> Array:
    """As `reference.swiglu`."""
    _swiglu(gate.reshape(-1), up.reshape(-1))
    return gate


@_kernel
def _norm(x: Any, weight: Any, bias: Any, eps: float, centered: bool, out: Any) -> None:
    n, d = x.shape
    whole = d - d % 16
    for row in range(n):
        at = row * d
        mean = np.float32(0)
        if centered:
            sums = splat(np.float32(0))
            for i in range(0, whole, 16):
                sums = add(sums, load(x, at + i))
            total = simd.sum_lanes(sums)
            for i in range(whole, d):
                total += x[row, i]
            mean = total / np.float32(d)
        squares = splat(np.float32(0))
        shift = splat(mean)
        for i in range(0, whole, 16):
            value = simd.sub(load(x, at + i), shift)
            squares = fma(value, value, squares)
        total = simd.sum_lanes(squares)
        for i in range(whole, d):
            total += (x[row, i] - mean) * (x[row, i] - mean)
        factor = np.float32(1.0) / np.float32(math.sqrt(total / np.float32(d) + np.float32(eps)))
        for i in range(d):
            out[row, i] = (x[row, i] - mean) * factor * weight[i]
        if centered:
            for i in range(d):
                out[row, i] += bias[i]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """As `reference.rms_norm`, for x (T, D)."""
    out = np.empty_like(x)
    _norm(x, weight, weight, eps, False, out)
    return out


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """As `reference.layer_norm`, for x (T, D)."""
    out = np.empty_like(x)
    _norm(x, weight, bias, eps, True, out)
    return out


# ------------------------------------------------------------------------------------------------ attention


@_parallel
def _attention(q: Any, keys: Any, values: Any, pos: int, scaling: float, out: Any) -> None:
    """q, out (T, H, width), width = head_dim padded to 16 with zeros; keys, values (K, capacity, width)."""
    n_tokens, n_heads, width = q.shape
    n_kv, capacity = keys.shape[0], keys.shape[1]
    per_kv = n_heads // n_kv
    items = n_tokens * n_heads
    chunks = min(items, 32)  # strided over the items: later tokens attend to more
    for chunk in prange(chunks):
        scores = np.empty((pos + n_tokens + 15) // 16 * 16, np.float32)
        for item in range(chunk, items, chunks):
            token, head = item // n_heads, item % n_heads
            length = pos + token + 1
            base = (head // per_kv) * capacity * width
            query = (token * n_heads + head) * width
            highest = np.float32(-np.inf)
            for j in range(length):
                acc = splat(np.float32(0))
                for i in range(0, width, 16):
                    acc = fma(load(q, query + i), load(keys, base + j * width + i), acc)
                score = simd.sum_lanes(acc) * np.float32(scaling)
                scores[j] = score
                highest = max(highest, score)
            for j in range(length, (length + 15) // 16 * 16):
                scores[j] = np.float32(-np.inf)
            sums = splat(np.float32(0))
            for j in range(0, length, 16):
                weight = _exp(simd.sub(load(scores, j), splat(highest)))
                store(scores, j, weight)
                sums = add(sums, weight)
            # The padding adds exp(-87) a piece: beside the largest weight, which is 1, float32 cannot see it
            total = simd.sum_lanes(sums)
            normal = np.float32(1) / total
            i = 0
            while i + 64 <= width:
                a, b, c, d = (
                    splat(np.float32(0)),
                    splat(np.float32(0)),
                    splat(np.float32(0)),
                    splat(np.float32(0)),
                )
                for j in range(length):
                    weight = splat(scores[j])
                    at = base + j * width + i
                    a = fma(weight, load(values, at), a)
                    b = fma(weight, load(values, at + 16), b)
                    c = fma(weight, load(values, at + 32), c)
                    d = fma(weight, load(values, at + 48), d)
                store(out, query + i, mul(a, splat(normal)))
                store(out, query + i + 16, mul(b, splat(normal)))
                store(out, query + i + 32, mul(c, splat(normal)))
                store(out, query + i + 48, mul(d, splat(normal)))
                i += 64
            while i < width:
                a = splat(np.float32(0))
                for j in range(length):
                    a = fma(splat(scores[j]), load(values, base + j * width + i), a)
                store(out, query + i, mul(a, splat(normal)))
                i += 16


def attention(q: Array, keys: NDArray, values: NDArray, pos: int) -> Array:
    """As `reference.attention`."""
    n_tokens, n_heads, head_dim = q.shape
    width = keys.shape[2]
    if width != head_dim:
        q = np.pad(q, ((0, 0), (0, 0), (0, width - head_dim)))
    if keys.dtype == np.float16:
        keys, values = keys.view(np.uint16), values.view(np.uint16)
    out = np.empty((n_tokens, n_heads, width), np.float32)
    _attention(np.ascontiguousarray(q), keys, values, pos, 1.0 / math.sqrt(head_dim), out)
    return out[:, :, :head_dim].reshape(n_tokens, n_heads * head_dim)
