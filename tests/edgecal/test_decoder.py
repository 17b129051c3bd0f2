"""One token in one compiled call: the bits of the single operations, whatever the family, format, adapter, threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numba
import numpy as np
import pytest

from edgecal import Engine, KVCache, Recipe, Settings
from edgecal.adapters.lora import CompiledAdapter
from tests.tiny import write_tiny_adapter, write_tiny_hf

FAMILIES = ("llama", "qwen2", "stablelm")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("decoder")
    models = {family: write_tiny_hf(root / family, family) for family in FAMILIES}
    return {family: (model, write_tiny_adapter(root / f"{family}-lora", model)) for family, model in models.items()}


def with_biases(adapter: CompiledAdapter) -> CompiledAdapter:
    """The same with a bias on every output, as a calibration of bias_mode "output" has."""
    rng = np.random.default_rng(3)
    pairs = {n: replace(p, bias=rng.standard_normal(len(p.b)).astype(np.float32)) for n, p in adapter.pairs.items()}
    return CompiledAdapter("test", pairs, "with biases")


@pytest.fixture
def threads():
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format", ["int8", "int4", "int4_affine"])
def test_decoding_has_the_bits_of_the_prompt(folders, family, format, threads):
    model, lora = folders[family]
    engine = Engine.load(model, weights=format, backend="numba", adapters={"a": lora})
    assert engine.model._decoder is not None
    ids = np.random.default_rng(0).integers(0, 256, 40)
    [single] = engine.compile(Recipe("single", ("a",)))
    assert single is not None
    for adapter in (None, single, with_biases(single)):
        whole = engine.model.forward(ids, KVCache(engine.model.config), adapter, all_logits=True)
        for n_threads in {1, numba.config.NUMBA_NUM_THREADS}:
            threads(n_threads)
            cache = KVCache(engine.model.config)
            tokens = [engine.model.forward(ids[i : i + 1], cache, adapter) for i in range(len(ids))]
            np.testing.assert_array_equal(np.stack(tokens), whole)


def test_what_it_does_not_take_runs_all_the_same(folders):
    model, _ = folders["llama"]
    assert Engine.load(model, weights="fp32", backend="numba").model._decoder is None
    assert Engine.load(model, weights="int8", backend="numpy").model._decoder is None
    engine = Engine.load(model, weights="int8", backend="numba", cache_dtype="fp32")
    assert engine.generate("Some text", settings=Settings(max_tokens=8)).text


def test_requests_of_several_threads_do_not_mix(folders):
    model, lora = folders["llama"]
    engine = Engine.load(model, weights="int8", backend="numba", adapters={"a": lora})
    recipes = [None, Recipe("single", ("a",))]
    settings = Settings(max_tokens=40)
    alone = [engine.generate("Some text", recipe=recipe, settings=settings).text for recipe in recipes]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(engine.generate, "Some text", recipe=recipes[i % 2], settings=settings) for i in range(8)]
        assert [job.result().text for job in jobs] == alone * 4
