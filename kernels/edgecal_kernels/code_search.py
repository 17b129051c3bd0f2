"""Choosing the codes and scales of a format: of those that are tried for a group of weights, the ones with the least
squared error.

Every search takes groups, float32 (n, n_groups, group_size) of n rows, and gives what `Chosen` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import QuantizationError

Array = NDArray[np.float32]
_FP16_MAX = 65504.0
_INT4_DIVISORS = (-8.0, -7.6, -7.2, -6.8, -8.5, 7.0, 7.5)
_INT6_DIVISORS = (-32.0, -31.2, -30.4, 31.0)
_LARGEST_ROOT = 127


class Chosen(NamedTuple):
    """Codes, int8 or uint8 (n, n_groups, group_size); scales and minima of the groups (n, n_groups), scales of the rows
    (n,), as far as the format has them."""

    codes: NDArray
    scale: NDArray
    minimum: Array | None = None
    row_scale: Array | None = None


def half(values: Array, what: str) -> Array:
    """Rounded to float16 and back; refuses what float16 cannot hold."""
    largest = float(np.abs(values).max(initial=0))
    if not largest <= _FP16_MAX:  # also NaN
        raise QuantizationError(f"{what} of a group is {largest:g}, beyond float16 ({_FP16_MAX:g}); use fp32")
    return values.astype(np.float16).astype(np.float32)


def signed_square(s: NDArray) -> Array:
    """s abs(s) in float32, exact."""
    s = s.astype(np.float32)
    return s * np.abs(s)


def search_int8(g: Array) -> Chosen:
    """Codes of [-127, 127]; the extreme of a group is one of the two."""
    scale = half(np.abs(g).max(axis=2) / np.float32(127), "scale")
    codes = np.clip(np.rint(g * _inverse(scale)[..., None]), -127, 127).astype(np.int8)
    return Chosen(codes, scale)


def search_int6(g: Array) -> Chosen:
    return Chosen(*_symmetric(g, 32, _INT6_DIVISORS, _float16_scale))


def search_int4_f16(g: Array) -> Chosen:
    return Chosen(*_symmetric(g, 8, _INT4_DIVISORS, _float16_scale))


def search_int4(g: Array) -> Chosen:
    """Scales are s abs(s) of an int8 s, in units of the row's; the largest that is tried of a row has s = +-127."""
    row = np.abs(g).max(axis=(1, 2)) / np.float32(min(map(abs, _INT4_DIVISORS)) * _LARGEST_ROOT**2)
    row[row < np.finfo(np.float32).tiny] = 0  # its reciprocal might be infinite

    def root(scale: Array) -> Array:
        return np.copysign(np.minimum(np.rint(np.sqrt(np.abs(scale))), np.float32(_LARGEST_ROOT)), scale)

    in_rows = g * _inverse(row)[:, None, None]
    codes, scale = _symmetric(in_rows, 8, _INT4_DIVISORS, lambda scale: signed_square(root(scale)))
    return Chosen(codes, root(scale).astype(np.int8), row_scale=row)


def search_int4_affine(g: Array) -> Chosen:
    """The range [low, high] shrunk a little at either end where that lowers the squared error."""
    low, high = g.min(axis=2), g.max(axis=2)
    span = high - low
    best_scale = np.zeros(low.shape, np.float32)
    best_minimum = np.zeros(low.shape, np.float32)
    best_codes = np.zeros(g.shape, np.uint8)
    best_error = np.full(low.shape, np.inf, np.float32)
    for cut_low, cut_high in ((0.0, 0.0), (0.04, 0.0), (0.0, 0.04), (0.04, 0.04), (0.09, 0.0), (0.0, 0.09)):
        minimum = half(low + np.float32(cut_low) * span, "minimum")
        top = high - np.float32(cut_high) * span
        scale = half(np.maximum(top - minimum, 0) / np.float32(15), "scale")
        codes = np.clip(np.rint((g - minimum[..., None]) * _inverse(scale)[..., None]), 0, 15)
        error = np.square(codes * scale[..., None] + minimum[..., None] - g).sum(axis=2)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_minimum = np.where(better, minimum, best_minimum)
        best_codes = np.where(better[..., None], codes.astype(np.uint8), best_codes)
    return Chosen(best_codes, best_scale, best_minimum)


def _symmetric(
    g: Array, offset: int, divisors: tuple[float, ...], stored: Callable[[Array], Array]
) -> tuple[NDArray[np.uint8], Array]:
    """Codes around `offset` and scales: of the scales extreme / divisor, the one with the least squared error, then the
    scale that fits its codes best. `stored` gives a scale as the format can hold it.

    With the first divisor the signed extreme goes to code 0 (value -offset), as in llama.cpp's Q4_0.
    """
    best_scale = np.zeros(g.shape[:2], np.float32)
    best_codes = np.zeros(g.shape, np.float32)
    best_error = np.full(g.shape[:2], np.inf, np.float32)

    def attempt(wanted: Array) -> None:
        nonlocal best_scale, best_codes, best_error
        scale = stored(wanted)
        codes = np.clip(np.rint(g * _inverse(scale)[..., None]), -offset, offset - 1)
        error = np.square(codes * scale[..., None] - g).sum(axis=2)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_codes = np.where(better[..., None], codes, best_codes)

    extreme = _extreme(g)
    for divisor in divisors:
        attempt(extreme / np.float32(divisor))
    square = np.square(best_codes).sum(axis=2)
    attempt(np.divide((best_codes * g).sum(axis=2), square, out=np.zeros_like(square), where=square != 0))
    return (best_codes + offset).astype(np.uint8), best_scale


def _extreme(g: Array) -> Array:
    """The element of each group that lies furthest from 0, with its sign."""
    return np.take_along_axis(g, np.abs(g).argmax(axis=2)[..., None], axis=2)[..., 0]


def _float16_scale(scale: Array) -> Array:
    return half(scale, "scale")


def _inverse(scale: Array) -> Array:
    return np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
