"""The packed number formats, each an entry of one table: everything that depends on the format reads it there.

A weight is a code, with one scale (and perhaps a minimum) for each group of consecutive columns of a row, 32 unless
asked otherwise:

    value = (code - code_offset) * scale + minimum

| format        | code             | value                    | bits per weight at group 32 |
|---------------|------------------|--------------------------|-----------------------------|
| `int8`        | c in [-127, 127] | c * scale                | 8.5                         |
| `int6`        | c in [0, 63]     | (c - 32) * scale         | 6.5                         |
| `int5`        | c in [0, 31]     | (c - 16) * scale         | 5.5                         |
| `int4`        | c in [0, 15]     | (c - 8) * s abs(s) * row | 4.25 and 32 for each row    |
| `int4_f16`    | c in [0, 15]     | (c - 8) * scale          | 4.5                         |
| `int4_affine` | c in [0, 15]     | c * scale + minimum      | 5.0                         |
| `int6_k`      | c in [0, 63]     | (c - 32) * s u           | 6.5625                      |
| `int5_k`      | c in [0, 31]     | c * s u + m v            | 5.625                       |
| `int4_k`      | c in [0, 15]     | c * s u + m v            | 4.625                       |

Scales and minima are float16. `int4` has an int8 s instead, and a float32 `row_scale`: the groups of a row seldom
differ by more than a factor of ten, and squares are dense enough far below that. `int4_f16` is what GGUF's Q4_0 holds.

The formats "_k" hold the K-quants of GGUF with every bit of their meaning. Scales and minima have two levels: int8 s
and m of a group, times float16 u and v that 256 columns of a row share. A group is 32 columns; `int6_k` has an s for
each of its halves. (K-quants have six bits for s and m, of one sign. Bytes are an eighth of a bit more, with nothing to
unpack and a finer choice for weights that are rounded here.)

A format that is put together from what there is (a packing of `layout`, either kind of scales, minima or none) needs an
entry here and nothing else: the compiled kernels make their loops from it (`packed_steps`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .code_search import (
    Chosen,
    search_int4,
    search_int4_affine,
    search_int4_f16,
    search_int4_k,
    search_int5,
    search_int5_k,
    search_int6,
    search_int6_k,
    search_int8,
)
from .errors import QuantizationError
from .layout import BYTES, FIVE_BITS, NIBBLES, SIX_BITS, STEP, SUPER, Packing

GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class FormatSpec:
    """A number format.

    `search` chooses codes and scales for groups of weights, `packing` says how codes lie in memory. `has_minimum`: a
    group has a minimum, too. `has_row_scale`: scales are int8 s, for s abs(s) times a float32 scale of the row.
    `has_super_scale`: a group has two int8, which are its scale and minimum or, without a minimum, the scales of its
    halves, times float16 numbers of 256 columns, one for the scales and one for the minima. Scales and minima are
    float16 otherwise. `gguf`: the GGUF types that become this format when a file is kept as it is, and whether that is
    "exact" or "near".
    """

    name: str
    packing: Packing
    code_offset: int
    search: Callable[..., Chosen]
    has_minimum: bool = False
    has_row_scale: bool = False
    has_super_scale: bool = False
    gguf: Mapping[str, Literal["exact", "near"]] = field(default_factory=dict)

    @property
    def bits(self) -> int:
        return self.packing.bits

    @property
    def lowest(self) -> int:
        """The smallest code, as a multiple of the scale."""
        return -127 if self.packing is BYTES else -self.code_offset

    @property
    def highest(self) -> int:
        return 127 if self.packing is BYTES else (1 << self.bits) - 1 - self.code_offset

    @property
    def halves(self) -> bool:
        """Whether 16 columns have a scale of their own."""
        return self.has_super_scale and not self.has_minimum

    @property
    def super_parts(self) -> int:
        """Numbers that 256 columns share: for the scales, and for the minima."""
        return 2 if self.has_minimum else 1

    @property
    def group_sizes(self) -> tuple[int, ...]:
        return GROUP_SIZES[:1] if self.has_super_scale else GROUP_SIZES

    @property
    def scale_dtype(self) -> np.dtype:
        return np.dtype(np.int8 if self.has_row_scale or self.has_super_scale else np.float16)

    @property
    def scale_bytes(self) -> int:
        """Of a group and row in the array of scales."""
        return 1 if self.has_row_scale else 2

    def bits_per_weight(self, group_size: int = STEP) -> float:
        """Codes, scales and minima of a large matrix; a row's scale takes 32 bits more for each row."""
        if self.has_super_scale:
            return self.bits + 16 / group_size + 16 * self.super_parts / SUPER
        return self.bits + (8 * self.scale_bytes + (16 if self.has_minimum else 0)) / group_size


def _affine_k(name: str, packing: Packing, search: Callable[..., Chosen], gguf: str) -> FormatSpec:
    return FormatSpec(name, packing, 0, search, has_minimum=True, has_super_scale=True, gguf={gguf: "exact"})


SPECS: dict[str, FormatSpec] = {
    spec.name: spec
    for spec in (
        FormatSpec("int8", BYTES, 0, search_int8, gguf={"Q8_0": "exact", "Q5_1": "near"}),  # rounded again
        FormatSpec("int6", SIX_BITS, 32, search_int6),
        FormatSpec("int5", FIVE_BITS, 16, search_int5, gguf={"Q5_0": "exact"}),
        FormatSpec("int4", NIBBLES, 8, search_int4, has_row_scale=True),
        FormatSpec("int4_f16", NIBBLES, 8, search_int4_f16, gguf={"Q4_0": "exact"}),
        FormatSpec("int4_affine", NIBBLES, 0, search_int4_affine, has_minimum=True, gguf={"Q4_1": "exact"}),
        FormatSpec("int6_k", SIX_BITS, 32, search_int6_k, has_super_scale=True, gguf={"Q6_K": "exact"}),
        _affine_k("int5_k", FIVE_BITS, search_int5_k, "Q5_K"),
        _affine_k("int4_k", NIBBLES, search_int4_k, "Q4_K"),
    )
}
FORMATS = tuple(SPECS)


def find_format(name: str, group_size: int = STEP) -> FormatSpec:
    """Its entry; raises QuantizationError, which lists what there is, for an unknown name or group size."""
    if name not in SPECS:
        raise QuantizationError(f"unknown weight format {name!r}; known: {', '.join(FORMATS)}")
    spec = SPECS[name]
    if group_size not in spec.group_sizes:
        served = f"has groups of {STEP}" if spec.has_super_scale else f"is served in groups of {GROUP_SIZES}"
        raise QuantizationError(f"group_size {group_size}: {name} {served}")
    return spec
