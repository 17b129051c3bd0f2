"""KVCache: keys and values of the positions seen so far, one pair of arrays per layer.

Arrays are (n_layers, n_kv_heads, capacity, width): contiguous per head, as attention reads them, with head_dim padded
to 16 so that kernels need no tail (the padding stays zero). Capacity grows by blocks: a long context costs what it
uses.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.quant import Array

from .config import ModelConfig
from .errors import OptionError

BLOCK = 256  # positions by which the cache grows
DTYPES = {"fp32": np.float32, "fp16": np.float16}


class KVCache:
    """Cache for one sequence. `length` positions are filled; `dtype` is "fp16" or "fp32"."""

    def __init__(self, config: ModelConfig, dtype: str = "fp16") -> None:
        if dtype not in DTYPES:
            raise OptionError(f"cache dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
        self.dtype = dtype
        self.length = 0
        self._head_dim = config.head_dim
        shape = (config.n_kv_heads, 0, -(-config.head_dim // 16) * 16)
        self.keys = np.zeros((config.n_layers, *shape), DTYPES[dtype])
        self.values = np.zeros((config.n_layers, *shape), DTYPES[dtype])

    @property
    def capacity(self) -> int:
        """Positions that there is room for."""
        return min(self.keys.shape[2], self.values.shape[2])  # an interrupted `reserve` may have grown one of them

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def reserve(self, n_positions: int) -> None:
        """Make room for `n_positions` in all; what is there stays."""
        if n_positions <= self.capacity:
            return
        capacity = -(-n_positions // BLOCK) * BLOCK
        self.keys, self.values = self._grown(self.keys, capacity), self._grown(self.values, capacity)

    def _grown(self, old: NDArray, capacity: int) -> NDArray:
        grown = np.zeros((*old.shape[:2], capacity, old.shape[3]), old.dtype)
        grown[:, :, : self.length] = old[:, :, : self.length]
        return grown

    def write(self, layer: int, keys: Array, values: Array) -> tuple[NDArray, NDArray]:
        """Put (T, K, head_dim) keys and values at `length`..; returns the layer's arrays. `advance` ends the step."""
        span = slice(self.length, self.length + len(keys))
        self.keys[layer][:, span, : self._head_dim] = keys.transpose(1, 0, 2)
        self.values[layer][:, span, : self._head_dim] = values.transpose(1, 0, 2)
        return self.keys[layer], self.values[layer]

    def advance(self, n_positions: int) -> None:
        self.length += n_positions

    def copy_from(self, other: KVCache, length: int) -> None:
        """Become the first `length` positions of `other`, a cache of the same model and dtype."""
        self.length = 0
        self.reserve(length)
        self.keys[:, :, :length] = other.keys[:, :, :length]
        self.values[:, :, :length] = other.values[:, :, :length]
        self.length = length

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.length = min(self.length, length)
