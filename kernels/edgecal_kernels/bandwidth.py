"""A plain read of memory: the yardstick that decoding is held against.

The read must wait for memory and for nothing else. Unsigned indices, because a signed one brings a test for
wrap-around that keeps the compiler from using vectors; xor, because a sum of floats is a chain. The result depends on
every word, so that the compiler cannot leave one out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


@lru_cache(maxsize=1)
def plain_read() -> Callable[[Words], int]:
    """The function that gives the xor of all words; compiled where Numba is there (in a second), else NumPy's.

    It runs without the interpreter's lock, so several threads read at the same time.
    """
    try:
        import numba
    except ImportError:
        return lambda words: int(np.bitwise_xor.reduce(words))

    @numba.njit(nogil=True)
    def read(words: Any) -> Any:
        mixed = np.uint64(0)
        for i in range(np.uint64(len(words))):
            mixed ^= words[i]
        return mixed

    read(np.zeros(1, np.uint64))
    return lambda words: int(read(words))
