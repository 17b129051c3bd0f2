"""Reused keys and values: as many as are true, none that are not, within the budget, and the text of a fresh cache.

Texts are compared for equality: with the compiled kernels a token has the same bits however its prompt was read.
"""

from __future__ import annotations

import gc
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecal import Engine, KVCache, ModelConfig, Recipe, SamplingOptions, Settings, Step
from edgecal.adapters import LoraAdapter
from edgecal.adapters.lora import LoraPair
from edgecal.decoding.prefix_cache import Lease, PrefixCache
from edgecal.engine import PREFIX_CACHE
from edgecal.errors import OptionError
from tests.tiny import model_config, write_tiny_adapter, write_tiny_calibration, write_tiny_hf

PAIR = ("a", "b")
SHORT = Settings(max_tokens=8)
SHARED = "A long instruction that many prompts begin with, and that need not be read again. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prefixes")
    write_tiny_hf(root / "model")
    for seed, name in enumerate((*PAIR, "c"), 1):
        write_tiny_adapter(root / name, root / "model", seed=seed)
    write_tiny_adapter(root / "scaled", root / "model", seed=1, lora_alpha=3)  # the weights of "a", otherwise scaled
    write_tiny_calibration(root / "lcpp.safetensors", root / "model", {name: root / name for name in PAIR})
    return root


@pytest.fixture
def engine(folder: Path) -> Engine:
    return load(folder)


def load(folder: Path, prefix_cache: int | None = None, **options: str) -> Engine:
    chosen = {"weights": "int8", "backend": "numba", **options}
    adapters = {name: folder / name for name in PAIR}
    return Engine.load(folder / "model", adapters=adapters, prefix_cache=prefix_cache, **chosen)


@pytest.fixture(scope="module")
def fresh(folder: Path) -> Engine:
    """Reuses nothing."""
    return load(folder, 0)


# -------------------------------------------------------------------------------------------------- in the engine


def test_the_same_prompt_is_read_once(engine, fresh):
    first = engine.generate(SHARED, settings=SHORT)
    again = engine.generate(SHARED, settings=SHORT)
    assert first.reused_tokens == 0 and again.reused_tokens == again.prompt_tokens - 1
    assert [t.id for t in again.tokens] == [t.id for t in first.tokens]
    assert first.text == fresh.generate(SHARED, settings=SHORT).text
    values = json.loads(json.dumps(again.to_dict()))
    assert values["reused_tokens"] == values["passes"][0]["reused_tokens"] == again.reused_tokens
    assert again.passes[0].prefill_rate == pytest.approx(1 / again.first_token_s)
    assert fresh.prefixes.nbytes == 0


def test_only_what_is_new_is_computed(engine, monkeypatch):
    engine.generate(SHARED + "one", settings=SHORT)
    forward, computed = engine.model.forward, []

    def counting(ids, *args, **kwargs):
        computed.append(len(ids))
        return forward(ids, *args, **kwargs)

    monkeypatch.setattr(engine.model, "forward", counting)
    answer = engine.generate(SHARED + "two", settings=SHORT)
    assert answer.reused_tokens > 70
    assert computed[0] == answer.prompt_tokens - answer.reused_tokens


def test_prompts_that_begin_alike_keep_their_own_entries(engine):
    for text in ("one" * 20, "two" * 20, "three" * 20):
        engine.generate(SHARED + text, settings=SHORT)
    assert len(engine.prefixes) == 3
    for text in ("one" * 20, "two" * 20, "three" * 20):
        answer = engine.generate(SHARED + text, settings=SHORT)
        assert answer.reused_tokens == answer.prompt_tokens - 1
    assert len(engine.prefixes) == 3


def test_another_recipe_reads_no_old_keys(engine, fresh, folder):
    recipes = [
        None,
        Recipe("single", ("a",)),
        Recipe("single", ("b",)),
        Recipe("linear", PAIR),
        Recipe("linear", PAIR[::-1]),
        Recipe("linear", PAIR, weights=(0.3, 0.7)),
        Recipe("learnable_calibration_pp", PAIR, calibration=str(folder / "lcpp.safetensors")),
    ]
    for _ in range(2):
        for recipe in recipes:
            answer = engine.generate(SHARED, recipe=recipe, settings=SHORT)
            assert answer.text == fresh.generate(SHARED, recipe=recipe, settings=SHORT).text
            assert answer.reused_tokens in (0, answer.prompt_tokens - 1)
    assert engine.generate(SHARED, recipe=Recipe("zero_shot"), settings=SHORT).reused_tokens > 0, "the base, too"


