"""Every operation in plain NumPy: the specification of the fast back ends, and the back end where Numba is missing.

The packed formats multiply as the kernels do: activations are rounded to int8 in groups of 32 (`quantize_rows`),
products are summed exactly as integers, and the scales are applied in float32. A back end that follows this file
differs only by the order of float additions.

Shape letters: T new tokens, S cached length, K key/value heads, H query heads, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from time import perf_counter_ns
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .cached import Cached
from .clock import LORA, Clock
from .decoder_weights import DecoderWeights
from .quant import (
    STEP,
    TILE_ROWS,
    Array,
    QuantizedTensor,
    _dequantize_tiles,
    dequantize,
    dequantize_rows,
    quantize,
)
from .records import Pair

NAME = "numpy"
INSTRUCTIONS = "NumPy's own"
_GELU_SLOPE, _GELU_CUBE = np.float32(2 * np.sqrt(2 / np.pi)), np.float32(0.044715)
merging: None = None  # the methods themselves are written in NumPy
_BLOCK_TILES = 64  # 1,024 rows are dequantized at a time, so that a large head needs no large temporary


class Activations:
    """The input of one or more linear layers: float32 (T, k), and its int8 form, computed once when first needed."""

    __slots__ = ("_rounded", "x")

    def __init__(self, x: Array) -> None:
        self.x = x
        self._rounded: tuple[NDArray[np.int8], Array, NDArray[np.int16]] | None = None

    def rounded(self) -> tuple[NDArray[np.int8], Array, NDArray[np.int16]]:
        if self._rounded is None:
            self._rounded = quantize_rows(self.x)
        return self._rounded


def quantize_rows(x: Array) -> tuple[NDArray[np.int8], Array, NDArray[np.int16]]:
    """Round float32 (T, k) to int8 in groups of 32 columns: scale = max|x| / 127, ties to even.

    Returns codes (T, k_padded) int8, scales (T, k_padded / 32) float32, and the sums of the codes of every 16
    columns, int16 (T, k_padded / 16).
    """
    n, k = x.shape
    steps = -(-k // STEP)
    groups = np.zeros((n, steps, STEP), np.float32)
    groups.reshape(n, -1)[:, :k] = x
    extreme = np.abs(groups).max(axis=2)
    inverse = np.divide(np.float32(127), extreme, out=np.zeros_like(extreme), where=extreme > 0)
    codes = np.rint(groups * inverse[..., None]).astype(np.int8)
    totals = codes.reshape(n, 2 * steps, STEP // 2).sum(axis=2, dtype=np.int16)
    return codes.reshape(n, -1), extreme / np.float32(127), totals


def matmul(
    activations: Activations,
    weight: QuantizedTensor | Array,
    bias: Array | None = None,
    pair: Pair | None = None,
    clock: Clock | None = None,
) -> Array:
    """x (T, k) times weight (d, k), transposed, plus a bias (d,), plus a pair: float32 (T, d).

    The time of the pair is charged to LORA on `clock`.
    """
    out = _product(activations, weight)
    add_to_product(out, activations, bias, pair, clock, _product, Activations)
    return out


def add_to_product(
    out: Array,
    activations: Any,
    bias: Array | None,
    pair: Pair | None,
    clock: Clock | None,
    product: Callable[[Any, Any], Array],
    round: Callable[[Array], Any],
) -> None:
    """What `matmul` adds, to `out` (T, d) in place, with the products and the rounding of a back end."""
    if bias is not None:
        out += bias
    if pair is None:
        return
    start = perf_counter_ns()
    if pair.a is not None:
        out += product(round(product(activations, pair.a) * np.float32(pair.scaling)), pair.b)
    if pair.bias is not None:
        out += pair.bias
    if clock is not None:
        clock.charge(LORA, perf_counter_ns() - start)


def _product(activations: Activations, weight: QuantizedTensor | Array) -> Array:
    if isinstance(weight, np.ndarray):
        dense: Array = activations.x @ weight.T
        return dense
    codes, scale, _ = activations.rounded()
    d, k = weight.shape
    x = (codes.reshape(len(codes), -1, STEP) * scale[..., None]).reshape(codes.shape)[:, :k]
    if weight.n_quarters:
        return cast(Array, x @ dequantize(weight).T)
    out: Array = np.empty((len(x), d), np.float32)
    for tile in range(0, weight.n_tiles, _BLOCK_TILES):
        rows = slice(tile * TILE_ROWS, min((tile + _BLOCK_TILES) * TILE_ROWS, d))
        out[:, rows] = x @ _dequantize_tiles(weight, slice(tile, tile + _BLOCK_TILES))[: rows.stop - rows.start].T
    return out


def embed(weight: QuantizedTensor | Array, ids: NDArray[np.integer]) -> Array:
    """Rows `ids` of the embedding table as float32 (T, D)."""
    if isinstance(weight, np.ndarray):
        return weight[ids]
    return dequantize_rows(weight, ids)


def add_lora(x: Array, a: Array, b: Array, out: Array) -> None:
    """out (T, d) += (x a^T) b^T, in place; a (R, k), b (d, R)."""
    out += (x @ a.T) @ b.T


def pack_int8(w: Array, factor: float = 1.0) -> QuantizedTensor:
    """w float32 (d, k) times `factor`, at most 1 in absolute value, in int8. QuantizationError where not finite."""
    return quantize(w * np.float32(factor), "int8")


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""
    mean = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return cast(Array, x / np.sqrt(mean + np.float32(eps)) * weight)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """(x - mean) / sqrt(var + eps) * weight + bias, over the last axis."""
    centered = x - x.mean(axis=-1, keepdims=True, dtype=np.float32)
    variance = np.mean(np.square(centered), axis=-1, keepdims=True, dtype=np.float32)
    return centered / np.sqrt(variance + np.float32(eps)) * weight + bias


def rope(x: Array, cos: Array, sin: Array) -> None:
    """Rotate the first 2 * cos.shape[1] dimensions of x (T, H, head_dim) in place.

    Pairs are (i, i + half), as in transformers' rotate_half, not (2i, 2i + 1). cos, sin: float32 (T, half).
    """
    half = cos.shape[1]
    first, second = x[:, :, :half].copy(), x[:, :, half : 2 * half].copy()
    c, s = cos[:, None], sin[:, None]
    x[:, :, :half] = first * c - second * s
    x[:, :, half : 2 * half] = second * c + first * s


def gated(gate: Array, up: Array, activation: str = "silu") -> Array:
    """activation(gate) * up; overwrites `gate`. "silu": x / (1 + exp(-x)) (SwiGLU, Shazeer 2020, arXiv 2002.05202);
    "gelu_tanh": x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3), which is GELU's form with tanh (GeGLU)."""
    slope = gate
    if activation == "gelu_tanh":
        slope = _GELU_SLOPE * (gate + _GELU_CUBE * gate * gate * gate)
    with np.errstate(over="ignore"):  # exp(-x) may become inf, and then the result is 0 as it should
        gate /= 1 + np.exp(-slope)
    gate *= up
    return gate


