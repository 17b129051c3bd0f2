"""Cached: the arrays that hold a sequence's keys and values, and the one description of their layout.

A head's positions follow one another, so that attention reads memory in order. Values lie position by position; keys
lie in tiles of 16 positions, element by element, so that a register holds one element of 16 keys and a query's scores
come out side by side, without sums across a register. head_dim is padded to 16 with zeros.

float16 and float32 hold the numbers themselves. int8 holds a vector (one head, one position) as whole numbers times
one float32 scale, max|x| / 127. A scale per vector costs nothing to apply: it multiplies a score or a weight, never an
element.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .quant import Array

TILE = 16  # positions of a tile of keys
TYPES = {"fp16": np.float16, "fp32": np.float32, "int8": np.int8}
FP16, FP32, INT8 = range(3)  # the places of TYPES, for kernels


class Cached:
    """Room for `capacity` positions (a multiple of 16); everything zero.

    keys (L, K, capacity / 16, width, 16) and values (L, K, capacity, width) in the type of `dtype`; key_scales and
    value_scales float32 (L, K, capacity), for int8 only. `addresses` is what the compiled code goes by: keys, values,
    both scales (0: not there), the place of `dtype` in TYPES, the capacity.
    """

    def __init__(self, dtype: str, n_layers: int, n_kv_heads: int, capacity: int, head_dim: int) -> None:
        assert capacity % TILE == 0, f"{capacity} positions are no whole tiles"
        self.dtype, self.head_dim, self.capacity = dtype, head_dim, capacity
        width = -(-head_dim // 16) * 16
        self.keys: NDArray = np.zeros((n_layers, n_kv_heads, capacity // TILE, width, TILE), TYPES[dtype])
        self.values: NDArray = np.zeros((n_layers, n_kv_heads, capacity, width), TYPES[dtype])
        self.key_scales: Array | None = None
        self.value_scales: Array | None = None
        if dtype == "int8":
            self.key_scales = np.zeros((n_layers, n_kv_heads, capacity), np.float32)
            self.value_scales = np.zeros((n_layers, n_kv_heads, capacity), np.float32)
        arrays = (self.keys, self.values, self.key_scales, self.value_scales)
        places = [0 if array is None else array.ctypes.data for array in arrays]
        self.addresses = (*places, list(TYPES).index(dtype), capacity)

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
            new.key_scales[:, :, :length] = self.key_scales[:, :, :length]
            new.value_scales[:, :, :length] = self.value_scales[:, :, :length]
        return new

    def read(self, layer: int, length: int) -> tuple[Array, Array]:
        """Keys and values of positions [0, length) of a layer as float32 (K, length, head_dim)."""
        n_kv_heads, _, width = self.values.shape[1:]
        tiles = self.keys[layer, :, : -(-length // TILE)].astype(np.float32)
        keys = tiles.transpose(0, 1, 3, 2).reshape(n_kv_heads, -1, width)[:, :length]
        values = self.values[layer, :, :length].astype(np.float32)
        if self.key_scales is not None and self.value_scales is not None:
            keys = keys * self.key_scales[layer, :, :length, None]
            values = values * self.value_scales[layer, :, :length, None]
        return keys[..., : self.head_dim], values[..., : self.head_dim]

    def write(self, layer: int, pos: int, keys: Array, values: Array) -> None:
        """Put float32 (T, K, head_dim) keys and values at positions pos.. of a layer."""
        positions = np.arange(pos, pos + len(keys))
        stored_keys, key_scales = self._rounded(keys.transpose(1, 0, 2))
        stored_values, value_scales = self._rounded(values.transpose(1, 0, 2))
        # Two indices apart from each other put their axis first: (T, K, head_dim)
        self.keys[layer, :, positions // TILE, : self.head_dim, positions % TILE] = stored_keys.transpose(1, 0, 2)
        self.values[layer, :, positions, : self.head_dim] = stored_values.transpose(1, 0, 2)
        if self.key_scales is not None and self.value_scales is not None:
            self.key_scales[layer, :, positions] = key_scales.T
            self.value_scales[layer, :, positions] = value_scales.T

    def _rounded(self, x: Array) -> tuple[NDArray, Array]:
        """x (K, T, head_dim) in the type of the cache, and the scales (K, T), of meaning for int8 only."""
        if self.dtype != "int8":
            return x.astype(TYPES[self.dtype]), np.zeros(x.shape[:2], np.float32)
        extreme = np.abs(x).max(axis=2)
        inverse = np.divide(np.float32(127), extreme, out=np.zeros_like(extreme), where=extreme > 0)
        return np.rint(x * inverse[..., None]).astype(np.int8), extreme / np.float32(127)
