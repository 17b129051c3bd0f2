"""The generated code holds the instruction that each file of `isa/` promises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgecal_kernels import cpu, isa
from tests.kernels.isas import run_on

PROMISED = {
    "avx512vnni": [r"\bvpdpbusd\b.*%zmm"],
    "avxvnni": [r"\bvpdpbusd\b.*%ymm"],
    "avx2": [r"\bvpmaddubsw\b.*%ymm", r"\bvpmaddwd\b.*%ymm"],
    "neon_dotprod": [r"\bsdot\b"],
    "neon": [r"\bsmull2?\b", r"\bsadalp\b"],
    "portable": [],
}
# One dot product of nibbles and one of int8, without the rest of a kernel, so that compiling takes a second.
_PROBE = """
import json, numba, numpy as np
from edgecal_kernels import cpu, isa
isa.activate(cpu.detect_isa())
from edgecal_kernels import simd

@numba.njit
def nibbles(line, x, start, out):
    dots = simd.dot4_nibbles(simd.splat_int(start), simd.low_nibbles(simd.load_bytes(line, 0)), x, 0)
    simd.store(out, 0, simd.to_float(dots))

@numba.njit
def octets(line, x, start, out):
    dots = simd.dot4_int8(simd.splat_int(start), simd.as_operand(simd.load_bytes(line, 0)), x, 0)
    simd.store(out, 0, simd.to_float(dots))

line = np.arange(64, dtype=np.uint8) * 37
x = np.array([127, -127, 5, -64], np.int8)
found = {}
for kernel, weights, offset in ((nibbles, line & 15, 0), (octets, line.view(np.int8), isa.active().INT8_OFFSET)):
    out = np.empty(16, np.float32)
    kernel(line, x, np.int32(1000 - offset * x.sum(dtype=np.int32)), out)
    [assembly] = kernel.inspect_asm().values()
    right = np.array_equal(out, 1000 + weights.reshape(16, 4).astype(int) @ x)
    found[kernel.__name__] = {"right": bool(right), "assembly": assembly}
print(json.dumps(found))
"""


@pytest.mark.parametrize("name", cpu.available_isas())
def test_the_promised_instruction_is_there(name, tmp_path):
    for kernel, found in json.loads(run_on(name, _PROBE, tmp_path)).items():
        assert found["right"], f"{kernel} on {name} gives a wrong sum"
        for instruction in PROMISED[name]:
            assert re.search(instruction, found["assembly"]), f"{kernel} on {name} has no {instruction}"
        assert name != "avx2" or "zmm" not in found["assembly"]


def test_every_instruction_set_makes_a_promise():
    files = {file.stem for file in Path(isa.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(PROMISED)
    assert set(cpu.available_isas()) <= files
