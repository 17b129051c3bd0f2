"""Threads belong to the engine: they hold in whatever Python thread calls it, and nothing of them is left there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest

from edgecal import Engine, KVCache, Recipe, Settings
from edgecal.errors import BackendError, OptionError
from edgecal.observer import Forward
from edgecal.threads import FEW_TOKENS, Threads
from edgecal_kernels import cpu
from tests.threads import most_threads, threads_now
from tests.tiny import write_tiny_adapter, write_tiny_hf

MOST = most_threads()
SHORT = Settings(max_tokens=8, speculate="off")
several = pytest.mark.skipif(MOST < 2, reason="this process has one thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("threads")
    write_tiny_adapter(root / "lora", write_tiny_hf(root / "model"))
    return root


def load(folder: Path, **options: object) -> Engine:
    chosen = {"weights": "int4", "backend": "numba", "adapters": {"lora": folder / "lora"}, "prefix_cache": 0}
    return Engine.load(folder / "model", **{**chosen, **options})


class Spy:
    """The threads that kernels have in each forward pass, with the number of tokens that it runs."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def forward_began(self, forward: Forward) -> None:
        self.seen.append((forward.tokens, threads_now()))

    def forward_ended(self) -> None:
        pass

    @property
    def threads(self) -> set[int]:
        return {threads for _, threads in self.seen}


def watched(engine: Engine, prompt: str = "Some text") -> Spy:
    spy = Spy()
    with engine.model.observed(spy):
        engine.generate(prompt, settings=SHORT)
    return spy


@pytest.mark.parametrize("cores", [1, 10_000])
def test_the_physical_cores_are_the_default(folder, monkeypatch, cores):
    monkeypatch.setattr(cpu, "physical_cores", lambda: cores)
    engine, expected = load(folder), min(cores, cpu.usable_cores(), MOST)
    assert engine.threads == Threads(expected, expected)
    assert watched(engine).threads == {expected}


@several
@pytest.mark.parametrize("weights", ["int4", "fp32"])
def test_they_hold_in_a_worker_thread(folder, weights):
    """In which kernels, left alone, take more."""
    engine = load(folder, threads=1, weights=weights)

    def job() -> tuple[int, Spy, int]:
        before = threads_now()
        return before, watched(engine, "A text of more than sixteen tokens"), threads_now()

    with ThreadPoolExecutor(1) as pool:
        before, spy, after = pool.submit(job).result()
    assert spy.threads == {1} and len(spy.seen) == 8
    assert before == after, "the caller's own number is as it was"
    if weights == "int4":
        assert list(engine.model._decoder._scratches) == [1], "and that is what the decoder's threads were"


@several
def test_two_engines_keep_their_own(folder):
    """Token by token in turn, in one Python thread."""
    one, all_ = load(folder, threads=1), load(folder, threads=MOST)
    wanted = one.generate("Some text", settings=SHORT).text
    spies = Spy(), Spy()
    with one.model.observed(spies[0]), all_.model.observed(spies[1]):
        streams = [engine.stream("Some text", settings=SHORT) for engine in (one, all_)]
        pieces = list(zip_longest(*streams))
    assert [spy.threads for spy in spies] == [{1}, {MOST}]
    assert ["".join(piece.text for piece in each) for each in zip(*pieces, strict=True)] == [wanted, wanted]


@several
def test_prompts_may_be_read_by_others(folder):
    engine = load(folder, threads=1, prefill_threads=MOST)
    assert engine.threads == Threads(decode=1, prefill=MOST)
    spy = watched(engine, "A text of more than sixteen tokens")
    assert spy.seen[0][0] > FEW_TOKENS
    assert all(threads == (MOST if tokens > FEW_TOKENS else 1) for tokens, threads in spy.seen)
    assert engine.model._decoder.MAX_ROWS == FEW_TOKENS
    spy = Spy()
    with engine.model.observed(spy):  # a step of many rows is decoding all the same
        engine.model.step([5] * 20, [KVCache(engine.model.config) for _ in range(20)])
    assert spy.seen == [(20, 1)]


@several
def test_they_can_change_while_an_answer_runs(folder):
    engine, spy = load(folder, threads=1), Spy()
    with engine.model.observed(spy):
        stream = engine.stream("Some text", settings=SHORT)
        text = next(stream).text + next(stream).text
        engine.set_threads(MOST)
        text += "".join(piece.text for piece in stream)
    assert [threads for tokens, threads in spy.seen if tokens == 1] == [1] + [MOST] * 6
    assert text == engine.generate("Some text", settings=SHORT).text
    engine.set_threads()
    assert engine.threads.decode == min(cpu.physical_cores(), MOST)


@several
def test_the_decoder_keeps_its_buffers_for_each_number(folder):
    engine = load(folder, threads=1)
    scratches = engine.model._decoder._scratches
    found = []
    for threads in (1, MOST, 1, MOST):
        engine.set_threads(threads)
        engine.generate("x", settings=SHORT)
        found.append(scratches[threads])
    assert found[0] is found[2] and found[1] is found[3] and len(scratches) == 2


def test_the_decoder_s_buffers_never_shrink(folder):
    """A draft of many rows and a row with an adapter in turn."""
    engine = load(folder, threads=1)
    model, config = engine.model, engine.model.config
    [adapter] = engine.compile(Recipe("single", ("lora",)))
    made = []
    for _ in range(3):
        model.forward(np.arange(12), KVCache(config))
        model.forward(np.arange(1), KVCache(config), adapter)
        made.append(model._decoder._scratches[1])
    assert made[0] is made[1] is made[2]


def test_a_pass_that_breaks_off_leaves_the_callers_number(folder):
    engine, before = load(folder, threads=1), threads_now()

    class Interrupting(Spy):
        def forward_began(self, forward: Forward) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), engine.model.observed(Interrupting()):
        engine.generate("Some text", settings=SHORT)
    assert threads_now() == before


def test_the_text_never_depends_on_them(folder):
    engine, recipe, prompt = load(folder), Recipe("single", ("lora",)), "A text of more than sixteen tokens"
    settings = Settings(max_tokens=24)
    found = set()
    for threads in range(1, MOST + 1):
        for prefill in (None, *range(1, MOST + 1)):
            engine.set_threads(threads, prefill)
            both = engine.generate_batch([prompt, prompt], recipes=[None, recipe], settings=settings)
            alone = [engine.generate(prompt, recipe=each, settings=settings) for each in (None, recipe)]
            assert [a.text for a in both] == [a.text for a in alone]
            found.add(tuple(answer.text for answer in both))
    assert len(found) == 1


@pytest.mark.parametrize("name", ["threads", "prefill_threads"])
def test_impossible_numbers_are_refused(folder, name):
    with pytest.raises(BackendError, match=f"{MOST + 1} threads were asked for; this .* has 1 to {MOST}"):
        load(folder, **{name: MOST + 1})
    for value in (0, -1, True, 1.0, "2"):
        with pytest.raises(OptionError, match=f"^{name} must be a whole number of at least 1, found"):
            load(folder, **{name: value})
    with pytest.raises(OptionError, match=f"^{name} 1: the NumPy back end has no threads to set.*OPENBLAS_NUM_THREADS"):
        load(folder, backend="numpy", **{name: 1})
    engine = load(folder, threads=1)
    with pytest.raises(BackendError):
        engine.set_threads(**{name: MOST + 1})
    assert engine.threads == Threads(1, 1), "as before"


def test_numpy_has_none(folder):
    engine = load(folder, backend="numpy")
    assert engine.threads == Threads(None, None)
    assert watched(engine).threads == {threads_now()}, "untouched"
