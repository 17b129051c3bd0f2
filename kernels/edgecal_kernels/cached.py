"""Cached: the arrays that hold a sequence's keys and values, and the one description of their layout.

A head's positions follow one another, so that attention reads memory in order. Values lie position by position; keys
lie in tiles of 16 positions, element by element, so that a register holds one element of 16 keys and a query's scores
come out side by side, without sums across a register. head_dim is padded to 16 with zeros.

float16 and float32 hold the numbers themselves, int8 holds integers of [-127, 127] times a scale. Values take one
float32 scale per vector (one head, one position). Keys cannot: a few of their channels may be a hundred times as large
as the others (a bias of the projection makes them, and rope moves their weight between the two channels of a pair), and
a common scale would drown the others in rounding. So eight elements, four neighbouring pairs, have a float16 scale,
max|x| / 127, and lie together: channels 4 g ... 4 g + 3 of each half at places 8 g ... 8 g + 7. That the extreme itself
is a code times its scale matters as much as the size of the group: most of a score comes from it.

float16 ends at 65,504. What is larger, infinities included, is clamped to it, in float16 and in int8: an infinity would
turn everything that it is averaged with into NaN, even with weight 0. NaN stays NaN: in int8 with all of its group.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .quant import Array

TILE = 16  # positions of a tile of keys
TYPES = {"fp16": np.float16, "fp32": np.float32, "int8": np.int8}
FP16, FP32, INT8 = range(3)  # the places of TYPES, for kernels
PAIRS, KEY_GROUP = 4, 8  # of keys that share a scale: pairs of rope, elements
LARGEST = np.float32(65504)
TINY = np.float32(2.0**-100)  # the inverse of a smaller scale might overflow: its numbers become 0


class Addresses(NamedTuple):
    """What compiled code goes by: where the arrays of a `Cached` lie (0: not there), the place of its dtype in TYPES,
    its capacity."""

    keys: Any
    values: Any
    key_scales: Any
    value_scales: Any
    kind: Any
    capacity: Any


class Cached:
    """Room for `capacity` positions (a multiple of 16); everything zero.

    keys (L, K, capacity / 16, width, 16) and values (L, K, capacity, width) in the type of `dtype`. For int8 only,
    key_scales float16 (L, K, capacity / 16, width / 8, 16) and value_scales float32 (L, K, capacity).
    """

    def __init__(self, dtype: str, n_layers: int, n_kv_heads: int, capacity: int, head_dim: int) -> None:
        assert capacity % TILE == 0, f"{capacity} positions are no whole tiles"
        self.dtype, self.head_dim, self.capacity = dtype, head_dim, capacity
        width = -(-head_dim // 16) * 16
        tiles = (n_layers, n_kv_heads, capacity // TILE)
        self.keys: NDArray = np.zeros((*tiles, width, TILE), TYPES[dtype])
        self.values: NDArray = np.zeros((n_layers, n_kv_heads, capacity, width), TYPES[dtype])
        self.key_scales: NDArray[np.float16] | None = None
        self.value_scales: Array | None = None
        self._order = np.arange(head_dim)  # where the channels of a key lie
        if dtype == "int8":
            self.key_scales = np.zeros((*tiles, width // KEY_GROUP, TILE), np.float16)
            self.value_scales = np.zeros((n_layers, n_kv_heads, capacity), np.float32)
            part, pair = np.divmod(self._order, (head_dim + 1) // 2)
            self._order = pair // PAIRS * KEY_GROUP + part * PAIRS + pair % PAIRS
        keys, values, key_scales, value_scales = (
            0 if array is None else array.ctypes.data
            for array in (self.keys, self.values, self.key_scales, self.value_scales)
        )
        kind = list(TYPES).index(dtype)
        self.addresses = Addresses(keys, values, key_scales, value_scales, kind, capacity)

    @property
    def nbytes(self) -> int:
        arrays = (self.keys, self.values, self.key_scales, self.value_scales)
        return sum(array.nbytes for array in arrays if array is not None)

    def copy(self, capacity: int, length: int) -> Cached:
        """The first `length` positions, with room for `capacity`."""
        n_layers, n_kv_heads = self.values.shape[:2]
        new = Cached(self.dtype, n_layers, n_kv_heads, capacity, self.head_dim)
        tiles = -(-length // TILE)
        new.keys[:, :, :tiles] = self.keys[:, :, :tiles]
        new.values[:, :, :length] = self.values[:, :, :length]
        if self.key_scales is not None and self.value_scales is not None:
            assert new.key_scales is not None and new.value_scales is not None
            new.key_scales[:, :, :tiles] = self.key_scales[:, :, :tiles]
            new.value_scales[:, :, :length] = self.value_scales[:, :, :length]
        return new

    def read(self, layer: int, length: int) -> tuple[Array, Array]:
        """Keys and values of positions [0, length) of a layer as float32 (K, length, head_dim)."""
        n_kv_heads, _, width = self.values.shape[1:]
        tiles = slice(0, -(-length // TILE))
        keys = self.keys[layer, :, tiles].astype(np.float32)
        values = self.values[layer, :, :length].astype(np.float32)
        if self.key_scales is not None and self.value_scales is not None:
            keys *= self.key_scales[layer, :, tiles].astype(np.float32).repeat(KEY_GROUP, axis=2)
            values *= self.value_scales[layer, :, :length, None]
        keys = keys.transpose(0, 1, 3, 2).reshape(n_kv_heads, -1, width)[:, :length]
        return keys[..., self._order], values[..., : self.head_dim]

    def write(self, layer: int, pos: int, keys: Array, values: Array) -> None:
        """Put float32 (T, K, head_dim) keys and values at positions pos.. of a layer."""
        positions = np.arange(pos, pos + len(keys))
        tile, lane = np.divmod(positions, TILE)
        if self.dtype != "fp32":
            keys, values = np.clip(keys, -LARGEST, LARGEST), np.clip(values, -LARGEST, LARGEST)
        # Two indices apart from each other put their axis first: (T, K, head_dim)
        if self.key_scales is None or self.value_scales is None:
            self.keys[layer, :, tile, : self.head_dim, lane] = keys
            self.values[layer, :, positions, : self.head_dim] = values
            return
        placed = np.zeros((*keys.shape[:2], self.values.shape[3]), np.float32)
        placed[..., self._order] = keys
        groups = placed.reshape(*keys.shape[:2], -1, KEY_GROUP)
        key_scales = (np.abs(groups).max(axis=3) / np.float32(127)).astype(np.float16)
        value_scales = np.abs(values).max(axis=2) / np.float32(127)
        self.keys[layer, :, tile, :, lane] = _codes(groups, key_scales.astype(np.float32)).reshape(placed.shape)
        self.values[layer, :, positions, : self.head_dim] = _codes(values, value_scales)
        self.key_scales[layer, :, tile, :, lane] = key_scales
        self.value_scales[layer, :, positions] = value_scales


def _codes(x: Array, scale: Array) -> NDArray[np.int8]:
    """x (..., n) over scale (...), rounded to integers."""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale >= TINY)[..., None]
    wanted = np.multiply(x, inverse, out=np.zeros_like(x), where=inverse > 0)
    return np.clip(np.rint(wanted), -127, 127).astype(np.int8)
