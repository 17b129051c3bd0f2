"""Rounding a matrix so that its outputs change least: each column's error is made good by the columns still to come.

The error of a layer W (d, k) on inputs X (T, k) is, for each row w of W rounded to q,

    |X w - X q|^2 = (w - q) H (w - q),   H = X^T X.

GPTQ (Frantar et al. 2023, arXiv 2210.17323) rounds column by column and moves the columns that are left against the
error. With H = L L^T that is the same as this, which needs no inverse (Babai's nearest plane; Chen et al. 2025, arXiv
2507.18553): the error is the sum over columns i of

    L[i, i]^2 (w_i - q_i + sum over j > i of L[j, i] / L[i, i] (w_j - q_j))^2,

so, from the last column to the first, q_i is the value nearest to what stands before it there, which depends on columns
that are rounded already.

The order of columns is free as long as a group is together: its scale is searched when the group is reached, on the
weights as they are corrected by then, weighed by L[i, i]^2, which is what an error costs that the columns still to come
have made good as far as they can. The groups whose inputs are largest go first, while there are most columns left to
make good what they lose, and so do the largest inputs within a group.

Inputs of another text differ from these, in their correlations most: H is damped, by adding a part of its diagonal to
it, which takes all correlations nearer to 0. A part of the *mean* of the diagonal, as GPTQ adds, is too much for all
other columns where one input is a thousand times as large as the rest, as before `down_proj` in many models.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.code_search import Chosen, expand, row_scales, signed_square
from edgecal_kernels.layout import STEP, SUPER
from edgecal_kernels.quant import (
    SPECS,
    Array,
    FormatSpec,
    QuantizedTensor,
    dequantize,
    dequantize_rows,
    from_chosen,
    quantize,
)

_ROWS = 2048  # rounded at a time
_GROUPS_OF_SUPER = SUPER // STEP
_FACTORED = 512  # columns at a time
_SEARCHED = 1 << 16  # weights whose scales are searched at a time: the temporaries stay in the processor's cache


class Metric(Protocol):
    """What is known of a module's inputs, ready for groups of a size."""

    def round(self, w: Array, format: str) -> QuantizedTensor:
        """w float32 (d, k) in `format`. QuantizationError where a scale is beyond the format's."""

    def norm(self, difference: Array) -> float:
        """The squared error of all outputs, of a difference (d, k) of weights."""


