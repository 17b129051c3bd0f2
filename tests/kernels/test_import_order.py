"""Whatever module of kernels a program imports first: all are for one instruction set, the machine's or EDGECAL_ISA's,
and what they compile goes to edgecal's cache folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgecal_kernels
from edgecal_kernels import cpu
from tests.kernels.isas import run_on

pytestmark = pytest.mark.numba
SOURCES = Path(edgecal_kernels.__file__).parent
FIRST = ("decoder", "blocks", "packed_tokens", "small_products", "merging", "isa")
# A product with int8, whose codes take an offset of the instruction set's own, of one token and of a block of four.
# The loops are compiled by themselves, so that it takes a second.
_PROBE = """
import importlib, json
importlib.import_module("edgecal_kernels.{first}")
from edgecal_kernels.dispatch import backend
backend("numba")
import numba, numpy as np
from edgecal_kernels import blocks, isa, packed_kernels, packed_tiles, packed_tokens, reference
from edgecal_kernels.quant import quantize
vector, tile_product = packed_kernels.VECTORS["int8"], packed_tiles.TILE_PRODUCTS["int8"]

@numba.njit
def multiply(codes, scale, sizes, x, x_scale, x_total, packed, one, four):
    vector(codes, scale, 0, sizes, x, x_scale, x_total, one, (0, 2))
    packed_tokens.pack_tokens((x, x_scale, x_total), 4, 64, packed)
    for tile in range(0, 2, blocks.TILES):
        tile_product(codes, scale, 0, sizes, packed, 4, four, tile, blocks.TILES - 1)

rng = np.random.default_rng(0)
weight, x = quantize(rng.standard_normal((32, 64), np.float32), "int8"), rng.standard_normal((4, 64), np.float32)
expected = reference.matmul(reference.Activations(x), weight)
one, four = np.empty((1, 32), np.float32), np.empty((4, 32), np.float32)
packed = np.empty(2 * packed_tokens.TOKEN_BYTES * 4, np.uint8)
arrays = [*reference.quantize_rows(x), packed, one, four]
sizes = weight.tile_lines, 2, 1, 64, 32
multiply(weight.codes.ctypes.data, weight.scale.ctypes.data, sizes, *(array.ctypes.data for array in arrays))
errors = [float(np.abs(found - expected[: len(found)]).max()) for found in (one, four)]
print(json.dumps([isa.active_name(), max(errors) <= 2e-6 * float(np.abs(expected).max())]))
"""


def isa_of_this_machine() -> str:
    return next(name for name, there in cpu.available_isas().items() if there)


def kept_beside_the_sources() -> set[Path]:
    return set(SOURCES.rglob("*.nb?"))


@pytest.mark.parametrize("first", FIRST)
def test_any_module_may_come_first(first, tmp_path):
    before = kept_beside_the_sources()
    best = isa_of_this_machine()
    assert json.loads(run_on(best, _PROBE.format(first=first), tmp_path)) == [best, True]
    assert kept_beside_the_sources() == before
    assert list(tmp_path.rglob("*.nbc"))


@pytest.mark.parametrize("isa", cpu.known_isas())
@pytest.mark.parametrize("first", ["decoder", "packed_kernels"])
def test_an_instruction_set_that_is_asked_for(first, isa, tmp_path):
    before = kept_beside_the_sources()
    assert json.loads(run_on(isa, _PROBE.format(first=first), tmp_path)) == [isa, True]
    assert kept_beside_the_sources() == before


def failing(code: str, **environment: str) -> str:
    """The last line that a Python process prints on its way out."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("first", ["decoder_walk", "blocks", "numba_ops"])
def test_an_unknown_instruction_set_is_refused_by_every_module(first):
    message = failing(f"import edgecal_kernels.{first}", EDGECAL_ISA="mmx")
    assert "BackendError" in message and "EDGECAL_ISA=mmx" in message
    # also where another back end would do: what was asked for by name is not replaced by something slow
    assert "EDGECAL_ISA=mmx" in failing("from edgecal_kernels.dispatch import backend; backend()", EDGECAL_ISA="mmx")


def test_a_process_keeps_its_instruction_set():
    message = failing("from edgecal_kernels import blocks, isa; isa.activate('avx1')")
    assert "BackendError" in message and isa_of_this_machine() in message
    assert "start another with EDGECAL_ISA=avx1" in message
    first = failing("from edgecal_kernels import isa; isa.activate('avx1')")
    assert "BackendError" in first and "portable" in first  # what it lists that there is


def test_kernels_that_cannot_be_kept_are_compiled_all_the_same(tmp_path, monkeypatch):
    """Numba would keep them beside the sources, where the next process might find those of another instruction set."""
    (tmp_path / "file").touch()
    (tmp_path / f"edgecal-{os.getuid()}").touch()  # nor among temporary files
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = kept_beside_the_sources()
    best = isa_of_this_machine()
    found = run_on(best, _PROBE.format(first="decoder"), tmp_path / "file" / "folder")
    assert json.loads(found) == [best, True]
    assert kept_beside_the_sources() == before
    message = failing("import edgecal_kernels.warmup as w; w.warm_up()", EDGECAL_CACHE=str(tmp_path / "file"))
    assert "cannot be kept in" in message and "EDGECAL_CACHE" in message
