"""An adapter's pair in int8 on top of a product: what NumPy adds, with the same bits for one token and for many."""

from __future__ import annotations

import numpy as np
import pytest

from edgecal_kernels import reference
from edgecal_kernels.dispatch import backend
from edgecal_kernels.quant import quantize

# d, k, rank: quarter tiles of A*, an odd number of tiles, ends within a step, quarter tiles of B*, shared by threads
SHAPES = [(576, 576, 36), (48, 64, 50), (96, 100, 20), (1536, 192, 4), (36, 64, 7), (4096, 512, 32)]


@pytest.fixture(scope="module")
def fast():
    return backend("numba")


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_added_as_it_is_for_a_token_alone(fast, rng, shape):
    d, k, rank = shape
    a, b = (rng.standard_normal(size).astype(np.float32) / 4 for size in ((rank, k), (d, rank)))
    pair = fast.pack_int8(a), fast.pack_int8(b)
    x, before = (rng.standard_normal((67, n)).astype(np.float32) for n in (k, d))
    alone = before.copy()
    for i in range(len(x)):
        fast.add_packed_lora(fast.Activations(x[i : i + 1]), *pair, 0.25, alone[i : i + 1])
    for n in (2, 3, 4, 5, 7, 67):
        together = before[:n].copy()
        fast.add_packed_lora(fast.Activations(x[:n]), *pair, 0.25, together)
        np.testing.assert_array_equal(together, alone[:n])
    expected = before.copy()
    plain = quantize(a, "int8"), quantize(b, "int8")
    reference.add_packed_lora(reference.Activations(x), *plain, 0.25, expected)
    added = np.abs(expected - before).max()
    assert np.abs(alone - expected).max() <= 0.01 * added  # the inner vector is rounded: a tie may go the other way
