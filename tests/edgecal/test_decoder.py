"""One token in one compiled call: the bits of the single operations, whatever the family, format, adapter, threads."""

from __future__ import annotations

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter

import numba
import numpy as np
import pytest

from edgecal import Engine, KVCache, Recipe, Settings
from edgecal.adapters.compiled import CompiledAdapter
from edgecal.errors import AdapterError, PromptError
from edgecal_kernels.clock import PARTS
from tests.tiny import FAMILIES, write_tiny_adapter, write_tiny_hf


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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("format", "dtype"), [("int8", "fp16"), ("int4", "int8"), ("int4_f16", "fp16"), ("int4_affine", "fp16")]
)
def test_decoding_has_the_bits_of_the_prompt(folders, family, format, dtype):
    model, lora = folders[family]
    engine = Engine.load(model, weights=format, backend="numba", adapters={"a": lora})
    assert engine.model._decoder is not None
    ids = np.random.default_rng(0).integers(0, 256, 90)
    [single] = engine.merge(Recipe("single", ("a",)))
    assert single is not None
    for adapter in map(engine.model.run_form, (None, single, with_biases(single))):
        whole = engine.model.forward(ids, KVCache(engine.model.config, dtype), adapter, all_logits=True)
        for n_threads in {1, numba.config.NUMBA_NUM_THREADS}:
            engine.set_threads(n_threads)
            cache = KVCache(engine.model.config, dtype)
            tokens = [engine.model.forward(ids[i : i + 1], cache, adapter) for i in range(len(ids))]
            np.testing.assert_array_equal(np.stack(tokens), whole)


def test_a_model_of_one_layer(tmp_path):
    engine = Engine.load(write_tiny_hf(tmp_path / "model", num_hidden_layers=1), weights="int8", backend="numba")
    ids, config = np.arange(20) * 7, engine.model.config
    whole = engine.model.forward(ids, KVCache(config), all_logits=True)
    cache = KVCache(config)
    tokens = [engine.model.forward(ids[i : i + 1], cache) for i in range(len(ids))]
    np.testing.assert_array_equal(np.stack(tokens), whole)


@pytest.mark.parametrize("rank", [1, 13, 16, 20, 36, 44])
def test_every_rank_has_the_bits_of_the_prompt(folders, tmp_path, rank):
    """Whole tiles of A*, quarter tiles, and both; with one of rank 4 in the same step."""
    model, small = folders["llama"]
    large = write_tiny_adapter(tmp_path / "large", model, rank=rank)
    engine = Engine.load(model, weights="int4", backend="numba", adapters={"large": large, "small": small})
    adapters = [engine.compile(Recipe("single", (name,)))[0] for name in ("large", "small")]
    run, config = engine.model, engine.model.config
    ids = np.random.default_rng(rank).integers(0, 256, 40)
    wholes = [run.forward(ids, KVCache(config), adapter, all_logits=True) for adapter in adapters]
    assert not np.array_equal(*wholes)
    for n_threads in {1, numba.config.NUMBA_NUM_THREADS}:
        engine.set_threads(n_threads)
        caches = [KVCache(config), KVCache(config)]
        steps = np.stack([run.step([token, token], caches, adapters) for token in ids])
        for i, whole in enumerate(wholes):
            np.testing.assert_array_equal(steps[:, i], whole)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format", ["int8", "int4_affine"])
def test_a_few_rows_have_the_bits_of_one_by_one(folders, family, format):
    """Tokens of several sequences, each with its own adapter and length; and several tokens of one."""
    model, lora = folders[family]
    engine = Engine.load(model, weights=format, backend="numba", adapters={"a": lora})
    run, config = engine.model, engine.model.config
    [single] = engine.merge(Recipe("single", ("a",)))
    assert single is not None
    plain, biased = run.run_form(single), run.run_form(with_biases(single))
    adapters = [None, plain, plain, biased, None]
    dtypes = ["fp16", "int8", "fp16", "int8", "int8"]
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 256, n) for n in (3, 40, 7, 1, 19)]
    tokens = rng.integers(0, 256, (2, len(prompts)))
    for n_threads in {1, numba.config.NUMBA_NUM_THREADS}:
        engine.set_threads(n_threads)
        caches = [KVCache(config, dtype) for dtype in dtypes]
        for prompt, cache, adapter in zip(prompts, caches, adapters, strict=True):
            run.forward(prompt, cache, adapter)
        steps = [run.step(row, caches, adapters) for row in tokens]
        for i, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True)):
            cache = KVCache(config, dtypes[i])
            run.forward(prompt, cache, adapter)
            guess = run.forward(tokens[:, i], cache, adapter, all_logits=True)
            cache.truncate(len(prompt))
            alone = [run.forward(tokens[t, i : i + 1], cache, adapter) for t in range(2)]
            for t in range(2):
                np.testing.assert_array_equal(steps[t][i], alone[t])
                np.testing.assert_array_equal(guess[t], alone[t])


