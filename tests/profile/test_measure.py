"""A whole run: everything asked for is there, once per repeat, and it adds up."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import edgecal.profile.run
from edgecal import KVCache, Recipe
from edgecal.decoding.generate import decode
from edgecal.decoding.sampler import Sampler
from edgecal.errors import AdapterError, BackendError, ContextLengthError, OptionError, RecipeError
from edgecal.memory import peak_resident
from edgecal.observer import Forward
from edgecal.profile import Plan, ProfileRun, measure
from edgecal.profile.split import CALL, PYTHON, SAMPLING
from edgecal_kernels.clock import PARTS
from tests.profile.engines import PLAN, recipes, tiny_engine
from tests.threads import most_threads, threads_now
from tests.tiny import write_tiny_adapter, write_tiny_hf

CLOSURE = 0.03  # of the whole, that parts may miss or count twice


class Forwards:
    """An observer that keeps what it is told."""

    def __init__(self):
        self.forwards = []

    def forward_began(self, forward):
        self.forwards.append(forward)

    def forward_ended(self):
        pass


def test_every_measurement_is_there_once_per_repeat(report):
    assert [m.name for m in report.methods] == ["base", "linear", "lcpp", "two"]
    for method in report.methods:
        assert len(method.compile_s) == PLAN.repeats
        assert [(c.new, c.depth) for c in method.decodes] == [(12, 0), (12, 16)]
        assert [(c.prompt, c.depth) for c in method.prompts] == [(24, 0), (24, 16)]
        for case in method.decodes:
            assert len(case.runs) == len(case.write_s) == PLAN.repeats
            assert all(len(run) == 12 and min(run) > 0 for run in case.runs)
            assert case.split.steps == 12 * PLAN.repeats
            assert case.clock_cost is not None and case.clock_cost > 0
        for case in method.prompts:
            assert len(case.read_s) == len(case.first_token_s) == PLAN.repeats
            assert all(a < b for a, b in zip(case.read_s, case.first_token_s, strict=True))
            assert case.split.steps == PLAN.repeats
    assert report.bandwidth(report.settings["threads"][0]) > 0
    assert {m.name: (m.n_passes, m.rank) for m in report.methods} == {
        "base": (1, 0),
        "linear": (1, 4),
        "lcpp": (1, 6),
        "two": (2, 4),
    }


def test_the_parts_add_up_to_the_whole(report):
    """Within 3 % by a clock around the whole loop, in the median: a loop of this model takes 1 ms, and one interruption
    outside of the marks shows in it (tests of the real model hold every single one)."""
    cases = [case for method in report.methods for case in (*method.decodes, *method.prompts)]
    assert np.median([case.split.closure for case in cases]) == pytest.approx(1, abs=CLOSURE)
    for method in report.methods:
        for case in (*method.decodes, *method.prompts):
            assert set(case.split.parts) <= {*PARTS, SAMPLING, CALL, PYTHON}
            assert all(seconds >= 0 for seconds in case.split.parts.values())
        parts = method.decodes[0].split.parts
        assert {"qkv", "attention", "output", "gate_up", "down", "head", SAMPLING} <= set(parts)
        assert ("lora" in parts) == (method.name != "base")


def test_the_rate_is_that_of_a_clock_around_it(report):
    shares = []
    for method in report.methods:
        for case in method.decodes:
            assert case.rate == pytest.approx(case.new / np.median(case.write_s))
            inside = [sum(run) for run in case.runs]
            shares += [inner / outer for outer, inner in zip(case.write_s, inside, strict=True)]
    assert max(shares) <= 1 and np.median(shares) == pytest.approx(1, abs=0.05)


def test_a_pipeline_reads_and_writes_in_all_its_passes(report):
    one, two = report.methods[1], report.methods[3]
    assert two.prompts[0].tokens_read == 24 + 12 and one.prompts[0].tokens_read == 24
    assert any("several passes" in note for note in report.notes)


def test_a_pipelines_first_token_comes_after_all_its_passes(engine, folder):
    """Both read, and the first one writes 12 tokens in between, which the time to read leaves out."""
    run = ProfileRun(engine, {"two": recipes(folder)["two"]}, Plan((24,), (12,), (0,), 1))
    run.run()
    seen = Forwards()
    with engine.model.observed(seen):
        run._prompt(run.subjects[0], run.threads[0], 24, 0, False)
    writing = [Forward("decode", 1, 24 + i) for i in range(12)]
    assert seen.forwards == [Forward("prefill", 24, 0), *writing, Forward("prefill", 12, 0)]


def test_examples_in_context_are_read_and_lie_behind_the_answer(engine, monkeypatch):
    read, written = [], []
    for name, log in (("read_prompt", read), ("write_tokens", written)):
        function = getattr(edgecal.profile.run, name)

        def logged(model, ids, cache, *rest, function=function, log=log):
            log.append((cache.length, len(ids)))
            return function(model, ids, cache, *rest)

        monkeypatch.setattr(edgecal.profile.run, name, logged)
    recipe = Recipe("in_context", shots=(("A question of some length", "Its answer"),))
    n_shots = len(engine.prepare("x", recipe=recipe).ids) - len(engine.encode("x"))
    plan = Plan(prompts=(24,), new=(12,), depths=(0, 16), repeats=1)
    report = measure(engine, {"base": None, "shot": recipe}, plan)
    assert n_shots > 20 and [case.tokens_read for case in report.methods[1].prompts] == [24 + n_shots] * 2
    assert {(0, 24), (16, 24), (0, 24 + n_shots), (16, 24 + n_shots)} <= set(read)
    assert {(0, 12), (16, 12), (n_shots, 12), (16 + n_shots, 12)} <= set(written)
    assert report.methods[1].memory.context == report.methods[0].memory.context + n_shots
    assert any(f"{n_shots} tokens of examples stand before every prompt" in note for note in report.notes)
    with pytest.raises(ContextLengthError, match=f"shot has {n_shots} tokens of examples before each prompt"):
        measure(engine, {"shot": recipe}, Plan(prompts=(1000,), new=(12,)))


def test_what_depends_on_the_depth_shares_a_cache_of_the_same_bits(engine, folder):
    """A cache that was filled once and measured in gives the logits of a fresh one."""
    measurement = ProfileRun(engine, {"linear": recipes(folder)["linear"]}, Plan((8,), (8,), (0, 24), 2))
    measurement.run()
    subject, ids = measurement.subjects[0], measurement.ids
    used, adapter = subject.cache(0, 24, ids[:24]), subject.compiled[0]
    fresh = KVCache(engine.model.config)
    for token in ids[:24]:
        decode(engine.model, token, fresh, adapter)
    a, b = (decode(engine.model, ids[24], cache, adapter) for cache in (used, fresh))
    assert np.array_equal(a, b)


def test_the_model_is_as_it_was_afterwards(engine, report):
    assert not engine.model.clock.running and engine.model.observer is None
    before = engine.model.clock.ns.copy()
    engine.generate("Some text")
    assert np.array_equal(engine.model.clock.ns, before)


def test_memory_is_what_proc_says_and_its_parts_are_exact(folder, monkeypatch):
    """The peak is VmHWM at that moment; the parts are the arrays' own sizes and sum to it."""
    engine = tiny_engine(folder)
    read = []

    def high_water():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

    def peak():
        before = high_water()  # a page may be touched for the first time between two looks
        read.append(peak_resident())
        assert before <= read[-1] <= high_water()
        return read[-1]

    if sys.platform != "linux":
        pytest.skip("asks /proc")
    monkeypatch.setattr("edgecal.profile.run.peak_resident", peak)
    measurement = ProfileRun(engine, recipes(folder), Plan((300,), (4,), (0,), 1))
    report = measurement.run()
    cache = KVCache(engine.model.config, engine.cache_dtype)
    cache.reserve(300)
    assert [m.memory.peak for m in report.methods] == read
    for subject, method in zip(measurement.subjects, report.methods, strict=True):
        memory = method.memory
        assert memory.context == 300 and memory.kv_cache == cache.nbytes
        assert memory.weights == engine.model.weight_bytes == report.model.weight_bytes
        assert memory.adapters == sum({id(a): a.nbytes for a in subject.compiled if a is not None}.values())
        assert memory.peak == memory.weights + memory.adapters + memory.kv_cache + memory.rest and memory.rest > 0
    assert report.idle_weights == engine.model.weight_bytes < report.idle_bytes


