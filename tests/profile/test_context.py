"""Profile watches an engine's own generations, agrees with a clock outside, and leaves nothing behind."""

from __future__ import annotations

import json
from time import perf_counter

import numpy as np
import pytest

from edgecal import Engine, Settings
from edgecal.errors import OptionError, StorageError
from edgecal.profile import Profile
from tests.profile.engines import recipes, tiny_engine


def test_every_generation_with_its_tokens(engine, folder):
    plain = engine.generate("Some text", settings=Settings(max_tokens=6))
    engine.prefixes.clear()
    with Profile(engine) as p:
        watched = engine.generate("Some text", settings=Settings(max_tokens=6, speculate="off"))
        linear = recipes(folder)["linear"]
        engine.generate("Some text", recipe=linear, settings=Settings(max_tokens=4, speculate="off"))
        for _ in engine.stream_ids([5, 6, 7], settings=Settings(max_tokens=3, speculate="off")):
            pass
    assert watched.text == plain.text, "watching changes no answer"
    assert [g.method for g in p.generations] == ["zero_shot", "linear", "zero_shot"]
    assert [len(g.tokens) for g in p.generations] == [len(watched.tokens), 4, 3]
    # a prefill and a forward per token after the first
    assert [sum(step.kind == "decode" for step in g.steps) for g in p.generations] == [len(watched.tokens) - 1, 3, 2]
    assert p.generations[0].tokens == watched.tokens
    assert p.latency is not None and p.latency.n == sum(len(g.tokens) - 1 for g in p.generations)
    json.dumps(p.to_dict(), allow_nan=False)


def test_a_pipeline_has_the_steps_of_all_passes(engine, folder):
    with Profile(engine) as p:
        engine.generate("Some text", recipe=recipes(folder)["two"], settings=Settings(max_tokens=5))
    (generation,) = p.generations
    assert generation.method == "multi_step" and len(generation.tokens) <= 5
    assert sum(step.kind == "prefill" for step in generation.steps) == 2
    assert len(generation.steps) > len(generation.tokens)
    assert generation.prompt_split().closure == pytest.approx(1, abs=0.03)


def test_drafts_give_several_tokens_in_a_step(engine):
    with Profile(engine) as p:
        answer = engine.generate("a b a b a b", settings=Settings(max_tokens=24, speculate=3))
    (generation,) = p.generations
    assert len(generation.tokens) == len(answer.tokens) and answer.drafted_tokens > 0
    assert any(step.kind == "decode" and step.tokens > 1 for step in generation.steps)
    split = generation.decode_split()
    assert split.steps == len(answer.tokens) - 1 and split.closure == pytest.approx(1, abs=0.03)


def test_nothing_is_left_behind(engine):
    with pytest.raises(ZeroDivisionError), Profile(engine):
        raise ZeroDivisionError
    assert engine.model.observer is engine.runner.observer is None
    assert not engine.model.clock.running


def test_one_at_a_time(engine):
    with Profile(engine) as p:
        with pytest.raises(OptionError, match="one profile at a time"), Profile(engine):
            pass
        assert engine.model.clock.running, "the first goes on"
        engine.generate("Some text", settings=Settings(max_tokens=2))
    assert len(p.generations) == 1 and engine.model.observer is engine.runner.observer is None


def test_what_goes_on_behind_the_block_is_not_in_it(engine):
    settings = Settings(max_tokens=8, speculate="off")
    with Profile(engine) as p:
        pieces = engine.stream("Some text", settings=settings)
        said = [next(pieces), next(pieces), next(pieces)]
    said += pieces
    (generation,) = p.generations
    assert [token.id for token in generation.tokens] == [piece.token.id for piece in said[:3]]
    assert len(generation.steps) == len(p.steps) == 3 and generation.total_s > 0 and len(said) == 8


def batch(folder):
    """Prompts, the recipe of each, and how to answer: a pipeline among them."""
    every = recipes(folder)
    chosen = [None, every["linear"], every["two"], None, every["lcpp"]]
    prompts = ["Some text", "Another, longer text to be answered", "To be shortened", "x", "And the last of them"]
    return prompts, chosen, [Settings(max_tokens=n) for n in (12, 5, 8, 9, 12)]


def test_a_batch_is_a_generation_for_each_answer(engine, folder):
    prompts, chosen, settings = batch(folder)
    engine.prefixes.clear()
    plain = engine.generate_batch(prompts, recipes=chosen, settings=settings, batch_size=3)
    engine.prefixes.clear()
    with Profile(engine) as p:
        answers = engine.generate_batch(prompts, recipes=chosen, settings=settings, batch_size=3)
    assert [a.text for a in answers] == [a.text for a in plain], "watching changes no answer"
    assert sorted(g.method for g in p.generations) == sorted(a.method for a in answers)
    by_tokens = {tuple(token.id for token in g.tokens): g for g in p.generations}
    for answer in answers:
        generation = by_tokens[tuple(token.id for token in answer.tokens)]
        assert generation.tokens == answer.tokens and generation.method == answer.method
        assert generation.decode_rate == pytest.approx(answer.decode_rate)
    prefills, decodes = ([s for s in p.steps if s.kind == kind] for kind in ("prefill", "decode"))
    assert len(prefills) == 6 and all(step.rows == 1 < step.tokens for step in prefills), "two of the pipeline's"
    assert {step.rows for step in decodes} >= {2, 3} and all(step.tokens == step.rows <= 3 for step in decodes)
    written = [one.new_tokens for answer in answers for one in answer.passes]
    assert sum(step.rows for step in decodes) == sum(n - 1 for n in written), "the first comes with the prompt"
    json.dumps(p.to_dict(), allow_nan=False)


