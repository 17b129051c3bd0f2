"""The packed layout: where the code of a row and a column lies.

It is made for the kernels and is the same on every machine, so that a file can be memory-mapped wherever it was
packed. 16 rows form a tile, and inside a tile the columns lie in steps of 32. Formats differ in the bits of a code:

    8 bits  a step is 512 bytes: [8 column quads][16 rows][4 columns]
    4 bits  a step is 256 bytes: [4 column quads][16 rows][4 columns],
            low nibble = column 4q + j, high nibble = column 16 + 4q + j
    6 bits  a step is 384 bytes: the low four bits of the codes as above, then their upper two bits in two lines
            [2 halves][16 rows][4 columns]: bits 2q and 2q + 1 belong to column 16h + 4q + j
    5 bits  a step is 320 bytes: the low four bits as above, then the fifth ones in a line [16 rows][4 columns]: bit
            4h + q belongs to column 16h + 4q + j

One 64-byte line thus carries four columns of sixteen rows, four bytes in every 32-bit lane: exactly what the
dot-product instructions want (one AVX-512 register, two of AVX2, four of NEON), with no horizontal sums. Rows are
padded to 16 (with scale 0) and columns to the group size (they meet zero activations).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

STEP = 32  # columns that a kernel consumes at once; also the group of the int8 activations
SUPER = 256  # columns that share the float16 numbers of two-level scales
TILE_ROWS = 16
QUARTER_ROWS = 4
LINE = 64  # bytes
_UPPER_SHIFT = np.arange(0, 8, 2, dtype=np.uint8)[:, None, None]  # of the upper bits of a quad, by quad
_FIFTH_SHIFT = np.arange(8, dtype=np.uint8)[:, None, None]

Codes = NDArray[Any]
"""Bytes of n tiles, either as steps (n, steps, bytes of a step) or as quads (n, steps, 8, 16, 4)."""


class Packing(NamedTuple):
    """How codes of some bits fill a step: quads to steps and back."""

    bits: int
    dtype: type[np.integer]  # of a plain code
    pack: Callable[[Codes], Codes]
    unpack: Callable[[Codes], Codes]

    @property
    def step_bytes(self) -> int:
        return self.bits * STEP * TILE_ROWS // 8


def _pack_bytes(quads: Codes) -> Codes:
    return quads.reshape(*quads.shape[:2], 8 * LINE)


def _unpack_bytes(steps: Codes) -> Codes:
    return steps.reshape(*steps.shape[:2], 8, TILE_ROWS, 4)


def _pack_nibbles(quads: Codes) -> Codes:
    return (quads[:, :, :4] & 15 | quads[:, :, 4:] << 4).reshape(*quads.shape[:2], 4 * LINE)


def _unpack_nibbles(steps: Codes) -> Codes:
    packed = steps.reshape(*steps.shape[:2], 4, TILE_ROWS, 4)
    return np.concatenate([packed & 15, packed >> 4], axis=2)


def _pack_six_bits(quads: Codes) -> Codes:
    upper = (quads >> 4).reshape(*quads.shape[:2], 2, 4, TILE_ROWS, 4) << _UPPER_SHIFT
    both = np.bitwise_or.reduce(upper, axis=3).reshape(*quads.shape[:2], 2 * LINE)
    return np.concatenate([_pack_nibbles(quads), both], axis=2)


def _unpack_six_bits(steps: Codes) -> Codes:
    upper = steps[..., 4 * LINE :].reshape(*steps.shape[:2], 2, 1, TILE_ROWS, 4) >> _UPPER_SHIFT & 3
    return _unpack_nibbles(steps[..., : 4 * LINE]) | upper.reshape(*steps.shape[:2], 8, TILE_ROWS, 4) << 4


def _pack_five_bits(quads: Codes) -> Codes:
    fifth = np.bitwise_or.reduce(quads >> 4 << _FIFTH_SHIFT, axis=2).reshape(*quads.shape[:2], LINE)
    return np.concatenate([_pack_nibbles(quads), fifth], axis=2)


def _unpack_five_bits(steps: Codes) -> Codes:
    fifth = steps[..., 4 * LINE :].reshape(*steps.shape[:2], 1, TILE_ROWS, 4) >> _FIFTH_SHIFT & 1
    return _unpack_nibbles(steps[..., : 4 * LINE]) | fifth << 4


BYTES = Packing(8, np.int8, _pack_bytes, _unpack_bytes)
SIX_BITS = Packing(6, np.uint8, _pack_six_bits, _unpack_six_bits)
FIVE_BITS = Packing(5, np.uint8, _pack_five_bits, _unpack_five_bits)
NIBBLES = Packing(4, np.uint8, _pack_nibbles, _unpack_nibbles)


def pack(codes: NDArray, packing: Packing) -> Codes:
    """The steps of plain codes (16 n, 32 steps), one byte each."""
    quads = codes.view(np.uint8).reshape(-1, TILE_ROWS, codes.shape[1] // STEP, 8, 4)
    return packing.pack(quads.transpose(0, 2, 3, 1, 4))


def unpack(steps: Codes, packing: Packing) -> NDArray[Any]:
    """Plain codes (16 n, 32 steps) of steps."""
    quads = packing.unpack(steps)
    codes = quads.transpose(0, 3, 1, 2, 4).reshape(len(steps) * TILE_ROWS, steps.shape[1] * STEP)
    return codes.view(packing.dtype)


def by_tiles(values: NDArray) -> NDArray:
    """Values (16 n, ...) of rows with the 16 rows of a tile last: (n, ..., 16)."""
    return np.moveaxis(values.reshape(-1, TILE_ROWS, *values.shape[1:]), 1, -1)


def by_rows(tiles: NDArray) -> NDArray:
    """Back from `by_tiles`, for tiles of any number of rows."""
    return np.moveaxis(tiles, -1, 1).reshape(tiles.shape[0] * tiles.shape[-1], *tiles.shape[1:-1])
