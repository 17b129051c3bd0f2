"""exp, SwiGLU and the norms, sixteen lanes at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import simd
from .jit import kernel
from .quant import Array
from .simd import add, fma, load, mul, splat, store


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
def swiglu_lanes(gate: Any, up: Any, i: int) -> None:
    g = load(gate, i)
    # exp_lanes holds at -87 below, so the argument is held above too: silu is 0 there in float32
    negative = simd.sub(splat(np.float32(0)), simd.maximum(g, splat(np.float32(-87.0))))
    store(gate, i, mul(simd.div(g, add(splat(np.float32(1.0)), exp_lanes(negative))), load(up, i)))


@kernel
def _swiglu(gate: Any, up: Any) -> None:
    """Flat arrays. The tail takes the same lanes through a buffer, so an element's bits do not depend on its place."""
    n = gate.size
    whole = n - n % 16
    for i in range(0, whole, 16):
        swiglu_lanes(gate, up, i)
    if whole < n:
        tail = np.zeros((2, 16), np.float32)
        tail[0, : n - whole], tail[1, : n - whole] = gate[whole:], up[whole:]
        swiglu_lanes(tail[0], tail[1], 0)
        gate[whole:] = tail[0, : n - whole]


def swiglu(gate: Array, up: Array) -> Array:
    """As `reference.swiglu`."""
    _swiglu(gate.reshape(-1), up.reshape(-1))
    return gate


@kernel
def normalize(x: Any, weight: Any, bias: Any, eps: float, centered: bool, out: Any) -> None:
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
    normalize(x, weight, weight, eps, False, out)
    return out


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """As `reference.layer_norm`, for x (T, D)."""
    out = np.empty_like(x)
    normalize(x, weight, bias, eps, True, out)
    return out