@pytest.mark.parametrize(("other", "same"), [("a", True), ("c", False), ("scaled", False)])
def test_content_decides_and_not_the_name(engine, folder, other, same):
    """The same files under the same name give the same keys; other weights or another scaling do not."""
    recipe = Recipe("single", ("a",))
    first = engine.generate(SHARED, recipe=recipe, settings=SHORT)
    engine.add_adapter(folder / other, "a")
    again = engine.generate(SHARED, recipe=recipe, settings=SHORT)
    assert (again.reused_tokens > 0) == same == (again.text == first.text)


def test_adapters_made_in_python_are_told_apart(engine):
    rng = np.random.default_rng(0)

    def adapter() -> LoraAdapter:
        shapes = engine.model.linear_shapes.items()
        pairs = {
            m: LoraPair(*(rng.standard_normal(s).astype("f4") / 4 for s in ((2, k), (d, 2)))) for m, (d, k) in shapes
        }
        return LoraAdapter("mine", pairs)

    texts = set()
    for _ in range(3):
        engine.adapters["mine"] = adapter()
        engine.forget_compiled()
        answer = engine.generate(SHARED, recipe=Recipe("single", ("mine",)), settings=SHORT)
        assert answer.reused_tokens == 0
        texts.add(answer.text)
    assert len(texts) == 3


def test_other_weights_read_no_old_keys(engine, folder):
    engine.generate(SHARED, settings=SHORT)
    other = Engine.load(write_tiny_hf(folder / "other", seed=5), weights="int8", backend="numba", prefix_cache=0)
    engine.runner.model = other.model
    answer = engine.generate(SHARED, settings=SHORT)
    assert answer.reused_tokens == 0 and answer.text == other.generate(SHARED, settings=SHORT).text


def test_steps_of_a_pipeline_reuse_their_own(engine, fresh):
    recipe = Recipe("multi_step", steps=(Step("a", "Shorten this, please"), Step(None, "Make it a polite letter")))
    first = engine.generate("Some text to work on", recipe=recipe, settings=SHORT)
    again = engine.generate("Some text to work on", recipe=recipe, settings=SHORT)
    assert [p.reused_tokens for p in first.passes] == [0, 0]
    assert [p.reused_tokens for p in again.passes] == [p.prompt_tokens - 1 for p in again.passes]
    assert again.text == first.text == fresh.generate("Some text to work on", recipe=recipe, settings=SHORT).text


def test_a_cache_that_is_given_is_used_instead(engine):
    engine.generate(SHARED, settings=SHORT)
    cache, passes = KVCache(engine.model.config), []
    list(engine.stream(SHARED, settings=SHORT, cache=cache, passes=passes))
    assert passes[0].reused_tokens == 0 and cache.length > passes[0].prompt_tokens
    assert len(engine.prefixes) == 1


def test_the_budget_holds_and_the_oldest_go(folder):
    one = KVCache(model_config(folder / "model"))
    one.reserve(1)  # a block
    engine = load(folder, 3 * one.nbytes)
    prompts = [f"{letter}" * 100 for letter in "abcdef"]
    for prompt in prompts:
        engine.generate(prompt, settings=SHORT)
        assert engine.prefixes.nbytes <= 3 * one.nbytes
    assert len(engine.prefixes) == 3
    engine.generate(prompts[3], settings=SHORT)  # is used, so it outlives the next
    engine.generate("g" * 100, settings=SHORT)
    assert engine.generate(prompts[3], settings=SHORT).reused_tokens > 70
    assert engine.generate(prompts[4], settings=SHORT).reused_tokens < 70
    engine.generate("h" * 800, settings=SHORT)  # larger than the budget: is not kept and drives nobody out
    assert len(engine.prefixes) == 3
    engine.prefixes.clear()
    assert engine.prefixes.nbytes == len(engine.prefixes) == 0


def test_off_and_defaults(folder, engine):
    assert engine.prefixes.max_bytes == PREFIX_CACHE
    off = load(folder, 0)
    for _ in range(2):
        assert off.generate(SHARED, settings=SHORT).reused_tokens == 0
    assert load(folder, backend="numpy").prefixes.max_bytes == 0
    for wrong in (-1, 1.5, True, "32"):
        with pytest.raises(OptionError, match="prefix_cache must be a number of bytes"):
            load(folder, wrong)


