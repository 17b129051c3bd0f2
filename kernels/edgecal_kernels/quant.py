"""The packed number formats: the one definition of pack and unpack.

Five formats, all with one scale per group of consecutive columns of a row (32 unless asked otherwise):

| format        | stored code        | value                    | bits per weight at group 32 |
|---------------|--------------------|--------------------------|-----------------------------|
| `int8`        | c in [-127, 127]   | c * scale                | 8.5                         |
| `int6`        | c in [0, 63]       | (c - 32) * scale         | 6.5                         |
| `int4`        | c in [0, 15]       | (c - 8) * s abs(s) * row | 4.25 and 32 for each row    |
| `int4_f16`    | c in [0, 15]       | (c - 8) * scale          | 4.5                         |
| `int4_affine` | c in [0, 15]       | c * scale + minimum      | 5.0                         |

Scales and minima are float16. `int4` has an int8 s instead, and a float32 `row_scale`: the groups of a row seldom
differ by more than a factor of ten, and squares are dense enough far below that. `int4_f16` is what GGUF's Q4_0 holds.
The *layout* is made for the kernels and is the same on every machine, so that a file can be memory-mapped wherever it
was packed: 16 rows form a tile, and inside a tile the columns lie in steps of 32.

    int8   a step is 512 bytes: [8 column quads][16 rows][4 columns]
    int4   a step is 256 bytes: [4 column quads][16 rows][4 columns],
           low nibble = column 4q + j, high nibble = column 16 + 4q + j
    int6   a step is 384 bytes: the low four bits of the codes as in int4, then their upper two bits in two lines
           [2 halves][16 rows][4 columns]: bits 2q and 2q + 1 belong to column 16h + 4q + j

One 64-byte line thus carries four columns of sixteen rows, four bytes in every 32-bit lane: exactly what
the dot-product instructions want (one AVX-512 register, two of AVX2, four of NEON), with no horizontal sums.
Rows are padded to 16 (with scale 0) and columns to the group size (they meet zero activations).

Trap: a tile depends on its own 16 rows only, so quantizing rows [16a, 16b) gives tiles [a, b) of the whole.
Streaming writers rely on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import QuantizationError

Format = Literal["int8", "int6", "int4", "int4_f16", "int4_affine"]
FORMATS: tuple[Format, ...] = ("int8", "int6", "int4", "int4_f16", "int4_affine")
CODE_OFFSET: dict[str, int] = {"int8": 0, "int6": 32, "int4": 8, "int4_f16": 8, "int4_affine": 0}  # the code of zero
GROUP_SIZES = (32, 64, 128)
QUARTER_ROWS = 4
STEP = 32  # columns that a kernel consumes at once; also the group of the int8 activations
TILE_ROWS = 16
STEP_BYTES = {"int8": 512, "int6": 384, "int4": 256, "int4_f16": 256, "int4_affine": 256}
_FP16_MAX = 65504.0
_UPPER_SHIFT = np.arange(0, 8, 2, dtype=np.uint8)[:, None, None]  # of the upper bits of a quad, by quad

Array = NDArray[np.float32]


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A (d, k) weight in one of the packed formats.

    `codes` is uint8 (n_tiles, k_padded / 32, STEP_BYTES), `scale` and `minimum` float16 (n_tiles, n_groups, 16);
    `minimum` only for `int4_affine`. For `int4` `scale` is int8, and `row_scale` float32 (n_tiles, 16).

    An adapter's int8 matrix is narrow or flat, and may do without padding. Its tiles may end with their last column
    quad instead of a whole step: (n_tiles, 1, 64 quads). Rows behind the last whole tile may lie in quarter tiles of
    four: `quarter_codes` uint8 (n_quarters, k_padded / 16, 64), a line being [4 rows][16 columns], and `quarter_scale`
    float16 (n_quarters, n_groups, 4).
    """

    format: Format
    shape: tuple[int, int]
    group_size: int
    codes: NDArray[np.uint8]
    scale: NDArray
    minimum: NDArray[np.float16] | None = None
    row_scale: Array | None = None
    quarter_codes: NDArray[np.uint8] | None = None
    quarter_scale: NDArray[np.float16] | None = None

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
        return int(self.codes.shape[1] * self.codes.shape[2]) // 64

    @property
    def arrays(self) -> dict[str, NDArray]:
        """What is there of the arrays, by their names; the first axis is tiles, or quarter tiles."""
        names = ("codes", "scale", "minimum", "row_scale", "quarter_codes", "quarter_scale")
        return {name: array for name in names if (array := getattr(self, name)) is not None}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


