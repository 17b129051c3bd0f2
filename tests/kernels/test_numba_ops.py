"""Every compiled kernel against the NumPy oracle, within a stated budget, on every instruction set of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from edgecal_kernels import cpu, reference
from edgecal_kernels.decoder_weights import ACTIVATIONS
from edgecal_kernels.dispatch import backend
from edgecal_kernels.errors import BackendError
from edgecal_kernels.quant import FORMATS, SPECS, quantize
from tests.cli.shell import SOURCES
from tests.kernels.isas import run_on

# Largest error relative to the largest output: only the order of float32 additions differs.
MATMUL_BUDGET = 2e-6


@pytest.fixture(scope="module")
def fast():
    return backend("numba")


GROUPED = [(format, size) for format in FORMATS for size in SPECS[format].group_sizes]


@pytest.mark.parametrize(("format", "group_size"), GROUPED)
@pytest.mark.parametrize("shape", [(16, 32), (33, 128), (100, 70), (5, 200), (40, 600)])
def test_matmul(fast, rng, format, group_size, shape):
    weight = quantize(rng.standard_normal(shape).astype(np.float32), format, group_size)
    for n_tokens in (1, 2, 16, 37):
        x = rng.standard_normal((n_tokens, shape[1])).astype(np.float32)
        expected = reference.matmul(reference.Activations(x), weight)
        found = fast.matmul(fast.Activations(x), weight)
        assert np.abs(found - expected).max() <= MATMUL_BUDGET * np.abs(expected).max()


# Whole tiles, quarter tiles, both, and rows that fill neither; columns that end with a quad within a step
@pytest.mark.parametrize("shape", [(4, 96), (36, 256), (7, 70), (60, 8192), (48, 36)])
def test_matmul_with_the_matrix_of_an_adapter(fast, rng, shape):
    weight = fast.pack_int8(rng.uniform(-1, 1, shape).astype(np.float32))
    x = rng.standard_normal((37, shape[1])).astype(np.float32)
    expected, found = reference.matmul(reference.Activations(x), weight), fast.matmul(fast.Activations(x), weight)
    assert np.abs(found - expected).max() <= MATMUL_BUDGET * np.abs(expected).max()
    alone = np.concatenate([fast.matmul(fast.Activations(row[None]), weight) for row in x])
    np.testing.assert_array_equal(found, alone)


# Even and odd numbers of tiles; the last is long enough for several packed chunks, and large enough for all threads.
# From 16 tokens on some formats are unpacked first, for 64 of them at a time.
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(16, 64), (32, 256), (80, 96), (48, 8192)])
def test_a_row_has_the_same_bits_in_any_batch(fast, rng, format, shape):
    weight = quantize(rng.standard_normal(shape).astype(np.float32), format)
    x = rng.standard_normal((71, shape[1])).astype(np.float32)
    alone = np.concatenate([fast.matmul(fast.Activations(row[None]), weight) for row in x])
    for n_tokens in (2, 3, 4, 5, 6, 7, 16, 33, 71):
        together = fast.matmul(fast.Activations(x[-n_tokens:]), weight)
        np.testing.assert_array_equal(together, alone[-n_tokens:])


@pytest.mark.parametrize(("format", "group_size"), GROUPED)
def test_embedding_rows(fast, rng, format, group_size):
    weight = quantize(rng.standard_normal((53, 200)).astype(np.float32), format, group_size)
    ids = np.array([0, 52, 17, 17, 5])
    np.testing.assert_array_equal(fast.embed(weight, ids), reference.embed(weight, ids))


@pytest.mark.parametrize("shape", [(1, 5), (3, 16), (64, 70), (33, 200)])
def test_dense_matmul_and_lora(fast, rng, shape):
    """Float32 products within 1e-6 of the largest output, and with the same bits in any batch."""
    d, k = shape
    weight = rng.standard_normal(shape).astype(np.float32)
    a, b = rng.standard_normal((6, k)).astype(np.float32), rng.standard_normal((d, 6)).astype(np.float32)
    x = rng.standard_normal((9, k)).astype(np.float32)
    found, expected = fast.matmul(fast.Activations(x), weight), x @ weight.T
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    alone = np.concatenate([fast.matmul(fast.Activations(row[None]), weight) for row in x])
    np.testing.assert_array_equal(found, alone)
    for order in ("C", "F"):
        changed, reference_changed = found.copy(), found.copy()
        fast.add_lora(x, a, np.asarray(b, order=order), changed)
        reference.add_lora(x, a, b, reference_changed)
        assert np.abs(changed - reference_changed).max() <= 1e-6 * np.abs(reference_changed).max()
        rows = found.copy()
        for i in range(len(x)):
            fast.add_lora(x[i : i + 1], a, b, rows[i : i + 1])
        np.testing.assert_array_equal(rows, changed)


@pytest.mark.parametrize("shape", [(7, 70), (80, 1000)])  # the larger one on all threads
def test_activations_round_to_the_same_codes(fast, rng, shape):
    x = (rng.standard_normal(shape) * 10).astype(np.float32)
    x[3, :32] = 0
    for expected, found in zip(reference.quantize_rows(x), fast.quantize_rows(x), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("steps", [*range(1, 10), 15, 16, 17, 25])
def test_steps_round_to_the_same_codes_one_or_eight_at_once(fast, rng, steps):
    """Largest magnitudes in any lane, of either sign, halves of a code, and numbers at both ends of float32."""
    x = rng.standard_normal((1, steps * 32)).astype(np.float32)
    x *= np.repeat(np.float32(10.0) ** rng.integers(-30, 30, steps), 32).astype(np.float32)
    at = np.arange(steps) * 32 + rng.integers(0, 32, steps)
    x[0, at] *= rng.choice([-9, 9], steps)
    x[0, :32] = [*(np.arange(31) * 4 - 60.5), 127]  # the halves of codes are ties
    x[0, 32:40] = 0
    for expected, found in zip(reference.quantize_rows(x), fast.quantize_rows(x), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("width", [1, 16, 70, 576])
def test_norms_and_gated(fast, rng, width):
    x = (rng.standard_normal((5, width)) * 20).astype(np.float32)
    weight, bias = (rng.standard_normal(width).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(
        fast.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), rtol=2e-6, atol=1e-6
    )
    expected = reference.layer_norm(x, weight, bias, 1e-5)
    np.testing.assert_allclose(fast.layer_norm(x, weight, bias, 1e-5), expected, rtol=1e-5, atol=5e-6)
    gate = x * 10
    for activation in ACTIVATIONS:
        expected = reference.gated(gate.copy(), x, activation)
        np.testing.assert_allclose(fast.gated(gate.copy(), x, activation), expected, rtol=2e-6, atol=1e-30)


def test_gated_is_the_activation_of_pytorch(ops, rng):
    """Both activations beside PyTorch's in float64; their errors near 0, where GELU's cube matters, and far out."""
    torch = pytest.importorskip("torch")  # not on emulated ARM
    gate = np.concatenate([rng.standard_normal(4000), rng.standard_normal(1000) * 30]).astype(np.float32)
    exact = torch.from_numpy(gate.astype(np.float64))
    for activation, theirs in (
        ("silu", torch.nn.functional.silu(exact)),
        ("gelu_tanh", torch.nn.functional.gelu(exact, approximate="tanh")),
    ):
        found = ops.gated(gate[None].copy(), np.ones_like(gate[None]), activation)[0]
        np.testing.assert_allclose(found, theirs.numpy(), rtol=2e-6, atol=1e-6)


# The first import of kernels is none of the back end: the instruction set is settled all the same
_PROBE = """
import json, numpy as np
import edgecal_kernels.decoder_walk
from edgecal_kernels import isa, reference
from edgecal_kernels.dispatch import backend
from edgecal_kernels.quant import FORMATS, quantize
fast, rng, errors = backend("numba"), np.random.default_rng(0), {}
for format in (*FORMATS, "of an adapter"):
    w = rng.standard_normal((40, 96)).astype(np.float32)
    weight = quantize(w, format) if format in FORMATS else fast.pack_int8(w)
    for n in (1, 20):
        x = rng.standard_normal((n, 96)).astype(np.float32)
        expected = reference.matmul(reference.Activations(x), weight)
        error = np.abs(fast.matmul(fast.Activations(x), weight) - expected).max() / np.abs(expected).max()
        errors[f"{format} {n}"] = float(error)
    rows = [fast.matmul(fast.Activations(row[None]), weight) for row in x]
    same = np.array_equal(fast.matmul(fast.Activations(x), weight), np.concatenate(rows))
    errors[f"{format}, batch against rows"] = float(not same)
    # The largest codes, whose sums must not leave the integers that an instruction adds in
    largest = np.repeat(np.array([1, -1, 1, -1], np.float32), 4)[:, None] * np.ones((16, 96), np.float32)
    weight = quantize(largest, format) if format in FORMATS else fast.pack_int8(largest)
    x = np.repeat(np.array([[1], [-1]], np.float32), 4, axis=0) * np.ones((8, 96), np.float32)
    expected = reference.matmul(reference.Activations(x), weight)
    errors[f"{format}, largest codes"] = float(np.abs(fast.matmul(fast.Activations(x), weight) - expected).max() / 96)
