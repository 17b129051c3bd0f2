"""Quantized tensors: a weight in one of the packed number formats, made and read.

`formats` says what formats there are, `code_search` how codes are chosen, `layout` where they lie.

Trap: a tile depends on its own 16 rows only, so quantizing rows [16a, 16b) gives tiles [a, b) of the whole.
Streaming writers rely on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import layout
from .code_search import Array, Chosen, expand, half, signed_square
from .errors import QuantizationError
from .formats import FORMATS, GROUP_SIZES, SPECS, FormatSpec, find_format
from .layout import QUARTER_ROWS, STEP, SUPER, TILE_ROWS

__all__ = [
    "FORMATS",
    "GROUP_SIZES",
    "QUARTER_ROWS",
    "SPECS",
    "STEP",
    "TILE_ROWS",
    "Array",
    "Chosen",
    "FormatSpec",
    "QuantizedTensor",
    "dequantize",
    "dequantize_rows",
    "expand",
    "find_format",
    "from_chosen",
    "from_codes",
    "packed_shapes",
    "quantize",
    "unpack",
]
_ALL = slice(None)
_BLOCK_WEIGHTS = 1 << 16  # whose codes are searched together: the temporaries stay in the processor's cache


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A (d, k) weight in one of the packed formats.

    `codes` is uint8 (n_tiles, k_padded / 32, bytes of a step), `scale` and `minimum` float16 (n_tiles, n_groups, 16);
    `minimum` only where the format has it. Where it has row scales, `scale` is int8, and `row_scale` float32
    (n_tiles, 16). Where scales have two levels, `scale` is int8 (n_tiles, n_groups, 2, 16) and has the minima, too, or
    the scales of both halves, and `super_scale` is float16 (n_tiles, n_supers, 1 or 2, 16).

    An adapter's int8 matrix is narrow or flat, and may do without padding. Its tiles may end with their last column
    quad instead of a whole step: (n_tiles, 1, 64 quads). Rows after the last whole tile may lie in quarter tiles of
    four: `quarter_codes` uint8 (n_quarters, k_padded / 16, 64), a line being `[4 rows][16 columns]`, and
    `quarter_scale` float16 (n_quarters, n_groups, 4).
    """

    format: str
    shape: tuple[int, int]
    group_size: int
    codes: NDArray[np.uint8]
    scale: NDArray
    minimum: NDArray[np.float16] | None = None
    row_scale: Array | None = None
    super_scale: NDArray[np.float16] | None = None
    quarter_codes: NDArray[np.uint8] | None = None
    quarter_scale: NDArray[np.float16] | None = None

    @property
    def spec(self) -> FormatSpec:
        return SPECS[self.format]

    @property
    def n_tiles(self) -> int:
        return len(self.codes)

    @property
    def n_quarters(self) -> int:
        return 0 if self.quarter_codes is None else len(self.quarter_codes)

    @property
    def n_groups(self) -> int:
        return _ceil_div(self.shape[1], self.group_size)

    @property
    def tile_lines(self) -> int:
        """64-byte lines of codes from one tile to the next."""
        return int(self.codes.shape[1] * self.codes.shape[2]) // layout.LINE

    @property
    def arrays(self) -> dict[str, NDArray]:
        """What is there of the arrays, by their names; the first axis is tiles, or quarter tiles."""
        names = ("codes", "scale", "minimum", "row_scale", "super_scale", "quarter_codes", "quarter_scale")
        return {name: array for name in names if (array := getattr(self, name)) is not None}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


def packed_shapes(
    format: str, shape: tuple[int, int], group_size: int = STEP
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """dtype and shape of each array of a packed (d, k) tensor: what a streaming writer reserves."""
    spec = find_format(format, group_size)
    n_tiles, n_groups = _ceil_div(shape[0], TILE_ROWS), _ceil_div(shape[1], group_size)
    n_steps = n_groups * group_size // STEP
    grid = (n_tiles, n_groups, TILE_ROWS)
    arrays: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
        "codes": (np.dtype(np.uint8), (n_tiles, n_steps, spec.packing.step_bytes)),
        "scale": (spec.scale_dtype, grid),
    }
    if spec.has_super_scale:
        arrays["scale"] = (spec.scale_dtype, (n_tiles, n_groups, 2, TILE_ROWS))
        shape_of_supers = (n_tiles, _ceil_div(n_steps * STEP, SUPER), spec.super_parts, TILE_ROWS)
        arrays["super_scale"] = (np.dtype(np.float16), shape_of_supers)
    elif spec.has_minimum:
        arrays["minimum"] = (np.dtype(np.float16), grid)
    if spec.has_row_scale:
        arrays["row_scale"] = (np.dtype(np.float32), (n_tiles, TILE_ROWS))
    return arrays


