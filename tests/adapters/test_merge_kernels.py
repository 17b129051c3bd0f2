"""The compiled kernels of merging against the NumPy formulation: the same bits, for any size, density and number of
adapters. Only `dot` adds in an order of its own. Who merges says which of the two it is."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecal import Engine
from edgecal.adapters import CompiledAdapter, LoraAdapter, LoraPair, Recipe, compile_recipe, recipe
from edgecal.adapters.merge.factors import transpose_into, weighted_sum
from edgecal.adapters.merge.pruning import RandomDrop, find_largest
from edgecal.adapters.merge.sign_election import elect_and_average
from edgecal.adapters.merge.slerp import _gram
from edgecal.adapters.merge_kernels import Kernels, decoder
from edgecal_kernels.dispatch import backend
from edgecal_weights.binary_file import decode_floats
from tests.tiny import write_tiny_adapter, write_tiny_hf

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.one_of(st.integers(1, 100), st.integers(8_100, 9_000), st.integers(32_700, 33_000))
DENSITIES = st.one_of(st.floats(1e-5, 1.0), st.sampled_from([1.0, 0.5, 0.25, 1e-9, 1 - 1e-9, 0.3]))
METHODS = {
    "linear": {},
    "peft_linear": {},
    "concat": {},
    "single": {},
    "magnitude_prune": {"density": 0.4},
    "ties": {"density": 0.4, "majority_sign_method": "frequency"},
    "dare_linear": {"density": 0.3, "seed": 3},
    "dare_ties": {"density": 0.5},
    "ties_svd": {"density": 0.3},
    "dare_linear_svd": {},
}


def both_ways(compute: Callable[[Kernels], Any]) -> tuple[Any, Any]:
    """In NumPy, then compiled."""
    return compute(None), compute(backend("numba").merging)


def tensors(seed: int, count: int, size: int, kind: str) -> list[np.ndarray]:
    """Continuous values, fp16's (equal magnitudes, subnormal ones too), or a handful with many zeros."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((count, size), np.float32) * np.float32(10.0 ** rng.integers(-6, 3))
    if kind == "half":
        values = values.astype(np.float16).astype(np.float32)
    if kind == "few":
        values = rng.integers(-2, 3, (count, size)).astype(np.float32)
    return list(values)


KINDS = st.sampled_from(["real", "half", "few"])
COUNTS = st.integers(1, 4)


def same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@settings(deadline=None)  # the first example may have to compile
@given(SEEDS, SIZES, DENSITIES, KINDS)
def test_the_largest_entries_are_the_same(seed: int, size: int, density: float, kind: str) -> None:
    (tensor,) = tensors(seed, 1, size, kind)
    expected, found = both_ways(lambda kernels: find_largest(tensor, density, kernels))
    assert found == expected


@pytest.mark.parametrize("column", [0.0, 1e-30, 1e30])
def test_a_sample_that_misleads(column: float) -> None:
    """Half of the columns have values that the others do not hint at; the selection starts over and is exact."""
    tensor = np.random.default_rng(0).standard_normal((512, 64), np.float32)
    tensor[:, ::2] *= np.float32(column)
    for density in (0.01, 0.49, 0.5, 0.51, 0.99):
        expected, found = both_ways(lambda kernels, density=density: find_largest(tensor, density, kernels))
        assert found == expected
    ordered = np.sort(np.abs(tensor), axis=None)[::-1].reshape(-1).copy()
    expected, found = both_ways(lambda kernels: find_largest(ordered, 0.5, kernels))
    assert found == expected


@settings(deadline=None)
@given(SEEDS, COUNTS, SIZES, KINDS, st.sampled_from([None, 0.2, 1.0]))
def test_weighted_sums_are_the_same(seed: int, count: int, size: int, kind: str, density: float | None) -> None:
    parts = tensors(seed, count, size, kind)
    weights = np.random.default_rng(seed).uniform(-2, 2, count).tolist()

    def compute(kernels: Kernels) -> np.ndarray:
        out = np.empty(size, np.float32)
        trims = None if density is None else [find_largest(x, density, kernels) for x in parts]
        weighted_sum(parts, weights, out, trims, kernels)
        return out

    expected, found = both_ways(compute)
    same_bits(found, expected)


