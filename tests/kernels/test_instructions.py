"""The generated code holds the instructions that each file of `isa/` promises, for one token and for several."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from edgecal_kernels import cpu, isa
from tests.kernels.isas import run_on

# Of the vector kernel and, where they differ, of the matrix kernel.
PROMISED = {
    "avx512vnni": [r"\bvpdpbusd\b.*%zmm"],
    "avxvnni": [r"\bvpdpbusd\b.*%ymm"],
    "avx2": [r"\bvpmaddubsw\b.*%ymm", r"\bvpmaddwd\b.*%ymm"],
    "neon_i8mm": [r"\bsdot\b"],
    "neon_dotprod": [r"\bsdot\b"],
    "neon": [r"\bsmull2?\b", r"\bsadalp\b"],
    "portable": [],
}
PROMISED_TO_BLOCKS = {**PROMISED, "neon_i8mm": [r"\bsmmla\b"]}
# One dot product of nibbles and one of int8, for a token and for a block of four with other codes each, without the
# rest of a kernel, so that compiling takes a second.
_PROBE = """
import json, numba, numpy as np
from edgecal_kernels import blocks, isa, simd

@numba.njit
def nibbles(line, x, start, out):
    dots = simd.dot4_nibbles(simd.splat_int(start), simd.low_nibbles(simd.load_bytes(line, 0)), x, 0)
    simd.store(out, 0, simd.to_float(dots))

@numba.njit
def octets(line, x, start, out):
    dots = simd.dot4_int8(simd.splat_int(start), simd.as_operand(simd.load_bytes(line, 0)), x, 0)
    simd.store(out, 0, simd.to_float(dots))

@numba.njit
def block_of_nibbles(lines, packed, ones, out):
    first, second = blocks.load_lines(lines, 128), blocks.load_lines(lines + 64, 128)
    dots = blocks.begin(blocks.zeros4(), packed)
    dots = blocks.dot8_nibbles(dots, blocks.low(first), blocks.low(second), packed)
    sums = blocks.scale_and_add(blocks.zeros4(), dots, blocks.load_halves(ones, 0), packed)
    blocks.store(out, blocks.TILES * 64, 64, sums)

@numba.njit
def block_of_octets(lines, packed, ones, out):
    first, second = blocks.load_lines(lines, 128), blocks.load_lines(lines + 64, 128)
    dots = blocks.begin(blocks.zeros4(), packed)
    dots = blocks.dot8_int8(dots, blocks.as_operands(first), blocks.as_operands(second), packed)
    sums = blocks.scale_and_add(blocks.zeros4(), dots, blocks.load_halves(ones, 0), packed)
    blocks.store(out, blocks.TILES * 64, 64, sums)

def keep(name, kernel, right):
    [assembly] = kernel.inspect_asm().values()
    found[name] = {"right": bool(right), "assembly": assembly}

line = np.arange(64, dtype=np.uint8) * 37
x = np.array([127, -127, 5, -64], np.int8)
offset = isa.active().INT8_OFFSET
found = {}
for kernel, weights, off in ((nibbles, line & 15, 0), (octets, line.view(np.int8), offset)):
    out = np.empty(16, np.float32)
    kernel(line, x, np.int32(1000 - off * x.sum(dtype=np.int32)), out)
    keep(kernel.__name__, kernel, np.array_equal(out, 1000 + weights.reshape(16, 4).astype(int) @ x))

rng = np.random.default_rng(0)
tokens = rng.integers(-127, 128, (4, 8), np.int8)
lines = rng.integers(0, 256, (blocks.TILES, 2, 64), np.uint8)
ones = np.ones(16, np.float16)
for kernel, weights, off in ((block_of_nibbles, lines & 15, 0), (block_of_octets, lines.view(np.int8), offset)):
    start = np.array([1, 20, 300, -4000], np.int32)
    begun = start - off * tokens.sum(1, dtype=np.int32)
    scale = np.ones(4, np.float32)
    parts = tokens.view(np.uint8).ravel(), np.zeros(96, np.uint8), begun.view(np.uint8), scale.view(np.uint8)
    packed = np.concatenate(parts)
    out = np.empty((4, blocks.TILES, 16), np.float32)
    kernel(lines.ctypes.data, packed.ctypes.data, ones.ctypes.data, out.ctypes.data)
    rows = weights.reshape(-1, 2, 16, 4).transpose(0, 2, 1, 3).reshape(-1, 8).astype(int)
    keep(kernel.__name__, kernel, np.array_equal(out.reshape(4, -1), start[:, None] + tokens @ rows.T))
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
    assert file.INT8_OFFSET in (0, 128) and file.TOKENS in (2, 4) and file.TILES in (1, 2)
    assert (file.VECTORS == 32) == (name == "avx512vnni") and file.VECTORS in (8, 32)
    assert callable(file.dot4)