class Diagonal:
    """Mean squares of inputs alone, float (k,): scales are searched under them, and nothing is made good."""

    def __init__(self, squares: NDArray[np.floating], group_size: int) -> None:
        self.group_size, k = group_size, len(squares)
        self.squares = _positive(squares)
        padded = np.full(-(-k // group_size) * group_size, self.squares.min())
        padded[:k] = self.squares
        self.importance = (padded / padded.mean()).astype(np.float32).reshape(-1, group_size)

    def round(self, w: Array, format: str) -> QuantizedTensor:
        rows = max(1, _SEARCHED // w.shape[1])
        parts = [self._round(w[start : start + rows], SPECS[format]) for start in range(0, len(w), rows)]
        return _packed(parts, w.shape, format, self.group_size)

    def _round(self, w: Array, spec: FormatSpec) -> Chosen:
        chosen = spec.search(_padded(w, self.group_size).reshape(len(w), -1, self.group_size), self.importance)
        return chosen._replace(codes=chosen.codes.reshape(len(w), -1))

    def norm(self, difference: Array) -> float:
        return float((np.square(difference, dtype=np.float64).sum(axis=0) * self.squares).sum())


class Feedback:
    """Of H, float (k, k): the order of the columns, L, and the squares of its diagonal."""

    def __init__(self, hessian: NDArray[np.floating], group_size: int, damping: float) -> None:
        self.group_size, self.k = group_size, len(hessian)
        self.n_groups = -(-self.k // group_size)
        squares = _positive(np.diagonal(hessian))
        sizes = Diagonal(squares, group_size).importance
        inner = np.argsort(sizes, axis=1, kind="stable")
        self.groups = np.argsort(sizes.mean(axis=1), kind="stable")  # the last goes first
        self.columns = (self.groups[:, None] * group_size + inner[self.groups]).ravel()
        n, inside = len(self.columns), self.columns < self.k
        damped = np.zeros((n, n))  # of the few matrices as large as this that are alive at a time
        damped[np.ix_(inside, inside)] = hessian[np.ix_(self.columns[inside], self.columns[inside])]
        diagonal = np.pad(squares * (1 + damping), (0, n - self.k), constant_values=squares.min())
        np.fill_diagonal(damped, diagonal[self.columns])
        lower = _factor(damped)
        self.squares = np.square(np.diagonal(lower))
        self.importance = (self.squares / self.squares.mean()).astype(np.float32)
        lower /= np.diagonal(lower).copy()
        self.lower = lower.astype(np.float32)

    def round(self, w: Array, format: str) -> QuantizedTensor:
        parts = [self._round(w[start : start + _ROWS], SPECS[format]) for start in range(0, len(w), _ROWS)]
        return _packed(parts, w.shape, format, self.group_size)

    def _round(self, w: Array, spec: FormatSpec) -> Chosen:
        size, padded = self.group_size, _padded(w, self.group_size)
        units = self._units(spec, padded.reshape(len(w), -1, size))
        left = np.ascontiguousarray(padded[:, self.columns].T)  # (k_padded, d): w - q where a column is done
        wanted = left.copy()  # what stands before q in the sum
        codes = np.empty(padded.shape, spec.packing.dtype)
        of_group = (2,) if spec.has_super_scale else ()
        scale = np.empty((len(w), self.n_groups, *of_group), np.float32 if units is None else np.int8)
        minimum = np.empty(scale.shape, np.float32) if spec.has_minimum and units is None else None
        for place in range(self.n_groups - 1, -1, -1):
            group, start, stop = self.groups[place], place * size, (place + 1) * size
            own = units[:, group // _GROUPS_OF_SUPER, None] if units is not None and spec.has_super_scale else units
            chosen = self._search(spec, wanted[start:stop], slice(start, stop), own)
            steps, low = _values(chosen, spec, own)
            inverses = np.divide(1, steps, out=np.zeros_like(steps), where=steps != 0)
            for i in range(stop - 1, start - 1, -1):
                part = self.columns[i] % size * len(steps) // size
                code = np.clip(np.rint((wanted[i] - low) * inverses[part]), spec.lowest, spec.highest)
                codes[:, self.columns[i]] = code + spec.code_offset
                left[i] -= code * steps[part] + low
                wanted[start:i] += self.lower[i, start:i, None] * left[i]
            if start:
                wanted[:start] += self.lower[start:stop, :start].T @ left[start:stop]
            scale[:, group] = chosen.scale[:, 0]
            if minimum is not None:
                minimum[:, group] = low
        if spec.has_super_scale:
            return Chosen(codes, scale, super_scale=units)
        return Chosen(codes, scale, minimum, units)

    def _units(self, spec: FormatSpec, groups: Array) -> Array | None:
        """What scales are multiples of, which is settled before they are: of rows (d,), or of 256 columns."""
        if spec.has_super_scale:
            importance = self.importance[np.argsort(self.columns)].reshape(-1, self.group_size)
            return spec.search(groups, importance).super_scale
        return row_scales(groups) if spec.has_row_scale else None

    def _search(self, spec: FormatSpec, wanted: Array, places: slice, units: Array | None) -> Chosen:
        order = np.argsort(self.columns[places])  # as the columns lie: halves of a group may have scales of their own
        importance, groups = self.importance[places][order][None], np.ascontiguousarray(wanted[order].T)[:, None]
        return spec.search(groups, importance) if units is None else spec.search(groups, importance, units)

    def norm(self, difference: Array) -> float:
        moved = _padded(difference, self.group_size)[:, self.columns] @ self.lower
        return float((np.square(moved).sum(axis=0, dtype=np.float64) * self.squares).sum())


def rounding_errors(metric: Metric, w: Array, packed: QuantizedTensor) -> tuple[float, float]:
    """The squared error of outputs by their squared size: of plain rounding into `packed`'s form, and of `packed`.

    Of about 256 outputs, evenly taken: all of them would cost as much as the rounding.
    """
    rows = np.arange(0, len(w), max(1, len(w) // 256))
    exact = w[rows]
    whole = metric.norm(exact) or 1.0
    plain = dequantize(quantize(exact, packed.format, packed.group_size))
    return metric.norm(exact - plain) / whole, metric.norm(exact - dequantize_rows(packed, rows)) / whole


def _positive(squares: NDArray[np.floating]) -> NDArray[np.float64]:
    """Inputs that were never there count for a millionth of the mean, so that everything has an optimum."""
    squares = squares.astype(np.float64)
    return np.maximum(squares, 1e-6 * squares.mean()) if squares.any() else np.ones_like(squares)


def _factor(h: NDArray[np.float64]) -> NDArray[np.float64]:
    """L of h = L L^T, positive definite (n, n), in the place of h: np.linalg.cholesky takes twice as much besides."""
    n = len(h)
    for start in range(0, n, _FACTORED):
        stop = min(start + _FACTORED, n)
        corner = h[start:stop, start:stop] = np.linalg.cholesky(h[start:stop, start:stop])
        h[start:stop, stop:] = 0
        if stop < n:
            h[stop:, start:stop] = np.linalg.solve(corner, h[stop:, start:stop].T).T
        for left in range(stop, n, _FACTORED):
            right = min(left + _FACTORED, n)
            h[left:, left:right] -= h[left:, start:stop] @ h[left:right, start:stop].T
    return h


def _padded(w: Array, group_size: int) -> Array:
    return np.pad(w, ((0, 0), (0, -w.shape[1] % group_size)))


def _values(chosen: Chosen, spec: FormatSpec, units: Array | None) -> tuple[Array, Array | np.float32]:
    """Scales, float32 (1 or 2, d), of the parts of the one group that was searched, and its minimum (d,)."""
    if spec.has_super_scale:
        assert units is not None
        values = expand(chosen.scale, units)[:, 0].T
        return (values, np.float32(0)) if spec.halves else (values[:1], values[1])
    step = chosen.scale[:, 0] if units is None else signed_square(chosen.scale[:, 0]) * units
    return step[None], np.float32(0) if chosen.minimum is None else chosen.minimum[:, 0]


def _packed(parts: list[Chosen], shape: tuple[int, ...], format: str, group_size: int) -> QuantizedTensor:
    joined: list[Any] = [None if part[0] is None else np.concatenate(part) for part in zip(*parts, strict=True)]
    return from_chosen(format, (shape[0], shape[1]), group_size, Chosen(*joined))
