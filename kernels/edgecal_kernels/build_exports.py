"""The kernels of a ready-made library, and how each becomes a function of C.

Every one is `int64 name(const int64 *slots, int64 share, int64 shares)`. The slots hold its arguments one after the
other: a number, a float64 as its bits, an array as its address and its shape, a tuple as its items. What the kernel
returns is written behind them. The function returns 0, or Numba's code for an exception (memory that is not there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np.arrayobj import populate_array

from . import merging, team
from .adapter_inner import inner_share
from .attention import _ADDRESSES, _VIEW, attend_share
from .cache_write import remember_share, rotate_share
from .decoder_walk import walk
from .dense import add_lora_share, dense_share
from .elementwise import gate_all, normalize
from .embedding import embed_rows
from .linear_product import ROUNDED, linear_share
from .packed_kernels import SIZES
from .packing import pack_share
from .rounding import round_share

i64, f64 = ir.IntType(64), ir.DoubleType()
_boolean, _int64, _float32, _float64 = types.boolean, types.int64, types.float32, types.float64
_THREE, _FLOATS, _MATRIX = types.UniTuple(_int64, 3), _float32[::1], _float32[:, ::1]
_HALVES, _BITS, _LONGS = types.uint16[::1], types.uint32[::1], _int64[::1]
_PLACES = (_int64, _int64, types.int32[:, :, ::1], types.uint16[:, :, ::1], _boolean[::1])


@dataclass(frozen=True)
class Export:
    """A kernel under its name, with the Numba types of its arguments; `shared`: a share and their number follow."""

    name: str
    kernel: Any
    arguments: tuple[Any, ...]
    shared: bool = False

    @property
    def types(self) -> tuple[Any, ...]:
        return (*self.arguments, _int64, _int64) if self.shared else self.arguments


_PRODUCT = (_int64, types.UniTuple(_int64, 5), SIZES, types.UniTuple(_int64, 2))
_TRIMMED = (_LONGS, types.int32[::1], _LONGS, _FLOATS)
EXPORTS = (
    Export("round", round_share, (_MATRIX, types.int8[:, ::1], _MATRIX, types.int16[:, ::1], types.uint8[::1]), True),
    Export("multiply", linear_share, (*_PRODUCT, _int64, ROUNDED, *[_int64] * 6), True),
    Export("inner", inner_share, (_int64, _int64, _int64, ROUNDED, _int64), True),
    Export("dense", dense_share, (_FLOATS, _FLOATS, _FLOATS, _int64, _int64, _int64), True),
    Export("add_lora", add_lora_share, (_FLOATS, _FLOATS, _FLOATS, _FLOATS, _int64, _int64), True),
    Export("embed", embed_rows, (*_PRODUCT[:3], _LONGS, _MATRIX)),
    Export("normalize", normalize, (_MATRIX, _FLOATS, _FLOATS, _float64, _boolean, _MATRIX)),
    Export("gate", gate_all, (_int64, _FLOATS, _FLOATS)),
    Export("rotate", rotate_share, (_FLOATS, _THREE, _MATRIX, _MATRIX), True),
    Export("remember", remember_share, (_FLOATS, _FLOATS, _THREE, _ADDRESSES, _int64, _int64, _int64), True),
    Export("attend", attend_share, (_FLOATS, _FLOATS, _THREE, _VIEW, _ADDRESSES, _int64), True),
    Export("pack", pack_share, (_MATRIX, _float32, *_PLACES), True),
    Export("pack_transposed", pack_share, (_float32[::1, :], _float32, *_PLACES), True),
    Export("walk", walk, (_int64,) * 6, True),
    Export("merging.decode_half", merging.decode_half, (_HALVES, _FLOATS)),
    Export("merging.decode_bfloat", merging.decode_bfloat, (_HALVES, _BITS)),
    Export("merging.scaled", merging.scaled, (_FLOATS, _float32, _FLOATS)),
    Export("merging.add_scaled", merging.add_scaled, (_FLOATS, _float32, _FLOATS)),
    Export("merging.sum_of_two", merging.sum_of_two, (_FLOATS, _float32, _FLOATS, _float32, _FLOATS)),
    Export("merging.transpose", merging.transpose, (_MATRIX, _float32, _MATRIX)),
    Export("merging.dot", merging.dot, (_FLOATS, _FLOATS)),
    Export("merging.largest_magnitudes", merging.largest_magnitudes, (_BITS, _int64, _BITS, _LONGS)),
    Export("merging.draw", merging.draw, (types.uint64[::1], types.uint64[::1])),
    Export("merging.drop", merging.drop, (_FLOATS, types.uint64[::1], _int64, _int64, _float32, _FLOATS)),
    Export("merging.sum_trimmed", merging.sum_trimmed, (*_TRIMMED, _FLOATS)),
    Export("merging.elect", merging.elect, (*_TRIMMED, _boolean, _FLOATS)),
)
TEAM = {"edgecal_work": (team.work, 3), "edgecal_run": (team.run, 5)}  # functions of so many int64, as they are


def _items(kind: Any) -> tuple[Any, ...]:
    """The types of a tuple's items."""
    return tuple(kind.types)