def remember(cached: Cached, layer: int, pos: int, keys: Array, values: Array) -> None:
    """Write float32 (T, K, head_dim) keys and values at positions pos.. of a layer's cache, rounded to its type."""
    cached.write(layer, pos, keys, values)


def attention(
    q: Array, cached: Cached, layer: int, pos: int, scale: float | None = None, window: int = 0
) -> Array:
    """Causal attention of T queries at positions pos.. over a layer's cache: float32 (T, H * head_dim).

    q (T, H, head_dim); the cache holds positions [0, pos + T). Query heads share key heads in order (head h reads
    h // (H / K)). Scores are divided by sqrt(scale), head_dim's unless given. With a `window` a query sees that many
    positions, its own the last of them.
    """
    n_new, n_heads, head_dim = q.shape
    k, v = cached.read(layer, pos + n_new)  # (K, S, head_dim)
    n_kv, length = k.shape[:2]
    queries = q.reshape(n_new, n_kv, -1, head_dim).transpose(1, 2, 0, 3)  # (K, H/K, T, head_dim)
    scores = queries @ k[:, None].transpose(0, 1, 3, 2) / np.float32(np.sqrt(scale or head_dim))
    own, positions = pos + np.arange(n_new)[:, None], np.arange(length)
    hidden = positions > own
    if window:
        hidden |= positions <= own - window
    scores[:, :, hidden] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = np.ascontiguousarray((scores @ v[:, None]).transpose(2, 0, 1, 3))  # (T, K, H/K, head_dim)
    return cast(Array, mixed.reshape(n_new, n_heads * head_dim))


def build_decoder(weights: DecoderWeights) -> None:
    """NumPy gains nothing from one call per step: the model runs its operations one by one."""
    return None


def preparing_seconds() -> float:
    """What compiling and loading kernels has taken so far: nothing."""
    return 0.0


def use_threads(number: None) -> nullcontext[None]:
    """There is none to set: NumPy's BLAS has settings of its own."""
    return nullcontext()