@pytest.mark.parametrize("end", ["close", "drop", "error", "never begun"])
def test_interrupted_requests_leave_true_entries(engine, fresh, monkeypatch, end):
    settings = Settings(max_tokens=20, prefill_chunk=16)
    pieces = engine.stream(SHARED, settings=settings)
    if end == "error":
        forward, left = engine.model.forward, [4]

        def failing(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return forward(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(engine.model, "forward", failing)
            with pytest.raises(KeyboardInterrupt):
                list(pieces)
    elif end != "never begun":
        list(islice(pieces, 5))
        if end == "close":
            pieces.close()
    del pieces
    gc.collect()
    assert not engine.prefixes._leased
    answer = engine.generate(SHARED, settings=settings)
    assert answer.reused_tokens == {"error": 48, "never begun": 0}.get(end, answer.prompt_tokens - 1)
    assert answer.text == fresh.generate(SHARED, settings=settings).text


def test_a_running_request_lends_its_prompt(engine, fresh):
    """A second one that begins alike copies what the first has computed, and both say what they would alone."""
    first, second = engine.stream(SHARED + "one", settings=SHORT), None
    said = [next(first).text]
    second = engine.generate(SHARED + "two", settings=SHORT)
    assert second.reused_tokens > 70
    said += [piece.text for piece in first]
    assert "".join(said) == fresh.generate(SHARED + "one", settings=SHORT).text
    assert second.text == fresh.generate(SHARED + "two", settings=SHORT).text


def test_threads_share_it(engine, fresh):
    recipes = [None, Recipe("single", ("a",)), Recipe("single", ("b",))]
    jobs = [(SHARED + "xyz"[i % 3] * (i % 5), recipes[i % 3]) for i in range(30)]
    wanted = {job: fresh.generate(job[0], recipe=job[1], settings=SHORT).text for job in set(jobs)}

    def run(job: tuple[str, Recipe | None]) -> str:
        return engine.generate(job[0], recipe=job[1], settings=SHORT).text

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, jobs)) == [wanted[job] for job in jobs]
    assert engine.prefixes.reused_tokens > 0 and not engine.prefixes._leased


WORDS = ("the hen ", "a cat ", "in " * 20, SHARED)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map("".join),
            st.sampled_from([None, "a", "b"]),
            st.sampled_from(["all", "some", "swap"]),
            st.sampled_from(["auto", 5]),
        ),
        max_size=8,
    ),
    st.sampled_from([1 << 16, 1 << 18, None]),
)
def test_any_course_of_events_equals_a_fresh_engine(folder, fresh, steps, budget):
    engine = load(folder, budget)
    fresh.add_adapter(folder / "b", "b")
    sampling = SamplingOptions(temperature=0.7, seed=3)
    for prompt, name, kind, speculate in steps:
        if kind == "swap":
            for each in (engine, fresh):
                each.add_adapter(folder / ("c" if len(prompt) % 2 else "b"), "b")
        chosen = Settings(max_tokens=6, speculate=speculate, sampling=sampling)
        recipe = Recipe("single", (name,)) if name else None
        count = 2 if kind == "some" else 6
        found = [p.token.id for p in islice(engine.stream(prompt, recipe=recipe, settings=chosen), count)]
        wanted = [p.token.id for p in islice(fresh.stream(prompt, recipe=recipe, settings=chosen), count)]
        assert found == wanted


# ----------------------------------------------------------------------------------------------- the store itself


CONFIG = ModelConfig("llama", 16, 16, 1, 1, 1, 16, 32, 1e-5, 4096, rotary_dim=16)


def fill(lease: Lease, answer: list[int]) -> None:
    """As a request does: the values of a position are its token and the one before."""
    lease.tokens += answer
    start, stop = lease.cache.length, len(lease.tokens) - 1
    lease.cache.reserve(stop)
    for i in range(start, stop):
        lease.cache.values[:, :, i] = lease.tokens[i] + 100 * sum(lease.tokens[:i])
    lease.cache.advance(max(stop - start, 0))


def check(lease: Lease) -> None:
    for i in range(lease.reused):
        assert lease.cache.values[0, 0, i, 0] == lease.tokens[i] + 100 * sum(lease.tokens[:i])


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.lists(st.integers(0, 1), min_size=1, max_size=6), st.booleans()), max_size=25
    ),
    st.sampled_from([None, 1, 2]),
)
@settings(deadline=None)
def test_what_is_lent_is_true(steps, max_entries):
    """Prompts of 40 equal tokens and a few that differ; some leases stay out while others come and go."""
    store = PrefixCache(None, max_entries)
    out: list[Lease] = []
    for owner, tail, keep in steps:
        ids = [0] * (40 if len(tail) % 2 else 2) + tail
        lease = store.lease(owner, ids, lambda: KVCache(CONFIG, "fp32"))
        assert lease.owner == owner and lease.reused == lease.cache.length < len(ids)
        assert lease.tokens == ids
        check(lease)
        fill(lease, [1, 0])
        if keep and len(out) < 3:
            out.append(lease)
        else:
            store.release(lease)
    for lease in out:
        check(lease)
        store.release(lease)
    assert max_entries is None or len(store) <= max_entries


def test_a_lease_that_is_dropped_leaves_nothing():
    store = PrefixCache(None)
    store.lease("x", [1, 2, 3], lambda: KVCache(CONFIG))
    gc.collect()
    assert store.nbytes == 0 and len(store) == 0