def check_format(format: str, group_size: int) -> Format:
    """`format` as a known format; raises QuantizationError that lists the known ones."""
    if format not in FORMATS:
        raise QuantizationError(f"unknown weight format {format!r}; known: {', '.join(FORMATS)}")
    if group_size not in GROUP_SIZES:
        raise QuantizationError(f"group_size {group_size} is not served; choose one of {GROUP_SIZES}")
    return format


def packed_shapes(
    format: str, shape: tuple[int, int], group_size: int = STEP
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """dtype and shape of each array of a packed (d, k) tensor: what a streaming writer reserves."""
    format = check_format(format, group_size)
    n_tiles, n_groups = _ceil_div(shape[0], TILE_ROWS), _ceil_div(shape[1], group_size)
    n_steps = n_groups * group_size // STEP
    grid = (n_tiles, n_groups, TILE_ROWS)
    arrays: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
        "codes": (np.dtype(np.uint8), (n_tiles, n_steps, STEP_BYTES[format])),
        "scale": (np.dtype(np.int8 if format == "int4" else np.float16), grid),
    }
    if format == "int4_affine":
        arrays["minimum"] = (np.dtype(np.float16), grid)
    if format == "int4":
        arrays["row_scale"] = (np.dtype(np.float32), (n_tiles, TILE_ROWS))
    return arrays


# ---------------------------------------------------------------------------------------- choosing codes


def _groups(w: Array, group_size: int) -> Array:
    """(d, k) -> (d, n_groups, group_size), zero-padded on the right."""
    d, k = w.shape
    n_groups = _ceil_div(k, group_size)
    if n_groups * group_size != k:
        padded = np.zeros((d, n_groups * group_size), np.float32)
        padded[:, :k] = w
        w = padded
    return w.reshape(d, n_groups, group_size)


def _half(values: Array, what: str) -> Array:
    """Rounded to float16 and back; refuses what float16 cannot hold."""
    largest = float(np.abs(values).max(initial=0))
    if not largest <= _FP16_MAX:  # also NaN
        raise QuantizationError(f"{what} of a group is {largest:g}, beyond float16 ({_FP16_MAX:g}); use fp32")
    return values.astype(np.float16).astype(np.float32)


def _inverse(scale: Array) -> Array:
    return np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)


def _int8_codes(g: Array) -> tuple[NDArray[np.int8], Array]:
    scale = _half(np.abs(g).max(axis=2) / np.float32(127), "scale")
    codes = np.clip(np.rint(g * _inverse(scale)[..., None]), -127, 127).astype(np.int8)
    return codes, scale


_INT4_DIVISORS = (-8.0, -7.6, -7.2, -6.8, -8.5, 7.0, 7.5)
_INT6_DIVISORS = (-32.0, -31.2, -30.4, 31.0)
_LARGEST_ROOT = 127


