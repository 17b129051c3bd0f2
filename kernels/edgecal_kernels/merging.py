"""Kernels of merging: what the methods of `edgecal.adapters.merge` do to whole factors, without the interpreter's lock.

Every function has a NumPy formulation in that package, which is its specification, and gives the same bits (`dot`
excepted, whose order of additions BLAS keeps to itself). All run in the calling thread: merging has a module for each.

Arrays are flat and C-contiguous. Numbers are looked at as their bits where that is faster: those of positive floats are
ordered as the floats are, and clearing all but the sign is multiplying by 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import simd
from .jit import kernel
from .lanes import (
    count_above,
    count_bits,
    flip,
    limits,
    load_magnitudes,
    lowest_lane,
    mask_between,
    pcg64_step,
    positive,
    signs,
    sum_counts,
    trim,
)
from .simd import fma, load, load_one, splat, splat_int

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_BUCKETS = 2048
_SAMPLE = 4096
MASK_STRETCH = 32_768  # part of the definition of a mask
_DOT_BLOCK = 8192  # floats added in float32 before float64 takes over


@kernel
def _copy_tail(tail: Any, whole: int, out: Any) -> None:
    """The entries of `out` from `whole` on. An assignment of slices would bring the message that they do not fit."""
    for i in range(whole, out.size):
        out[i] = tail[i - whole]


@kernel
def decode_half(raw: Any, out: Any) -> None:
    """float16, as uint16, to float32."""
    whole = raw.size - raw.size % 16
    for i in range(0, whole, 16):
        simd.store(out, i, simd.load_half(raw, i))
    if whole < raw.size:
        tail, wide = np.zeros(16, np.uint16), np.empty(16, np.float32)
        for i in range(whole, raw.size):
            tail[i - whole] = raw[i]
        simd.store(wide, 0, simd.load_half(tail, 0))
        _copy_tail(wide, whole, out)


@kernel
def decode_bfloat(raw: Any, out_bits: Any) -> None:
    """bfloat16, as uint16, to the bits of float32."""
    for i in range(raw.size):
        out_bits[i] = np.uint32(raw[i]) << np.uint32(16)


@kernel
def scaled(x: Any, weight: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = x[i] * weight


@kernel
def add_scaled(x: Any, weight: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] += x[i] * weight


@kernel
def sum_of_two(x: Any, weight: Any, x2: Any, weight2: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = x[i] * weight + x2[i] * weight2


@kernel
def transpose(b: Any, factor: Any, rows: Any) -> None:
    """rows (r, d) = factor * b (d, r) transposed; a strip of 16 rows of b stays in the L1 cache."""
    d, rank = b.shape
    whole = d - d % 16
    for start in range(0, whole, 16):
        for r in range(rank):
            for i in range(16):
                rows[r, start + i] = b[start + i, r] * factor
    for i in range(whole, d):
        for r in range(rank):
            rows[r, i] = b[i, r] * factor


@kernel
def dot(x: Any, y: Any) -> float:
    """Inner product: blocks in float32, added in float64, in an order that depends on nothing but the size."""
    total = 0.0
    for start in range(0, x.size, _DOT_BLOCK):
        stop = min(start + _DOT_BLOCK, x.size)
        whole = stop - (stop - start) % 64
        a, b, c, d = splat(np.float32(0)), splat(np.float32(0)), splat(np.float32(0)), splat(np.float32(0))
        for i in range(start, whole, 64):
            a = fma(load(x, i), load(y, i), a)
            b = fma(load(x, i + 16), load(y, i + 16), b)
            c = fma(load(x, i + 32), load(y, i + 32), c)
            d = fma(load(x, i + 48), load(y, i + 48), d)
        total += simd.sum_lanes(simd.add(simd.add(a, b), simd.add(c, d)))
        for i in range(whole, stop):
            total += np.float64(x[i]) * np.float64(y[i])
    return total


# ------------------------------------------------------------------------------------- the largest magnitudes


@kernel
def _select(values: Any, n: int, rank: int, low: int, high: int, counts: Any) -> Any:
    """The `rank`-th largest (from 1) of the first n `values`, all in [low, high], which are overwritten.

    Returns it, how many of the entries equal to it belong to the `rank` largest, and how many there are. Histograms,
    each of the bucket that the one before found.
    """
    while True:
        shift = 0
        while (high - low) >> shift >= _BUCKETS:
            shift += 1
        counts[: ((high - low) >> shift) + 1] = 0
        for i in range(n):
            counts[(np.int64(values[i]) - low) >> shift] += 1
        bucket = (high - low) >> shift
        while counts[bucket] < rank:
            rank -= counts[bucket]
            bucket -= 1
        low += bucket << shift
        if shift == 0:
            return low, rank, counts[bucket]
        high = min(high, low + (1 << shift) - 1)
        first, width = np.uint32(low), np.uint32(high - low)
        kept = 0
        for i in range(n):
            value = values[i]
            values[kept] = value
            kept += int(np.uint32(value - first) <= width)
        n = kept


@kernel
def _bracket(bits: Any, count: int, counts: Any) -> Any:
    """(low, high) between which the `count`-th largest magnitude most likely lies, from a sample.

    The stride is odd, so that a sample of a matrix is not one of a few of its columns.
    """
    stride = max(1, bits.size // _SAMPLE) | 1
    n = (bits.size - 1) // stride + 1
    counts[:] = 0
    for i in range(n):
        counts[(bits[i * stride] & _MAGNITUDE) >> np.uint32(20)] += 1
    share = count / bits.size
    margin = 4.5 * np.sqrt(n * share * (1 - share)) + 2
    bucket, seen = _BUCKETS - 1, 0
    while bucket > 0 and seen + counts[bucket] < share * n - margin:
        seen += counts[bucket]
        bucket -= 1
    high = ((bucket + 1) << 20) - 1
    while bucket > 0 and seen < share * n + margin:
        seen += counts[bucket]
        bucket -= 1
    return (bucket + 1) << 20 if seen >= share * n + margin else 0, high


@kernel
def _gather(bits: Any, low: int, high: int, candidates: Any) -> Any:
    """(how many magnitudes are above `high`, how many in [low, high], which go to `candidates`).

    Four are written for every 16, whether they are candidates or not: branches would be guessed wrong all the time.
    """
    first, width, top = np.int32(low), np.int32(high - low), np.int32(high)
    firsts, widths, tops = splat_int(first), splat_int(width), splat_int(top)
    whole, n, counts = bits.size - bits.size % 16, 0, splat_int(np.int32(0))
    for i in range(0, whole, 16):
        magnitudes = load_magnitudes(bits, i)
        counts = count_above(counts, magnitudes, tops)
        inside = mask_between(magnitudes, firsts, widths)
        after = n + count_bits(inside)
        for j in range(4):
            candidates[n + j] = bits[i + lowest_lane(inside)] & _MAGNITUDE
            inside &= inside - 1
        n += 4
        while inside != 0:
            candidates[n] = bits[i + lowest_lane(inside)] & _MAGNITUDE
            inside &= inside - 1
            n += 1
        n = after
    above = sum_counts(counts)
    for i in range(whole, bits.size):
        magnitude = np.int64(bits[i] & _MAGNITUDE)
        above += int(magnitude > high)
        if low <= magnitude <= high:
            candidates[n] = bits[i] & _MAGNITUDE
            n += 1
    return above, n


@kernel
def largest_magnitudes(bits: Any, count: int, candidates: Any, counts: Any) -> Any:
    """(threshold, cut) of the `count` largest magnitudes, for 1 <= count < size: the entries before `cut` whose
    magnitude is at least `threshold`, and those after it where it is larger.

    `bits` uint32 is the tensor; `candidates` uint32 of its size + 4 and `counts` int64 (2048,) are overwritten.
    """
    low, high = _bracket(bits, count, counts)
    above, n = _gather(bits, low, high, candidates)
    if not above < count <= above + n:  # an unlucky sample
        for i in range(bits.size):
            candidates[i] = bits[i] & _MAGNITUDE
        low, high, above, n = 0, 0x7FFFFFFF, 0, bits.size
    value, wanted, there = _select(candidates, n, count - above, low, high, counts)
    if wanted == there:
        return value, bits.size
    start, equals, nothing = 0, splat_int(np.int32(value)), splat_int(np.int32(0))
    while start + 16 <= bits.size:  # up to the 16 that have the last of the wanted ones
        equal = count_bits(mask_between(load_magnitudes(bits, start), equals, nothing))
        if equal >= wanted:
            break
        wanted -= equal
        start += 16
    while wanted > 0:
        wanted -= int((bits[start] & _MAGNITUDE) == value)
        start += 1
    return value, start


@kernel
def _trimmed(tensors: Any, thresholds: Any, cuts: Any, t: int, at: int, shift: int) -> Any:
    """16 entries of tensor t from `at` on, which lie `shift` entries further in memory."""
    x = load(tensors[t], at + shift)
    return trim(x, limits(thresholds[t], cuts[t] - at))


@kernel
def _tails(tensors: Any, whole: int, size: int) -> Any:
    """The entries from `whole` on, padded to 16, as arrays; and where each lies, less what comes before it."""
    tails = np.zeros((tensors.size, 16), np.float32)
    for t in range(tensors.size):
        for i in range(whole, size):
            tails[t, i - whole] = load_one(tensors[t], i)
    return tails, np.int64(tails.ctypes.data) + 64 * np.arange(tensors.size)


@kernel
def sum_trimmed(tensors: Any, thresholds: Any, cuts: Any, weights: Any, out: Any) -> None:
    """sum_i w_i x_i, of each only what `largest_magnitudes` describes; the arguments are those of `elect`."""
    whole = out.size - out.size % 16
    for i in range(0, whole, 16):
        simd.store(out, i, _sum_lanes(tensors, thresholds, cuts, weights, i, 0))
    if whole < out.size:
        _kept_alive, places = _tails(tensors, whole, out.size)
        last = np.empty(16, np.float32)
        simd.store(last, 0, _sum_lanes(places, thresholds, cuts, weights, whole, -whole))
        _copy_tail(last, whole, out)


@kernel
def _sum_lanes(tensors: Any, thresholds: Any, cuts: Any, weights: Any, at: int, shift: int) -> Any:
    total = simd.mul(_trimmed(tensors, thresholds, cuts, 0, at, shift), splat(weights[0]))
    for t in range(1, tensors.size):
        total = simd.add(total, simd.mul(_trimmed(tensors, thresholds, cuts, t, at, shift), splat(weights[t])))
    return total


# ------------------------------------------------------------------------------------------------ random masks


@kernel
def draw(state: Any, words: Any) -> None:
    """PCG64's next 64-bit words (XSL-RR); `state` uint64 (high, low, increment's high, increment's low) moves on."""
    high, low, step_high, step_low = state[0], state[1], state[2], state[3]
    for i in range(words.size):
        high, low = pcg64_step(high, low, step_high, step_low)
        mixed, turn = high ^ low, high >> np.uint64(58)
        words[i] = (mixed >> turn) | (mixed << ((np.uint64(64) - turn) & np.uint64(63)))
    state[0], state[1] = high, low


