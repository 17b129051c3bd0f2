"""KVCache: keys and values of the positions seen so far.

How they lie is edgecal_kernels.cached's business. Capacity grows by blocks: a long context costs what it uses.
"""

from __future__ import annotations

from numpy.typing import NDArray

from edgecal_kernels.cached import TILE, TYPES, Cached

from .config import ModelConfig
from .errors import OptionError

BLOCK = 256  # positions by which the cache grows
DTYPES = tuple(TYPES)


def position_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes that a position takes in all layers."""
    return Cached(dtype, config.n_layers, config.n_kv_heads, TILE, config.head_dim).nbytes // TILE


class KVCache:
    """Cache for one sequence. `length` positions are filled; `dtype` is "fp16", "fp32" or "int8".

    int8 takes 58 % of fp16's memory at a head_dim of 64. What float16 cannot hold (above 65,504) is saturated in fp16
    and int8. OptionError for another dtype.
    """

    def __init__(self, config: ModelConfig, dtype: str = "fp16") -> None:
        if dtype not in DTYPES:
            raise OptionError(f"cache dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
        self.dtype = dtype
        self.length = 0
        self.cached = Cached(dtype, config.n_layers, config.n_kv_heads, 0, config.head_dim)

    @property
    def keys(self) -> NDArray:
        """In tiles, as `Cached` says."""
        return self.cached.keys

    @property
    def values(self) -> NDArray:
        """(n_layers, n_kv_heads, capacity, width)."""
        return self.cached.values

    @property
    def capacity(self) -> int:
        """Positions that there is room for."""
        return self.cached.capacity

    @property
    def nbytes(self) -> int:
        return self.cached.nbytes

    def reserve(self, n_positions: int) -> None:
        """Make room for `n_positions` in all; what is there stays."""
        if n_positions > self.capacity:
            self.cached = self.cached.copy(-(-n_positions // BLOCK) * BLOCK, self.length)

    def copy_from(self, other: KVCache, length: int) -> None:
        """Become the first `length` positions of `other`, a cache of the same model and dtype."""
        self.length = 0
        self.cached = other.cached.copy(-(-length // BLOCK) * BLOCK, length)
        self.length = length

    def advance(self, n_positions: int) -> None:
        self.length += n_positions

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.length = min(self.length, length)
