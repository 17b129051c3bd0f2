"""Digests of what every operation of a compiled back end gives, for the same inputs: equal ones mean equal bits.

`python -m tests.kernels.operations_probe BACK_END THREADS` prints them, and whether Numba was imported.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from edgecal_kernels.cached import TYPES, Cached
from edgecal_kernels.decoder_weights import ACTIVATIONS
from edgecal_kernels.dispatch import Backend, backend
from edgecal_kernels.quant import FORMATS, QuantizedTensor, quantize


@dataclass(eq=False)
class Pair:
    a: QuantizedTensor
    b: QuantizedTensor
    scaling: float
    bias: np.ndarray


class Probe:
    """Inputs that are the same for everyone, and the digests so far."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(20261127)
        self.found: dict[str, str] = {}

    def floats(self, *shape: int) -> np.ndarray:
        return self._rng.standard_normal(shape).astype(np.float32)

    def keep(self, name: str, *arrays: np.ndarray) -> None:
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
        self.found[name] = digest.hexdigest()[:16]

    def products(self, ops: Backend) -> None:
        for format in FORMATS:
            small, large = quantize(self.floats(200, 256), format), quantize(self.floats(1600, 576), format)
            self.keep(f"rows of {format}", ops.embed(small, np.arange(0, 200, 7)))
            for n in (1, 2, 3, 5, 8, 33):
                x, wide = ops.Activations(self.floats(n, 256)), ops.Activations(self.floats(n, 576))
                self.keep(f"{format}, {n} tokens", ops.matmul(x, small), ops.matmul(wide, large))
        for shape in ((36, 256), (7, 70), (60, 1000), (48, 36)):
            for order in ("C", "F"):
                packed = ops.pack_int8(np.asarray(self.floats(*shape) / 8, order=order), 0.5)
                quarters = [packed.quarter_codes, packed.quarter_scale] if packed.n_quarters else []
                product = ops.matmul(ops.Activations(self.floats(37, shape[1])), packed)
                self.keep(f"adapter {shape} {order}", packed.codes, packed.scale, *quarters, product)
        for n, rank, d in ((1, 36, 80), (5, 20, 64), (200, 32, 336), (7, 16, 20)):
            a, b = ops.pack_int8(self.floats(rank, 256) / 8), ops.pack_int8(self.floats(d, rank) / 8)
            base, pair = quantize(self.floats(d, 256), "int4"), Pair(a, b, 0.5, self.floats(d))
            x, bias = ops.Activations(self.floats(n, 256)), self.floats(d)
            self.keep(f"adapter on {n} tokens", ops.matmul(x, base, None, pair), ops.matmul(x, base, bias, pair))
        weight, x = self.floats(33, 200), self.floats(9, 200)
        self.keep("float32", ops.matmul(ops.Activations(x), weight))
        for n in (1, 9):
            out = self.floats(n, 33)
            ops.add_lora(x[:n], self.floats(6, 200), self.floats(33, 6), out)
            self.keep(f"lora, {n} tokens", out)

    def elements(self, ops: Backend) -> None:
        for shape in ((33, 70), (300, 1000)):  # the larger one by all threads
            self.keep(f"rounding {shape}", *ops.quantize_rows(self.floats(*shape)))
        x, weight, bias = self.floats(5, 70), self.floats(70), self.floats(70)
        self.keep("norms", ops.rms_norm(x, weight, 1e-5), ops.layer_norm(x, weight, bias, 1e-5))
        for activation in ACTIVATIONS:
            self.keep(activation, ops.gated(self.floats(3, 77) * 20, self.floats(3, 77), activation))

    def attention(self, ops: Backend) -> None:
        for dtype in TYPES:
            for n in (1, 5, 300):
                cached = Cached(dtype, 2, 3, 512, 64)
                ops.remember(cached, 1, 17, self.floats(n, 3, 64) * 3, self.floats(n, 3, 64))
                q = self.floats(n, 9, 64)
                ops.rope(q, self.floats(n, 32), self.floats(n, 32))
                seen = [ops.attention(q, cached, 1, 17, None, window) for window in (0, 40)]
                self.keep(f"{dtype}, {n} tokens", cached.keys, cached.values, q, *seen)

    def merging(self, kernels: ModuleType) -> None:
        a, b, out = self.floats(1003), self.floats(1003), np.empty(1003, np.float32)
        halves = np.arange(1003, dtype=np.uint16) * 61
        kernels.decode_half(halves, out)
        self.keep("float16", np.nan_to_num(out))
        kernels.decode_bfloat(halves, out.view(np.uint32))
        self.keep("bfloat16", np.nan_to_num(out))
        weight, rows = np.float32(0.3), np.empty((5, 77), np.float32)
        for name in ("scaled", "add_scaled"):
            getattr(kernels, name)(a, weight, out)
            self.keep(name, out)
        kernels.sum_of_two(a, weight, b, weight, out)
        kernels.transpose(self.floats(77, 5), weight, rows)
        self.keep("sums", out, rows, np.array(kernels.dot(a, b)))
        large, dropped, counts = self.floats(100_003), np.empty(100_003, np.float32), np.zeros(2048, np.int64)
        for count in (1, 50, 30_000, 100_002):
            room = np.empty(large.size + 4, np.uint32)
            found = kernels.largest_magnitudes(large.view(np.uint32), count, room, counts)
            self.keep(f"the largest {count}", np.array([int(number) for number in found]))
        state = np.arange(3, 7, dtype=np.uint64) << np.uint64(40)
        kernels.drop(large, state, 100, 7, np.float32(0.4), dropped)
        self.keep("drop", dropped, state)
        places, limits = np.array([large.ctypes.data, dropped.ctypes.data]), np.array([1 << 29, 1 << 28], np.int32)
        arguments, total = (places, limits, np.array([500, 100_000]), np.array([0.3, 0.4], np.float32)), large.copy()
        kernels.sum_trimmed(*arguments, total)
        self.keep("sum_trimmed", total)
        for frequency in (True, False):
            kernels.elect(*arguments, frequency, total)
            self.keep(f"elect, {frequency}", total)


def digests(ops: Backend, n_threads: int) -> dict[str, str]:
    probe = Probe()
    with ops.use_threads(n_threads):
        probe.products(ops)
        probe.elements(ops)
        probe.attention(ops)
        probe.merging(ops.merging)
    return probe.found


if __name__ == "__main__":
    found = digests(backend(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps([found, "numba" in sys.modules or "llvmlite" in sys.modules]))