@settings(deadline=None)
@given(SEEDS, COUNTS, SIZES, KINDS, st.sampled_from([None, 0.2, 1.0]), st.sampled_from(["total", "frequency"]))
def test_elections_are_the_same(
    seed: int, count: int, size: int, kind: str, density: float | None, sign_method: str
) -> None:
    parts = tensors(seed, count, size, kind)
    weights = np.random.default_rng(seed).uniform(-2, 2, count).tolist()

    def compute(kernels: Kernels) -> np.ndarray:
        out = np.empty(size, np.float32)
        trims = None if density is None else [find_largest(x, density, kernels) for x in parts]
        elect_and_average(parts, weights, sign_method, out, trims, kernels)
        return out

    expected, found = both_ways(compute)
    same_bits(found, expected)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 80_000), DENSITIES)
def test_random_drops_are_the_same(seed: int, size: int, density: float) -> None:
    (tensor,) = tensors(seed, 1, size, "real")

    def compute(kernels: Kernels) -> np.ndarray:
        return RandomDrop(density, str(seed), kernels).next(tensor, np.empty_like(tensor)).copy()

    expected, found = both_ways(compute)
    same_bits(found, expected)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 80), st.integers(1, 40), st.floats(-3, 3))
def test_transposing_is_the_same(seed: int, d: int, rank: int, factor: float) -> None:
    b = np.random.default_rng(seed).standard_normal((d, rank), np.float32)

    def compute(kernels: Kernels) -> np.ndarray:
        rows = np.empty((rank, d), np.float32)
        transpose_into(rows, b, factor, kernels)
        return rows

    expected, found = both_ways(compute)
    same_bits(found, expected)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_half_is_decoded_alike(dtype: str) -> None:
    """All 65,536 patterns (NaNs as NaNs), and ends that fill no vector."""
    patterns = np.arange(65_536, dtype=np.uint16)
    for raw in (patterns, patterns[1000:1017], patterns[:3]):
        bits = np.ascontiguousarray(raw).view(np.uint8)
        expected, found = np.empty(raw.size, np.float32), np.empty(raw.size, np.float32)
        decode_floats(bits, dtype, expected)
        decoder(backend("numba").merging)(bits, dtype, found)
        np.testing.assert_array_equal(found, expected)


def test_inner_products_agree() -> None:
    """Within 1e-6 of the product of the norms: another order of float32 additions."""
    parts = tensors(1, 3, 70_001, "real")
    expected, found = both_ways(lambda kernels: _gram(parts, kernels))
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert (np.abs(found - expected) <= 1e-6 * scale).all()


SHAPES = {"m.q_proj": (96, 320), "m.k_proj": (33, 320), "m.down_proj": (320, 1000)}


def adapters(count: int) -> dict[str, LoraAdapter]:
    rng = np.random.default_rng(7)

    def pair(d: int, k: int) -> LoraPair:
        return LoraPair(rng.standard_normal((12, k), np.float32), rng.standard_normal((d, 12), np.float32), 0.7)

    return {f"a{i}": LoraAdapter(f"a{i}", {m: pair(d, k) for m, (d, k) in SHAPES.items()}) for i in range(count)}


@pytest.mark.parametrize("method", METHODS)
def test_whole_recipes_have_the_same_bits(method: str) -> None:
    loaded = adapters(1 if method == "single" else 3)
    chosen = Recipe(method, tuple(loaded), options=tuple(METHODS[method].items()))
    expected, found = both_ways(lambda kernels: compile_recipe(chosen, loaded, None, SHAPES, {}, kernels))
    for module in SHAPES:
        np.testing.assert_array_equal(found.pairs[module].a, expected.pairs[module].a)
        np.testing.assert_array_equal(found.pairs[module].b, expected.pairs[module].b)


_WITHOUT_NUMBA = """
import sys
from edgecal.adapters import Recipe, compile_recipe
from tests.adapters.test_merge_kernels import SHAPES, adapters, digest
print(digest(compile_recipe(Recipe("slerp", ("a0", "a1"), (0.3, 0.7)), adapters(2), None, SHAPES, {})))
print("numba" in sys.modules)
"""


