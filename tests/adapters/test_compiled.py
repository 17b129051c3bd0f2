"""Adapters in the form in which a model runs them: int8 beside packed weights, float32 beside float32 ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecal.adapters.compiled import CompiledAdapter, CompiledPair, run_form
from edgecal.errors import AdapterError
from edgecal_kernels import dispatch, reference
from edgecal_kernels.quant import dequantize, quantize, unpack

BACK_ENDS = ("numpy", "numba")


def pair(d: int, k: int, rank: int, size: float = 1.0, seed: int = 0) -> CompiledPair:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((rank, k)), rng.standard_normal((d, rank))
    return CompiledPair(a.astype(np.float32) * np.float32(size), b.astype(np.float32) * np.float32(size))


@settings(deadline=None, max_examples=30)
@given(
    d=st.integers(1, 70),
    k=st.integers(1, 70),
    exponent=st.integers(-20, 0),
    order=st.sampled_from("CF"),
    seed=st.integers(0, 100),
)
def test_the_compiled_rounding_has_the_bits_of_the_definition(d, k, exponent, order, seed):
    w = np.random.default_rng(seed).uniform(-1, 1, (d, k)).astype(np.float32)
    w[:, :: k // 2 + 1] = 0
    w = np.asarray(np.ldexp(w, exponent), order=order)
    found, wanted = (ops.pack_int8(w, math.ldexp(1, -exponent)) for ops in (dispatch.backend("numba"), reference))
    assert (found.tile_lines, found.scale.dtype) == (-(-k // 4), wanted.scale.dtype)
    assert found.n_tiles * 16 + found.n_quarters * 4 in range(d, d + 4) and found.n_quarters < 4
    for ours, theirs in zip(unpack(found)[:2], unpack(wanted)[:2], strict=True):
        np.testing.assert_array_equal(ours[:d], theirs[:d])
        assert not ours[d:].any() and not theirs[d:].any()
    np.testing.assert_array_equal(dequantize(found), dequantize(wanted))


@settings(deadline=None, max_examples=30)
@given(d=st.integers(1, 70), k=st.integers(1, 300), n=st.integers(1, 40), seed=st.integers(0, 100))
def test_quarter_tiles_sum_what_they_hold(d, k, n, seed):
    """Against float64, and the same bits for any number of tokens; the oracle reads them too."""
    rng, numba_ops = np.random.default_rng(seed), dispatch.backend("numba")
    packed = numba_ops.pack_int8(rng.uniform(-1, 1, (d, k)).astype(np.float32))
    x = rng.standard_normal((n, k)).astype(np.float32)
    rounds = numba_ops.Activations(x)
    found = numba_ops.matmul(rounds, packed)
    codes, scale, _ = rounds.rounded()
    rounded = (codes.reshape(n, -1, 32) * scale[..., None].astype(np.float64)).reshape(n, -1)[:, :k]
    size = np.abs(rounded) @ np.abs(dequantize(packed)).T.astype(np.float64)
    assert (np.abs(found - rounded @ dequantize(packed).T.astype(np.float64)) <= 1e-6 * size + 1e-30).all()
    np.testing.assert_allclose(reference.matmul(rounds, packed), found, rtol=0, atol=1e-5 * size.max())
    for token in range(n):
        alone = numba_ops.matmul(numba_ops.Activations(x[token : token + 1]), packed)
        np.testing.assert_array_equal(alone[0], found[token])


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_what_it_adds_is_right_to_a_hundredth_whatever_the_scale(size, back_end):
    """Two roundings to 1/254 of the largest element in 32, and one of the inner vector."""
    ops, given_pair = dispatch.backend(back_end), pair(48, 96, 20, size)
    running = run_form(CompiledAdapter("test", {"m": given_pair}, "key"), lambda module: ops.pack_int8).pairs["m"]
    delta = running.scaling * (dequantize(running.b).astype(np.float64) @ dequantize(running.a))
    wanted = given_pair.b.astype(np.float64) @ given_pair.a
    assert np.linalg.norm(delta - wanted) <= 0.01 * np.linalg.norm(wanted)
    assert math.frexp(running.scaling)[0] == 0.5


def test_modules_with_float_weights_keep_float_pairs():
    adapter = CompiledAdapter("test", {"m": pair(8, 8, 2), "n": pair(8, 8, 0)}, "key", 3, 12)
    running = run_form(adapter, lambda module: None)
    assert running.pairs["m"].a is adapter.pairs["m"].a and running.pairs["m"].b is adapter.pairs["m"].b
    assert running.pairs["n"].a is None and running.pairs["n"].rank == 0
    assert (running.rank, running.method, running.recipe_key) == (2, "test", "key")
    assert (running.extra_parameters, running.extra_bytes) == (3, 12)
    assert running.nbytes == 2 * 16 * 4


def test_modules_that_share_a_matrix_share_its_int8_form():
    shared = np.ones((1, 64), np.float32)
    pairs = {name: CompiledPair(shared, np.full((32, 1), i + 1, np.float32)) for i, name in enumerate("xyz")}
    running = run_form(CompiledAdapter("test", pairs, "key"), lambda module: reference.pack_int8)
    assert len({id(p.a) for p in running.pairs.values()}) == 1
    one = quantize(shared, "int8").nbytes
    assert running.nbytes == one + 3 * running.pairs["x"].b.nbytes


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_names_the_module(back_end, value):
    broken = pair(8, 40, 2)
    broken.a[1, 33] = value
    with pytest.raises(AdapterError, match=r"test: the merged pair of some\.module .*finite"):
        run_form(CompiledAdapter("test", {"some.module": broken}, "k"), lambda m: dispatch.backend(back_end).pack_int8)
