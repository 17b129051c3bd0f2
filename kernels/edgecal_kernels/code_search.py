"""Choosing the codes and scales of a format: of those that are tried for a group of weights, the ones with the least
squared error.

Every search takes groups, float32 (n, n_groups, group_size) of n rows, and gives what `Chosen` says. With an
`importance`, float32 (n_groups, group_size) > 0, squared errors are weighed by column, and more scales are tried: who
knows what a column is worth has the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import QuantizationError
from .layout import STEP, SUPER

Array = NDArray[np.float32]
_FP16_MAX = 65504.0
_INT4_DIVISORS = (-8.0, -7.6, -7.2, -6.8, -8.5, 7.0, 7.5)
_INT5_DIVISORS = (-16.0, -15.4, -14.8, 15.2)
_INT6_DIVISORS = (-32.0, -31.2, -30.4, 31.0)
_AFFINE_CUTS = ((0.0, 0.0), (0.04, 0.0), (0.0, 0.04), (0.04, 0.04), (0.09, 0.0), (0.0, 0.09))  # at either end
_LARGEST_ROOT = 127
_LARGEST_MULTIPLE = 127
_GROUPS_OF_SUPER = SUPER // STEP
# With an importance, for 4 bits; 6 bits take four times as much
_FINE_DIVISORS = tuple(sign * size for sign in (-1, 1) for size in (5.0, 5.4, 5.8, 6.2, 6.5, 7.3, 7.8, 8.2, 8.8))
_FINE_AFFINE_CUTS = tuple((low / 100, high / 100) for low in range(0, 21, 5) for high in range(0, 21, 5))
_REFITS = 2  # with an importance; the codes of a fitted scale ask for another


class Chosen(NamedTuple):
    """Codes, int8 or uint8 (n, n_groups, group_size); scales and minima of the groups (n, n_groups), scales of the rows
    (n,), as far as the format has them. Two-level scales are int8 (n, n_groups, 2), and `super_scale` float32
    (n, n_supers, 2 or 1): what `FormatSpec` says."""

    codes: NDArray
    scale: NDArray
    minimum: Array | None = None
    row_scale: Array | None = None
    super_scale: Array | None = None


def half(values: Array, what: str) -> Array:
    """Rounded to float16 and back; refuses what float16 cannot hold."""
    largest = float(np.abs(values).max(initial=0))
    if not largest <= _FP16_MAX:  # also NaN
        raise QuantizationError(f"{what} of a group is {largest:g}, beyond float16 ({_FP16_MAX:g}); use fp32")
    return values.astype(np.float16).astype(np.float32)


def half_if_it_fits(values: Array, what: str) -> Array:
    """As `half`, and as they are where float16 cannot hold them: for values that become multiples of a unit."""
    fits = np.abs(values) <= _FP16_MAX
    return np.where(fits, half(np.where(fits, values, 0), what), values)


def signed_square(s: NDArray) -> Array:
    """s abs(s) in float32, exact."""
    s = s.astype(np.float32)
    return s * np.abs(s)


def search_int8(g: Array, importance: Array | None = None) -> Chosen:
    """Codes of [-127, 127]; the extreme of a group is one of the two, whatever its importance."""
    scale = half(np.abs(g).max(axis=2) / np.float32(127), "scale")
    codes = np.clip(np.rint(g * _inverse(scale)[..., None]), -127, 127).astype(np.int8)
    return Chosen(codes, scale)


def search_int6(g: Array, importance: Array | None = None) -> Chosen:
    return Chosen(*_symmetric(g, 32, _INT6_DIVISORS, _float16_scale, importance))


def search_int5(g: Array, importance: Array | None = None) -> Chosen:
    return Chosen(*_symmetric(g, 16, _INT5_DIVISORS, _float16_scale, importance))


def search_int4_f16(g: Array, importance: Array | None = None) -> Chosen:
    return Chosen(*_symmetric(g, 8, _INT4_DIVISORS, _float16_scale, importance))


def row_scales(g: Array) -> Array:
    """float32 (n,), the units of int4's scales: the largest that is tried of a row has s = +-127."""
    row = np.abs(g).max(axis=(1, 2)) / np.float32(min(map(abs, _INT4_DIVISORS)) * _LARGEST_ROOT**2)
    row[row < np.finfo(np.float32).tiny] = 0  # its reciprocal might be infinite
    return row


