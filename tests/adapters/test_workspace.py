"""Blocks of merging: aligned, bounded, and given back to the system whichever thread asked for them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgecal.adapters.merge.workspace import Arena
from tests.cli.shell import SOURCES


def test_arrays_are_aligned_apart_and_as_large_as_asked():
    arena = Arena(100)
    arrays = [arena.empty(shape) for shape in ((3, 5), (0, 4), (7,), (1000, 3))]  # the last needs a block of its own
    for number, array in enumerate(arrays):
        array[...] = number
    assert [array.shape for array in arrays] == [(3, 5), (0, 4), (7,), (1000, 3)]
    assert all(array.ctypes.data % 64 == 0 and (array == number).all() for number, array in enumerate(arrays))


ASKING = """
import threading
from pathlib import Path
import numpy as np
from edgecal.adapters.merge.workspace import Arena
from edgecal.memory import release_free

def anonymous():
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) >> 10

def ask():
    [Arena(64).empty((64,)) for _ in range(8)]  # leave small pieces, so that nothing comes to lie behind the block
    result.append(Arena(5 << 20).empty((5 << 20,)))
    result[0][:] = 1

np.empty(30 << 20, np.uint8)  # once that is freed, glibc takes what is smaller out of a heap
before, result = anonymous(), []
thread = threading.Thread(target=ask)
thread.start()
thread.join()
held = anonymous() - before
result.clear()
release_free()
print(held, anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_thread_asked_for_goes_back():
    """In a process of its own: what glibc does depends on what was allocated before."""
    done = subprocess.run([sys.executable, "-c", ASKING], env=os.environ | {"PYTHONPATH": SOURCES}, capture_output=True)
    held, kept = map(int, done.stdout.split())
    assert held >= 20 and kept < 5, done.stderr


def test_more_than_there_is_is_a_memory_error():
    with pytest.raises(MemoryError, match="bytes for merging"):
        Arena().empty((1 << 45,))
