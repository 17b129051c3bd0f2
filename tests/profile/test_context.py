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
    assert not {"stream", "stream_ids"} & set(vars(engine)) and "forward" not in vars(engine.model)
    assert not engine.model.clock.running


def test_one_at_a_time(engine):
    with Profile(engine), pytest.raises(OptionError, match="one profile at a time"), Profile(engine):
        pass
    assert "forward" not in vars(engine.model)


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
    with pytest.raises(StorageError, match="cannot be written"):
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
    for generation, rate in zip(p.generations, outside, strict=True):
        assert generation.decode_rate == pytest.approx(rate, rel=0.05)
        assert generation.decode_split().closure == pytest.approx(1, abs=0.03)
        assert generation.prompt_split().closure == pytest.approx(1, abs=0.03)
    latency = p.latency
    assert latency is not None
    assert latency.p50 == np.percentile([s for g in p.generations for s in g.step_seconds], 50)


def test_a_clean_engine_is_needed_per_profile_only(folder):
    engine = tiny_engine(folder, backend="numpy")
    for _ in range(2):
        with Profile(engine) as p:
            engine.generate("x", settings=Settings(max_tokens=2))
        assert len(p.generations) == 1