def search_int4(g: Array, importance: Array | None = None, row: Array | None = None) -> Chosen:
    """Scales are s abs(s) of an int8 s, in units of the row's: `row`, where the groups are not all that it has."""
    row = row_scales(g) if row is None else row

    def root(scale: Array) -> Array:
        return np.copysign(np.minimum(np.rint(np.sqrt(np.abs(scale))), np.float32(_LARGEST_ROOT)), scale)

    in_rows = g * _inverse(row)[:, None, None]
    codes, scale = _symmetric(in_rows, 8, _INT4_DIVISORS, lambda scale: signed_square(root(scale)), importance)
    return Chosen(codes, root(scale).astype(np.int8), row_scale=row)


def search_int4_affine(g: Array, importance: Array | None = None) -> Chosen:
    return _affine(g, 15, importance)


def search_int4_k(g: Array, importance: Array | None = None, units: Array | None = None) -> Chosen:
    return _affine_multiples(g, 15, importance, units)


def search_int5_k(g: Array, importance: Array | None = None, units: Array | None = None) -> Chosen:
    return _affine_multiples(g, 31, importance, units)


def search_int6_k(g: Array, importance: Array | None = None, units: Array | None = None) -> Chosen:
    """A scale for each half of a group."""
    halves, weighed = g.reshape(len(g), -1, STEP // 2), None
    if importance is not None:
        weighed = importance.reshape(-1, STEP // 2)
    _, wanted = _symmetric(halves, 32, _INT6_DIVISORS, lambda scale: half_if_it_fits(scale, "scale"), weighed)
    scale, units = _multiples(wanted.reshape(len(g), -1, 2), units, 1)
    stored = expand(scale, units).reshape(len(g), -1, 1)
    codes = np.clip(np.rint(halves * _inverse(stored)), -32, 31) + 32
    return Chosen(codes.astype(np.uint8).reshape(g.shape), scale, super_scale=units)


def _affine_multiples(g: Array, top: int, importance: Array | None, units: Array | None) -> Chosen:
    """Scales and minima of `_affine` as multiples, and the codes that are nearest then."""
    wanted = _affine(g, top, importance, half_if_it_fits)
    assert wanted.minimum is not None
    scale, units = _multiples(np.stack([wanted.scale, wanted.minimum], axis=2), units, 2)
    stored = expand(scale, units)
    codes = np.clip(np.rint((g - stored[..., 1:]) * _inverse(stored[..., :1])), 0, top)
    return Chosen(codes.astype(np.uint8), scale, super_scale=units)


def _multiples(values: Array, units: Array | None, parts: int) -> tuple[NDArray[np.int8], Array]:
    """Values (n, n_groups, 2) as int8 multiples of units (n, n_supers, `parts`): those given, or float16 ones of which
    the largest multiple that is needed is 127."""
    n, n_groups, _ = values.shape
    if units is None:
        padded = np.zeros((n, -(-n_groups // _GROUPS_OF_SUPER) * _GROUPS_OF_SUPER, 2), np.float32)
        padded[:, :n_groups] = np.abs(values)
        largest = padded.reshape(n, -1, _GROUPS_OF_SUPER * 2 // parts, parts).max(axis=2)
        units = half(largest / np.float32(_LARGEST_MULTIPLE), "scale")
    each = np.repeat(units, _GROUPS_OF_SUPER, axis=1)[:, :n_groups]
    most = _LARGEST_MULTIPLE
    return np.clip(np.rint(values * _inverse(each)), -most, most).astype(np.int8), units


def expand(multiples: NDArray[np.int8], units: Array) -> Array:
    """Two-level scales as plain ones, float32, exact: multiples (n, n_groups, 2, ...), units (n, n_supers, 2 or 1, ...)
    as float32."""
    each = np.repeat(units, _GROUPS_OF_SUPER, axis=1)[:, : multiples.shape[1]]
    return multiples * each


def _affine(
    g: Array, top: int, importance: Array | None, stored: Callable[[Array, str], Array] = half
) -> Chosen:
    """Codes up to `top`. The range [low, high] shrunk a little at either end where that lowers the squared error.
    `stored` gives a scale or a minimum as the format can hold it."""
    low, high = g.min(axis=2), g.max(axis=2)
    span = high - low
    best = _Best(g, importance)

    def attempt(minimum: Array, scale: Array) -> None:
        minimum, scale = stored(minimum, "minimum"), stored(scale, "scale")
        codes = np.clip(np.rint((g - minimum[..., None]) * _inverse(scale)[..., None]), 0, top)
        best.offer(codes, scale, minimum)

    for cut_low, cut_high in _AFFINE_CUTS if importance is None else _FINE_AFFINE_CUTS:
        minimum = stored(low + np.float32(cut_low) * span, "minimum")
        end = high - np.float32(cut_high) * span
        attempt(minimum, np.maximum(end - minimum, 0) / np.float32(top))
    if importance is not None:
        for _ in range(_REFITS):
            attempt(*_fitted_line(best.codes, g, importance, best.minimum, best.scale))
    return Chosen(best.codes.astype(np.uint8), best.scale, best.minimum)


def _fitted_line(codes: Array, g: Array, importance: Array, minimum: Array, scale: Array) -> tuple[Array, Array]:
    """Minimum and scale that fit the codes best; what they were where the codes are all alike."""
    total = importance.sum(axis=1)
    mean_code, mean = ((importance * values).sum(axis=2) / total for values in (codes, g))
    centred = codes - mean_code[..., None]
    spread = (importance * np.square(centred)).sum(axis=2)
    slope = np.divide((importance * centred * g).sum(axis=2), spread, out=scale.copy(), where=spread > 0)
    slope = np.where(slope > 0, slope, scale)
    return np.where(spread > 0, mean - slope * mean_code, minimum), slope


class _Best:
    """Of what was offered for each group, the codes, scale and minimum with the least error; 0 before the first."""

    def __init__(self, g: Array, importance: Array | None) -> None:
        self.scale, self.minimum = np.zeros(g.shape[:2], np.float32), np.zeros(g.shape[:2], np.float32)
        self.codes = np.zeros(g.shape, np.float32)
        self._error = np.full(g.shape[:2], np.inf, np.float32)
        self._g, self._importance = g, importance

    def offer(self, codes: Array, scale: Array, minimum: Array | None = None) -> None:
        values = codes * scale[..., None]
        if minimum is not None:
            values += minimum[..., None]
        values -= self._g
        np.square(values, out=values)
        if self._importance is not None:
            values *= self._importance
        error = values.sum(axis=2)
        better = error < self._error
        self._error = np.where(better, error, self._error)
        self.scale = np.where(better, scale, self.scale)
        if minimum is not None:
            self.minimum = np.where(better, minimum, self.minimum)
        self.codes = np.where(better[..., None], codes, self.codes)


def _symmetric(
    g: Array,
    offset: int,
    divisors: tuple[float, ...],
    stored: Callable[[Array], Array],
    importance: Array | None = None,
) -> tuple[NDArray[np.uint8], Array]:
    """Codes around `offset` and scales: of the scales extreme / divisor, the one with the least squared error, then the
    scale that fits its codes best. `stored` gives a scale as the format can hold it.

    With the first divisor the signed extreme goes to code 0 (value -offset), as in llama.cpp's Q4_0.
    """
    best = _Best(g, importance)

    def attempt(wanted: Array) -> None:
        scale = stored(wanted)
        best.offer(np.clip(np.rint(g * _inverse(scale)[..., None]), -offset, offset - 1), scale)

    if importance is not None:
        divisors = (*divisors, *(offset / 8 * divisor for divisor in _FINE_DIVISORS))
    extreme = _extreme(g)
    for divisor in divisors:
        attempt(extreme / np.float32(divisor))
    for _ in range(1 if importance is None else _REFITS):
        weighed = best.codes if importance is None else best.codes * importance
        square = (weighed * best.codes).sum(axis=2)
        attempt(np.divide((weighed * g).sum(axis=2), square, out=np.zeros_like(square), where=square != 0))
    return (best.codes + offset).astype(np.uint8), best.scale


def _extreme(g: Array) -> Array:
    """The element of each group that lies furthest from 0, with its sign."""
    return np.take_along_axis(g, np.abs(g).argmax(axis=2)[..., None], axis=2)[..., 0]


def _float16_scale(scale: Array) -> Array:
    return half(scale, "scale")


def _inverse(scale: Array) -> Array:
    return np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
