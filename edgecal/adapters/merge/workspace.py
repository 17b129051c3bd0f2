"""Memory that merging uses again: a thread's scratch, and large blocks for results.

A merge touches a hundred megabytes, and what costs most is not arithmetic but fresh pages: the kernel clears each of
them before it hands it out. So intermediate arrays are views of buffers that a thread keeps, and results of many
modules lie in one block of huge pages.

Blocks come straight from the system and go back to it. glibc would take them out of the heap of the thread that asks,
and what is free at the end of such a heap it keeps, whatever `malloc_trim` is told: tens of MiB for each thread that
ever merged.
"""

from __future__ import annotations

import math
import mmap
import threading
from contextlib import suppress

import numpy as np

from ..lora import Array

BLOCK = 32_768  # elements that pass through several operations before the next ones do: 128 KiB, half a small L2 cache
_ALIGNMENT = 16  # floats: 64 bytes
_BLOCK = 16 << 20  # floats
_SCRATCH = 2 << 20


class Arena:
    """Hands out float32 arrays from blocks of up to 64 MiB; `expected` floats decide the size of the first.

    Arrays keep their block alive, so an arena belongs to one result.
    """

    def __init__(self, expected: int = 0) -> None:
        self._lock = threading.Lock()
        self._expected = expected
        self._block = np.empty(0, np.float32)
        self._used = 0

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Undefined content, aligned to 64 bytes."""
        size = math.prod(shape)
        with self._lock:
            if self._used + size > self._block.size:
                self._block = _from_the_system(max(size, min(_BLOCK, self._expected)))
                self._used = 0
            start = self._used
            self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return self._block[start : start + size].reshape(shape)


def _from_the_system(n_floats: int) -> Array:
    """Whole pages, which go back when the last view is gone. Raises MemoryError."""
    try:
        memory = mmap.mmap(-1, 4 * n_floats, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{4 * n_floats} bytes for merging: {error.strerror}") from error
    with suppress(OSError, AttributeError):  # a kernel that has none, a system without the word
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.float32)


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.by_name: dict[str, Array] = {}
        self.arena = Arena(_SCRATCH)


_buffers = _Buffers()


def scratch(name: str, shape: tuple[int, ...]) -> Array:
    """Float32 of this shape with undefined content; valid until this thread asks for the same name again."""
    size = math.prod(shape)
    buffer = _buffers.by_name.get(name)
    if buffer is None or buffer.size < size:
        buffer = _buffers.by_name[name] = _buffers.arena.empty((size,))
    return buffer[:size].reshape(shape)
