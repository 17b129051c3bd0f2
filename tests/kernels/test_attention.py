"""Attention, rope and the cache: compiled against the oracle, and one row's bits whatever is computed beside it."""

from __future__ import annotations

import json

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecal_kernels import cpu, reference
from edgecal_kernels.cached import TYPES, Cached
from edgecal_kernels.dispatch import backend
from tests.kernels.isas import run_on

# Outputs are averages of standard normal values: float32 additions in another order, softmax in one pass
BUDGET = 4e-6
HEADS = [(9, 3), (8, 2), (14, 2), (3, 3), (4, 1)]


@pytest.fixture(scope="module")
def fast():
    return backend("numba")


@pytest.fixture
def threads():
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


def filled(rng, ops, dtype, n_kv, head_dim, length, capacity=None, layers=2):
    """Cache of some layers with standard normal keys and values in the last one, larger ones in the others."""
    cached = Cached(dtype, layers, n_kv, capacity or -(-length // 16) * 16, head_dim)
    for layer in range(layers):
        keys, values = rng.standard_normal((2, length, n_kv, head_dim)).astype(np.float32)
        factor = np.float32(1 if layer == layers - 1 else 9)
        ops.remember(cached, layer, 0, keys * factor, values * factor)
    return cached


@pytest.mark.parametrize("head_dim", [8, 20, 64, 80, 128])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("heads", HEADS)
def test_attention(fast, rng, head_dim, dtype, heads):
    n_heads, n_kv = heads
    cached = filled(rng, reference, dtype, n_kv, head_dim, 140)
    for pos, n_tokens in ((0, 1), (0, 40), (37, 5), (63, 1), (64, 1), (60, 70), (139, 1), (0, 140)):
        q = rng.standard_normal((n_tokens, n_heads, head_dim)).astype(np.float32)
        expected = reference.attention(q, cached, 1, pos)
        np.testing.assert_allclose(fast.attention(q, cached, 1, pos), expected, rtol=0, atol=BUDGET)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 200), st.integers(1, 70), st.sampled_from(HEADS), st.sampled_from(list(TYPES)), st.integers(0, 99)
)
def test_attention_anywhere(pos, n_tokens, heads, dtype, seed):
    """Peaked scores too: queries up to 30 times as large. The softmax is then a choice, and rounding scores matters:
    a score of 300 has an error of 2e-5, which is the relative error of a weight."""
    rng, fast = np.random.default_rng(seed), backend("numba")
    n_heads, n_kv = heads
    cached = filled(rng, fast, dtype, n_kv, 32, pos + n_tokens)
    q = rng.standard_normal((n_tokens, n_heads, 32)).astype(np.float32) * np.float32(rng.uniform(0, 30))
    expected = reference.attention(q, cached, 1, pos)
    np.testing.assert_allclose(fast.attention(q, cached, 1, pos), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("head_dim", [64, 80])
def test_a_row_has_the_same_bits_in_any_chunk_on_any_threads(fast, rng, dtype, heads, head_dim, threads):
    """What lies behind a position (a rejected guess, a longer prompt) must not show either."""
    n_heads, n_kv = heads
    keys, values = rng.standard_normal((2, 300, n_kv, head_dim)).astype(np.float32)
    q = rng.standard_normal((300, n_heads, head_dim)).astype(np.float32)
    cached = Cached(dtype, 1, n_kv, 304, head_dim)
    fast.remember(cached, 0, 0, keys, values)
    whole = fast.attention(q, cached, 0, 0)
    for n_threads in {1, numba.config.NUMBA_NUM_THREADS}:
        threads(n_threads)
        for size in (1, 3, 17, 64, 150):
            grown = Cached(dtype, 1, n_kv, 304, head_dim)
            for i in range(0, 300, size):
                step = slice(i, i + size)
                fast.remember(grown, 0, i, keys[step], values[step])
                found = fast.attention(q[step], grown, 0, i)
                np.testing.assert_array_equal(found, whole[step])
                np.testing.assert_array_equal(fast.attention(q[step], cached, 0, i), whole[step])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [8, 20, 64])
