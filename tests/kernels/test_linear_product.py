"""A module with its adapter in int8: the parts added as NumPy adds them, the same bits for one token and for many."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
import pytest

from edgecal_kernels import reference
from edgecal_kernels.clock import LORA, QKV, Clock
from edgecal_kernels.dispatch import backend
from edgecal_kernels.quant import Array, QuantizedTensor, quantize

# d, k, rank: quarter tiles of A*, an odd number of tiles, ends within a step, quarter tiles of B*, shared by threads
SHAPES = [(576, 576, 36), (48, 64, 50), (96, 100, 20), (1536, 192, 4), (36, 64, 7), (4096, 512, 32), (64, 1536, 32)]


@dataclass(eq=False)
class Pair:
    a: QuantizedTensor | None
    b: QuantizedTensor | None
    scaling: float
    bias: Array | None


@pytest.fixture(scope="module")
def fast():
    return backend("numba")


@pytest.fixture
def floats(rng):
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("format", ["int4", "int6", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_parts_are_added_as_for_a_token_alone(fast, floats, shape, format):
    d, k, rank = shape
    weight, a, b = floats(d, k) / 4, floats(rank, k) / 4, floats(d, rank) / 4
    if format != "float32":
        weight = quantize(weight, format)
    bias, own_bias, x = floats(d), floats(d), floats(301, k)
    pair = Pair(fast.pack_int8(a), fast.pack_int8(b), 0.25, own_bias)
    alone = np.concatenate([fast.matmul(fast.Activations(row[None]), weight, bias, pair) for row in x])
    for n in (2, 3, 4, 5, 7, 67, 301):  # 301: more than a chunk of the wide ones
        np.testing.assert_array_equal(fast.matmul(fast.Activations(x[:n]), weight, bias, pair), alone[:n])
    plain = Pair(quantize(a, "int8"), quantize(b, "int8"), 0.25, own_bias)
    expected = reference.matmul(reference.Activations(x), weight, bias, plain)
    added = np.abs(expected - reference.matmul(reference.Activations(x), weight, bias)).max()
    assert np.abs(alone - expected).max() <= 0.01 * added  # the inner vector is rounded: a tie may go the other way


def test_the_parts_are_added_in_one_order(fast, floats):
    """((W x + bias) + B* A* x) + bias*, each sum rounded: what a decoding step adds."""
    weight, bias, own_bias, x = quantize(floats(96, 64), "int4"), floats(96), floats(96), floats(7, 64)
    a, b = fast.pack_int8(floats(36, 64) / 8), fast.pack_int8(floats(96, 36) / 8)
    inner = fast.matmul(fast.Activations(x), a) * np.float32(0.5)
    expected = fast.matmul(fast.Activations(x), weight) + bias
    expected = (expected + fast.matmul(fast.Activations(inner), b)) + own_bias
    found = fast.matmul(fast.Activations(x), weight, bias, Pair(a, b, 0.5, own_bias))
    np.testing.assert_array_equal(found, expected)
    only = fast.matmul(fast.Activations(x), weight, None, Pair(None, None, 1.0, own_bias))
    np.testing.assert_array_equal(only, fast.matmul(fast.Activations(x), weight) + own_bias)


@pytest.mark.parametrize("d", [4096, 36])
@pytest.mark.parametrize("name", ["numba", "numpy"])
def test_the_clock_knows_what_the_pair_takes(floats, name, d):
    ops, clock, spans = backend(name), Clock(), []
    weight, x = quantize(floats(d, 512), "int8"), ops.Activations(floats(256, 512))
    pair = Pair(ops.pack_int8(floats(32, 512) / 8), ops.pack_int8(floats(d, 32) / 8), 1.0, None)
    for clock.running in (False, True):
        start = perf_counter_ns()
        clock.start()
        ops.matmul(x, weight, None, pair, clock)
        clock.mark(QKV)
        spans.append(perf_counter_ns() - start)
    lora, product = clock.ns[LORA], clock.ns[QKV]
    assert lora > 0 and product > 0
    assert lora + product <= spans[1] and (clock.ns > 0).sum() == 2
