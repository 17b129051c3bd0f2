"""LoraPair, LoraAdapter, CompiledAdapter."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgecal.adapters import CompiledAdapter, CompiledPair, LoraAdapter, LoraPair
from edgecal.errors import AdapterError
from tests.adapter_files import MODULES, random_tensors, tensor_name, write_adapter

Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapter(tmp_path: Path, rng: np.random.Generator) -> LoraAdapter:
    return LoraAdapter.load(write_adapter(tmp_path / "polite", random_tensors(rng, dtype=np.float16)))


def test_load(adapter: LoraAdapter, tmp_path: Path, rng: np.random.Generator) -> None:
    assert adapter.name == "polite"
    assert LoraAdapter.load(tmp_path / "polite", "other").name == "other"
    assert adapter.path == tmp_path / "polite"
    assert adapter.base_model_name == "some/base"
    assert len(adapter.pairs) == 4
    assert set(adapter.pairs) == set(MODULES)
    assert adapter.ranks == (4,)
    assert adapter.n_parameters == sum(4 * (d + k) for d, k in MODULES.values())
    assert adapter.nbytes == 2 * adapter.n_parameters
    pair = adapter.pairs[Q0]
    assert (pair.a.dtype, pair.b.dtype, pair.scaling) == (np.float32, np.float32, 2.0)
    np.testing.assert_allclose(pair.delta(), 2 * (pair.b @ pair.a), rtol=1e-6)
    with pytest.raises(KeyError):
        adapter.pairs["model.layers.9.self_attn.q_proj"]


def test_pairs_are_fresh_arrays(adapter: LoraAdapter) -> None:
    first = adapter.pairs[Q0].a.copy()
    adapter.pairs[Q0].a[:] = 0
    np.testing.assert_array_equal(adapter.pairs[Q0].a, first)


def test_survives_replacement_of_its_files(adapter: LoraAdapter, tmp_path: Path, rng: np.random.Generator) -> None:
    first = adapter.pairs[Q0].a
    (tmp_path / "polite" / "adapter_model.safetensors").unlink()
    write_adapter(tmp_path / "polite", random_tensors(rng))
    np.testing.assert_array_equal(adapter.pairs[Q0].a, first)


def test_pair_shapes() -> None:
    with pytest.raises(AdapterError, match=re.escape("lora_a (3, 5) and lora_b (7, 4)")):
        LoraPair(np.zeros((3, 5), np.float32), np.zeros((7, 4), np.float32))


def test_check_against(adapter: LoraAdapter) -> None:
    adapter.check_against(MODULES)
    adapter.check_against({**MODULES, "model.layers.0.mlp.up_proj": (20, 8)})


@pytest.mark.parametrize(
    ("shapes", "word"),
    [
        (
            {m.replace("model.", "transformer."): s for m, s in MODULES.items()},
            "matches no module.*q_proj.*transformer",
        ),
        ({}, "matches no module.*the model has none"),
        (
            {m: s for m, s in MODULES.items() if ".1." not in m},
            "2 of its 4 modules .*no effect: model.layers.1",
        ),
        (
            {**MODULES, Q0: (12, 9)},
            r"another base: model\.layers\.0\.self_attn\.q_proj is \(12, 9\).*\(12, 8\)",
        ),
        (
            {**MODULES, "model.layers.2.self_attn.q_proj": (12, 8)},
            "target_modules ask for 1 .*layers.2.*incomplete",
        ),
    ],
)
def test_check_against_refuses(adapter: LoraAdapter, shapes: dict[str, tuple[int, int]], word: str) -> None:
    with pytest.raises(AdapterError, match=word) as caught:
        adapter.check_against(shapes)
    assert "polite" in str(caught.value)
    assert "some/base" in str(caught.value)


def test_adapter_from_arrays(rng: np.random.Generator) -> None:
    tensors = random_tensors(rng)
    pairs = {m: LoraPair(tensors[tensor_name(m, "A")], tensors[tensor_name(m, "B")]) for m in MODULES}
    adapter = LoraAdapter("mine", pairs)
    assert adapter.sha256 == ""
    assert adapter.nbytes == 4 * adapter.n_parameters
    adapter.check_against({**MODULES, "model.layers.2.self_attn.q_proj": (12, 8)})


def test_compiled_adapter_counts_shared_arrays_once() -> None:
    shared = np.asfortranarray(np.zeros((6, 2), np.float32))
    pairs = {name: CompiledPair(np.zeros((2, 5), np.float32), shared, np.zeros(6, np.float32)) for name in "xy"}
    compiled = CompiledAdapter("test", pairs, "key")
    assert compiled.rank == 2
    assert compiled.nbytes == 4 * (12 + 2 * 10 + 2 * 6)
    assert CompiledAdapter("test", {}, "key").rank == 0
