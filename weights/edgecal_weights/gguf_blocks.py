"""The number formats of GGUF tensors: how a block of bytes becomes weights, and which packed format it fits.

A quantized row is a sequence of blocks of 32 weights (the old formats) or 256 (the "K" ones, which are made
of 8 groups of 32 or 16 groups of 16). Every format here decodes to the same shape of thing, integer codes
with a scale and perhaps a minimum per group:

    value = code * scale (+ minimum)

and where code, scale and minimum fit edgecal's own formats, they move over without ever being rounded as float32
weights:

| GGUF         | bits | scale and minimum of a group | edgecal     | fidelity                                |
|--------------|------|------------------------------|-------------|-----------------------------------------|
| Q8_0         | 8.5  | fp16                         | int8        | exact                                   |
| Q5_0         | 5.5  | fp16                         | int5        | exact                                   |
| Q4_0         | 4.5  | fp16                         | int4_f16    | exact                                   |
| Q4_1         | 5.0  | fp16, fp16 minimum           | int4_affine | exact                                   |
| Q4_K         | 4.5  | fp16 * 6 bits, both          | int4_k      | exact (4.625 bits)                      |
| Q5_K         | 5.5  | fp16 * 6 bits, both          | int5_k      | exact (5.625 bits)                      |
| Q6_K         | 6.6  | fp16 * 8 bits, per 16        | int6_k      | exact                                   |
| Q5_1         | 6.0  | fp16, fp16 minimum           | int8        | near: re-rounded, 0.53 %                |
| F32 F16 BF16 |      | none                         | none        | read() is exact                         |

"Near" gives the RMS difference from the stored weights, as a part of their RMS, on normally distributed weights. Heavy
tails cost more, because one large weight sets the step of its group: 0.7 % for a Laplace distribution, 1.5 % for
Student's t with two degrees of freedom. What holds for any weights: none moves by more than 0.4 % of the largest in its
group.

The float32 values are the same, bit for bit, as those of llama.cpp's own `gguf` package. Sources: the block
structs and reference dequantization of ggml (ggml-common.h, ggml-quants.c).

Trap: ggml never writes a Q8_0 code of -128, and edgecal's int8 does not have it; a file that contains one
anyway gets the rows in question re-rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.errors import QuantizationError
from edgecal_kernels.quant import SPECS, STEP, Chosen, QuantizedTensor, expand, from_chosen, from_codes, quantize

from .binary_file import decode_floats
from .checkpoint import Fidelity


@dataclass(frozen=True)
class BlockType:
    """`block` weights lie in `nbytes` bytes."""

    name: str
    block: int
    nbytes: int


# Every type id that ggml has in use: those that are not decoded still need their sizes, to check a file's
# layout, and their names, to be refused by.
BLOCK_TYPES: dict[int, BlockType] = {
    type_id: BlockType(name, block, nbytes)
    for type_id, name, block, nbytes in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 40),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
    )
}

FLOAT_TYPES = ("F32", "F16", "BF16")
COUNTERPARTS: dict[str, tuple[str, Fidelity]] = {
    type_name: (spec.name, fidelity) for spec in SPECS.values() for type_name, fidelity in spec.gguf.items()
}
DECODED_TYPES = (*FLOAT_TYPES, *COUNTERPARTS)


@dataclass(frozen=True, eq=False)
class Codes:
    """Rows of n groups of g weights: value = codes * scale (+ minimum).

    `codes` is int8 or uint8 (rows, n, g); `scale` and `minimum` are float32 (rows, n).
    """

    codes: NDArray[np.int8] | NDArray[np.uint8]
    scale: NDArray[np.float32]
    minimum: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Multiples:
    """Rows of n groups of 32 whose scales have two levels, as `QuantizedTensor` has them.

    `codes` is uint8 (rows, n, 32), `scale` int8 (rows, n, 2): scale and minimum, or the scales of both halves, in
    multiples of `super_scale`, float32 (rows, n / 8, 2 or 1). Codes mean what they say less `offset`.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.int8]
    super_scale: NDArray[np.float32]
    offset: int

    def plain(self) -> Codes:
        scale = expand(self.scale, self.super_scale)
        if self.super_scale.shape[2] == 2:
            return Codes(self.codes, scale[..., 0], scale[..., 1])
        codes = self.codes.view(np.int8) - np.int8(self.offset)
        return Codes(codes.reshape(len(codes), -1, 16), scale.reshape(len(scale), -1))


