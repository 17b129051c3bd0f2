"""One short file per instruction set: the int8 dot products that LLVM does not find by itself.

A file gives six names:

    INT8_OFFSET   what `simd.as_operand` adds to signed weight bytes so that the instruction takes them (0 or 128)
    VECTORS       how many vectors of sixteen 32-bit lanes the registers hold: 32 registers of 512 bits hold 32, 16 of
                  256 or 32 of 128 hold 8. Attention keeps sixteen vectors of sums where there is room for them
    TOKENS, TILES, ROWS
                  the tokens (2, 4 or 8), the 16-row tiles (1 or 2) and the rows of each (16, or 4 where a register
                  holds no more) of a block of the matrix kernel: as many as the registers hold. Each token and tile
                  needs ROWS lanes of sums and of dot products besides the weights and activations
    dot4(builder, acc, w, x, signed)
                  acc <16 x i32> + dot products of w <64 x i8> (lane = 4 bytes) with the 4 int8 in each lane of x
                  <16 x i32>, mostly the same in all lanes; `signed` says whether w holds int8 weights (plus
                  INT8_OFFSET) or nibbles 0..15

One token takes four lines, sixteen columns, at a time. That is made of `dot4`, unless an instruction does better with
several lines:

    dot16(builder, acc, lines, octets, bits)
                   acc + dot products of four lines with the 16 int8 at the pointer `octets`; `bits` of a code: at
                   most 6, or 8 (plus INT8_OFFSET)

Sums of dot products become float32 as LLVM converts them, unless an instruction set does better:

    BIAS           what those of a block begin with besides; they are below 2 ** 22
    to_float(builder, sums)
                   <n x i32>, with BIAS, as <n x float>
    begin_dots(builder, start), end_dots(builder, sums, start)
                   <16 x i32> of one token before its first product, in a way of the file's own, and start + products as
                   <16 x float>; `start` is an i32

A step of one token is made of two `dot16`, and codes of less than eight bits are unpacked by masks and shifts, unless
an instruction set does better:

    dot32(builder, sums, codes, octets, bits)
                   sums + dot products of the step (`layout`) at the pointer `codes`, whose codes have 4, 5, 6 or 8
                   bits, with the 32 int8 at `octets`; one <16 x i32>, or two, for the halves of the columns

Where the scales of int4 are better made otherwise than LLVM does:

    signed_square(builder, small)
                   <n x i8> s as <n x float> s abs(s)

The matrix kernel takes two lines of weights, eight columns, at a time for all tokens of a block. What it asks for is
made of `dot4` here; an instruction that does better with several tokens replaces the three together:

    begin(builder, start)          sums of a block: one <ROWS x i32> per token, whose meaning is the file's own
    dot8(builder, sums, lines, octets, bits)
                                   sums + dot products of two lines with each token's 8 int8, which lie token after
                                   token at the pointer `octets`; `bits` of a code: 4, 6, or 8 (plus INT8_OFFSET)
    finish(builder, sums, start, bits)
                                   one <ROWS x i32> per token, lane = row; with `start`, where `begin` left it out

and what belongs to tokens is read by

    splat_of(builder, place, n, token, lanes)
                                   the number of a token, of n that lie at a pointer, four bytes each, in every lane
    registers(builder, place, n)   n <ROWS x i32>, one after the other at a pointer to bytes

A process has one of them, from the first kernel that is defined to its end: constants of the file are parts of kernels,
of the folder that they are kept in, and of the Python code around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from llvmlite import ir

from .. import cpu
from ..errors import BackendError

_active: dict[str, ModuleType] = {}  # none until it is settled, then one


def activate(name: str) -> ModuleType:
    """Settle on `isa/<name>.py` for this process; returns it.

    Raises BackendError where the processor lacks it, or where the process has settled on another.
    """
    if not _active:
        has = cpu.available_isas()
        if not has.get(name):
            served = ", ".join(known for known in has if has[known])
            raise BackendError(f"the instruction set {name!r} is not served here; choose one of {served}")
        _active[name] = import_module(f"{__name__}.{name}")
    if name not in _active:
        raise BackendError(
            f"the kernels of this process are for {active_name()}, and {name} was asked for; a process keeps its "
            f"instruction set, so start another with {cpu.ISA_ENV}={name}"
        )
    return _active[name]


def active() -> ModuleType:
    """The file of this process; when nothing has settled it before, `cpu.detect_isa` does, whose errors it raises."""
    return next(iter(_active.values())) if _active else activate(cpu.detect_isa())


def active_name() -> str:
    """The name of `active()`, as EDGECAL_ISA has it."""
    active()
    return next(iter(_active))


def dot16(builder: Any, acc: Any, lines: Sequence[Any], octets: Any, bits: int) -> Any:
    own = getattr(active(), "dot16", None)
    if own:
        return own(builder, acc, lines, octets, bits)
    for line, four in zip(lines, fours(builder, octets, len(lines)), strict=True):
        acc = active().dot4(builder, acc, line, splat(builder, four, 16), bits == 8)
    return acc


def bias() -> int:
    return getattr(active(), "BIAS", 0)


def to_float(builder: Any, sums: Any) -> Any:
    own = getattr(active(), "to_float", None)
    return own(builder, sums) if own else builder.sitofp(sums, ir.VectorType(ir.FloatType(), sums.type.count))


def begin_dots(builder: Any, start: Any) -> Any:
    own = getattr(active(), "begin_dots", None)
    return own(builder, start) if own else splat(builder, start, 16)


def end_dots(builder: Any, sums: Any, start: Any) -> Any:
    own = getattr(active(), "end_dots", None)
    return own(builder, sums, start) if own else to_float(builder, sums)


def dot32(builder: Any, sums: Sequence[Any], codes: Any, octets: Any, bits: int) -> list[Any]:
    own = getattr(active(), "dot32", None)
    if own:
        return own(builder, sums, codes, octets, bits)
    lines = operands(builder, [load_bytes(builder, codes, 64 * line, 64) for line in range(bits)])
    room = 6 if bits == 5 else bits
    found = [dot16(builder, sums[0], lines[:4], octets, room), *sums[1:]]
    found[-1] = dot16(builder, found[-1], lines[4:], builder.gep(octets, [ir.IntType(32)(16)]), room)
    return found


def operands(builder: Any, lines: Sequence[Any]) -> list[Any]:
    """The eight lines of a step that has as many as a code has bits."""
    if len(lines) == 8:
        return [as_operand(builder, line) for line in lines]
    packed, upper = lines[:4], lines[4:]
    nibbles = [builder.and_(line, filled(line.type, 15)) for line in packed]
    nibbles += [builder.lshr(line, filled(line.type, 4)) for line in packed]
    if not upper:
        return nibbles
    bits, quads = len(upper), 8 // len(upper)  # of a code, and places in a line
    return [
        with_upper(builder, nibble, upper[n // quads], ir.IntType(64)(n % quads), bits)
        for n, nibble in enumerate(nibbles)
    ]


def as_operand(builder: Any, line: Any) -> Any:
    """Signed bytes as `dot4` wants them: plus INT8_OFFSET."""
    return builder.xor(line, filled(line.type, -128)) if active().INT8_OFFSET else line


def signed_square(builder: Any, small: Any) -> Any:
    own = getattr(active(), "signed_square", None)
    if own:
        return own(builder, small)
    floats = ir.VectorType(ir.FloatType(), small.type.count)
    value = builder.sitofp(small, floats)
    fabs = declare(builder, f"llvm.fabs.v{floats.count}f32", floats, [floats])
    return builder.fmul(value, builder.call(fabs, [value]))


def begin(builder: Any, start: Sequence[Any]) -> list[Any]:
    """Sums of a block in the active file's order; `start` holds a <ROWS x i32> per token, all its lanes equal."""
    own = getattr(active(), "begin", None)
    return own(builder, start) if own else list(start)


