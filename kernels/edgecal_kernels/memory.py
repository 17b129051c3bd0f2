"""Numbers and records at addresses, which kernels take as int64 and in bytes.

Every array that is handed to a compiled function costs the interpreter up to a microsecond, many when the weights have
just swept the processor's caches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic as _numba_intrinsic

from .jit import kernel
from .simd import f32, i8, i16, i32, i64

intrinsic: Any = _numba_intrinsic


def emit_pointer(builder: Any, address: Any, offset: int, to: ir.Type) -> Any:
    return builder.inttoptr(builder.add(address, i64(offset)) if offset else address, to.as_pointer())


def emit_load(builder: Any, address: Any, offset: int, of: ir.Type, align: int = 4) -> Any:
    value = builder.load(emit_pointer(builder, address, offset, of))
    value.align = align
    return value


@intrinsic
def address(context: Any, place: Any) -> Any:
    """The address of an array's first element; an address is returned as it is.

    It keeps nothing alive: an array made in the same kernel is given back after its last mention, so that has to come
    after the last use of its address (a mention inside of a loop counts until the loop ends).
    """

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        if isinstance(sig.args[0], types.Integer):
            return v[0]
        return builder.ptrtoint(context.make_array(sig.args[0])(context, builder, v[0]).data, i64)

    return types.int64(place), generate


def _reader(of: ir.Type, result: Any) -> Callable:
    def typing(context: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
            return emit_load(builder, v[0], 0, of, 1)

        return result(types.int64), generate

    return intrinsic(typing)


def _writer(of: ir.Type, value_type: Any) -> Callable:
    def typing(context: Any, place: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
            builder.store(v[1], emit_pointer(builder, v[0], 0, of)).align = 1
            return context.get_dummy_value()

        return types.void(types.int64, value_type), generate

    return intrinsic(typing)


read_short, read_int, read_long, read_float = (
    _reader(*t) for t in ((i16, types.int16), (i32, types.int32), (i64, types.int64), (f32, types.float32))
)
write_int, write_long, write_float = (
    _writer(*t) for t in ((i32, types.int32), (i64, types.int64), (f32, types.float32))
)


def stack_of(size: int) -> Callable:
    """Intrinsic: the address of so many bytes, which last until the kernel that asks for them ends."""

    def typing(context: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
            with builder.goto_entry_block():  # once; Numba's own `alloca_once` would fill it with zeros
                room = builder.alloca(ir.ArrayType(i8, size))
            room.align = 64
            return builder.ptrtoint(room, i64)

        return types.int64(), generate

    return intrinsic(typing)


@intrinsic
def pointer(context: Any, address: Any) -> Any:
    """For `carray`."""

    def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
        return builder.inttoptr(v[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@kernel
def floats(address: int, n: int, width: int) -> Any:
    """The float32 (n, width) at an address."""
    return carray(pointer(address), (n, width), np.float32)
