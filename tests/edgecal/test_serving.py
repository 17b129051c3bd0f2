"""What a runner tells its observer, of requests alone and together, complete and broken off."""

from __future__ import annotations

from typing import Any

import pytest

from edgecal import Engine, KVCache, Recipe, Settings, Step
from edgecal.completion import Request
from edgecal.decoding.generate import TokenRecord
from edgecal.decoding.prefix_cache import PrefixCache
from edgecal.errors import ContextLengthError, OptionError
from edgecal.observer import Forward
from tests.tiny import write_tiny_adapter, write_tiny_hf

SETTINGS = Settings(max_tokens=3, speculate="off")
STEPS = Recipe("multi_step", steps=(Step("a", "Shorten"), Step(None, "Polish")))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    root = tmp_path_factory.mktemp("serving")
    model = write_tiny_hf(root / "model", max_position_embeddings=256)
    adapters = {"a": write_tiny_adapter(root / "a", model)}
    return Engine.load(model, weights="int8", adapters=adapters, prefix_cache=0)


class Log:
    """Every event as one entry; requests are numbered as they begin."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.requests: list[Request] = []

    def forward_began(self, forward: Forward) -> None:
        self.events.append((forward.kind, forward.rows))

    def forward_ended(self) -> None:
        self.events.append("ended")

    def request_began(self, request: Request) -> int:
        self.requests.append(request)
        self.events.append(f"begin {len(self.requests)}")
        return len(self.requests)

    def token_chosen(self, running: object, token: TokenRecord, last_pass: bool) -> None:
        self.events.append((running, token.index, last_pass))

    def request_ended(self, running: object) -> None:
        self.events.append(f"end {running}")

    def without_forwards(self) -> list[Any]:
        return [e for e in self.events if e != "ended" and e[0] not in ("prefill", "decode")]


PREFILL, DECODE = [("prefill", 1), "ended"], [("decode", 1), "ended"]


def test_one_request(engine):
    log = Log()
    with engine.runner.observed(log):
        engine.generate("Some text", settings=SETTINGS)
    first, second, third = ((1, i, True) for i in range(3))
    assert log.events == ["begin 1", *PREFILL, first, *DECODE, second, *DECODE, third, "end 1"]
    assert log.requests[0].method == "zero_shot"
    engine.generate("Some text", settings=SETTINGS)
    assert len(log.requests) == 1, "no longer"


def test_a_pipeline_is_one_request(engine):
    log = Log()
    with engine.runner.observed(log):
        answer = engine.generate("Some text", recipe=STEPS, settings=SETTINGS)
    passes = [[(1, i, last) for i in range(n.new_tokens)] for n, last in zip(answer.passes, (False, True), strict=True)]
    assert log.without_forwards() == ["begin 1", *passes[0], *passes[1], "end 1"]
    assert log.requests[0].method == "multi_step" and log.requests[0].following is not None, "the first pass's"


def test_a_batch(engine):
    log = Log()
    with engine.runner.observed(log):
        engine.generate_batch(["Some text", "Other text"], settings=SETTINGS)
    two = [("decode", 2), "ended"]
    begins = ["begin 1", *PREFILL, (1, 0, True), "begin 2", *PREFILL, (2, 0, True)]
    assert log.events == [*begins, *two, (1, 1, True), (2, 1, True), *two, (1, 2, True), "end 1", (2, 2, True), "end 2"]


@pytest.mark.parametrize("together", [False, True])
def test_what_breaks_off_ends_too(engine, together):
    log = Log()
    with engine.runner.observed(log):
        if together:
            requests = [engine.prepare(text, settings=SETTINGS) for text in ("a", "b", "never begun")]
            pieces = engine.stream_batch(requests, batch_size=2)
            taken = [next(pieces) for _ in range(3)]
        else:
            pieces = engine.stream("Some text", settings=SETTINGS)
            taken = [next(pieces)]
        assert taken
        pieces.close()
    wanted = ["begin 1", "begin 2", "end 1", "end 2"] if together else ["begin 1", "end 1"]
    assert [event for event in log.without_forwards() if isinstance(event, str)] == wanted


def test_a_pipeline_that_cannot_go_on_ends_too(engine):
    log, long = Log(), Recipe("multi_step", steps=(Step("a", "Shorten"), Step(None, "Polish " * 80)))
    with engine.runner.observed(log), pytest.raises(ContextLengthError):
        engine.generate("x", recipe=long, settings=SETTINGS)
    with engine.runner.observed(log), pytest.raises(ContextLengthError, match="prompt 2"):
        engine.generate_batch(["x", "y"], recipes=[None, long], settings=SETTINGS)
    ends = [e for e in log.without_forwards() if isinstance(e, str) and e.startswith("end")]
    assert sorted(ends) == ["end 1", "end 2", "end 3"] and engine.runner.observer is None


def test_a_forward_that_breaks_off_never_ends(engine, monkeypatch):
    log = Log()
    monkeypatch.setattr(engine.model, "_step", None)
    with engine.runner.observed(log), pytest.raises(TypeError):
        engine.generate("x" * 10, settings=SETTINGS)
        engine.model.step([1], [KVCache(engine.model.config)])
    assert log.events.count("ended") == 1 and engine.model.observer is None


def test_one_observer_at_a_time(engine):
    first, second = Log(), Log()
    with engine.model.observed(first):
        with (
            pytest.raises(OptionError, match="observed already: one profile at a time"),
            engine.runner.observed(second),
        ):
            pass
        assert engine.runner.observer is None and engine.model.observer is first


def test_an_empty_prefix_cache_of_ones_own_is_used(engine):
    """It is false as a list is, and the engine's must not stand in for it."""
    own = PrefixCache(1 << 20)
    for reused in (False, True):
        passes: list[Any] = []
        list(engine.stream_ids([3, 4, 5, 6], settings=SETTINGS, passes=passes, prefixes=own))
        assert (passes[0].reused_tokens > 0) == reused
    assert len(own) == 1