def dot8(builder: Any, sums: Sequence[Any], lines: Sequence[Any], octets: Any, bits: int) -> list[Any]:
    own = getattr(active(), "dot8", None)
    if own:
        return own(builder, sums, lines, octets, bits)
    xs, found = fours(builder, octets, 2 * len(sums)), []
    for token, acc in enumerate(sums):
        for half, line in enumerate(lines):
            four = xs[2 * token + half]
            acc = active().dot4(builder, acc, line, splat(builder, four, 16), bits == 8)
        found.append(acc)
    return found


def finish(builder: Any, sums: Sequence[Any], start: Sequence[Any], bits: int) -> list[Any]:
    own = getattr(active(), "finish", None)
    return own(builder, sums, start, bits) if own else list(sums)


def splat_of(builder: Any, place: Any, n: int, token: int, lanes: int) -> Any:
    own = getattr(active(), "splat_of", None)
    if own:
        return own(builder, place, n, token, lanes)
    return splat(builder, builder.load(builder.gep(place, [ir.IntType(32)(token)])), lanes)


def registers(builder: Any, place: Any, n: int) -> list[Any]:
    own = getattr(active(), "registers", None)
    if own:
        return own(builder, place, n)
    rows = active().ROWS
    return [load_ints(builder, place, 4 * rows * index, rows) for index in range(n)]