print(json.dumps([isa.active_name(), errors]))
"""


@pytest.mark.numba
@pytest.mark.parametrize("isa", cpu.known_isas())
def test_each_instruction_set(isa, tmp_path):
    name, errors = json.loads(run_on(isa, _PROBE, tmp_path))
    assert name == isa
    assert max(errors.values()) <= MATMUL_BUDGET, errors


# Six bits with a minimum, which no format has: the loops are there, nobody has put them together
_NEW_FORMAT = """
import numpy as np
from edgecal_kernels import code_search, formats, layout

def search(g):
    low, high = (edge.astype(np.float16).astype(np.float32) for edge in (g.min(axis=2), g.max(axis=2)))
    scale = ((high - low) / 63).astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint((g - low[..., None]) / scale[..., None]), 0, 63).astype(np.uint8)
    return code_search.Chosen(codes, scale, low)

formats.SPECS["int6_affine"] = formats.FormatSpec("int6_affine", layout.SIX_BITS, 0, search, has_minimum=True)
formats.FORMATS = tuple(formats.SPECS)
from edgecal_kernels import reference
from edgecal_kernels.dispatch import backend
from edgecal_kernels.quant import dequantize, quantize
fast, rng = backend("numba"), np.random.default_rng(0)
w, x = rng.standard_normal((40, 96)).astype(np.float32), rng.standard_normal((5, 96)).astype(np.float32)
weight = quantize(w, "int6_affine")
print(8 * weight.nbytes / (48 * 96), weight.spec.bits_per_weight())
print(np.abs(dequantize(weight) - w).max())
expected = reference.matmul(reference.Activations(x), weight)
for rows in (x, x[:1]):
    print(np.abs(fast.matmul(fast.Activations(rows), weight) - expected[: len(rows)]).max() / np.abs(expected).max())
