"""What the portable library does in the place of instructions rounds as they do."""

from __future__ import annotations

import ctypes
import sys

import llvmlite.binding as llvm
import numpy as np
import pytest

from edgecal_kernels import build_arithmetic

# `void each(x, y, z, out, n)`: the function for n items; x and the result may be float16, y and z are float32
_LOOP = """
define void @each(ptr %x, ptr %y, ptr %z, ptr %out, i64 %n) {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %x_at = getelementptr {taken}, ptr %x, i64 %i
  %y_at = getelementptr float, ptr %y, i64 %i
  %z_at = getelementptr float, ptr %z, i64 %i
  %out_at = getelementptr {given}, ptr %out, i64 %i
  %a = load {taken}, ptr %x_at
  %b = load float, ptr %y_at
  %c = load float, ptr %z_at
  %r = call {given} @{name}({arguments})
  store {given} %r, ptr %out_at
  %next = add i64 %i, 1
  %done = icmp eq i64 %next, %n
  br i1 %done, label %end, label %loop
end:
  ret void
}}
"""


def each(name: str, *given: np.ndarray) -> np.ndarray:
    """`name` of every item, by a processor without any of the instructions."""
    if not llvm.get_process_triple().startswith("x86_64"):
        pytest.skip("old x86 processors")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    taken, result = ("half" if name == wanted else "float" for wanted in ("__extendhfsf2", "__truncsfhf2"))
    kinds = (taken, "float", "float")[: len(given)]
    arguments = ", ".join(f"{kind} %{x}" for kind, x in zip(kinds, "abc", strict=False))
    text = build_arithmetic.TEXT.replace(" hidden ", " ")
    module = llvm.parse_assembly(text + _LOOP.format(name=name, taken=taken, given=result, arguments=arguments))
    machine = llvm.Target.from_default_triple().create_target_machine(cpu="x86-64", features="")
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, ctypes.c_int64)(engine.get_function_address("each"))
    out = np.empty(len(given[0]), np.float16 if result == "half" else np.float32)
    inputs = [*given, *[np.zeros(len(out), np.float32)] * (3 - len(given))]
    function(*[array.ctypes.data for array in inputs], out.ctypes.data, len(out))
    return out


def equal(found: np.ndarray, expected: np.ndarray) -> bool:
    """The same bits; whatever is no number may be another one."""
    bits = np.uint16 if found.dtype == np.float16 else np.uint32
    same = found.view(bits) == expected.view(bits)
    return bool((same | (np.isnan(found) & np.isnan(expected))).all())


def any_floats(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, 2**32, n, dtype=np.uint64).astype(np.uint32).view(np.float32)


HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def test_float16_is_widened():
    assert equal(each("__extendhfsf2", HALVES), HALVES.astype(np.float32))


def test_float16_is_rounded(rng):
    exact = HALVES[np.isfinite(HALVES)].astype(np.float32)
    ties = (exact[1:] + exact[:-1]) / 2
    x = np.concatenate([exact, ties, *(np.nextafter(ties, np.float32(way)) for way in (-1e9, 1e9))])
    x = np.concatenate([x, any_floats(rng, 100_000)])
    with np.errstate(over="ignore", invalid="ignore"):
        assert equal(each("__truncsfhf2", x), x.astype(np.float16))


def test_whole_numbers(rng):
    halves = np.arange(-100, 100, dtype=np.float32) / 2
    x = np.concatenate([halves, any_floats(rng, 100_000), np.float32([-0.0, 2**23])])
    with np.errstate(invalid="ignore"):
        assert equal(each("rintf", x), np.rint(x))


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's name")
@pytest.mark.parametrize("kind", ["any", "ties", "subnormal"])
def test_a_product_and_a_sum_are_rounded_once(rng, kind):
    n = 20_000
    if kind == "any":
        x, y, z = (any_floats(rng, n) for _ in range(3))
    elif kind == "ties":  # of z, or a little beside
        x, y = rng.integers(1, 2**12, n) * rng.choice([1.0, 2.0**24], n), rng.integers(1, 2**13, n) * 2.0**-36
        z = rng.integers(2**23, 2**24, n) * rng.choice([-1, 1], n)
    else:
        x, y = rng.integers(1, 2**24, n) * 2.0**-100, rng.integers(1, 2**24, n) * 2.0**-70
        z = rng.integers(-(2**10), 2**10, n) * 2.0**-149
    x, y, z = (np.asarray(array, np.float32) for array in (x, y, z))
    fmaf = ctypes.CDLL("libm.so.6").fmaf
    fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    expected = np.array([fmaf(*three) for three in zip(x.tolist(), y.tolist(), z.tolist(), strict=True)], np.float32)
    assert equal(each("fmaf", x, y, z), expected)
