"""One short file per instruction set: the int8 dot product that LLVM does not find by itself.

A file gives two names:

    INT8_OFFSET   what `simd.as_operand` adds to signed weight bytes so that the instruction takes them (0 or 128)
    dot4(builder, acc, w, four, signed)
                  acc <16 x i32> + dot products of w <64 x i8> (lane = 4 bytes) with the 4 int8 in the i32 `four`;
                  `signed` says whether w holds int8 weights (plus INT8_OFFSET) or nibbles 0..15

`activate` chooses the file for everything that is compiled afterwards in this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from llvmlite import ir

_active: list[ModuleType] = []


def activate(name: str) -> ModuleType:
    """Choose `isa/<name>.py`; returns it."""
    _active[:] = [import_module(f"{__name__}.{name}")]
    return _active[0]


def active() -> ModuleType:
    return _active[0] if _active else activate("portable")


# -------------------------------------------------------------------------- LLVM helpers that every file needs


def declare(builder: Any, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> Any:
    """The LLVM intrinsic `name`, declared once per module."""
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def splat(builder: Any, value: Any, n: int) -> Any:
    """<n x type> with `value` in every lane."""
    undefined = ir.Constant(ir.VectorType(value.type, n), ir.Undefined)
    zero = ir.Constant(ir.VectorType(ir.IntType(32), n), [0] * n)
    return builder.shuffle_vector(builder.insert_element(undefined, value, ir.IntType(32)(0)), undefined, zero)


def lanes(builder: Any, value: Any, start: int, n: int) -> Any:
    """Lanes [start, start + n) of a vector."""
    index = ir.Constant(ir.VectorType(ir.IntType(32), n), list(range(start, start + n)))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), index)


def join(builder: Any, low: Any, high: Any) -> Any:
    """Two vectors of n lanes as one of 2n."""
    n = 2 * low.type.count
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(ir.IntType(32), n), list(range(n))))
