"""Three bits, simulated: what would calibrated int3 be worth, before there are kernels for it?

Codes of three bits are codes of four that stay within eight of sixteen, so a packed form of four bits holds them
exactly, and runs. `container` lets that form search and round as if it had three bits; `bytes_saved` is what it would
take less. Two kinds:

    int3          (c - 4) * scale, c in [0, 7]: int4_f16 holds it. Counted with scales of 8 bits, as int4 has them
    int3_affine   c * scale + minimum: int4_affine holds it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgecal_kernels import code_search
from edgecal_kernels.code_search import Chosen
from edgecal_kernels.quant import SPECS, STEP, Array, FormatSpec
from edgecal_weights.packed import PackedCheckpoint

_DIVISORS = (-4.0, -3.8, -3.6, -3.4, -4.25, 3.5, 3.75)


def _symmetric(g: Array, importance: Array | None = None) -> Chosen:
    codes, scale = code_search._symmetric(g, 4, _DIVISORS, code_search._float16_scale, importance)
    return Chosen(codes + np.uint8(4), scale)  # around 8, as the container has them


def _affine(g: Array, importance: Array | None = None) -> Chosen:
    return code_search._affine(g, 7, importance)


class _Simulated(NamedTuple):
    container: str
    search: Callable[..., Chosen]
    scale_bits: int  # of a group


SIMULATED = {"int3": _Simulated("int4_f16", _symmetric, 8), "int3_affine": _Simulated("int4_affine", _affine, 32)}


class _ThreeBits(FormatSpec):
    """A format of four bits, half of whose codes are used."""

    @property
    def lowest(self) -> int:
        return -self.code_offset // 2

    @property
    def highest(self) -> int:
        return self.lowest + 7


@contextmanager
def container(format: str) -> Iterator[str]:
    """The format that holds `format`, which rounds to three bits until the end; any other format as it is."""
    if format not in SIMULATED:
        yield format
        return
    held = SIMULATED[format]
    spec = SPECS[held.container]
    SPECS[spec.name] = _ThreeBits(**{**vars(spec), "search": held.search})
    try:
        yield spec.name
    finally:
        SPECS[spec.name] = spec


def bytes_saved(name: str, packed: Path) -> int:
    """What the directory that holds `name`, a format and perhaps the size of its groups, has too much."""
    format, _, size = name.partition("+")[0].partition("/")
    if format not in SIMULATED:
        return 0
    held, group = SIMULATED[format], int(size or STEP)
    bits = SPECS[held.container].bits_per_weight(group) - (3 + held.scale_bits / group)
    with PackedCheckpoint(packed) as checkpoint:
        shapes = [checkpoint.shape(n) for n in checkpoint.names() if checkpoint.stored_type(n) == held.container]
    return round(bits / 8 * sum(d * k for d, k in shapes))