def test_a_generation_in_a_batch_has_every_step_that_it_waited_for(engine):
    """The first answer waits for the second prompt, and goes on alone at the end."""
    engine.prefixes.clear()
    with Profile(engine) as p:
        each = [Settings(max_tokens=n) for n in (9, 4)]
        engine.generate_batch(["Some text", "Another text"], settings=each, batch_size=2)
    first, second = p.generations
    assert [step.rows for step in first.steps] == [1, 1, *[2] * 3, *[1] * 5]
    assert [step.kind for step in first.steps] == ["prefill", "prefill", *["decode"] * 8]
    assert [step.rows for step in second.steps] == [1, 2, 2, 2] and first.prompt_steps == second.prompt_steps == 1
    assert second.steps[0] == first.steps[1] == p.steps[1], "one and the same"


def test_the_parts_of_a_batch_add_up(engine, folder):
    """In the median: these forwards take a fraction of a millisecond, and one interruption shows in them."""
    prompts, chosen, settings = batch(folder)
    closures = []
    with Profile(engine) as p:
        for _ in range(5):
            engine.prefixes.clear()
            engine.generate_batch(prompts, recipes=chosen, settings=settings, batch_size=3)
    closures = [generation.decode_split().closure for generation in p.generations]
    assert np.median(closures) == pytest.approx(1, abs=0.03)
    split = p.split()
    assert split.steps == sum(len(g.tokens) - 1 for g in p.generations)
    assert {"qkv", "lora", "head", "sampling", "python"} <= set(split.parts)


def test_two_streams_in_turn_are_watched_as_well(engine):
    settings = Settings(max_tokens=6, speculate="off")
    with Profile(engine) as p:
        streams = [engine.stream(text, settings=settings) for text in ("Some text", "Other")]
        texts = ["".join(piece.text for piece in pieces) for pieces in zip(*zip(*streams, strict=True), strict=True)]
    assert [len(g.tokens) for g in p.generations] == [6, 6] and all(texts)
    assert [len(g.steps) for g in p.generations] == [11, 11], "those of the other are waited for"
    assert len(p.steps) == 12


def test_a_trace_of_a_batch(engine, folder):
    prompts, chosen, settings = batch(folder)
    with Profile(engine) as p:
        engine.generate("Some text", settings=Settings(max_tokens=4))
        engine.generate_batch(prompts, recipes=chosen, settings=settings, batch_size=3)
    events = p.trace()["traceEvents"]
    tracks = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    assert {"zero_shot", "linear, generation 2", "batch"} <= set(tracks) and len(tracks) == 7
    forwards = [e for e in events if e["name"] == "forward"]
    assert len(forwards) == len(p.steps), "each is drawn once"
    assert {e["tid"] for e in forwards} == {tracks["zero_shot"], tracks["batch"]}
    assert {"5 at a time", "3 tokens", "2 tokens"} <= {e["name"] for e in events if e["tid"] == tracks["batch"]}


def test_without_operations_only_the_marks(engine):
    with Profile(engine, operations=False) as p:
        engine.generate("Some text", settings=Settings(max_tokens=4))
        assert not engine.model.clock.running
    assert set(p.split().parts) == {"sampling", "call", "python"}


def test_a_trace_of_it(engine, tmp_path):
    with Profile(engine) as p:
        engine.generate("Some text", settings=Settings(max_tokens=4))
    p.write_trace(tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text()) == json.loads(json.dumps(p.trace()))
    with pytest.raises(StorageError, match="could not be written: there is no folder"):
        p.write_trace(tmp_path / "nowhere" / "t.json")


def test_the_rate_agrees_with_a_clock_outside(smollm2_gguf):
    """Tokens per second within 5 % of timing the very same generation from outside; the parts add up within 3 %."""
    engine = Engine.load(smollm2_gguf)
    settings = Settings(max_tokens=24)
    engine.generate("Tell me a story", settings=settings)
    outside = []
    with Profile(engine) as p:
        for _ in range(3):
            stamps = []
            for _piece in engine.stream("Tell me a story", settings=settings):
                stamps.append(perf_counter())
            outside.append((len(stamps) - 1) / (stamps[-1] - stamps[0]))
    # in the median: an interruption between the two clocks is a part of one of them only
    ratios = [generation.decode_rate / rate for generation, rate in zip(p.generations, outside, strict=True)]
    assert np.median(ratios) == pytest.approx(1, rel=0.05)
    for generation in p.generations:
        assert generation.decode_split().closure == pytest.approx(1, abs=0.03)
        assert generation.prompt_split().closure == pytest.approx(1, abs=0.03)
    with Profile(engine) as together:
        started = perf_counter()
        engine.generate_batch(["Tell me a story", "What is a hen?", "Count to ten"], settings=settings, batch_size=2)
        whole = perf_counter() - started
    assert len(together.generations) == 3
    for generation in together.generations:
        assert generation.decode_split().closure == pytest.approx(1, abs=0.03)
    assert sum(s.before_s + s.forward_s + s.sample_s for s in together.steps) == pytest.approx(whole, rel=0.03)
    latency = p.latency
    assert latency is not None
    assert latency.p50 == np.percentile([s for g in p.generations for s in g.step_seconds], 50)


def test_a_clean_engine_is_needed_per_profile_only(folder):
    engine = tiny_engine(folder, backend="numpy")
    for _ in range(2):
        with Profile(engine) as p:
            engine.generate("x", settings=Settings(max_tokens=2))
        assert len(p.generations) == 1