def test_the_cache_holds_the_same_bits(fast, rng, dtype, head_dim):
    """Of the oracle, in one write or many, on one thread or several; zeros and ties included."""
    keys, values = rng.standard_normal((2, 200, 5, head_dim)).astype(np.float32)
    keys[3, 2], values[7] = 0, 0
    keys[9] = np.round(keys[9] * 2) / 2
    keys[9, :, 0] = 127
    expected, found, parts = (Cached(dtype, 2, 5, 208, head_dim) for _ in range(3))
    reference.remember(expected, 1, 3, keys, values)
    fast.remember(found, 1, 3, keys, values)
    for i in range(0, 200, 7):
        fast.remember(parts, 1, 3 + i, keys[i : i + 7], values[i : i + 7])
    for name in ("keys", "values", "key_scales", "value_scales"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        np.testing.assert_array_equal(getattr(parts, name), getattr(expected, name))
    read_keys, read_values = found.read(1, 203)
    step = {"fp32": 0.0, "fp16": 2.0**-11, "int8": 0.5 / 127}[dtype] * (1 + 1e-5)  # of the largest in the vector
    for read, exact in ((read_keys, keys), (read_values, values)):
        largest = np.abs(exact).max(axis=2, keepdims=True)
        assert (np.abs(read[:, 3:].transpose(1, 0, 2) - exact) <= step * largest).all()
    grown = found.copy(256, 150)
    for read, before in zip(grown.read(1, 150), found.read(1, 150), strict=True):
        np.testing.assert_array_equal(read, before)


def test_int8_takes_about_half_of_fp16():
    sizes = {dtype: Cached(dtype, 16, 8, 1024, 64).nbytes for dtype in TYPES}
    assert sizes == {"fp16": 32 << 20, "fp32": 64 << 20, "int8": (16 << 20) + (1 << 20)}


@pytest.mark.parametrize("rotary", [8, 20, 64])
def test_rope_has_the_bits_of_the_oracle(fast, rng, rotary):
    for n_tokens in (1, 7, 150):
        x = rng.standard_normal((n_tokens, 5, 64)).astype(np.float32)
        angles = rng.uniform(0, 100, (n_tokens, rotary // 2)).astype(np.float32)
        expected = x.copy()
        reference.rope(expected, np.cos(angles), np.sin(angles))
        fast.rope(x, np.cos(angles), np.sin(angles))
        np.testing.assert_array_equal(x, expected)


_PROBE = """
import json, numpy as np
from edgecal_kernels import reference
from edgecal_kernels.cached import TYPES, Cached
from edgecal_kernels.dispatch import backend
fast, rng, errors = backend("numba"), np.random.default_rng(0), {}
for dtype in TYPES:
    for head_dim in (64, 80):
        k, v = rng.standard_normal((2, 150, 2, head_dim)).astype(np.float32)
        q = rng.standard_normal((150, 6, head_dim)).astype(np.float32)
        cached, exact = (Cached(dtype, 1, 2, 160, head_dim) for _ in range(2))
        fast.remember(cached, 0, 0, k, v)
        reference.remember(exact, 0, 0, k, v)
        assert (cached.keys == exact.keys).all() and (cached.values == exact.values).all()
        found = fast.attention(q, cached, 0, 0)
        assert (fast.attention(q[149:], cached, 0, 149) == found[149:]).all()
        errors[f"{dtype} {head_dim}"] = float(np.abs(found - reference.attention(q, cached, 0, 0)).max())
print(json.dumps(errors))
"""


@pytest.mark.parametrize("isa", [isa for isa in cpu.known_isas() if isa in ("avx2", "portable")])
def test_other_instruction_sets(isa, tmp_path):
    errors = json.loads(run_on(isa, _PROBE, tmp_path))
    assert max(errors.values()) <= BUDGET, errors