# -------------------------------------------------------------------------------------------------- making one


def quantize(w: Array, format: str, group_size: int = STEP) -> QuantizedTensor:
    """Round a float32 (d, k) weight into `format`.

    Raises QuantizationError for NaN or infinite weights, scales beyond float16, unknown formats.
    """
    spec = find_format(format, group_size)
    w = np.ascontiguousarray(w, np.float32)
    if w.ndim != 2 or 0 in w.shape:
        raise QuantizationError(f"a weight to quantize has two dimensions, found shape {w.shape}")
    if not np.isfinite(w).all():
        row, column = np.argwhere(~np.isfinite(w))[0]
        raise QuantizationError(f"weight is {w[row, column]} at [{row}, {column}]; quantization needs finite values")
    rows = max(TILE_ROWS, _BLOCK_WEIGHTS // w.shape[1] // TILE_ROWS * TILE_ROWS)
    out = _empty(format, (w.shape[0], w.shape[1]), group_size)
    for start in range(0, w.shape[0], rows):
        chosen = spec.search(_groups(w[start : start + rows], group_size))
        _store(out, start, chosen._replace(codes=chosen.codes.reshape(len(chosen.codes), -1)))
    return out


def _groups(w: Array, group_size: int) -> Array:
    """(d, k) -> (d, n_groups, group_size), zero-padded on the right."""
    d, k = w.shape
    n_groups = _ceil_div(k, group_size)
    if n_groups * group_size != k:
        padded = np.zeros((d, n_groups * group_size), np.float32)
        padded[:, :k] = w
        w = padded
    return w.reshape(d, n_groups, group_size)


def from_codes(
    codes: NDArray,
    scale: NDArray,
    minimum: NDArray | None,
    format: str,
    group_size: int = STEP,
) -> QuantizedTensor:
    """Pack given codes (d, k), scales and minima (d, n_groups) without rounding the codes again.

    Codes are int8 for formats of 8 bits, else uint8. Scales and minima become float16, so that a format with scales of
    another kind cannot be made this way. Raises QuantizationError when the arrays do not belong together.
    """
    spec = find_format(format, group_size)
    if spec.has_row_scale or spec.has_super_scale:
        having = [s.name for s in SPECS.values() if not (s.has_row_scale or s.has_super_scale)]
        raise QuantizationError(f"{format} has no float16 scales; {', '.join(having)} have")
    d, k = codes.shape
    grid = (d, _ceil_div(k, group_size))
    if scale.shape != grid:
        raise QuantizationError(f"{format} codes {codes.shape} need scales {grid}, found {scale.shape}")
    if (minimum is not None) != spec.has_minimum:
        wanted = f"minima {grid}, found none" if spec.has_minimum else "no minima, and some are given"
        raise QuantizationError(f"{format} codes {codes.shape} need {wanted}")
    if minimum is not None and minimum.shape != grid:
        raise QuantizationError(f"{format} codes {codes.shape} need minima {grid}, found {minimum.shape}")
    out = _empty(format, (d, k), group_size)
    k_padded = grid[1] * group_size
    if k_padded != k:
        codes = np.pad(codes, ((0, 0), (0, k_padded - k)), constant_values=spec.code_offset)
    scale = half(np.asarray(scale, np.float32), "scale")
    if minimum is not None:
        minimum = half(np.asarray(minimum, np.float32), "minimum")
    _store(out, 0, Chosen(codes, scale, minimum))
    return out


def from_chosen(format: str, shape: tuple[int, int], group_size: int, chosen: Chosen) -> QuantizedTensor:
    """Pack what a search, or somebody who knows more than it, chose for a (d, k) weight: codes (d, k_padded)."""
    out = _empty(format, shape, group_size)
    _store(out, 0, chosen)
    return out


def _empty(format: str, shape: tuple[int, int], group_size: int) -> QuantizedTensor:
    arrays = {name: np.zeros(s, t) for name, (t, s) in packed_shapes(format, shape, group_size).items()}
    return QuantizedTensor(format, shape, group_size, **arrays)


def _store(out: QuantizedTensor, start: int, chosen: Chosen) -> None:
    """Write rows from `start` on, whose plain codes are (n, k_padded), into the tiles of `out`."""
    n = len(chosen.codes)
    padding = -n % TILE_ROWS
    tiles = slice(start // TILE_ROWS, (start + n + padding) // TILE_ROWS)

    def padded(rows: NDArray, value: int = 0) -> NDArray:
        widths = ((0, padding), *((0, 0),) * (rows.ndim - 1))
        return np.pad(rows, widths, constant_values=value) if padding else rows

    out.codes[tiles] = layout.pack(padded(chosen.codes, out.spec.code_offset), out.spec.packing)
    out.scale[tiles] = layout.by_tiles(padded(chosen.scale))
    if out.minimum is not None and chosen.minimum is not None:
        out.minimum[tiles] = layout.by_tiles(padded(chosen.minimum))
    if out.row_scale is not None and chosen.row_scale is not None:
        out.row_scale[tiles] = layout.by_tiles(padded(chosen.row_scale))
    if out.super_scale is not None and chosen.super_scale is not None:
        out.super_scale[tiles] = layout.by_tiles(padded(chosen.super_scale))


# -------------------------------------------------------------------------------------------------- reading one


def unpack(t: QuantizedTensor, tiles: NDArray[np.intp] | slice = _ALL) -> tuple[NDArray, Array, Array | None]:
    """Plain codes (rows, k_padded) and per-group scale and minimum (rows, n_groups) of the chosen tiles.

    All of them have the rows of the quarter tiles after them. Where halves have scales, these are (rows, 2 n_groups).
    """
    steps, packing = t.codes[tiles], t.spec.packing
    n, n_steps = len(steps), t.n_groups * t.group_size // STEP
    missing = n_steps * packing.step_bytes - t.tile_lines * layout.LINE
    flat = steps.reshape(n, t.tile_lines * layout.LINE)
    if missing:  # a tile ends with its last quad
        flat = np.pad(flat, ((0, 0), (0, missing)))
    plain = layout.unpack(flat.reshape(n, n_steps, packing.step_bytes), packing)
    if t.super_scale is not None:
        scale = layout.by_rows(expand(t.scale[tiles], t.super_scale[tiles].astype(np.float32)))
        if t.spec.has_minimum:
            return plain, np.ascontiguousarray(scale[..., 0]), np.ascontiguousarray(scale[..., 1])
        return plain, scale.reshape(len(scale), -1), None
    scale = t.scale[tiles].astype(np.float32)
    if t.row_scale is not None:
        scale = signed_square(t.scale[tiles]) * t.row_scale[tiles][:, None]
    scale = layout.by_rows(scale)
    if tiles is _ALL and t.quarter_codes is not None and t.quarter_scale is not None:
        lines = t.quarter_codes.view(np.int8).reshape(t.n_quarters, -1, QUARTER_ROWS, layout.LINE // QUARTER_ROWS)
        last = lines.transpose(0, 2, 1, 3).reshape(t.n_quarters * QUARTER_ROWS, n_steps * STEP)
        last_scale = layout.by_rows(t.quarter_scale.astype(np.float32))
        return np.concatenate([plain, last]), np.concatenate([scale, last_scale]), None
    return plain, scale, None if t.minimum is None else layout.by_rows(t.minimum[tiles].astype(np.float32))


def _dequantize_tiles(t: QuantizedTensor, tiles: NDArray[np.intp] | slice) -> Array:
    """float32 (rows, k) of the chosen tiles, padding rows included."""
    with np.errstate(over="ignore", invalid="ignore"):  # a file may hold any scale; who uses the weights looks at them
        codes, scale, minimum = unpack(t, tiles)
        groups = codes.reshape(*scale.shape, -1).astype(np.float32)
        groups -= t.spec.code_offset
        groups *= scale[..., None]
        if minimum is not None:
            groups += minimum[..., None]
    return groups.reshape(len(codes), -1)[:, : t.shape[1]]


def dequantize(t: QuantizedTensor) -> Array:
    """The float32 (d, k) weight that `t` stands for."""
    return np.ascontiguousarray(_dequantize_tiles(t, _ALL)[: t.shape[0]])


def dequantize_rows(t: QuantizedTensor, rows: NDArray[np.integer]) -> Array:
    """float32 (n, k): the given rows only, as an embedding lookup wants them."""
    rows = np.asarray(rows, np.intp)
    tiles, inverse = np.unique(rows // TILE_ROWS, return_inverse=True)
    return _dequantize_tiles(t, tiles)[inverse * TILE_ROWS + rows % TILE_ROWS]
