"""Where a forward pass spends its time: a counter of nanoseconds per part.

Off by default, and then a mark costs one test. `mark(part)` charges the time since the last mark; the compiled decoder
does the same with `now` and the same array, from the point of view of its first thread: waiting for the other threads
belongs to the part that waits.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

import numpy as np

PARTS = ("embed", "norm", "qkv", "rope", "attention", "output", "gate_up", "down", "head", "lora")
# NumPy's integers, because Numba specializes on literal Python integers
_numbers: Any = np.arange(len(PARTS))
EMBED, NORM, QKV, ROPE, ATTENTION, OUTPUT, GATE_UP, DOWN, HEAD, LORA = _numbers
_NOTHING = np.zeros(0, np.int64)


class Clock:
    """`ns` int64, one counter per name in PARTS; they grow while `running`."""

    def __init__(self) -> None:
        self.ns = np.zeros(len(PARTS), np.int64)
        self.running = False
        self._last = 0

    def start(self) -> None:
        """The first part begins now."""
        if self.running:
            self._last = perf_counter_ns()

    def mark(self, part: int) -> None:
        """What ran since `start` or the last mark was `part`."""
        if self.running:
            now = perf_counter_ns()
            self.ns[part] += now - self._last
            self._last = now

    def charge(self, part: int, ns: int) -> None:
        """`ns` of what the next mark would charge were `part`."""
        if self.running:
            self.ns[part] += ns
            self._last += ns

    @property
    def counters(self) -> Any:
        """`ns` for a compiled function to add to; empty while the clock stands."""
        return self.ns if self.running else _NOTHING

    def reset(self) -> None:
        self.ns[:] = 0

    def seconds(self) -> dict[str, float]:
        return {name: float(ns) * 1e-9 for name, ns in zip(PARTS, self.ns, strict=True)}
