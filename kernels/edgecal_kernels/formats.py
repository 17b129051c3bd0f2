"""The packed number formats, each an entry of one table: everything that depends on the format reads it there.

A weight is a code, with one scale (and perhaps a minimum) for each group of consecutive columns of a row, 32 unless
asked otherwise:

    value = (code - code_offset) * scale + minimum

| format        | code             | value                    | bits per weight at group 32 |
|---------------|------------------|--------------------------|-----------------------------|
| `int8`        | c in [-127, 127] | c * scale                | 8.5                         |
| `int6`        | c in [0, 63]     | (c - 32) * scale         | 6.5                         |
| `int4`        | c in [0, 15]     | (c - 8) * s abs(s) * row | 4.25 and 32 for each row    |
| `int4_f16`    | c in [0, 15]     | (c - 8) * scale          | 4.5                         |
| `int4_affine` | c in [0, 15]     | c * scale + minimum      | 5.0                         |

Scales and minima are float16. `int4` has an int8 s instead, and a float32 `row_scale`: the groups of a row seldom
differ by more than a factor of ten, and squares are dense enough far below that. `int4_f16` is what GGUF's Q4_0 holds.

A format that is put together from what there is (a packing of `layout`, either kind of scales, minima or none) needs an
entry here and nothing else: the compiled kernels make their loops from it (`packed_kernels`).
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
    search_int6,
    search_int8,
)
from .errors import QuantizationError
from .layout import BYTES, NIBBLES, SIX_BITS, STEP, Packing

GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class FormatSpec:
    """A number format.

    `search` chooses codes and scales for groups of weights, `packing` says how codes lie in memory. `has_minimum`: a
    group has a float16 minimum. `has_row_scale`: scales are int8 s, for s abs(s) times a float32 scale of the row;
    float16 otherwise. `gguf`: the GGUF types that become this format when a file is kept as it is, and whether that is
    "exact" or "near".
    """

    name: str
    packing: Packing
    code_offset: int
    search: Callable[..., Chosen]
    has_minimum: bool = False
    has_row_scale: bool = False
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
    def scale_dtype(self) -> np.dtype:
        return np.dtype(np.int8 if self.has_row_scale else np.float16)

    def bits_per_weight(self, group_size: int = STEP) -> float:
        """Codes, scales and minima of a large matrix; a row's scale takes 32 bits more for each row."""
        of_group = 8 * self.scale_dtype.itemsize + (16 if self.has_minimum else 0)
        return self.bits + of_group / group_size


_NEAR: dict[str, Literal["exact", "near"]] = {"Q5_1": "near", "Q5_K": "near", "Q6_K": "near"}  # rounded again
SPECS: dict[str, FormatSpec] = {
    spec.name: spec
    for spec in (
        FormatSpec("int8", BYTES, 0, search_int8, gguf={"Q8_0": "exact", **_NEAR}),
        FormatSpec("int6", SIX_BITS, 32, search_int6, gguf={"Q5_0": "exact"}),
        FormatSpec("int4", NIBBLES, 8, search_int4, has_row_scale=True),
        FormatSpec("int4_f16", NIBBLES, 8, search_int4_f16, gguf={"Q4_0": "exact"}),
        FormatSpec(
            "int4_affine", NIBBLES, 0, search_int4_affine, has_minimum=True, gguf={"Q4_1": "exact", "Q4_K": "near"}
        ),
    )
}
FORMATS = tuple(SPECS)


def find_format(name: str, group_size: int = STEP) -> FormatSpec:
    """Its entry; raises QuantizationError, which lists what there is, for an unknown name or group size."""
    if name not in SPECS:
        raise QuantizationError(f"unknown weight format {name!r}; known: {', '.join(FORMATS)}")
    if group_size not in GROUP_SIZES:
        raise QuantizationError(f"group_size {group_size} is not served; choose one of {GROUP_SIZES}")
    return SPECS[name]
