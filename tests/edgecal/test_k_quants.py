"""A model in a mixture of K-quants, as Q4_K_M files are: its size in memory, its values, the same bits by any path."""

from __future__ import annotations

import numpy as np
import pytest

from edgecal import Engine, KVCache, Recipe
from edgecal_weights.gguf_checkpoint import GGUFCheckpoint
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.quantizer import quantize_checkpoint
from tests.tiny import write_tiny_adapter
from tests.weights.samples import gguf_of, weights

FORMATS = {"int4_k", "int5_k", "int6_k", "int5", "F32"}
PARTS = {"down_proj": "Q6_K", "v_proj": "Q5_K", "o_proj": "Q5_0", "embed_tokens": "Q6_K"}  # all others are Q4_K


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """m.gguf, whose head is its embedding, and the same packed."""
    root, rng = tmp_path_factory.mktemp("k-quants"), np.random.default_rng(0)
    tensors = weights("llama", rng, tied=True)
    types = {name: kind for name in tensors for part, kind in PARTS.items() if part in name}
    gguf_of(root / "m.gguf", tensors, {"": "Q4_K", **types}, rng)
    with GGUFCheckpoint(root / "m.gguf") as checkpoint:
        quantize_checkpoint(checkpoint, root / "packed")
    write_tiny_adapter(root / "lora", root / "packed")
    return root


def test_memory_is_that_of_the_file(folder):
    """Within 3 %: an eighth of a bit for Q4_K's and Q5_K's scales, nothing for Q6_K and Q5_0."""
    with GGUFCheckpoint(folder / "m.gguf") as checkpoint:
        stored = checkpoint.tensor_bytes()
    for model in (folder / "m.gguf", folder / "packed"):
        assert stored <= Engine.load(model, backend="numpy").model.weight_bytes <= 1.03 * stored


def test_packed_values_are_those_of_the_file(folder):
    with GGUFCheckpoint(folder / "m.gguf") as source, open_checkpoint(folder / "packed") as packed:
        assert {packed.stored_type(name) for name in source.names()} == FORMATS
        for name in source.names():
            np.testing.assert_array_equal(packed.read(name), source.read(name), err_msg=name)


def test_bits_and_values_of_any_path(folder):
    """Tokens alone, in a prompt, and with an adapter have the same bits; NumPy's values within 1e-3 of the largest."""
    ids = np.random.default_rng(1).integers(0, 48, 40)
    fast = Engine.load(folder / "m.gguf", backend="numba", adapters={"a": folder / "lora"})
    plain = Engine.load(folder / "packed", backend="numpy", adapters={"a": folder / "lora"})
    assert fast.model._decoder is not None
    for recipe in (None, Recipe("single", ("a",))):
        found = []
        for engine in (fast, plain):
            adapter = engine.model.run_form(engine.merge(recipe)[0] if recipe else None)
            found.append(engine.model.forward(ids, KVCache(engine.model.config), adapter, all_logits=True))
        whole, expected = found
        assert np.abs(whole - expected).max() <= 1e-3 * np.abs(expected).max()
        cache, adapter = KVCache(fast.model.config), fast.model.run_form(fast.merge(recipe)[0] if recipe else None)
        tokens = [fast.model.forward(ids[i : i + 1], cache, adapter) for i in range(len(ids))]
        np.testing.assert_array_equal(np.stack(tokens), whole)