class _Slots:
    """Reads a function's slots one after the other."""

    def __init__(self, context: Any, builder: Any, slots: Any) -> None:
        self.context, self.builder, self._slots, self.n = context, builder, slots, 0

    def place(self) -> Any:
        self.n += 1
        return self.builder.gep(self._slots, [i64(self.n - 1)])

    def value(self, kind: Any) -> Any:
        """The next argument, of a Numba type."""
        builder = self.builder
        if isinstance(kind, types.BaseTuple):
            pack = cgutils.pack_array if isinstance(kind, types.UniTuple | types.NamedUniTuple) else cgutils.pack_struct
            return pack(builder, [self.value(item) for item in _items(kind)])
        if isinstance(kind, types.Array):
            return self._array(kind)
        slot = builder.load(self.place())
        if isinstance(kind, types.Float):
            wide = builder.bitcast(slot, f64)
            return builder.fptrunc(wide, ir.FloatType()) if kind.bitwidth == 32 else wide
        if kind is types.boolean:
            return builder.icmp_unsigned("!=", slot, i64(0))
        assert kind == types.int64, kind
        return slot

    def _array(self, kind: Any) -> Any:
        context, builder = self.context, self.builder
        array = context.make_array(kind)(context, builder)
        data = builder.inttoptr(builder.load(self.place()), array.data.type)
        shape = [builder.load(self.place()) for _ in range(kind.ndim)]
        itemsize = i64(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        strides, step = [], itemsize
        for dim in shape if kind.layout == "F" else reversed(shape):
            strides.append(step)
            step = builder.mul(step, dim)
        if kind.layout == "C":
            strides.reverse()
        populate_array(array, data=data, shape=shape, strides=strides, itemsize=itemsize, meminfo=None)
        return array._getvalue()

    def write(self, kind: Any, value: Any) -> None:
        """A result, into the next slots."""
        builder = self.builder
        if isinstance(kind, types.BaseTuple):
            for i, item in enumerate(_items(kind)):
                self.write(item, builder.extract_value(value, i))
        elif kind is not types.none:
            if isinstance(kind, types.Float):
                value = builder.bitcast(value if kind.bitwidth == 64 else builder.fpext(value, f64), i64)
            elif kind.bitwidth < 64:
                value = (builder.sext if kind.signed else builder.zext)(value, i64)
            builder.store(value, self.place())


def letters(kind: Any) -> str:
    """A type as the loader reads it: q a number, d a float, an array's dtype, dimensions and layout, tuples in
    brackets."""
    if isinstance(kind, types.BaseTuple):
        return f"({''.join(letters(item) for item in _items(kind))})"
    if isinstance(kind, types.Array):
        return f"{kind.dtype.name}:{kind.ndim}{kind.layout}"
    return "d" if isinstance(kind, types.Float) else "q"


def signature(export: Export) -> tuple[list[str], str]:
    """(arguments, results) as the loader reads them."""
    result = export.kernel.overloads[export.types].signature.return_type
    results = "" if result is types.none else letters(result).strip("()")
    return [letters(kind) for kind in export.arguments], results


def define(context: Any, export: Export, symbol: str) -> tuple[str, Any]:
    """A function of C called `symbol`, in LLVM's language, and the library of Numba's with the kernel that it calls."""
    compiled = _compile(export.kernel, export.types)
    module, builder, function = _function(context, symbol, [i64.as_pointer(), i64, i64])
    slots = _Slots(context, builder, function.args[0])
    values = [slots.value(kind) for kind in export.arguments]
    values += function.args[1:] if export.shared else []
    status, result = _call(context, module, builder, compiled, export.types, values)
    slots.write(compiled.signature.return_type, result)
    builder.ret(builder.sext(builder.select(status.is_error, status.code, ir.IntType(32)(0)), i64))
    return str(module), compiled.library


def define_plain(context: Any, kernel: Any, n: int, symbol: str) -> tuple[str, Any]:
    """As `define`, for a kernel that takes `n` int64 and returns one."""
    kinds = (types.int64,) * n
    compiled = _compile(kernel, kinds)
    module, builder, function = _function(context, symbol, [i64] * n)
    _, result = _call(context, module, builder, compiled, kinds, list(function.args))
    builder.ret(result)
    return str(module), compiled.library


def _compile(kernel: Any, kinds: tuple[Any, ...]) -> Any:
    kernel.compile(kinds)
    return kernel.overloads[kinds]


def _function(context: Any, symbol: str, arguments: Sequence[Any]) -> tuple[Any, Any, Any]:
    module = context.create_module(symbol)
    function = ir.Function(module, ir.FunctionType(i64, arguments), symbol)
    return module, ir.IRBuilder(function.append_basic_block("entry")), function


def _call(context: Any, module: Any, builder: Any, compiled: Any, kinds: Any, values: list[Any]) -> Any:
    result = compiled.signature.return_type
    callee = ir.Function(module, context.call_conv.get_function_type(result, kinds), compiled.fndesc.llvm_func_name)
    return context.call_conv.call_function(builder, callee, result, kinds, values)
