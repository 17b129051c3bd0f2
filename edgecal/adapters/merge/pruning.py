"""Pruning a tensor: the largest entries, or random ones.

`find_largest` describes exactly k = int(density * size) entries as PEFT keeps them; where the k-th magnitude occurs
more than once (common in fp16 files) those that come first are kept, while torch.topk promises no order.

A random mask is made of PCG64's raw 64-bit words: the stream of NumPy's bit generators is fixed for good (NEP 19),
unlike that of its distributions and of torch.bernoulli, so one seed means the same mask on every machine and version.
The density is 24 bits, rounded. A stretch of 32,768 entries takes one byte each, low bytes first; most are decided by
it, and those whose byte equals the upper 8 bits of the density take 16 bits more, from the words that follow (none
where the lower 16 bits are 0).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..lora import Array
from ..merge_kernels import Kernels, plain
from .options import Option
from .workspace import scratch

DENSITY = Option(
    "density", "share of the entries that is kept", default=0.5, low=0, high=1, above_low=True, several="may"
)
STRETCH = 32_768  # part of the definition of a mask, here and in the kernels: never change it
SEED = Option("seed", "of the random masks", kind="whole", default=0, low=0)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_ABOVE_ALL = 0x7F800000  # the bits of infinity


class Trim(NamedTuple):
    """What to keep of a tensor: entries before `cut` whose magnitude, as bits, is at least `threshold`, and those
    behind it where it is larger."""

    threshold: int
    cut: int


def find_largest(tensor: Array, density: float, kernels: Kernels = None) -> Trim:
    """The int(density * size) largest magnitudes of a float32 tensor."""
    size, count = tensor.size, int(density * tensor.size)
    if count >= size:
        return Trim(0, size)
    if count == 0:
        return Trim(_ABOVE_ALL, 0)
    bits = plain(tensor).reshape(-1).view(np.int32)
    magnitude = scratch("magnitude", (size + 4,)).view(np.int32)
    if kernels is not None:
        counts = scratch("counts", (4096,)).view(np.int64)
        return Trim(*kernels.largest_magnitudes(bits.view(np.uint32), count, magnitude.view(np.uint32), counts))
    magnitude = np.bitwise_and(bits, _MAGNITUDE, out=magnitude[:size])
    magnitude.partition(size - count)  # the order of the bits is that of positive floats; twice as fast
    threshold = magnitude[size - count]
    np.bitwise_and(bits, _MAGNITUDE, out=magnitude)
    surplus = int(np.count_nonzero(magnitude >= threshold)) - count
    if surplus == 0:
        return Trim(int(threshold), size)
    ties = np.flatnonzero(magnitude == threshold)
    return Trim(int(threshold), int(ties[len(ties) - surplus - 1]) + 1)


def trimmed(part: Array, trim: Trim, start: int = 0) -> Array:
    """The flat piece of a tensor that begins at `start`, with 0 for what `trim` does not keep."""
    magnitude = part.view(np.int32) & _MAGNITUDE
    keep = magnitude > trim.threshold
    before = max(0, trim.cut - start)
    keep[:before] |= magnitude[:before] == trim.threshold
    return part * keep


def trim_arguments(tensors: Sequence[Array], trims: Sequence[Trim]) -> tuple[NDArray[Any], ...]:
    """What the kernels want: addresses (the caller holds the tensors), thresholds and cuts."""
    addresses = np.array([tensor.ctypes.data for tensor in tensors], np.int64)
    return addresses, np.array([t.threshold for t in trims], np.int32), np.array([t.cut for t in trims], np.int64)


class RandomDrop:
    """DARE's drop and rescale of one tensor: each entry with probability `density`, divided by it.

    The mask is one stream, so the tensor is given piece by piece, in order, each but the last of whole stretches.
    """

    def __init__(self, density: float, key: str, kernels: Kernels = None) -> None:
        self._all = density >= 1
        self._divisor = np.float32(density)
        self._upper, self._lower = divmod(min(max(round(density * 2**24), 1), 2**24 - 1), 2**16)
        self._generator = np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))
        self._kernels = kernels
        if kernels is not None:
            values = self._generator.state["state"]
            both = values["state"] << 128 | values["inc"]
            self._state = np.frombuffer(both.to_bytes(32, "big"), ">u8").astype(np.uint64)

    def next(self, piece: Array, out: Array) -> Array:
        """Of a flat piece, in `out`; itself at density 1."""
        if self._all:
            return piece
        if self._kernels is not None:
            self._kernels.drop(piece, self._state, self._upper, self._lower, self._divisor, out)
            return out
        for start in range(0, piece.size, STRETCH):
            stretch = out[start : start + STRETCH]
            np.multiply(piece[start : start + STRETCH], self._mask(stretch.size), out=stretch)
            stretch /= self._divisor
        return out

    def _draw(self, n_bytes: int) -> NDArray[np.uint8]:
        return self._generator.random_raw(-(-n_bytes // 8)).astype("<u8", copy=False).view(np.uint8)[:n_bytes]

    def _mask(self, length: int) -> NDArray[np.bool_]:
        drawn = self._draw(length)
        mask = drawn < np.uint8(self._upper)
        if self._lower:
            undecided = np.flatnonzero(drawn == np.uint8(self._upper))
            mask[undecided] = self._draw(2 * len(undecided)).view("<u2") < np.uint16(self._lower)
        return mask


def random_mask(shape: tuple[int, ...], density: float, key: str) -> NDArray[np.bool_]:
    """True with probability `density`; the same for the same `key` everywhere."""
    ones = np.ones(math.prod(shape), np.float32)
    return RandomDrop(density, key).next(ones, np.empty_like(ones)).reshape(shape) != 0
