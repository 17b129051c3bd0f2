"""The generated code holds the instructions that each file of `isa/` promises, for one token and for several."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from edgecal_kernels import cpu, isa
from tests.kernels.isas import run_on

pytestmark = pytest.mark.numba
# Of the vector kernel and, where they differ, of the matrix kernel.
PROMISED = {
    "avx512vnni": [r"\bvpdpbusd\b.*%zmm"],
    "avxvnni": [r"\bvpdpbusd\b.*%ymm"],
    "avx2": [r"\bvpmaddubsw\b.*%ymm", r"\bvpmaddwd\b.*%ymm"],
    "neon_i8mm": [r"\bsdot\b"],
    "neon_dotprod": [r"\bsdot\b"],
    "neon": [r"\bsmull2?\b", r"\bsa(dal|ddl)p\b"],
    "portable": [],
}
PROMISED_TO_BLOCKS = {
    **PROMISED,
    "neon_i8mm": [r"\bsmmla\b"],
    "neon": [r"\bsmull2?\b", r"\bsmlal2?\b", r"\bsa(dal|ddl)p\b"],
}
# A dot product of each kind, for a token and for a block of four with other codes each, without the rest of a kernel,
# so that compiling takes a second.
_PROBE = """
import json, numba, numpy as np
from edgecal_kernels import blocks, isa, layout, packed_tokens, simd

def step_of(bits, halves):
    dot32 = simd.DOT32[bits, halves]

    @numba.njit
    def product(codes, x, start, out):
        dots = simd.begin_dots(start)
        sums = dot32((dots, simd.begin_dots(start)) if halves else (dots,), codes, x, 0)
        for i, acc in enumerate(sums):
            simd.store(out, 16 * i, simd.end_dots(acc, start))

    return product

@numba.njit
def octets(line, x, start, out):
    dots = simd.dot4_int8(simd.begin_dots(start), simd.as_operand(simd.load_bytes(line, 0)), x, 0)
    simd.store(out, 0, simd.end_dots(dots, start))

def block_of(bits, offset, change):
    begin, dot8 = blocks.BEGIN[offset, blocks.WHOLE], blocks.DOT8[bits]
    finish = blocks.FINISH[bits, offset, blocks.WHOLE]

    @numba.njit
    def product(lines, packed, ones, out):
        for row in range(0, 16, blocks.ROWS):
            at = lines + row * 4
            first, second = blocks.load_lines(at, 128), blocks.load_lines(at + 64, 128)
            dots = dot8(begin(blocks.zeros4(), packed), change(first), change(second), packed)
            dots = finish(dots, packed)
            sums = blocks.scale_and_add(blocks.zeros4(), dots, blocks.load_factors(ones, 0), packed)
            blocks.store(out + row * 4, blocks.TILES * 64, 64, sums)

    return product

@numba.njit
def as_it_is(lines):
    return lines

def keep(name, kernel, right):
    [assembly] = kernel.inspect_asm().values()
    found[name] = {"right": bool(right), "assembly": assembly}

line = np.arange(64, dtype=np.uint8) * 37
x = np.array([127, -127, 5, -64], np.int8)
offset = isa.active().INT8_OFFSET
found = {}
out = np.empty(16, np.float32)
octets(line, x, np.int32(1000 - offset * x.sum(dtype=np.int32)), out)
keep("octets", octets, np.array_equal(out, 1000 + line.view(np.int8).reshape(16, 4).astype(int) @ x))

rng = np.random.default_rng(0)
wide = np.array([127] * 12 + [-127, 3, -5, 90], np.int8)
step = np.concatenate([wide, wide[::-1]])
for packing in (layout.NIBBLES, layout.FIVE_BITS, layout.SIX_BITS, layout.BYTES):
    codes = rng.integers(0, 1 << packing.bits, (16, 32), np.uint8)
    codes[:2] = (1 << packing.bits) - 1
    codes = codes.view(packing.dtype)
    packed, meant = layout.pack(codes, packing), (codes * step.astype(int)).reshape(16, 2, 16).sum(2)
    for halves in (False, True):
        kernel, out = step_of(packing.bits, halves), np.empty((2 if halves else 1, 16), np.float32)
        off, total = offset if packing.bits == 8 else 0, wide.sum(dtype=np.int32) * (1 if halves else 2)
        kernel(packed.ctypes.data, step, np.int32(1000 - off * total), out)
        right = 1000 + (meant.T if halves else meant.sum(1)[None])
        keep(f"{packing.bits} bits, {halves}", kernel, np.array_equal(out, right))
tokens = rng.integers(-127, 128, (4, 8), np.int8)
tokens[0], tokens[1] = 127, -127
lines = rng.integers(0, 256, (blocks.TILES, 2, 64), np.uint8)
lines[:, :, :16] = 255
ones = np.ones(16, np.float32)
nibbles, sixes, octets = lines & 15, lines & 63, lines.view(np.int8)
for bits, off, change, stored, meant in (
    (4, 8, as_it_is, nibbles, nibbles.astype(int) - 8),
    (4, 0, as_it_is, nibbles, nibbles.astype(int)),
    (6, 32, as_it_is, sixes, sixes.astype(int) - 32),
    (8, offset, blocks.as_operands, octets, octets.astype(int)),
):
    kernel = block_of(bits, off, change)
    start = np.repeat(isa.bias() - 8 * tokens.sum(1, dtype=np.int32), packed_tokens.STARTS).astype(np.int32)
    scale = np.ones(4, np.float32)
    parts = tokens.ravel(), np.zeros(96, np.uint8), start, np.zeros_like(start), scale
    packed = np.concatenate([part.view(np.uint8) for part in parts])
    out = np.empty((4, blocks.TILES, 16), np.float32)
    kernel(stored.ctypes.data, packed.ctypes.data, ones.ctypes.data, out.ctypes.data)
    rows = meant.reshape(-1, 2, 16, 4).transpose(0, 2, 1, 3).reshape(-1, 8)
    keep(f"block of {bits} bits, offset {off}", kernel, np.array_equal(out.reshape(4, -1), tokens @ rows.T))
print(json.dumps(found))
"""


@pytest.mark.parametrize("name", cpu.available_isas())
def test_the_promised_instruction_is_there(name, tmp_path):
    for kernel, found in json.loads(run_on(name, _PROBE, tmp_path)).items():
        assert found["right"], f"{kernel} on {name} gives a wrong sum"
        promised = PROMISED_TO_BLOCKS if kernel.startswith("block") else PROMISED
        for instruction in promised[name]:
            assert re.search(instruction, found["assembly"]), f"{kernel} on {name} has no {instruction}"
        assert name not in ("avx2", "avxvnni") or "zmm" not in found["assembly"]


FILES = {file.stem for file in Path(isa.__file__).parent.glob("*.py")} - {"__init__"}


def test_every_instruction_set_makes_a_promise():
    assert set(PROMISED) == FILES
    assert set(cpu.available_isas()) <= FILES


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_says_what_its_registers_hold(name):
    """Also those of other processors: the constants are there without their instructions."""
    file = import_module(f"edgecal_kernels.isa.{name}")
    assert file.INT8_OFFSET in (0, 128) and file.TOKENS in (2, 4, 8)
    assert file.TILES in (1, 2) and file.ROWS in (4, 16)
    assert (file.VECTORS == 32) == (name == "avx512vnni") and file.VECTORS in (8, 32)
    assert callable(file.dot4)