"""


@pytest.mark.numba
def test_a_new_format_is_an_entry_of_the_table(tmp_path):
    best = next(name for name, there in cpu.available_isas().items() if there)
    size, expected_size, rounding, *errors = map(float, run_on(best, _NEW_FORMAT, tmp_path).split())
    assert size == expected_size == 7
    assert rounding < 0.05  # half a step of a range of 6
    assert len(errors) == 2 and max(errors) <= MATMUL_BUDGET


def test_unknown_names_are_refused(monkeypatch):
    with pytest.raises(BackendError, match="numba, numpy"):
        backend("cuda")
    monkeypatch.setenv("EDGECAL_ISA", "mmx")
    with pytest.raises(BackendError, match=", ".join(cpu.known_isas())):
        cpu.detect_isa()


FREED = """
import sys
import numpy as np
from edgecal_kernels import reference
from edgecal_kernels.cached import Cached
from edgecal_kernels.dispatch import backend
from edgecal_kernels.quant import FORMATS, quantize

ops, rng = backend(sys.argv[1]), np.random.default_rng(0)
x = rng.standard_normal((260, 576), np.float32)
for format in FORMATS:
    weight = quantize(rng.standard_normal((1536, 576), np.float32), format)
    found = ops.matmul(ops.Activations(x), weight)
    assert np.allclose(found, reference.matmul(reference.Activations(x), weight), atol=1e-3), format
cached = Cached("fp16", 1, 3, 272, 64)
q, k = rng.standard_normal((260, 9, 64), np.float32), rng.standard_normal((260, 3, 64), np.float32)
ops.remember(cached, 0, 0, k, k)
other = Cached("fp16", 1, 3, 272, 64)
reference.remember(other, 0, 0, k, k)
assert np.allclose(ops.attention(q, cached, 0, 0), reference.attention(q, other, 0, 0), atol=1e-3)
a, b = rng.standard_normal((16, 576), np.float32), np.asfortranarray(np.ones((1536, 16), np.float32))
ops.add_lora(x, a, b, np.zeros((260, 1536), np.float32))
print("all right")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_no_kernel_uses_memory_that_it_has_given_back(fast):
    """Every array is a mapping of its own here, gone as soon as it is freed: a kernel that kept an address and let the
    array go ends in a segmentation fault, where it would usually read what is still there."""
    places = os.pathsep.join(filter(None, (SOURCES, os.environ.get("PYTHONPATH"))))  # NumPy's, too, on emulated ARM
    variables = {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TRIM_THRESHOLD_": "4096", "PYTHONPATH": places}
    command = [sys.executable, "-c", FREED, fast.NAME]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and done.stdout == "all right\n", done.stderr[-2000:]
