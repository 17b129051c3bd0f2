"""Kernels called by a program that is no Python (`caller.c`), and what has to be in its memory in the end.

`python -m tests.foreign.job LIBRARY COMMAND...`: the program is COMMAND, which any C library or an emulator may run.
What it finds with a library of any instruction set must have the bits that this process finds with its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecal_kernels.cached import Addresses, Cached
from edgecal_kernels.dispatch import backend
from edgecal_kernels.operations import _known
from edgecal_kernels.quant import QuantizedTensor, quantize
from edgecal_kernels.ready_library import Library
from edgecal_kernels.records import TOKEN_BYTES, View, address

FORMATS = ("int8", "int4", "int4_k")
_SIZE = 4 << 20


class Job:
    """Calls of kernels on arrays that lie in one block of memory. They are made here as well, on the same arrays."""

    def __init__(self, library: Library) -> None:
        whole = np.zeros(_SIZE + 64, np.uint8)
        self._memory = whole[-whole.ctypes.data % 64 :][:_SIZE]
        self._used, self._library = 0, library
        self._calls: list[tuple[str, int, Any]] = []
        self._results: dict[str, np.ndarray] = {}

    def put(self, array: np.ndarray) -> np.ndarray:
        """A copy in the block."""
        place = self._memory[self._used :][: array.nbytes].view(array.dtype).reshape(array.shape)
        place[...] = array
        self._used += -(-array.nbytes // 64) * 64
        assert self._used <= _SIZE
        return place

    def result(self, name: str, *shape: int, dtype: Any = np.float32) -> np.ndarray:
        """Room for what has to be the same."""
        self._results[name] = self.put(np.zeros(shape, dtype))
        return self._results[name]

    def call(self, name: str, shares: int, *arguments: Any) -> None:
        slots = self._library.kernel(name).slots(*arguments)
        self._calls.append((f"edgecal_{name}", shares, np.frombuffer(slots, np.int64)))

    def file(self) -> bytes:
        """As `caller.c` reads it. Whatever number is an address in the block is a place in it."""
        first, numbers = self._memory.ctypes.data, [_SIZE, len(self._calls)]
        for _, shares, slots in self._calls:
            numbers += [len(slots), shares]
            for slot in slots.tolist():
                inside = 0 <= slot - first < _SIZE
                numbers += [slot - first if inside else slot, inside]
        numbers += [0] * (-len(numbers) % 8)
        symbols = b"".join(symbol.encode().ljust(64, b"\0") for symbol, _, _ in self._calls)
        return np.array(numbers, np.int64).tobytes() + symbols + self._memory.tobytes()

    def run(self, n_threads: int) -> None:
        """In this process."""
        for symbol, shares, slots in self._calls:
            function = self._library.kernel(symbol.removeprefix("edgecal_"))
            arguments = slots.tobytes()
            if shares == 1:
                assert function.function(arguments, 0, 1) == 0
            else:
                assert self._library._team.run(function.code, arguments, shares, n_threads) == 0

    def others(self, memory: bytes) -> list[str]:
        """Results that differ in another program's memory."""
        first, found = self._memory.ctypes.data, np.frombuffer(memory, np.uint8)
        assert len(found) == _SIZE
        names = []
        for name, array in self._results.items():
            start = array.ctypes.data - first
            if not np.array_equal(found[start:][: array.nbytes], array.reshape(-1).view(np.uint8)):
                names.append(name)
            assert array.any(), name
        return names


def _weight(job: Job, w: np.ndarray, format: str) -> QuantizedTensor:
    weight = quantize(w, format)
    arrays = {field.name: getattr(weight, field.name) for field in fields(weight)}
    return replace(weight, **{name: job.put(a) for name, a in arrays.items() if isinstance(a, np.ndarray)})


def some_work() -> Job:
    """Rounding, products, an activation (whose buffer is memory of the C library) and attention, by several threads."""
    from edgecal_kernels.ready_ops import OPERATIONS, library

    rng, job = np.random.default_rng(20261127), Job(library)
    n, d, k = 37, 336, 512
    x = job.put(rng.standard_normal((n, k), np.float32))
    codes = job.result("codes", n, k, dtype=np.int8)
    scale, total = job.result("scales", n, k // 32), job.result("sums", n, k // 16, dtype=np.int16)
    packed = job.put(np.zeros((n - 1) * (k // 32) * TOKEN_BYTES, np.uint8))
    job.call("round", 5, x, codes, scale, total, packed)
    for format in FORMATS:
        known = _known(_weight(job, rng.standard_normal((d, k), np.float32), format))
        out = job.result(format, n, d)
        product = known.format, known.places, known.sizes, known.counts
        rounded = tuple(address(array) for array in (codes, scale, total, packed))
        job.call("multiply", 7, *product, n, rounded, *[0] * 5, address(out))  # no bias, no adapter
    gate, up = job.result("gate", 231), job.put(rng.standard_normal(231, np.float32))
    gate[:] = rng.standard_normal(231)
    job.call("gate", 1, 0, gate, up)
    cached = Cached("fp16", 1, 3, 64, 64)
    OPERATIONS.remember(cached, 0, 0, *rng.standard_normal((2, 50, 3, 64), np.float32))
    places = Addresses(address(job.put(cached.keys)), address(job.put(cached.values)), *cached.addresses[2:])
    q, out = job.put(rng.standard_normal((20, 9, 64), np.float32)), job.result("attention", 20, 9 * 64)
    job.call("attend", 32, q.reshape(-1), out.reshape(-1), (20, 9, 3), View(30, 64, 64, 0.125, 0), places, 0)
    return job


def differences(library: Path, command: Sequence[str], n_threads: int) -> list[str]:
    """Names of results that the program, with a library and that many threads, finds other than this process does."""
    job = some_work()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "job")
        file.write_bytes(job.file())
        done = subprocess.run([*command, str(library), str(file), str(n_threads)], capture_output=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.decode()[:500]}")
    job.run(2)
    return job.others(done.stdout)


def main() -> None:
    library, command = Path(sys.argv[1]), sys.argv[2:]
    for n_threads in (1, 3):
        if found := differences(library, command, n_threads):
            sys.exit(f"{library}: other bits by {n_threads} threads: {', '.join(found)}")
    print(f"{library}: the bits of this process, called by {' '.join(command)}")


if __name__ == "__main__":
    backend("ready")
    main()