def _symmetric_codes(
    g: Array, offset: int, divisors: tuple[float, ...], stored: Callable[[Array], Array]
) -> tuple[NDArray[np.uint8], Array]:
    """Codes around `offset`: of the scales extreme / divisor, the one with the least squared error, then the scale that
    fits its codes best. `stored` gives a scale as the format can hold it.

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
    return _half(scale, "scale")


def _int4_codes(g: Array) -> tuple[NDArray[np.uint8], NDArray[np.int8], Array]:
    """Codes, the groups' s and the rows' scales; the largest scale that is tried of a row has s = 127 or -127."""
    row = np.abs(g).max(axis=(1, 2)) / np.float32(min(map(abs, _INT4_DIVISORS)) * _LARGEST_ROOT**2)
    row[row < np.finfo(np.float32).tiny] = 0  # its reciprocal might be infinite

    def root(scale: Array) -> Array:
        return np.copysign(np.minimum(np.rint(np.sqrt(np.abs(scale))), np.float32(_LARGEST_ROOT)), scale)

    in_rows = g * _inverse(row)[:, None, None]
    codes, scale = _symmetric_codes(in_rows, 8, _INT4_DIVISORS, lambda scale: signed_square(root(scale)))
    return codes, root(scale).astype(np.int8), row


def signed_square(s: NDArray) -> Array:
    """s abs(s) in float32, exact."""
    s = s.astype(np.float32)
    return s * np.abs(s)


def _int4_affine_codes(g: Array) -> tuple[NDArray[np.uint8], Array, Array]:
    """Affine int4: the range [low, high] shrunk a little at either end where that lowers the squared error."""
    low, high = g.min(axis=2), g.max(axis=2)
    span = high - low
    best_scale = np.zeros(low.shape, np.float32)
    best_minimum = np.zeros(low.shape, np.float32)
    best_codes = np.zeros(g.shape, np.uint8)
    best_error = np.full(low.shape, np.inf, np.float32)
    for cut_low, cut_high in ((0.0, 0.0), (0.04, 0.0), (0.0, 0.04), (0.04, 0.04), (0.09, 0.0), (0.0, 0.09)):
        minimum = _half(low + np.float32(cut_low) * span, "minimum")
        top = high - np.float32(cut_high) * span
        scale = _half(np.maximum(top - minimum, 0) / np.float32(15), "scale")
        codes = np.clip(np.rint((g - minimum[..., None]) * _inverse(scale)[..., None]), 0, 15)
        error = np.square(codes * scale[..., None] + minimum[..., None] - g).sum(axis=2)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_minimum = np.where(better, minimum, best_minimum)
        best_codes = np.where(better[..., None], codes.astype(np.uint8), best_codes)
    return best_codes, best_scale, best_minimum


def quantize(w: Array, format: str, group_size: int = STEP) -> QuantizedTensor:
    """Round a float32 (d, k) weight into `format`.

    Raises QuantizationError for NaN or infinite weights, scales beyond float16, unknown formats.
    """
    format = check_format(format, group_size)
    w = np.ascontiguousarray(w, np.float32)
    if w.ndim != 2 or 0 in w.shape:
        raise QuantizationError(f"a weight to quantize has two dimensions, found shape {w.shape}")
    if not np.isfinite(w).all():
        row, column = np.argwhere(~np.isfinite(w))[0]
        raise QuantizationError(f"weight is {w[row, column]} at [{row}, {column}]; quantization needs finite values")
    # Blocks of rows keep the temporaries of the scale search in the processor's cache.
    rows = max(TILE_ROWS, (1 << 16) // w.shape[1] // TILE_ROWS * TILE_ROWS)
    out = _empty(format, (w.shape[0], w.shape[1]), group_size)
    for start in range(0, w.shape[0], rows):
        g = _groups(w[start : start + rows], group_size)
        minimum: Array | None = None
        row_scale: Array | None = None
        codes: NDArray
        scale: NDArray
        if format == "int8":
            codes, scale = _int8_codes(g)
        elif format == "int6":
            codes, scale = _symmetric_codes(g, 32, _INT6_DIVISORS, _float16_scale)
        elif format == "int4":
            codes, scale, row_scale = _int4_codes(g)
        elif format == "int4_f16":
            codes, scale = _symmetric_codes(g, 8, _INT4_DIVISORS, _float16_scale)
        else:
            codes, scale, minimum = _int4_affine_codes(g)
        _store(out, start, codes.reshape(len(g), -1), scale, minimum, row_scale)
    return out


def from_codes(
    codes: NDArray,
    scale: NDArray,
    minimum: NDArray | None,
    format: str,
    group_size: int = STEP,
) -> QuantizedTensor:
    """Pack given codes (d, k), scales and minima (d, n_groups) without rounding the codes again.

    Codes are int8 for `int8`, 0..63 for `int6`, 0..15 otherwise. Scales and minima become float16, so that `int4`
    cannot be made this way. Raises QuantizationError when the arrays do not belong together.
    """
    format = check_format(format, group_size)
    if format == "int4":
        raise QuantizationError("int4 has no float16 scales; with them the codes are int4_f16")
    d, k = codes.shape
    grid = (d, _ceil_div(k, group_size))
    if scale.shape != grid or (minimum is None) != (format != "int4_affine"):
        raise QuantizationError(f"{format} codes {codes.shape} need scales {grid}, found {scale.shape}")
    if minimum is not None and minimum.shape != grid:
        raise QuantizationError(f"{format} codes {codes.shape} need minima {grid}, found {minimum.shape}")
    out = _empty(format, (d, k), group_size)
    k_padded = grid[1] * group_size
    if k_padded != k:
        codes = np.pad(codes, ((0, 0), (0, k_padded - k)), constant_values=CODE_OFFSET[format])
    scale = _half(np.asarray(scale, np.float32), "scale")
    if minimum is not None:
        minimum = _half(np.asarray(minimum, np.float32), "minimum")
    _store(out, 0, codes, scale, minimum)
    return out


# ------------------------------------------------------------------------------------- codes <-> the layout


def _empty(format: Format, shape: tuple[int, int], group_size: int) -> QuantizedTensor:
    arrays = {name: np.zeros(s, t) for name, (t, s) in packed_shapes(format, shape, group_size).items()}
    return QuantizedTensor(format, shape, group_size, **arrays)


def _store(
    out: QuantizedTensor,
    start: int,
    codes: NDArray,
    scale: NDArray,
    minimum: Array | None = None,
    row_scale: Array | None = None,
) -> None:
    """Write rows [start, start + len(codes)) of plain codes (n, k_padded) into the tiles of `out`."""
    n, k_padded = codes.shape
    tiles = slice(start // TILE_ROWS, start // TILE_ROWS + _ceil_div(n, TILE_ROWS))
    padding = (-n) % TILE_ROWS
    if padding:
        codes = np.pad(codes, ((0, padding), (0, 0)), constant_values=CODE_OFFSET[out.format])
        scale = np.pad(scale, ((0, padding), (0, 0)))
        minimum = None if minimum is None else np.pad(minimum, ((0, padding), (0, 0)))
        row_scale = None if row_scale is None else np.pad(row_scale, (0, padding))
    steps = k_padded // STEP
    # (tile, row, step, quad, 4) -> (tile, step, quad, row, 4)
    quads = codes.view(np.uint8).reshape(-1, TILE_ROWS, steps, 8, 4).transpose(0, 2, 3, 1, 4)
    if out.format == "int8":
        out.codes[tiles] = quads.reshape(-1, steps, 512)
    else:
        low = quads & 15
        out.codes[tiles, :, :256] = (low[:, :, :4] | (low[:, :, 4:] << 4)).reshape(-1, steps, 256)
        if out.format == "int6":
            upper = (quads >> 4).reshape(-1, steps, 2, 4, TILE_ROWS, 4) << _UPPER_SHIFT
            out.codes[tiles, :, 256:] = np.bitwise_or.reduce(upper, axis=3).reshape(-1, steps, 128)

    def tiled(grid: NDArray) -> NDArray:
        return grid.reshape(-1, TILE_ROWS, grid.shape[1]).transpose(0, 2, 1)

    out.scale[tiles] = tiled(scale)
    if minimum is not None and out.minimum is not None:
        out.minimum[tiles] = tiled(minimum)
    if row_scale is not None and out.row_scale is not None:
        out.row_scale[tiles] = row_scale.reshape(-1, TILE_ROWS)


_ALL = slice(None)


def unpack(t: QuantizedTensor, tiles: NDArray[np.intp] | slice = _ALL) -> tuple[NDArray, Array, Array | None]:
    """Plain codes (rows, k_padded) and per-group scale and minimum (rows, n_groups) of the chosen tiles.

    All of them have the quarter tiles behind them.
    """
    codes = t.codes[tiles]
    n, steps = len(codes), t.n_groups * t.group_size // STEP
    missing = steps * STEP_BYTES[t.format] - t.tile_lines * 64
    if missing:  # ends with the last quad
        codes = np.pad(codes.reshape(n, t.tile_lines * 64), ((0, 0), (0, missing)))
    if t.format == "int8":
        quads = codes.view(np.int8).reshape(n, steps, 8, TILE_ROWS, 4)
    else:
        packed = codes[..., :256].reshape(n, steps, 4, TILE_ROWS, 4)
        quads = np.concatenate([packed & 15, packed >> 4], axis=2)
        if t.format == "int6":
            upper = codes[..., 256:].reshape(n, steps, 2, 1, TILE_ROWS, 4) >> _UPPER_SHIFT & 3
            quads |= upper.reshape(quads.shape) << 4
    plain = quads.transpose(0, 3, 1, 2, 4).reshape(n * TILE_ROWS, steps * STEP)

    def rows(grid: Array) -> Array:
        return grid.transpose(0, 2, 1).reshape(n * TILE_ROWS, t.n_groups)

    if t.row_scale is None:
        scale = t.scale[tiles].astype(np.float32)
    else:
        scale = signed_square(t.scale[tiles]) * t.row_scale[tiles][:, None]
    if tiles is _ALL and t.quarter_codes is not None and t.quarter_scale is not None:
        lines = t.quarter_codes.view(np.int8).reshape(t.n_quarters, -1, QUARTER_ROWS, 64 // QUARTER_ROWS)
        last = lines.transpose(0, 2, 1, 3).reshape(t.n_quarters * QUARTER_ROWS, steps * STEP)
        last_scale = t.quarter_scale.transpose(0, 2, 1).reshape(len(last), t.n_groups).astype(np.float32)
        return np.concatenate([plain, last]), np.concatenate([rows(scale), last_scale]), None
    return plain, rows(scale), None if t.minimum is None else rows(t.minimum[tiles].astype(np.float32))


def _dequantize_tiles(t: QuantizedTensor, tiles: NDArray[np.intp] | slice) -> Array:
    """float32 (rows, k) of the chosen tiles, padding rows included."""
    codes, scale, minimum = unpack(t, tiles)
    groups = codes.reshape(len(codes), t.n_groups, t.group_size).astype(np.float32)
    groups -= CODE_OFFSET[t.format]
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
