"""exp, the gated activations of the MLP and the norms, sixteen lanes at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import simd
from .decoder_weights import ACTIVATIONS
from .jit import kernel
from .simd import add, fma, load, mul, splat, store

GELU_TANH = ACTIVATIONS.index("gelu_tanh")
_SLOPE, _CUBE = np.float32(2 * math.sqrt(2 / math.pi)), np.float32(0.044715)


@kernel
def exp_lanes(x: Any) -> Any:
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


@kernel
def gated_lanes(activation: int, gate: Any, up: Any, i: int) -> None:
    """`reference.gated` for 16 elements; `activation` is a place in ACTIVATIONS."""
    g = load(gate, i)
    slope = g
    if activation == GELU_TANH:
        cubed = mul(mul(mul(splat(_CUBE), g), g), g)
        slope = mul(splat(_SLOPE), add(g, cubed))
    # exp_lanes holds at -87 below, so the argument is held above too: the result is 0 there in float32
    negative = simd.sub(splat(np.float32(0)), simd.maximum(slope, splat(np.float32(-87.0))))
    store(gate, i, mul(simd.div(g, add(splat(np.float32(1.0)), exp_lanes(negative))), load(up, i)))


@kernel
def gate_all(activation: int, gate: Any, up: Any) -> None:
    """Flat arrays. The tail takes the same lanes through a buffer, so an element's bits do not depend on its place."""
    n = gate.size
    whole = n - n % 16
    for i in range(0, whole, 16):
        gated_lanes(activation, gate, up, i)
    if whole < n:
        tail = np.zeros((2, 16), np.float32)
        for i in range(whole, n):
            tail[0, i - whole], tail[1, i - whole] = gate[i], up[i]
        gated_lanes(activation, tail[0], tail[1], 0)
        for i in range(whole, n):
            gate[i] = tail[0, i - whole]


@kernel
def normalize_row(
    x: Any, at: int, d: int, weight: Any, bias: Any, first: int, eps: float, centered: bool, out: Any, to: int
) -> None:
    """d elements of flat x from `at` on into flat `out` from `to` on; weights and biases count from `first`."""
    whole = d - d % 16
    mean = np.float32(0)
    if centered:
        sums = splat(np.float32(0))
        for i in range(0, whole, 16):
            sums = add(sums, load(x, at + i))
        total = simd.sum_lanes(sums)
        for i in range(whole, d):
            total += x[at + i]
        mean = total / np.float32(d)
    squares = splat(np.float32(0))
    shift = splat(mean)
    for i in range(0, whole, 16):
        value = simd.sub(load(x, at + i), shift)
        squares = fma(value, value, squares)
    total = simd.sum_lanes(squares)
    for i in range(whole, d):
        total += (x[at + i] - mean) * (x[at + i] - mean)
    factor = np.float32(1.0) / np.float32(math.sqrt(total / np.float32(d) + np.float32(eps)))
    scale = splat(factor)
    for i in range(0, whole, 16):
        value = mul(mul(simd.sub(load(x, at + i), shift), scale), load(weight, first + i))
        if centered:
            value = add(value, load(bias, first + i))
        store(out, to + i, value)
    for i in range(whole, d):
        out[to + i] = (x[at + i] - mean) * factor * weight[first + i]
        if centered:
            out[to + i] += bias[first + i]


@kernel
def normalize(x: Any, weight: Any, bias: Any, eps: float, centered: bool, out: Any) -> None:
    """Every row of x (n, d) into `out`."""
    n, d = x.shape
    flat, target = x.reshape(-1), out.reshape(-1)
    for row in range(n):
        normalize_row(flat, row * d, d, weight, bias, np.int64(0), eps, centered, target, row * d)
