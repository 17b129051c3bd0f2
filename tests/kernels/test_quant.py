"""The packed formats: round trips, error budgets, padding, and independence of the tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecal_kernels.errors import QuantizationError
from edgecal_kernels.quant import (
    FORMATS,
    SPECS,
    dequantize,
    dequantize_rows,
    from_codes,
    packed_shapes,
    quantize,
    unpack,
)

GROUPED = [(format, size) for format in FORMATS for size in SPECS[format].group_sizes]
SHAPES = [(1, 1), (16, 32), (17, 33), (100, 70), (48, 256)]
# Root mean square error on unit normal weights in groups of 32; the formats' error budgets.
BUDGET = {"int8": 0.0055, "int6": 0.021, "int5": 0.042, "int4": 0.085, "int4_f16": 0.085, "int4_affine": 0.078}
BUDGET |= {"int6_k": 0.018, "int5_k": 0.039, "int4_k": 0.078}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("format", "group_size"), GROUPED)
def test_shapes_and_rows(rng, shape, format, group_size):
    w = rng.standard_normal(shape).astype(np.float32)
    t = quantize(w, format, group_size)
    expected = packed_shapes(format, shape, group_size)
    assert {name: (array.dtype, array.shape) for name, array in t.arrays.items()} == expected
    dense = dequantize(t)
    assert dense.shape == shape
    rows = rng.integers(0, shape[0], 9)
    np.testing.assert_array_equal(dequantize_rows(t, rows), dense[rows])


@pytest.mark.parametrize(("format", "group_size"), GROUPED)
def test_bits_per_weight(rng, format, group_size):
    t = quantize(rng.standard_normal((32, 256)).astype(np.float32), format, group_size)
    of_rows = 0 if t.row_scale is None else 32 / 256
    assert 8 * t.nbytes / (32 * 256) == SPECS[format].bits_per_weight(group_size) + of_rows


@pytest.mark.parametrize("format", FORMATS)
def test_error_budget(rng, format):
    w = rng.standard_normal((256, 512)).astype(np.float32)
    error = dequantize(quantize(w, format)) - w
    assert np.sqrt(np.mean(error**2)) < BUDGET[format]


def test_int4_f16_is_never_worse_than_q4_0(rng):
    """Q4_0's scale is one of the candidates, so the squared error of every group is at most Q4_0's."""
    w = rng.standard_normal((64, 256)).astype(np.float32)
    groups = w.reshape(64, 8, 32)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(2)[..., None], 2)
    scale = (extreme / -8).astype(np.float16).astype(np.float32)
    q4_0 = np.clip(np.rint(groups / scale), -8, 7) * scale
    ours = dequantize(quantize(w, "int4_f16")).reshape(groups.shape)
    assert (np.square(ours - groups).sum(2) <= np.square(q4_0 - groups).sum(2) + 1e-6).all()


@pytest.mark.parametrize("format", FORMATS)
def test_tiles_are_independent(rng, format):
    w = rng.standard_normal((80, 96)).astype(np.float32)
    whole, part = quantize(w, format), quantize(w[32:64], format)
    for name, array in part.arrays.items():
        np.testing.assert_array_equal(whole.arrays[name][2:4], array)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 100),
    st.sampled_from([name for name, spec in SPECS.items() if not (spec.has_row_scale or spec.has_super_scale)]),
    st.integers(0, 2**32 - 1),
)
def test_from_codes_is_exact(d, k, format, seed):
    rng = np.random.default_rng(seed)
    groups = -(-k // 32)
    codes = rng.integers(-127, 128, (d, k)).astype(np.int8)
    if format != "int8":
        codes = rng.integers(0, 1 << SPECS[format].bits, (d, k)).astype(np.uint8)
    scale = rng.uniform(1e-3, 1, (d, groups)).astype(np.float16)
    minimum = rng.uniform(-1, 1, (d, groups)).astype(np.float16) if SPECS[format].has_minimum else None
    t = from_codes(codes, scale, minimum, format)
    np.testing.assert_array_equal(unpack(t)[0][:d, :k], codes)
    value = codes.astype(np.float32) - SPECS[format].code_offset
    expected = value * np.repeat(scale.astype(np.float32), 32, axis=1)[:, :k]
    if minimum is not None:
        expected += np.repeat(minimum.astype(np.float32), 32, axis=1)[:, :k]
    np.testing.assert_array_equal(dequantize(t), expected)


def test_where_the_six_bits_lie():
    """Column 21 = 16 + 4 * 1 + 1 of row 3: high nibble in line 1, upper bits 2 and 3 of the second upper line."""
    codes = np.full((16, 32), 0, np.uint8)
    codes[3, 21] = 0b101101
    step = from_codes(codes, np.ones((16, 1), np.float32), None, "int6").codes[0, 0]
    expected = np.zeros(384, np.uint8)
    expected[64 + 3 * 4 + 1], expected[320 + 3 * 4 + 1] = 0b1101 << 4, 0b10 << 2
    np.testing.assert_array_equal(step, expected)


def test_where_the_five_bits_lie():
    """Column 21 of row 3: high nibble in line 1, the fifth bit is bit 4 + 1 of the upper line."""
    codes = np.full((16, 32), 0, np.uint8)
    codes[3, 21] = 0b11101
    step = from_codes(codes, np.ones((16, 1), np.float32), None, "int5").codes[0, 0]
    expected = np.zeros(320, np.uint8)
    expected[64 + 3 * 4 + 1], expected[256 + 3 * 4 + 1] = 0b1101 << 4, 1 << 5
    np.testing.assert_array_equal(step, expected)


@pytest.mark.parametrize("format", FORMATS)
def test_constant_and_zero_weights_survive(format):
    for value in (0.0, 0.25, -3.0):
        w = np.full((16, 64), value, np.float32)
        finest = 1 / 127 if format == "int4" else 1e-3  # half a step of its scales, which are squares of up to 127
        np.testing.assert_allclose(dequantize(quantize(w, format)), w, rtol=finest)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_weights_are_refused(bad):
    w = np.zeros((4, 32), np.float32)
    w[2, 5] = bad
    with pytest.raises(QuantizationError, match=r"\[2, 5\]"):
        quantize(w, "int4")


def test_what_does_not_fit_is_refused():
    with pytest.raises(QuantizationError, match="float16"):
        quantize(np.full((1, 32), 1e9, np.float32), "int8")
    with pytest.raises(QuantizationError, match=", ".join(FORMATS)):
        quantize(np.ones((1, 32), np.float32), "int3")
    with pytest.raises(QuantizationError, match="group_size 7"):
        quantize(np.ones((1, 32), np.float32), "int4", 7)
    with pytest.raises(QuantizationError, match="int4_k has groups of 32"):
        quantize(np.ones((1, 32), np.float32), "int4_k", 64)
    with pytest.raises(QuantizationError, match="scales"):
        from_codes(np.zeros((2, 32), np.uint8), np.ones((3, 1), np.float16), None, "int4_f16")
    with pytest.raises(QuantizationError, match="int4 has no float16 scales; int8, int6, int5, int4_f16"):
        from_codes(np.zeros((2, 32), np.uint8), np.ones((2, 1), np.float16), None, "int4")
    with pytest.raises(QuantizationError, match=r"need minima \(2, 1\), found none"):
        from_codes(np.zeros((2, 32), np.uint8), np.ones((2, 1), np.float16), None, "int4_affine")
    with pytest.raises(QuantizationError, match="no minima, and some are given"):
        from_codes(np.zeros((2, 32), np.uint8), *[np.ones((2, 1), np.float16)] * 2, "int4_f16")


def test_scales_of_int4(rng):
    """The groups' scales are squares of up to 127 in units of the row's; a group far below its neighbours keeps one."""
    w = rng.standard_normal((32, 256)).astype(np.float32)
    w[:, 32:64] *= 1000
    w[3] *= 1e-30
    w[4] *= 1e30
    w[5], w[6, :32] = 0, 0
    t = quantize(w, "int4")
    assert t.row_scale is not None
    assert abs(t.scale.astype(int)).max() <= 127 and t.scale[0, 0, 6] == 0
    _, scale, _ = unpack(t)
    roots = t.scale.astype(np.float32).transpose(0, 2, 1).reshape(32, -1)
    np.testing.assert_array_equal(scale, roots * abs(roots) * t.row_scale.reshape(32, 1))
    groups, found = w.reshape(32, 8, 32).astype(np.float64), dequantize(t).reshape(32, 8, 32).astype(np.float64)
    size, error = np.square(groups).sum(2), np.square(found - groups).sum(2)
    assert (error[size > 0] / size[size > 0]).max() < 0.03
    assert not found[size == 0].any()
    np.testing.assert_array_equal(dequantize(quantize(np.full((1, 32), 1e-37, np.float32), "int4")), 0)


def test_scales_of_two_levels(rng):
    """int8 multiples of float16 numbers of 256 columns, of scales and of minima, or of the scales of both halves."""
    w = rng.standard_normal((32, 320)).astype(np.float32) + 1
    for format, parts in (("int4_k", 2), ("int6_k", 1)):
        t = quantize(w, format)
        assert t.super_scale is not None and t.super_scale.shape == (2, 2, parts, 16)
        assert abs(t.scale.astype(int)).max() == 127
        multiples = t.scale[1, 8:, :, 3].astype(np.float32)  # of row 19, columns from 256 on
        units = t.super_scale[1, 1, :, 3].astype(np.float32)
        _, scale, minimum = unpack(t)
        if minimum is None:
            np.testing.assert_array_equal(scale[19].reshape(-1, 2)[8:], multiples * units)
        else:
            np.testing.assert_array_equal(np.stack([scale[19, 8:], minimum[19, 8:]], axis=1), multiples * units)
            assert (minimum[19] < 0).any()


@pytest.mark.parametrize("format", ["int4_k", "int5_k", "int6_k"])
def test_two_levels_reach_beyond_float16(rng, format):
    """127 units of float16's largest number: only a unit has to fit into float16."""
    w = rng.standard_normal((32, 512)).astype(np.float32)
    error = dequantize(quantize(w * np.float32(1e6), format)) / np.float32(1e6) - w
    assert np.sqrt(np.mean(error**2)) < BUDGET[format]
    with pytest.raises(QuantizationError, match="beyond float16"):
        quantize(w * np.float32(1e9), format)