# -------------------------------------------------------------------------- LLVM helpers that every file needs


def declare(builder: Any, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> Any:
    """The LLVM intrinsic `name`, declared once per module."""
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def fours(builder: Any, octets: Any, n: int) -> list[Any]:
    """n times four bytes, one after the other at a pointer, as i32."""
    place = builder.bitcast(octets, ir.IntType(32).as_pointer())
    values = [builder.load(builder.gep(place, [ir.IntType(32)(i)])) for i in range(n)]
    for value in values:
        value.align = 1
    return values


def load_bytes(builder: Any, place: Any, offset: int, n: int) -> Any:
    """n bytes, `offset` after a pointer to bytes."""
    kind = ir.VectorType(ir.IntType(8), n)
    value = builder.load(builder.bitcast(builder.gep(place, [ir.IntType(32)(offset)]), kind.as_pointer()))
    value.align = 1
    return value


def load_ints(builder: Any, place: Any, offset: int, n: int) -> Any:
    """<n x i32>, `offset` bytes after a pointer to bytes."""
    return builder.bitcast(load_bytes(builder, place, offset, 4 * n), ir.VectorType(ir.IntType(32), n))


def load_fours(builder: Any, octets: Any, index: int) -> Any:
    """<4 x i32>: sixteen bytes, `index` times sixteen after a pointer."""
    return load_ints(builder, octets, 16 * index, 4)


def total(builder: Any, values: Sequence[Any]) -> Any:
    first, *others = values
    for value in others:
        first = builder.add(first, value)
    return first


def filled(kind: Any, value: float) -> Any:
    """The constant vector of this type with `value` in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def with_upper(builder: Any, nibbles: Any, upper: Any, quad: Any, n: int) -> Any:
    """nibbles + 16 times the n bits of `upper` from bit n quad on, byte by byte; `quad` an i64.

    The shifts are of 16 bits, which every instruction set has; what they carry into a neighbour is masked.
    """
    words = ir.VectorType(ir.IntType(16), nibbles.type.count // 2)
    shift = splat(builder, builder.trunc(builder.mul(quad, ir.IntType(64)(n)), words.element), words.count)
    mask = filled(words, 0x0101 * ((1 << n) - 1))
    bits = builder.and_(builder.lshr(builder.bitcast(upper, words), shift), mask)
    raised = builder.shl(bits, filled(words, 4))
    return builder.or_(nibbles, builder.bitcast(raised, nibbles.type))


def in_order(builder: Any, sums: Sequence[Any]) -> list[Any]:
    """The same vectors of NEON, before any load that comes after them is begun. LLVM would load first, and keep on the
    stack what no register holds."""
    return [pinned(builder, acc, "w", ordered=True) for acc in sums]


def pinned(builder: Any, value: Any, register: str, ordered: bool = False) -> Any:
    """The same value, in a register of that class (a letter of LLVM's) and at this place of the order of work: the
    optimizer does not see through it, and where it is `ordered`, moves no load over it."""
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", f"={register},0", [value], side_effect=ordered)


def splat(builder: Any, value: Any, n: int) -> Any:
    """<n x type> with `value` in every lane."""
    undefined = ir.Constant(ir.VectorType(value.type, n), ir.Undefined)
    zero = ir.Constant(ir.VectorType(ir.IntType(32), n), [0] * n)
    return builder.shuffle_vector(builder.insert_element(undefined, value, ir.IntType(32)(0)), undefined, zero)


def pick(builder: Any, low: Any, high: Any, index: Sequence[int]) -> Any:
    """The lanes `index` of two vectors laid end to end."""
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(ir.IntType(32), len(index)), list(index)))


def lanes(builder: Any, value: Any, start: int, n: int) -> Any:
    """Lanes [start, start + n) of a vector."""
    return pick(builder, value, ir.Constant(value.type, ir.Undefined), range(start, start + n))


def join(builder: Any, low: Any, high: Any) -> Any:
    """Two vectors of n lanes as one of 2n."""
    return pick(builder, low, high, range(2 * low.type.count))


def split(builder: Any, value: Any, parts: int) -> list[Any]:
    n = value.type.count // parts
    return [lanes(builder, value, part * n, n) for part in range(parts)]


def joined(builder: Any, values: Sequence[Any]) -> Any:
    """Equal vectors, a power of two of them, end to end."""
    while len(values) > 1:
        values = [join(builder, low, high) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]