# A block as a record. Bytes of `qs` hold two 4-bit codes, `qh` the missing high bits.
_HALF = 16
_LAYOUTS = {
    "Q8_0": np.dtype([("d", "<f2"), ("qs", "i1", 32)]),
    "Q4_0": np.dtype([("d", "<f2"), ("qs", "u1", _HALF)]),
    "Q4_1": np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", _HALF)]),
    "Q5_0": np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", _HALF)]),
    "Q5_1": np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", _HALF)]),
    "Q4_K": np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", (4, 32))]),
    "Q5_K": np.dtype(
        [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", (4, 32))]
    ),
    "Q6_K": np.dtype([("ql", "u1", (2, 64)), ("qh", "u1", (2, 32)), ("scales", "i1", 16), ("d", "<f2")]),
}


def _floats(field: NDArray) -> NDArray[np.float32]:
    return field.astype(np.float32)


def _nibbles(qs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., n) bytes to (..., 2, n) codes: all low halves first, then all high halves."""
    return np.stack([qs & 15, qs >> 4], axis=-2)


def _old_codes(b: NDArray) -> NDArray[np.uint8]:
    """Codes of a block of 32, with the fifth bit where the format has one: (rows, blocks, 32)."""
    codes = _nibbles(b["qs"]).reshape(*b.shape, 32)
    if "qh" in (b.dtype.names or ()):
        codes |= np.unpackbits(b["qh"], axis=-1, bitorder="little") << 4
    return codes


def _q8_0(b: NDArray) -> Codes:
    return Codes(b["qs"], _floats(b["d"]))


def _q4_0(b: NDArray) -> Codes:
    return Codes(_old_codes(b).view(np.int8) - np.int8(8), _floats(b["d"]))


def _q5_0(b: NDArray) -> Codes:
    return Codes(_old_codes(b).view(np.int8) - np.int8(16), _floats(b["d"]))


def _q4_1_q5_1(b: NDArray) -> Codes:
    return Codes(_old_codes(b), _floats(b["d"]), _floats(b["m"]))


def _q4_k_q5_k(b: NDArray) -> Multiples:
    """Eight groups of 32 whose scales and minima are 6-bit multiples of two fp16 numbers; minima are subtracted.

    Bytes 0-3 of `scales` carry the scales of groups 0-3 in their low six bits, bytes 4-7 the minima; the
    remaining bits are for groups 4-7: their low four in bytes 8-11 (scale, then minimum), their high two on
    top of bytes 0-3 and 4-7.
    """
    low_scale, low_minimum, rest = np.split(b["scales"], 3, axis=-1)
    scale = np.concatenate([low_scale & 63, rest & 15 | (low_scale >> 6) << 4], axis=-1)
    minimum = np.concatenate([low_minimum & 63, rest >> 4 | (low_minimum >> 6) << 4], axis=-1)
    codes = _nibbles(b["qs"]).reshape(*b.shape, 8, 32)
    if "qh" in (b.dtype.names or ()):
        # Bit j of byte i belongs to weight i of group j.
        bits = np.unpackbits(b["qh"][..., None], axis=-1, bitorder="little")
        codes |= np.swapaxes(bits, -1, -2) << 4
    both = np.stack([scale, minimum], axis=-1).view(np.int8).reshape(len(b), -1, 2)
    return Multiples(codes.reshape(len(b), -1, 32), both, np.stack([_floats(b["d"]), -_floats(b["dmin"])], axis=-1), 0)


def _q6_k(b: NDArray) -> Multiples:
    """Sixteen groups of 16, in two halves of 128: low nibbles of 64 bytes, their high nibbles, two bits of
    `qh`."""
    low = _nibbles(b["ql"]).reshape(*b.shape, 2, 4, 32)
    high = np.stack([b["qh"] >> shift & 3 for shift in (0, 2, 4, 6)], axis=-2)
    codes = (low | high << 4).reshape(len(b), -1, 32).view(np.uint8)
    return Multiples(codes, b["scales"].reshape(len(b), -1, 2), _floats(b["d"])[..., None], 32)


_DECODERS: dict[str, Callable[[NDArray], Codes | Multiples]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1_q5_1,
    "Q5_0": _q5_0,
    "Q5_1": _q4_1_q5_1,
    "Q4_K": _q4_k_q5_k,
    "Q5_K": _q4_k_q5_k,
    "Q6_K": _q6_k,
}


def _decode(raw: NDArray[np.uint8], type_name: str) -> Codes | Multiples:
    with np.errstate(all="ignore"):  # scales may be anything in a file
        return _DECODERS[type_name](raw.view(_LAYOUTS[type_name]))


def decode(raw: NDArray[np.uint8], type_name: str) -> Codes:
    """Codes, scales and minima of contiguous uint8 (rows, bytes per row), as they are in the file."""
    with np.errstate(all="ignore"):
        found = _decode(raw, type_name)
        return found.plain() if isinstance(found, Multiples) else found


def dequantize(raw: NDArray[np.uint8], type_name: str) -> NDArray[np.float32]:
    """Weights, float32 (rows, k), of contiguous uint8 (rows, bytes per row). Any type of DECODED_TYPES."""
    if type_name in FLOAT_TYPES:
        out = np.empty((raw.shape[0], raw.shape[1] // (4 if type_name == "F32" else 2)), np.float32)
        decode_floats(raw.reshape(-1), type_name, out)
        return out
    parts = decode(raw, type_name)
    with np.errstate(all="ignore"):
        values = parts.codes * parts.scale[..., None]
        if parts.minimum is not None:
            values += parts.minimum[..., None]
    return values.reshape(len(raw), -1)


def pack(raw: NDArray[np.uint8], type_name: str) -> QuantizedTensor:
    """Rows in the format COUNTERPARTS[type_name]: codes moved over, or re-rounded, as the module's table
    says.

    Raises QuantizationError when a scale is not finite or beyond float16.
    """
    format, fidelity = COUNTERPARTS[type_name]
    if fidelity == "near":
        return quantize(dequantize(raw, type_name), format)
    parts = _decode(raw, type_name)
    codes = parts.codes
    if type_name == "Q8_0" and codes.size and codes.min() == -128:
        return quantize(dequantize(raw, type_name), format)
    scales = (parts.super_scale,) if isinstance(parts, Multiples) else (parts.scale, parts.minimum)
    for scale in scales:
        if scale is not None and not np.isfinite(scale).all():
            raise QuantizationError(f"a {type_name} block has a scale that is not finite")
    flat = codes.reshape(len(raw), -1)
    if isinstance(parts, Multiples):
        chosen = Chosen(flat, parts.scale, super_scale=parts.super_scale)
        return from_chosen(format, (flat.shape[0], flat.shape[1]), STEP, chosen)
    offset = SPECS[format].code_offset
    if offset:
        flat = (flat + np.int8(offset)).view(np.uint8)
    return from_codes(flat, parts.scale, parts.minimum, format, STEP)
