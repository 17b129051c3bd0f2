"""The kernels, one by one, at the sizes of a 135M model. `python -m pytest bench --benchmark-json=run.json`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgecal_kernels.cached import Cached
from edgecal_kernels.dispatch import backend
from edgecal_kernels.quant import FORMATS, quantize

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 576, 1536, 9, 3, 64
RNG = np.random.default_rng(1)
Paired = Callable[..., None]


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def ops() -> Any:
    return backend("numba")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("n_tokens", "times"), [(1, 20), (4, 10), (128, 1)])
def test_product(paired: Paired, ops: Any, format: str, n_tokens: int, times: int) -> None:
    weight, x = quantize(floats(INTERMEDIATE, HIDDEN), format), floats(n_tokens, HIDDEN)
    paired(lambda: ops.matmul(ops.Activations(x), weight), times)


@pytest.mark.parametrize(("n_tokens", "times"), [(1, 10), (64, 1)])
def test_product_fp32(paired: Paired, ops: Any, n_tokens: int, times: int) -> None:
    weight, x = floats(INTERMEDIATE, HIDDEN), floats(n_tokens, HIDDEN)
    paired(lambda: ops.matmul(ops.Activations(x), weight), times)


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
@pytest.mark.parametrize(("n_tokens", "depth", "times"), [(1, 1024, 10), (1, 4096, 5), (128, 0, 2)])
def test_attention(paired: Paired, ops: Any, n_tokens: int, depth: int, times: int, dtype: str) -> None:
    cached = Cached(dtype, 1, KV_HEADS, -(-(depth + n_tokens) // 16) * 16, HEAD_DIM)
    for array in (cached.keys, cached.values):  # what the numbers are costs nothing more, as long as they are ordinary
        array[:] = RNG.integers(-8, 8, array.shape)
    q = floats(n_tokens, HEADS, HEAD_DIM)
    paired(lambda: ops.attention(q, cached, 0, depth), times)


@pytest.mark.parametrize("rank", [16, 32])
def test_lora_fp32(paired: Paired, ops: Any, rank: int) -> None:
    x, a, out = floats(1, HIDDEN), floats(rank, HIDDEN), floats(1, INTERMEDIATE)
    b = np.asfortranarray(floats(INTERMEDIATE, rank))
    paired(lambda: ops.add_lora(x, a, b, out), 40)


def test_rounding_of_activations(paired: Paired, ops: Any) -> None:
    x = floats(128, INTERMEDIATE)
    paired(lambda: ops.quantize_rows(x), 10)


def test_rms_norm(paired: Paired, ops: Any) -> None:
    x, weight = floats(128, HIDDEN), floats(HIDDEN)
    paired(lambda: ops.rms_norm(x, weight, 1e-5), 20)


def test_gated(paired: Paired, ops: Any) -> None:
    gate, up = floats(128, INTERMEDIATE), floats(128, INTERMEDIATE)
    paired(lambda: ops.gated(gate.copy(), up), 5)


def test_packing_of_an_adapter(paired: Paired, ops: Any) -> None:
    matrix = floats(16, INTERMEDIATE)
    paired(lambda: ops.pack_int8(matrix, 1.0), 20)