def digest(compiled: CompiledAdapter | None) -> str:
    assert compiled is not None
    factors = [array for module in SHAPES for array in (compiled.pairs[module].a, compiled.pairs[module].b)]
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in factors)).hexdigest()


def test_what_a_process_has_loaded_does_not_matter() -> None:
    """Slerp's inner products may have other last bits in the compiled kernels: they serve only who hands them over."""
    done = subprocess.run([sys.executable, "-c", _WITHOUT_NUMBA], capture_output=True, text=True, check=True)
    backend("numba")
    by_numpy = compile_recipe(Recipe("slerp", ("a0", "a1"), (0.3, 0.7)), adapters(2), None, SHAPES, {})
    assert done.stdout.split() == [digest(by_numpy), "False"]


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_an_engine_merges_with_the_kernels_of_its_back_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels, called = backend("numba").merging, []
    monkeypatch.setattr(kernels, "dot", lambda x, y, dot=kernels.dot: (called.append(x.size), dot(x, y))[1])
    model = write_tiny_hf(tmp_path / "model")
    paths = {f"a{i}": write_tiny_adapter(tmp_path / f"a{i}", model, seed=i) for i in range(2)}
    engine = Engine.load(model, backend=name, adapters=paths)
    engine.merge(Recipe("slerp", tuple(paths)))
    assert bool(called) == (name == "numba")


@pytest.mark.parametrize("method", ["ties", "dare_ties", "slerp"])
def test_threads_do_not_matter(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, three, and as many as there are modules: the same bits from kernels that share nothing."""
    loaded = adapters(2)

    def pool(n_threads: int) -> Callable[[int], ThreadPoolExecutor]:
        def start(_asked: int) -> ThreadPoolExecutor:
            return ThreadPoolExecutor(n_threads)

        return start

    def compute(n_threads: int, kernels: Kernels) -> Any:
        monkeypatch.setattr(recipe, "ThreadPoolExecutor", pool(n_threads))
        compiled = compile_recipe(Recipe(method, tuple(loaded)), loaded, None, SHAPES, {}, kernels)
        assert compiled is not None
        return compiled.pairs

    for found in both_ways(lambda kernels: [compute(n, kernels) for n in (1, 3, 8)]):
        for other in found[1:]:
            for module in SHAPES:
                np.testing.assert_array_equal(other[module].a, found[0][module].a)
                np.testing.assert_array_equal(other[module].b, found[0][module].b)


def test_arrays_that_no_kernel_was_compiled_for() -> None:
    """Read-only, transposed and unaligned factors are copied; they come out as their plain copies do."""
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((4, 50), np.float32), rng.standard_normal((30, 4), np.float32)
    fixed = a.copy()
    fixed.flags.writeable = False
    shifted = np.frombuffer(b"\0" + b.tobytes(), np.uint8)[1:].view(np.float32).reshape(b.shape)
    odd = LoraAdapter("odd", {"m": LoraPair(fixed, np.asfortranarray(b))})
    odder = LoraAdapter("odder", {"m": LoraPair(np.asfortranarray(a), shifted)})
    plain = {name: LoraAdapter(name, {"m": LoraPair(a, b)}) for name in ("odd", "odder")}
    for method in ("linear", "concat", "ties", "dare_ties", "slerp"):
        chosen = Recipe(method, ("odd", "odder"))

        def compute(loaded: dict[str, LoraAdapter], kernels: Kernels, chosen: Recipe = chosen) -> Any:
            return compile_recipe(chosen, loaded, None, {"m": (30, 50)}, {}, kernels)

        for way in (0, 1):
            found = both_ways(lambda kernels: compute({"odd": odd, "odder": odder}, kernels))[way]
            # DARE's masks go by name, so the names stay
            expected = both_ways(lambda kernels: compute(plain, kernels))[way]
            np.testing.assert_array_equal(found.pairs["m"].a, expected.pairs["m"].a)
            np.testing.assert_array_equal(found.pairs["m"].b, expected.pairs["m"].b)
