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


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [1, 5, 64, 65, 100, 1000])
def test_attention_in_a_window(fast, rng, dtype, window):
    """Of some positions only, and with scores divided by another root than head_dim's: they are up to 2.5 times as
    large then, and so are the errors of their weights."""
    for head_dim, (n_heads, n_kv) in ((64, (9, 3)), (256, (4, 1))):
        cached = filled(rng, reference, dtype, n_kv, head_dim, 240)
        for pos, n_tokens in ((0, 1), (0, 40), (37, 5), (100, 1), (128, 1), (60, 150), (239, 1), (0, 240)):
            q = rng.standard_normal((n_tokens, n_heads, head_dim)).astype(np.float32)
            expected = reference.attention(q, cached, 1, pos, 40.0, window)
            found = fast.attention(q, cached, 1, pos, 40.0, window)
            np.testing.assert_allclose(found, expected, rtol=0, atol=2.5 * BUDGET)
            for i in range(0, n_tokens, 50):  # what lies before the window must not show, nor what comes after
                alone = fast.attention(q[i : i + 1], cached, 1, pos + i, 40.0, window)
                np.testing.assert_array_equal(alone, found[i : i + 1])


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
@pytest.mark.parametrize(("head_dim", "window"), [(64, 0), (80, 0), (64, 30), (64, 100)])
def test_a_row_has_the_same_bits_in_any_chunk_on_any_threads(fast, rng, dtype, heads, head_dim, window, threads):
    """What lies behind a position (a rejected guess, a longer prompt) must not show either."""
    n_heads, n_kv = heads
    keys, values = rng.standard_normal((2, 300, n_kv, head_dim)).astype(np.float32)
    q = rng.standard_normal((300, n_heads, head_dim)).astype(np.float32)
    cached = Cached(dtype, 1, n_kv, 304, head_dim)
    fast.remember(cached, 0, 0, keys, values)
    whole = fast.attention(q, cached, 0, 0, window=window)
    for n_threads in {1, numba.config.NUMBA_NUM_THREADS}:
        threads(n_threads)
        for size in (1, 3, 17, 64, 150):
            grown = Cached(dtype, 1, n_kv, 304, head_dim)
            for i in range(0, 300, size):
                step = slice(i, i + size)
                fast.remember(grown, 0, i, keys[step], values[step])
                for cache in (grown, cached):
                    found = fast.attention(q[step], cache, 0, i, window=window)
                    np.testing.assert_array_equal(found, whole[step])


def largest_of_groups(x):
    """For each element of x (..., n) the largest magnitude of the four pairs i, i + n / 2 that it belongs to."""
    half = x.shape[-1] // 2
    pairs = np.maximum(np.abs(x[..., :half]), np.abs(x[..., half:]))
    groups = [pairs[..., i : i + 4].max(axis=-1, keepdims=True).repeat(4, axis=-1) for i in range(0, half, 4)]
    one_half = np.concatenate(groups, axis=-1)[..., :half]
    return np.concatenate([one_half, one_half], axis=-1)


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
    for read, exact in zip(found.read(1, 203), (keys, values), strict=True):
        error = np.abs(read[:, 3:].transpose(1, 0, 2) - exact)
        largest = np.abs(exact).max(axis=2, keepdims=True)
        if dtype == "int8" and exact is keys:
            largest = largest_of_groups(exact)
        step = {"fp32": 0.0, "fp16": 2.0**-11, "int8": 0.5 / 127 + 2.0**-11}[dtype] * (1 + 1e-5)  # of the largest
        assert (error <= step * largest).all()
    grown = found.copy(256, 150)
    for read, before in zip(grown.read(1, 150), found.read(1, 150), strict=True):
        np.testing.assert_array_equal(read, before)


def test_int8_takes_58_percent_of_fp16():
    """A byte per number, 2 bytes per 8 numbers of a key, 4 per value: 148 per position and head instead of 256."""
    sizes = {dtype: Cached(dtype, 16, 8, 1024, 64).nbytes for dtype in TYPES}
    assert sizes == {"fp16": 32 << 20, "fp32": 64 << 20, "int8": (16 << 20) + (2 << 20) + (1 << 19)}