@kernel
def _drop_by_bytes(x: Any, drawn: Any, least: Any, density: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = x[i] * np.float32(drawn[i] < least) / density


@kernel
def drop(x: Any, state: Any, upper: int, lower: int, density: Any, out: Any) -> None:
    """Each entry of x with probability `density`, divided by it: the masks of `edgecal.adapters.merge.pruning`, whose
    24 bits of the density are `upper` and `lower`. `state` as `draw` has it."""
    drawn = np.empty(MASK_STRETCH, np.uint8)
    words = drawn.view(np.uint64)
    more = np.empty(1, np.uint64)
    least, least_of_more = np.uint8(upper), np.uint64(lower)
    for start in range(0, x.size, MASK_STRETCH):
        length = min(MASK_STRETCH, x.size - start)
        draw(state, words[: (length + 7) // 8])
        _drop_by_bytes(x[start : start + length], drawn, least, density, out[start : start + length])
        if lower == 0:
            continue
        taken = 0
        for i in range(length):
            if drawn[i] == least:
                if taken % 4 == 0:
                    draw(state, more)
                kept = np.float32(((more[0] >> np.uint64(16 * (taken % 4))) & np.uint64(0xFFFF)) < least_of_more)
                out[start + i] = x[start + i] * kept / density
                taken += 1


# --------------------------------------------------------------------------------------------------- elections


@kernel
def elect(tensors: Any, thresholds: Any, cuts: Any, weights: Any, frequency: bool, out: Any) -> None:
    """TIES's election of signs and the mean of those that agree, of what `largest_magnitudes` describes.

    `tensors` int64 (n,) are the addresses of float32 arrays of the size of `out`; thresholds int32, cuts int64, weights
    float32 (n,).
    """
    whole = out.size - out.size % 16
    for i in range(0, whole, 16):
        simd.store(out, i, _elect_lanes(tensors, thresholds, cuts, weights, frequency, i, 0))
    if whole < out.size:
        _kept_alive, places = _tails(tensors, whole, out.size)
        last = np.empty(16, np.float32)
        simd.store(last, 0, _elect_lanes(places, thresholds, cuts, weights, frequency, whole, -whole))
        _copy_tail(last, whole, out)


@kernel
def _elect_lanes(tensors: Any, thresholds: Any, cuts: Any, weights: Any, frequency: bool, at: int, shift: int) -> Any:
    zero = splat(np.float32(0))
    vote = zero  # a sum that begins at +0 is never -0
    for t in range(tensors.size):
        x = _trimmed(tensors, thresholds, cuts, t, at, shift)
        if frequency:
            x = simd.sub(positive(x), positive(simd.sub(zero, x)))
        vote = simd.add(vote, x)
    elected = signs(vote)
    total = agreeing = zero
    for t in range(tensors.size):
        turned = flip(_trimmed(tensors, thresholds, cuts, t, at, shift), elected)
        agrees = positive(turned)
        share = simd.mul(simd.mul(turned, agrees), splat(weights[t]))
        agreeing = simd.add(agreeing, agrees)
        total = share if t == 0 else simd.add(total, share)
    return flip(simd.div(total, simd.maximum(agreeing, splat(np.float32(1)))), elected)