@pytest.mark.parametrize("weights", ["int4", "fp32"])
@pytest.mark.parametrize("ids", [[272], [-1], [5, 300, 7]])
def test_tokens_outside_the_vocabulary_are_refused(folders, weights, ids):
    engine = Engine.load(folders["llama"][0], weights=weights, backend="numba")
    cache = KVCache(engine.model.config)
    with pytest.raises(PromptError, match=r"token (272|-1|300) is not in the model's vocabulary of 272"):
        engine.model.forward(np.array(ids), cache)
    with pytest.raises(PromptError):
        engine.model.step(ids, [KVCache(engine.model.config) for _ in ids])
    assert cache.length == 0


# The decoder is imported before anything has asked for a back end, which must not matter to its numbers
_SHORT_PROMPTS_ONLY = """
import sys
import edgecal_kernels.decoder_walk
import numba, numpy as np
from edgecal import Engine, KVCache
engine = Engine.load(sys.argv[1], weights="int8", backend="numba", threads=numba.config.NUMBA_NUM_THREADS)
for _ in range(2):
    logits = engine.model.forward(np.array([3, 4]), KVCache(engine.model.config))
found = engine.model._decoder._scratches
print(logits.tobytes().hex(), *found, numba.config.NUMBA_NUM_THREADS, numba.threading_layer())
"""


@pytest.mark.numba
def test_all_threads_decode_behind_a_short_prompt(folders):
    """Which threads there are is not known before Numba has started them; a process that reads a few tokens at a time
    calls no other parallel kernel before its first step."""
    done = subprocess.run(
        [sys.executable, "-c", _SHORT_PROMPTS_ONLY, folders["llama"][0]], capture_output=True, text=True, check=True
    )
    bits, *found, most, layer = done.stdout.split()
    engine = Engine.load(folders["llama"][0], weights="int8", backend="numba")
    logits = engine.model.forward(np.array([3, 4]), KVCache(engine.model.config))
    assert np.array_equal(np.frombuffer(bytes.fromhex(bits), np.float32), logits)
    assert found == ([most] if layer == "omp" else ["1"])


def test_more_sequences_than_it_takes_at_once(folders):
    engine = Engine.load(folders["llama"][0], weights="int4", backend="numba")
    caches = [KVCache(engine.model.config) for _ in range(37)]
    ids = np.random.default_rng(2).integers(0, 256, 37)
    logits = engine.model.step(ids, caches)
    assert {cache.length for cache in caches} == {1}
    for i in (0, 15, 16, 36):
        np.testing.assert_array_equal(logits[i], engine.model.forward(ids[i : i + 1], KVCache(engine.model.config)))


def test_adapters_that_are_gone_leave_their_place_to_others(folders):
    model, lora = folders["llama"]
    engine = Engine.load(model, weights="int8", backend="numba", adapters={"a": lora})
    found = []
    for _ in range(5):
        [adapter] = engine.compile(Recipe("single", ("a",)))
        cache = KVCache(engine.model.config)
        engine.model.forward(np.array([3]), cache, adapter)
        found.append(engine.model.forward(np.array([5]), cache, adapter))
        del adapter
        engine.forget_compiled()
        gc.collect()
    assert len(engine.model._decoder._pairs) == 2
    for logits in found:
        np.testing.assert_array_equal(logits, found[0])


@pytest.mark.parametrize("weights", ["int8", "fp32"])
@pytest.mark.parametrize("n_tokens", [1, 40])
def test_a_merged_adapter_must_be_made_ready_first(folders, weights, n_tokens):
    """It would run with other numbers in a prompt than in a step, or not at all."""
    model, lora = folders["llama"]
    engine = Engine.load(model, weights=weights, backend="numba", adapters={"a": lora})
    [merged] = engine.merge(Recipe("single", ("a",)))
    cache, ids = KVCache(engine.model.config), np.arange(n_tokens)
    with pytest.raises(AdapterError, match=r"a merged adapter was given.*model.run_form\(adapter\)"):
        engine.model.forward(ids, cache, merged)
    with pytest.raises(AdapterError, match="a merged adapter was given"):
        engine.model.step([1, 2], [cache, KVCache(engine.model.config)], [None, merged])
    assert cache.length == 0
    engine.model.forward(ids, cache, engine.model.run_form(merged))


@pytest.mark.parametrize(("weights", "n_tokens"), [("int4", 1), ("int4", 40), ("fp32", 1)])
def test_the_clock_accounts_for_the_parts(folders, weights, n_tokens):
    model, lora = folders["qwen2"]
    engine = Engine.load(model, weights=weights, backend="numba", adapters={"a": lora})
    clock, ids = engine.model.clock, np.arange(n_tokens)
    [adapter] = engine.compile(Recipe("single", ("a",)))
    engine.model.forward(ids, KVCache(engine.model.config), adapter)
    assert not any(clock.ns)
    clock.running = True
    start = perf_counter()
    engine.model.forward(ids, KVCache(engine.model.config), adapter)
    whole = perf_counter() - start
    parts = clock.seconds()
    assert set(parts) == set(PARTS)
    assert all(seconds > 0 for seconds in parts.values()), parts
    assert sum(parts.values()) <= whole
    clock.reset()
    engine.model.forward(ids, KVCache(engine.model.config))
    assert clock.seconds()["lora"] == 0 < clock.seconds()["qkv"]


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