@pytest.mark.parametrize("head_dim", [64, 80])
def test_large_channels_of_keys_do_not_drown_the_others(fast, rng, head_dim):
    """As in Qwen2.5: one pair of channels a hundred times as large as the rest. Scores lose less than a third of what
    they lose with a scale per vector."""
    keys, values = rng.standard_normal((2, 200, 2, head_dim)).astype(np.float32)
    keys[..., [5, 5 + head_dim // 2]] += [100, -60]
    cached = Cached("int8", 1, 2, 208, head_dim)
    fast.remember(cached, 0, 0, keys, values)
    found = cached.read(0, 200)[0].transpose(1, 0, 2)
    scale = np.abs(keys).max(axis=2, keepdims=True) / np.float32(127)
    common = np.rint(keys / scale) * scale
    q = rng.standard_normal((head_dim, 1000)).astype(np.float32)
    errors = [np.sqrt((((rounded - keys) @ q) ** 2).mean()) for rounded in (found, common)]
    assert errors[0] < errors[1] / 3


@pytest.mark.parametrize("ops", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [65_520.0, 1e6, 1e38, np.inf, 2.0**-120, 1e-42])
def test_numbers_beyond_the_type(ops, dtype, size, rng):
    """What float16 does not hold becomes its largest, so that a masked position has no infinity to be weighed with 0;
    what has no scale becomes 0. fp32 keeps everything."""
    compute = backend(ops)
    keys, values = rng.standard_normal((2, 70, 2, 32)).astype(np.float32)
    keys[40, 0, 3], keys[40, 1, 20], values[50, 1] = size, -size, size
    values[50, 1, 7], values[51] = -size, np.float32(size) if size < 1 else 0
    cached, exact = Cached(dtype, 1, 2, 80, 32), Cached(dtype, 1, 2, 80, 32)
    compute.remember(cached, 0, 0, keys, values)
    reference.remember(exact, 0, 0, keys, values)
    for name in ("keys", "values", "key_scales", "value_scales"):
        np.testing.assert_array_equal(getattr(cached, name), getattr(exact, name))
    found_keys, found_values = cached.read(0, 70)
    if dtype == "fp32":
        assert found_keys[0, 40, 3] == np.float32(size) and found_values[1, 50, 7] == np.float32(-size)
        return
    expected = min(np.float32(size), np.float32(65504))
    for found in (found_keys[0, 40, 3], -found_keys[1, 40, 20], found_values[1, 50, 0], -found_values[1, 50, 7]):
        assert abs(found - expected) <= expected * 2**-11 + 2.0**-25
    q = rng.standard_normal((70, 4, 32)).astype(np.float32)
    outputs = compute.attention(q, cached, 0, 0)
    assert np.isfinite(outputs).all()
    np.testing.assert_allclose(outputs[:40], compute.attention(q[:40], cached, 0, 0), rtol=0, atol=BUDGET)


@pytest.mark.parametrize("dtype", TYPES)
def test_nan_stays_nan(fast, rng, dtype):
    """So that logits are NaN and the sampler says so; nothing may hide it."""
    keys, values = rng.standard_normal((2, 16, 2, 32)).astype(np.float32)
    keys[4, 0, 3] = values[5, 1, 9] = np.nan
    cached, exact = Cached(dtype, 1, 2, 16, 32), Cached(dtype, 1, 2, 16, 32)
    fast.remember(cached, 0, 0, keys, values)
    reference.remember(exact, 0, 0, keys, values)
    for found, expected in zip(cached.read(0, 16), exact.read(0, 16), strict=True):
        np.testing.assert_array_equal(found, expected)
    found_keys, found_values = cached.read(0, 16)
    assert np.isnan(found_keys[0, 4, 3]) and np.isnan(found_values[1, 5, 9])
    assert np.isfinite(found_keys[:, :4]).all() and np.isfinite(found_values[0]).all()


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


@pytest.mark.numba
@pytest.mark.parametrize("isa", [isa for isa in cpu.known_isas() if isa in ("avx2", "portable")])
def test_other_instruction_sets(isa, tmp_path):
    errors = json.loads(run_on(isa, _PROBE, tmp_path))
    assert max(errors.values()) <= BUDGET, errors
