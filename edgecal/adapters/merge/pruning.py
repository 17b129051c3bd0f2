"""Pruning a tensor: the largest entries, or random ones.

`keep_largest` keeps exactly k = int(density * size) entries as PEFT does; where the k-th magnitude occurs more than
once (common in fp16 files) the entries that come first are kept, while torch.topk promises no order.

`random_mask` is made of PCG64's raw 64-bit words: the stream of NumPy's bit generators is fixed for good (NEP 19),
unlike that of its distributions and of torch.bernoulli, so one seed means the same mask on every machine and version.
The density is 24 bits, rounded. A stretch of 32,768 entries takes one byte each, low bytes first; most are decided by
it, and those whose byte equals the upper 8 bits of the density take 16 bits more, from the words that follow (none
where the lower 16 bits are 0).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..lora import Array
from .factors import BLOCK
from .options import Option
from .workspace import scratch

DENSITY = Option(
    "density", "share of the entries that is kept", default=0.5, low=0, high=1, above_low=True, several="may"
)
_STRETCH = 32_768  # part of the definition of a mask: never change it
SEED = Option("seed", "of the random masks", kind="whole", default=0, low=0)


def keep_largest(tensor: Array, density: float, out: Array) -> Array:
    """`tensor` with all but the int(density * size) largest magnitudes set to zero, in `out`; itself at density 1."""
    if density >= 1:
        return tensor
    size, count = tensor.size, int(density * tensor.size)
    if count == 0:
        out[...] = 0
        return out
    flat, kept = tensor.reshape(-1), out.reshape(-1)
    magnitude = np.abs(flat, out=scratch("magnitude", (size,)))
    magnitude.view(np.int32).partition(size - count)  # the order of the bits is that of positive floats; twice as fast
    threshold = magnitude[size - count]
    surplus = -count
    for start in range(0, size, BLOCK):
        part = flat[start : start + BLOCK]
        keep = (part >= threshold) | (part <= -threshold)
        surplus += int(np.count_nonzero(keep))
        np.multiply(part, keep, out=kept[start : start + BLOCK])
    if surplus:
        ties = np.flatnonzero(np.abs(flat) == threshold)
        kept[ties[len(ties) - surplus :]] = 0
    return out


def keep_random(tensor: Array, density: float, key: str, out: Array) -> Array:
    """Each entry with probability `density`, divided by it, in `out`: DARE's drop and rescale. Itself at density 1."""
    if density >= 1:
        return tensor
    flat, kept = tensor.reshape(-1), out.reshape(-1)
    for start, mask in _mask_blocks(tensor.size, density, key):
        part = kept[start : start + _STRETCH]
        np.multiply(flat[start : start + _STRETCH], mask, out=part)
        part /= np.float32(density)
    return out


def random_mask(shape: tuple[int, ...], density: float, key: str) -> NDArray[np.bool_]:
    """True with probability `density`; the same for the same `key` everywhere."""
    blocks = [mask for _start, mask in _mask_blocks(math.prod(shape), density, key)]
    return np.concatenate(blocks).reshape(shape) if blocks else np.ones(shape, np.bool_)


def _mask_blocks(size: int, density: float, key: str) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    generator = np.random.PCG64(seed)
    upper, lower = divmod(min(max(round(density * 2**24), 1), 2**24 - 1), 2**16)
    for start in range(0, size, _STRETCH):
        length = min(_STRETCH, size - start)
        drawn = generator.random_raw(-(-length // 8)).astype("<u8", copy=False).view(np.uint8)[:length]
        mask = drawn < np.uint8(upper)
        if lower:
            undecided = np.flatnonzero(drawn == np.uint8(upper))
            more = generator.random_raw(-(-len(undecided) // 4)).astype("<u8", copy=False).view("<u2")
            mask[undecided] = more[: len(undecided)] < np.uint16(lower)
        yield start, mask
