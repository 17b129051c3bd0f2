"""Every block type against llama.cpp's `gguf` package, and what becomes of blocks in edgecal's formats."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from edgecal_kernels.errors import QuantizationError
from edgecal_kernels.quant import dequantize
from edgecal_weights import gguf_blocks
from edgecal_weights.gguf_blocks import BLOCK_TYPES, COUNTERPARTS, DECODED_TYPES

from .samples import random_blocks

QUANTIZED = tuple(COUNTERPARTS)
ENCODABLE = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")  # what the gguf package can write itself
# RMS difference as a part of the weights' RMS, and largest difference as a part of the group's largest
# weight.
NEAR_BUDGET = {
    "Q5_1": (6.5e-3, 4.2e-3),
}


def reference(raw, type_name):
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type_name])


def encode(w, type_name):
    return gguf.quants.quantize(w, gguf.GGMLQuantizationType[type_name])


def encode_k(w, bits, rng):
    """Q4_K or Q5_K in the plainest way: range of every group of 32, multiples of two super-scales."""
    groups = w.reshape(-1, 8, 32)
    top = (1 << bits) - 1
    low = np.minimum(groups.min(axis=2), 0)
    scale = (groups.max(axis=2) - low) / top
    d = (scale.max(axis=1) / 63).astype(np.float16)
    dmin = (-low.min(axis=1) / 63).astype(np.float16)
    sc = np.rint(scale / d[:, None].astype(np.float32)).clip(1, 63).astype(np.uint8)
    m = np.rint(-low / dmin[:, None].astype(np.float32)).clip(0, 63).astype(np.uint8)
    step = (d[:, None].astype(np.float32) * sc)[..., None]
    q = (
        np.rint((groups + (dmin[:, None].astype(np.float32) * m)[..., None]) / step)
        .clip(0, top)
        .astype(np.uint8)
    )
    packed = np.empty((len(groups), 12), np.uint8)
    packed[:, :4] = sc[:, :4] | (sc[:, 4:] >> 4) << 6
    packed[:, 4:8] = m[:, :4] | (m[:, 4:] >> 4) << 6
    packed[:, 8:] = (sc[:, 4:] & 15) | (m[:, 4:] & 15) << 4
    fields = [d[:, None].view(np.uint8), dmin[:, None].view(np.uint8), packed]
    if bits == 5:
        fields.append(np.packbits((q >> 4).swapaxes(1, 2), axis=2, bitorder="little").reshape(-1, 32))
    low_bits = q & 15
    fields.append((low_bits[:, 0::2] | low_bits[:, 1::2] << 4).reshape(-1, 128))
    return np.concatenate(fields, axis=1).reshape(w.shape[0], -1)


def test_table_of_types_is_that_of_ggml():
    ours = {type_id: (t.name, t.block, t.nbytes) for type_id, t in BLOCK_TYPES.items()}
    theirs = {int(t): (t.name, *sizes) for t, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {i: ours[i] for i in theirs if i in ours} == {i: v for i, v in theirs.items() if i in ours}
    assert set(DECODED_TYPES) <= {t.name for t in BLOCK_TYPES.values()}


@pytest.mark.parametrize("type_name", QUANTIZED)
def test_dequantize_is_bit_equal_on_arbitrary_codes(rng, type_name):
    raw = random_blocks(type_name, 40, 1024, rng)
    np.testing.assert_array_equal(gguf_blocks.dequantize(raw, type_name), reference(raw, type_name))


@pytest.mark.parametrize("type_name", ENCODABLE)
def test_dequantize_is_bit_equal_on_encoded_weights(rng, type_name):
    w = rng.standard_normal((33, 96)).astype(np.float32) * 0.05
    raw = encode(w, type_name)
    np.testing.assert_array_equal(gguf_blocks.dequantize(raw, type_name), reference(raw, type_name))


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_floats_are_exact(rng, type_name):
    w = (
        np.concatenate([rng.standard_normal(60) * 1e-3, [0.0, -0.0, 65504.0, 1e-7]])
        .astype(np.float32)
        .reshape(4, 16)
    )
    raw = encode(w, type_name).view(np.uint8)
    expected = reference(encode(w, type_name), type_name)
    np.testing.assert_array_equal(gguf_blocks.dequantize(raw, type_name), expected)


@pytest.mark.parametrize("type_name", [name for name, (_, how) in COUNTERPARTS.items() if how == "exact"])
def test_exact_counterparts_keep_every_bit(rng, type_name):
    raw = random_blocks(type_name, 37, 1280 if type_name.endswith("_K") else 160, rng)
    packed = gguf_blocks.pack(raw, type_name)
    assert packed.format == COUNTERPARTS[type_name][0]
    bits = 8 * packed.nbytes / (48 * packed.shape[1])  # rows are padded to 48
    stored = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    assert 8 * stored[1] / stored[0] <= bits <= 1.03 * 8 * stored[1] / stored[0]
    np.testing.assert_array_equal(dequantize(packed), reference(raw, type_name))


@pytest.mark.parametrize("type_name", [name for name, (_, how) in COUNTERPARTS.items() if how == "near"])
def test_near_counterparts_stay_within_their_budget(rng, type_name):
    raw = encode(rng.standard_normal((64, 1024)).astype(np.float32) * 0.03, type_name)
    stored = reference(raw, type_name)
    packed = gguf_blocks.pack(raw, type_name)
    assert packed.format == COUNTERPARTS[type_name][0]
    error = dequantize(packed) - stored
    groups = np.abs(stored.reshape(-1, 32)).max(axis=1)
    rms, largest = NEAR_BUDGET[type_name]
    assert np.sqrt(np.square(error).mean() / np.square(stored).mean()) < rms
    assert (np.abs(error.reshape(-1, 32)).max(axis=1) <= largest * groups).all()


@pytest.mark.parametrize(("degrees", "low", "high"), [(3, 0.0065, 0.0105), (2, 0.0098, 0.016)])
def test_heavy_tails_cost_more_and_no_weight_moves_far(degrees, low, high):
    """The figures of the module's docstring: RMS grows with the tails, the bound on a single weight holds."""
    w = np.random.default_rng(0).standard_t(degrees, (256, 1024)).astype(np.float32)
    raw = encode(w, "Q5_1")
    stored = reference(raw, "Q5_1")
    error = dequantize(gguf_blocks.pack(raw, "Q5_1")) - stored
    assert low < np.sqrt(np.square(error).mean() / np.square(stored).mean()) < high
    largest = np.abs(stored.reshape(-1, 32)).max(axis=1)
    assert (np.abs(error.reshape(-1, 32)).max(axis=1) <= NEAR_BUDGET["Q5_1"][1] * largest).all()


