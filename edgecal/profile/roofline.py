"""How fast this machine's memory is read, and how near a decoding step comes to that.

Decoding reads every weight once per token and does two operations with it, so memory decides. The measure is a plain
read, by as many threads, of a buffer that the caches cannot hold, taken between the measurements it is compared with.

Traps. The compiler must not drop the read: its result depends on every word and is compared with NumPy's in the tests.
A buffer of zeros that nobody wrote is one page of memory mapped over and over, and lies in the cache; so it is filled
first. A model smaller than the last-level cache can be read faster than memory: its share of the bandwidth may then
exceed 1.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from edgecal_kernels.bandwidth import plain_read
from edgecal_kernels.dispatch import Backend
from edgecal_kernels.quant import quantize

LEAST, MOST = 64 << 20, 512 << 20
_SHARE_OF_FREE = 4  # at most 1/4 of the memory that is free
_FALLBACK_CACHE = 32 << 20
_PRODUCT = (512, 576, 256)  # rows and columns of a weight that any second-level cache holds, and tokens


@dataclass(frozen=True)
class Read:
    """One plain read of `bytes` in `read_s` seconds by `threads` threads."""

    threads: int
    bytes: int
    read_s: float

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes / self.read_s if self.read_s > 0 else 0.0


@dataclass(frozen=True)
class Point:
    """A step under the roof. `bytes` are the weights, the adapter and the keys and values that it read."""

    step_s: float
    weight_bytes: int
    bytes: float
    operations: float
    bandwidth: float | None  # of the plain read, bytes/s

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes / self.step_s

    @property
    def weight_rate(self) -> float:
        """Bytes of weights per second: what the comparison with other engines divides by the plain read."""
        return self.weight_bytes / self.step_s

    @property
    def share(self) -> float | None:
        """Of the plain read's bandwidth, by weights alone."""
        return self.weight_rate / self.bandwidth if self.bandwidth else None

    def to_dict(self) -> dict[str, float | None]:
        computed = {"intensity": self.intensity, "bytes_per_s": self.rate, "weight_bytes_per_s": self.weight_rate}
        return {**asdict(self), **computed, "share_of_bandwidth": self.share}


def last_level_cache(root: Path = Path("/")) -> int:
    """Bytes of the largest cache that the system names, 32 MiB where it names none."""
    largest = 0
    for file in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*/size"):
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        digits = text.rstrip("KMG")
        if digits.isdecimal():
            largest = max(largest, int(digits) * factor)
    return largest or _FALLBACK_CACHE


def buffer_bytes(root: Path = Path("/")) -> int:
    """Four times the last-level cache, from 64 to 512 MiB, and never more than a quarter of the free memory."""
    wanted = min(max(4 * last_level_cache(root), LEAST), MOST)
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return max(1 << 20, min(wanted, int(line.split()[1]) * 1024 // _SHARE_OF_FREE))
    except (OSError, ValueError, IndexError):
        pass
    return wanted


class PlainRead:
    """A buffer and threads that read it. Holds `buffer_bytes()` until it is let go."""

    def __init__(self, n_bytes: int | None = None) -> None:
        words = (buffer_bytes() if n_bytes is None else n_bytes) // 8
        self.words = np.arange(1, words + 1, dtype=np.uint64)

    def __call__(self, threads: int, passes: int = 2) -> Read:
        """Read the buffer `passes` times by `threads` threads."""
        seconds, _ = self.timed(threads, passes)
        return Read(threads, passes * self.words.nbytes, seconds)

    def timed(self, threads: int, passes: int = 1) -> tuple[float, int]:
        """Seconds, and the xor of all words of all passes."""
        parts, read = np.array_split(self.words, threads), plain_read()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: read(part[:8]), parts))  # the threads have started
            started, mixed = perf_counter(), 0
            for _ in range(passes):
                for value in pool.map(read, parts):
                    mixed ^= value
            return perf_counter() - started, mixed


def peak_operations(ops: Backend, threads: int | None, seconds: float = 0.2) -> float:
    """Operations per second of this back end's int8 product of a small weight and many tokens, by `threads`.

    The flat part of the roof, as these kernels reach it: not what the processor could do in theory. `threads` None: as
    many as NumPy's library takes.
    """
    d, k, n_tokens = _PRODUCT
    rng = np.random.default_rng(0)
    weight = quantize(rng.standard_normal((d, k), np.float32), "int8")
    x = ops.Activations(rng.standard_normal((n_tokens, k), np.float32))
    with ops.use_threads(threads):
        ops.matmul(x, weight)
        best, ends = float("inf"), perf_counter() + seconds
        while perf_counter() < ends:
            started = perf_counter()
            ops.matmul(x, weight)
            best = min(best, perf_counter() - started)
    return 2.0 * d * k * n_tokens / best
