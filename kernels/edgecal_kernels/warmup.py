"""Compile every kernel once and keep the result on disk.

Compiling takes tens of seconds and a few hundred MB; loading what was compiled takes neither. So it is done by a child
process (`python -m edgecal_kernels.warmup`), whose memory goes with it, and a marker file says that it is complete.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from . import cpu
from .cached import Cached
from .clock import Clock
from .decoder_weights import N_COMPONENTS, DecoderWeights, Place
from .dispatch import backend
from .errors import BackendError
from .quant import FORMATS, Array, QuantizedTensor, quantize

_MARKER = "complete"


def is_warm() -> bool:
    """Whether the kernels for this machine, these sources and this Numba are on disk."""
    from .jit import kernel_cache

    try:
        return (kernel_cache() / _MARKER).read_text() == _machine()
    except OSError:
        return False


def _machine() -> str:
    _, name, features = cpu.compile_target()
    return f"{name} {' '.join(sorted(features))}\n"


def compile_all() -> float:
    """Call every kernel with the argument types of a real run, in this process; seconds taken.

    Where no folder can keep them they serve this process alone. Raises BackendError where Numba is missing.
    """
    start = perf_counter()
    ops = backend("numba")
    from .jit import can_keep, kernel_cache

    numbers = [1]
    with suppress(BackendError):  # shares among threads are other kernels, also where one core is all there is today
        numbers.append(ops.number_of_threads(2))
    for number in numbers:
        with ops.use_threads(number):
            _call_all(ops)
    _merge(ops.merging)
    if can_keep():
        try:
            (kernel_cache() / _MARKER).write_text(_machine())
        except OSError as error:
            raise _not_kept(str(error.strerror)) from error
    return perf_counter() - start


@dataclass(eq=False)
class _Pair:
    a: QuantizedTensor
    b: QuantizedTensor
    scaling: float = 1.0
    bias: Array | None = None


def _call_all(ops: Any) -> None:
    x = np.ones((2, 64), np.float32)
    for rows_of_weight in (32, 16384):  # a small one stays in the calling thread
        for format in FORMATS:
            weight = quantize(np.ones((rows_of_weight, 64), np.float32), format)
            for rows in (x[:1], x):
                ops.matmul(ops.Activations(rows), weight)
            ops.embed(weight, np.zeros(1, np.int64))
    cached = Cached("fp16", 1, 1, 2048, 16)
    for n_tokens in (1, 2048):  # 2048 is enough for threads to share rotating and writing them
        q = np.ones((n_tokens, 1, 16), np.float32)
        ops.rope(q, q[:, 0, :8], q[:, 0, :8])
        ops.remember(cached, 0, 0, q, q)
        ops.attention(q, cached, 0, 0)
    for rows in (x[:1], x):
        ops.add_lora(rows, x[:1], np.ones((8, 1), np.float32), np.zeros((len(rows), 8), np.float32))
    ops.matmul(ops.Activations(x), x)
    ops.quantize_rows(np.ones((32, 4096), np.float32))  # enough for several threads
    tiles_and_quarter = np.ones((36, 64), np.float32)
    ops.pack_int8(tiles_and_quarter)
    ops.pack_int8(np.asfortranarray(tiles_and_quarter))
    a, b = ops.pack_int8(np.ones((16, 64), np.float32)), ops.pack_int8(np.ones((64, 16), np.float32))
    pair, square = _Pair(a, b), quantize(np.ones((64, 64), np.float32), "int8")
    for n_tokens in (2, 512):
        rows = np.ones((n_tokens, 64), np.float32)
        ops.matmul(ops.Activations(rows), square, None, pair)
    ops.rms_norm(x, x[0], 1e-5)
    ops.layer_norm(x, x[0], x[0], 1e-5)
    ops.gated(x.copy(), x)
    _decode(ops)


def _not_kept(reason: str) -> BackendError:
    from .jit import kernel_cache

    return BackendError(
        f"compiled kernels cannot be kept in {kernel_cache()}: {reason}; set EDGECAL_CACHE to a writable folder"
    )


def _decode(ops: Any) -> None:
    """One token through a decoder of one layer."""
    square = quantize(np.ones((32, 32), np.float32), "int8")
    weights = DecoderWeights(
        [[(square, None)] * N_COMPONENTS],
        square,
        square,
        norms=np.ones((3, 32), np.float32),
        norm_biases=None,
        head_norms=None,
        eps=1e-5,
        n_heads=2,
        n_kv_heads=2,
        head_dim=16,
        attention_scale=16,
        embedding_scale=1,
        windows=(0,),
        ropes=(0,),
    )
    cached = Cached("fp16", 1, 2, 16, 16)
    half = np.ones((1, 1, 8), np.float32)
    ops.build_decoder(weights).step([0], [Place(cached, 0, None, list)], (half, half), Clock())


def _merge(merging: Any) -> None:
    """Every kernel that merges adapters."""
    x, half, factor = np.ones(32, np.float32), np.ones(32, np.uint16), np.float32(1)
    rows, counts = np.ones((2, 16), np.float32), np.zeros(2048, np.int64)
    merging.decode_half(half, x.copy())
    merging.decode_bfloat(half, x.copy().view(np.uint32))
    merging.scaled(x, factor, x.copy())
    merging.add_scaled(x, factor, x.copy())
    merging.sum_of_two(x, factor, x, factor, x.copy())
    merging.transpose(rows.T.copy(), factor, rows)
    merging.dot(x, x)
    merging.largest_magnitudes(x.view(np.uint32), 3, np.empty(36, np.uint32), counts)
    merging.drop(x, np.ones(4, np.uint64), 1, 1, factor, x.copy())
    trims = np.array([x.ctypes.data]), np.zeros(1, np.int32), np.zeros(1, np.int64)
    merging.sum_trimmed(*trims, x[:1], x.copy())
    merging.elect(*trims, x[:1], True, x.copy())


def warm_up() -> float:
    """Make sure that the kernels are on disk, compiling in a child process if they are not; seconds taken.

    Raises BackendError where that fails, or where no folder can be written.
    """
    from .jit import can_keep

    if is_warm():
        return 0.0
    if not can_keep():
        raise _not_kept("neither it nor a folder for temporary files can be written")
    start = perf_counter()
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2"}  # whatever this process may have: others may have several
    command = [sys.executable, "-m", "edgecal_kernels.warmup"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BackendError(f"compiling the kernels failed: {reason[0]}; EDGECAL_BACKEND=numpy runs without them")
    return perf_counter() - start


if __name__ == "__main__":
    compile_all()