@pytest.mark.parametrize("type_name", ["Q4_K", "Q5_K"])
def test_k_quants_of_weights_keep_every_bit(rng, type_name):
    w = rng.standard_normal((64, 1024)).astype(np.float32) * 0.03
    raw = encode_k(w, int(type_name[1]), rng)
    stored = reference(raw, type_name)
    assert np.abs(stored - w).max() < 0.03  # the encoder of this test means it
    np.testing.assert_array_equal(dequantize(gguf_blocks.pack(raw, type_name)), stored)


def test_q8_0_code_that_int8_lacks_is_rounded(rng):
    raw = random_blocks("Q8_0", 16, 64, rng)
    raw[3, 2] = 0x80
    stored = reference(raw, "Q8_0")
    error = np.abs(dequantize(gguf_blocks.pack(raw, "Q8_0")) - stored)
    assert error.max() <= 0.0042 * np.abs(stored).max()


@pytest.mark.parametrize("type_name", QUANTIZED)
@pytest.mark.parametrize("bits", [0x7C00, 0x7E00])  # infinity, NaN
def test_broken_scales_raise_and_never_warn(rng, type_name, bits):
    raw = random_blocks(type_name, 16, 256, rng)
    at = 208 if type_name == "Q6_K" else 0
    raw[5, at : at + 2] = np.array([bits], np.uint16).view(np.uint8)
    assert not np.isfinite(gguf_blocks.dequantize(raw, type_name)).all()
    with pytest.raises(QuantizationError):
        gguf_blocks.pack(raw, type_name)
