"""Some steps of 32 activations rounded to int8 at once.

What one step would do alone leaves most lanes of a register without work: its largest magnitude, the two divisions by
it, and the sums of its codes. Here these are the lanes of one vector for all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _numba_intrinsic

from . import isa
from .memory import emit_load, emit_pointer
from .simd import LANES, _call, _constant, f32, i8, i16, i32

intrinsic: Any = _numba_intrinsic
_FLOATS, _INTS, _CODES = (ir.VectorType(lane, LANES) for lane in (f32, i32, i8))


def _fold(builder: Any, vectors: Sequence[Any], n: int, join: Callable[[Any, Any], Any]) -> Any:
    """Neighbouring lanes of vectors that are laid end to end, joined until n of them are left, in their order."""
    while len(vectors) > 1 or vectors[0].type.count > n:
        pairs = zip(vectors[::2], vectors[1::2], strict=True) if len(vectors) > 1 else [(vectors[0], vectors[0])]
        lanes = min(vectors[0].type.count * len(vectors) // 2, vectors[0].type.count)
        found = []
        for low, high in pairs:
            even, odd = (isa.pick(builder, low, high, range(start, 2 * lanes, 2)) for start in (0, 1))
            found.append(join(even, odd))
        vectors = found
    return vectors[0]


def _emit_round_steps(n: int) -> Callable:
    """`reference.quantize_rows` of n steps, a power of two, bit for bit: addresses of float32 and of the results."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        x, codes, scale, total = v
        magnitude, numbers = _constant(i32, LANES, 0x7FFFFFFF), ir.VectorType(f32, n)

        def larger(a: Any, b: Any) -> Any:
            """Floats without their signs are ordered as their bits are; NaN is larger than all."""
            return _call(builder, f"llvm.umax.v{a.type.count}i32", a.type, a, b)

        def half(step: int, second: int) -> Any:
            return emit_load(builder, x, step * 128 + second * 64, _FLOATS)

        found = []
        for step in range(n):
            halves = (builder.bitcast(half(step, second), _INTS) for second in (0, 1))
            found.append(larger(*(builder.and_(bits, magnitude) for bits in halves)))
        extreme = builder.bitcast(_fold(builder, found, n, larger), numbers)
        most, zero = _constant(f32, n, 127.0), _constant(f32, n, 0.0)
        builder.store(builder.fdiv(extreme, most), emit_pointer(builder, scale, 0, numbers)).align = 4
        positive = builder.fcmp_ordered(">", extreme, zero)
        inverse = builder.select(positive, builder.fdiv(most, extreme), zero)

        rounded = []
        for step in range(n):
            factor = isa.pick(builder, inverse, inverse, [step] * LANES)
            for second in (0, 1):
                value = _call(builder, "llvm.rint.v16f32", _FLOATS, builder.fmul(half(step, second), factor))
                rounded.append(builder.trunc(builder.fptosi(value, _INTS), _CODES))
            line = isa.join(builder, *rounded[-2:])
            builder.store(line, emit_pointer(builder, codes, step * 32, line.type)).align = 1

        sums, ones = [], _constant(i8, 64, 1)
        rounded += [_constant(i8, LANES, 0)] * (-len(rounded) % 4)  # a dot product takes 64 bytes
        for at in range(0, len(rounded), 4):
            fours = builder.bitcast(isa.joined(builder, rounded[at : at + 4]), _INTS)
            sums.append(isa.active().dot4(builder, _constant(i32, LANES, 0), ones, fours, True))
        halves = isa.lanes(builder, _fold(builder, sums, len(rounded), builder.add), 0, 2 * n)
        whole = builder.trunc(halves, ir.VectorType(i16, 2 * n))
        builder.store(whole, emit_pointer(builder, total, 0, whole.type)).align = 4
        return context.get_dummy_value()

    def typing(context: Any, x: Any, codes: Any, scale: Any, total: Any) -> Any:
        return types.void(*[types.int64] * 4), generate

    return intrinsic(typing)


round_eight, round_one = _emit_round_steps(8), _emit_round_steps(1)
