"""A step of packed weights, 32 columns of a tile: how its codes are multiplied, where its scales are, what comes next.

What a format says (the bits of a code, the kind of its scales) is constant in its kernels: Numba drops the branches
that the format does not take.
"""

from __future__ import annotations

from typing import Any

from . import isa, simd
from .formats import SPECS, FormatSpec
from .jit import kernel, kernel_for
from .simd import load_half, mul

INT8_OFFSET: int = isa.active().INT8_OFFSET
AHEAD = 8192  # bytes of codes: a processor's own prefetching ends with the page and starts late in the next


def operand_offset(format: FormatSpec) -> int:
    """What a dot product has too much for each unit of the activations' sum: the instructions multiply with codes as
    they are stored, and with whole bytes plus INT8_OFFSET."""
    return INT8_OFFSET if format.bits == 8 else format.code_offset


def room_of(format: FormatSpec) -> int:
    """The bits of a code for which dot products are made."""
    return 6 if format.bits == 5 else format.bits


def upper_place(bits: int, second: bool) -> tuple[int, int]:
    """Where the line with the upper bits of half a step is, and the number of the half's first quad in it."""
    return (256, 4 * second) if bits == 5 else (256 + 64 * second, 0)


@kernel
def int8_line(codes: Any, at: int) -> Any:
    return simd.as_operand(simd.load_bytes(codes, at))


def _factors_of(format: FormatSpec) -> Any:
    """The scales of a step, and its minima or the scales of its second half where there are any.

    group, unit: the elements of the group's scales, and of what 256 columns share.
    """
    has_minimum, has_row_scale, has_super_scale = format.has_minimum, format.has_row_scale, format.has_super_scale
    last_unit = 16 * (format.super_parts - 1)

    @kernel_for(format.name)
    def factors(scale: int, extra: int, group: int, unit: int) -> Any:
        if has_super_scale:
            w_scale = mul(simd.load_int8(scale, group * 2), load_half(extra, unit))
            return w_scale, mul(simd.load_int8(scale, group * 2 + 16), load_half(extra, unit + last_unit))
        w_scale = simd.load_signed_square(scale, group) if has_row_scale else load_half(scale, group)
        return w_scale, load_half(extra, group) if has_minimum else w_scale

    return factors


def _prefetch_of(format: FormatSpec, one: Any, name: str) -> Any:
    """Prefetch the codes and scales of a step AHEAD bytes later.

    Two cores that only read get a tenth to a fifth more from memory than two that multiply without prefetching.
    """
    lines, width, parts = format.packing.step_bytes // 64, format.scale_bytes, format.super_parts
    has_minimum, has_super_scale = format.has_minimum, format.has_super_scale

    @kernel_for(f"{format.name}_{name}")
    def prefetch(codes: int, scale: int, extra: int, group: int, unit: int) -> None:
        for line in range(lines):
            one(codes, line * 64 + AHEAD)
        one(scale, group * width + AHEAD * width // (lines * 4))
        if has_super_scale:
            one(extra, unit * 2 + AHEAD * parts // (lines * 16))
        elif has_minimum:
            one(extra, group * 2 + AHEAD // (lines * 2))

    return prefetch


FACTORS = {name: _factors_of(format) for name, format in SPECS.items()}
PREFETCH = {name: _prefetch_of(format, simd.prefetch, "near") for name, format in SPECS.items()}
# For one token, whose weights are read once: code and KV cache stay in the second-level cache
PREFETCH_ONCE = {name: _prefetch_of(format, simd.prefetch_once, "once") for name, format in SPECS.items()}


@kernel
def next_step(group: int, inside: int, per_group: int) -> Any:
    """Element of the group's scales and step within the group, for the next step. A division would cost as much as the
    dot products, and its branches keep them from overlapping."""
    last = inside + 1 == per_group
    return group + (16 if last else 0), 0 if last else inside + 1


@kernel
def super_place(tile: int, n_groups: int, step: int, parts: int) -> int:
    """Element of the numbers that 256 columns share, of which there are `parts` for each row."""
    return (tile * ((n_groups + 7) // 8) + step // 8) * parts * 16