def test_an_interrupted_run_keeps_what_it_has(folder):
    engine = tiny_engine(folder)

    def progress(done, total, what):
        if "write" in what:
            raise KeyboardInterrupt

    measurement = ProfileRun(engine, recipes(folder), PLAN, progress=progress)
    with pytest.raises(KeyboardInterrupt):
        measurement.run()
    assert measurement.report.interrupted and measurement.report.disturbance["total_s"] > 0
    assert measurement.report.methods[0].decodes[0].runs and not measurement.report.methods[1].decodes
    assert engine.model.observer is None


def test_progress_counts_to_the_end(engine, folder):
    seen = []
    ProfileRun(
        engine, {"base": None}, Plan((8,), (4,), (0,), 2), progress=lambda done, total, what: seen.append((done, total))
    ).run()
    assert seen[-1] == (5, 5) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_lists_of_threads(folder):
    """Measured with the very numbers, which are the engine's meanwhile."""
    engine, most = tiny_engine(folder), most_threads()
    engine.set_threads(1, most)
    now, before, used = threads_now(), engine.threads, set()
    plan = Plan((8,), (4,), (0,), 2, threads=(1, most))
    run = ProfileRun(engine, {"base": None}, plan, progress=lambda *_: used.add(engine.threads))
    report = run.run()
    assert threads_now() == now and engine.threads == before
    assert {(t.decode, t.prefill) for t in used} == {(1, most), (1, 1), (most, most)}
    assert sorted({case.threads for case in report.methods[0].decodes}) == sorted({1, most})
    assert {read.threads for read in report.reads} == {1, most} and set(report.peak_operations) == {"1", str(most)}
    assert measure(engine, {"base": None}, Plan((8,), (4,), (0,), 1)).settings["threads"] == [1], "the engine's own"
    assert engine.threads == before
    with pytest.raises(BackendError, match="threads were asked for"):
        measure(engine, {"base": None}, Plan(threads=(4096,)))
    with pytest.raises(OptionError, match="NumPy back end"):
        measure(tiny_engine(folder, backend="numpy"), {"base": None}, Plan(threads=(1,)))


def test_the_numpy_back_end_is_measured_as_well(folder):
    report = measure(tiny_engine(folder, backend="numpy"), {"base": None}, Plan((8,), (4,), (0, 8, 16), 3))
    splits = [case.split for case in report.methods[0].decodes]
    assert np.median([split.closure for split in splits]) == pytest.approx(1, abs=CLOSURE)
    assert all(split.parts["qkv"] > 0 for split in splits)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan((2000,), (4,)), "a prompt of 2000 at depth 0 needs a context of 2000 tokens, the model has 1024"),
        (Plan((8,), (64,), (1000,)), "64 new tokens at depth 1000 needs a context of 1064"),
    ],
)
def test_a_context_too_short_is_refused(engine, plan, message):
    with pytest.raises(ContextLengthError, match=message):
        ProfileRun(engine, {"base": None}, plan)


def test_a_pipeline_needs_room_and_something_to_write(engine, folder):
    two = {"two": recipes(folder)["two"]}
    with pytest.raises(OptionError, match="give -n"):
        ProfileRun(engine, two, Plan((8,), (0,)))
    with pytest.raises(ContextLengthError, match="take a smaller"):
        ProfileRun(engine, two, Plan((1000,), (100,)))
    with pytest.raises(OptionError, match="no recipe"):
        ProfileRun(engine, {}, PLAN)


def test_recipes_that_do_not_fit_are_refused_before_anything_is_timed(engine, tmp_path):
    with pytest.raises(RecipeError, match="no adapter 'other' is loaded"):
        measure(engine, {"base": None, "other": Recipe("single", ("other",))}, PLAN)
    write_tiny_hf(tmp_path / "wide", hidden_size=128)
    write_tiny_adapter(tmp_path / "adapter", tmp_path / "wide")
    with pytest.raises(AdapterError, match="for another base"):
        engine.add_adapter(tmp_path / "adapter")


def test_the_decode_figure_is_that_of_the_peers_harness(engine, folder):
    """`bench/peers` times n decodes with an argmax each: ours are the same forwards and as many choices, no more."""
    run = ProfileRun(engine, {"linear": recipes(folder)["linear"]}, Plan((0,), (8,), (0, 24), 1))
    run.run()
    subject, ids = run.subjects[0], run.ids

    class Spy(Forwards):
        def __init__(self):
            super().__init__()
            self.choices = []

        def choose(self, sampler, logits, original=Sampler.__call__):
            self.choices.append(original(sampler, logits))
            return self.choices[-1]

    for depth in (0, 24):
        cache = KVCache(engine.model.config, engine.cache_dtype)
        for token in ids[:depth]:
            decode(engine.model, token, cache, subject.compiled[0])
        theirs, ours = Spy(), Spy()
        with engine.model.observed(theirs):
            for token in ids[depth : depth + 8]:
                theirs.choices.append(int(decode(engine.model, token, cache, subject.compiled[0]).argmax()))
        with engine.model.observed(ours), pytest.MonkeyPatch.context() as patch:
            patch.setattr(Sampler, "__call__", lambda sampler, logits, spy=ours: spy.choose(sampler, logits))
            run._decode(subject, run.threads[0], 8, depth, False)
        assert ours.forwards == theirs.forwards == [Forward("decode", 1, depth + i) for i in range(8)]
        assert ours.choices == theirs.choices
    # and what a step reads is what the harness divides by
    assert run.report.model.read_bytes == engine.model.weight_bytes
