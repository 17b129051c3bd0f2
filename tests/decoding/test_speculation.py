"""Drafts change how fast an answer comes and nothing else: the same tokens, reasons and cache, with every setting.

All comparisons are of ids and for equality: the compiled kernels promise the same bits for a row in any pass. A tiny
random model hardly repeats itself, so most tests replace the looking up by an oracle, which knows the answer and
corrupts it here and there: drafts of every length that are right, wrong, or wrong from some place on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgecal.decoding.generate
from edgecal import Engine, KVCache, Recipe, SamplingOptions, Settings
from edgecal.completion import completion
from edgecal.decoding.generate import TokenRecord, generate
from edgecal.decoding.sampler import Sampler
from edgecal.decoding.speculation import LONGEST_SETTING, NgramIndex, Speculator, StepCosts
from edgecal.errors import OptionError
from tests.clock import ClockByHand
from tests.tiny import FAMILIES, write_tiny_adapter, write_tiny_hf

SETTINGS = ("auto", 1, 3, 8, LONGEST_SETTING)
FORMATS = ("fp32", "int8", "int4", "int4_f16", "int4_affine")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("speculation")
    for family in FAMILIES:
        write_tiny_hf(root / family, family)
        write_tiny_adapter(root / f"{family}-lora", root / family)
    return root


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(folder, "llama", "int8")


def load(folder: Path, family: str, format: str) -> Engine:
    adapters = {"lora": folder / f"{family}-lora"}
    return Engine.load(folder / family, weights=format, backend="numba", adapters=adapters, prefix_cache=0)


def run(
    engine: Engine,
    ids: list[int],
    speculate: str | int,
    *,
    recipe: Recipe | None = None,
    sampling: SamplingOptions | None = None,
    eos_ids: tuple[int, ...] = (),
    max_tokens: int = 40,
) -> tuple[list[TokenRecord], int]:
    """The records, and the length of the cache behind them."""
    cache = KVCache(engine.model.config)
    records = generate(
        engine.model,
        ids,
        Sampler(sampling or SamplingOptions(), ids),
        adapter=engine.compile(recipe)[0],
        cache=cache,
        eos_ids=eos_ids,
        max_tokens=max_tokens,
        speculate=speculate,
    )
    return list(records), cache.length


def facts(result: tuple[list[TokenRecord], int]) -> tuple[list[int], list[int], list[str | None], int]:
    records, length = result
    return [r.id for r in records], [r.index for r in records], [r.finish_reason for r in records], length


class Oracle(Speculator):
    """Drafts `answer` itself, with lengths and mistakes by chance; on "auto" as many as fit, without a mistake."""

    answer: ClassVar[list[int]] = []
    seed = 0

    def __init__(self, ids: list[int], setting: str | int, costs: StepCosts) -> None:
        super().__init__(ids, setting, costs)
        self._at, self._setting, self._rng = 0, setting, np.random.default_rng(self.seed)

    def draft(self, tokens: list[int], room: int) -> list[int]:
        super().draft(tokens, room)
        self._at += len(tokens)
        draft = [*self.answer[self._at :], *[1] * LONGEST_SETTING][: max(room, 0)]
        if self._setting != "auto":
            draft = draft[: self._rng.integers(0, int(self._setting), endpoint=True)]
            if draft and self._rng.random() < 0.5:
                draft[self._rng.integers(len(draft))] = 4
        return draft


@contextmanager
def oracle(answer: list[int], seed: int = 0) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Oracle, "answer", answer)
        patch.setattr(Oracle, "seed", seed)
        patch.setattr(edgecal.decoding.generate, "Speculator", Oracle)
        yield


def with_oracle(engine: Engine, ids: list[int], speculate: str | int, **options: Any) -> Any:
    """The plain run, and the one with drafts; both as `run` gives them."""
    plain = run(engine, ids, "off", **options)
    with oracle([record.id for record in plain[0]], seed=len(ids)):
        return plain, run(engine, ids, speculate, **options)


PROMPT = [5, 9, 12, 5, 9, 12, 7, 5, 9] * 3


# ------------------------------------------------------------------------------------------------- the same text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format", FORMATS)
def test_every_family_format_and_adapter(folder, family, format):
    engine = load(folder, family, format)
    for recipe in (None, Recipe("single", ("lora",))):
        for sampling in (SamplingOptions(), SamplingOptions(temperature=0.8, seed=1)):
            drafted = accepted = 0
            for speculate in SETTINGS:
                plain, found = with_oracle(engine, PROMPT, speculate, recipe=recipe, sampling=sampling)
                assert facts(found) == facts(plain), speculate
                drafted += sum(r.drafted for r in found[0])
                accepted += sum(r.accepted for r in found[0])
            assert 0 < accepted < drafted, "both right and wrong drafts were met"
            for speculate in SETTINGS:  # and with what is really looked up
                assert facts(run(engine, PROMPT, speculate, recipe=recipe, sampling=sampling)) == facts(plain)


@pytest.mark.parametrize("format", FORMATS)
def test_with_a_float32_cache(folder, format):
    engine = Engine.load(folder / "llama", weights=format, backend="numba", cache_dtype="fp32", prefix_cache=0)
    plain = engine.generate("some text", settings=Settings(max_tokens=40, speculate="off"))
    for speculate in SETTINGS:
        with oracle([token.id for token in plain.tokens]):
            found = engine.generate("some text", settings=Settings(max_tokens=40, speculate=speculate))
        assert [token.id for token in found.tokens] == [token.id for token in plain.tokens]
        assert found.accepted_tokens > 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(3, 260), min_size=1, max_size=4),
    st.integers(1, 12),
    st.sampled_from(SETTINGS),
    st.floats(0, 1.5),
    st.sampled_from([0, 4]),
    st.sampled_from([1.0, 0.6]),
    st.sampled_from([1.0, 1.3]),
    st.integers(0, 2**32),
    st.integers(1, 40),
)
def test_sampled_text_is_the_same_for_every_seed(
    engine, phrase, times, speculate, temperature, top_k, top_p, penalty, seed, max_tokens
):
    sampling = SamplingOptions(temperature, top_k, top_p, repetition_penalty=penalty, seed=seed)
    options = {"sampling": sampling, "max_tokens": max_tokens}
    plain, found = with_oracle(engine, phrase * times, speculate, **options)
    assert facts(found) == facts(plain)
    assert facts(run(engine, phrase * times, speculate, **options)) == facts(plain)


def test_the_end_of_sequence_inside_a_draft(engine):
    ids = [record.id for record in run(engine, PROMPT, "off", max_tokens=60)[0]]
    inside = 0
    for eos in dict.fromkeys(ids):
        plain = run(engine, PROMPT, "off", eos_ids=(eos,), max_tokens=60)
        with oracle(ids):  # goes on behind the end
            found = run(engine, PROMPT, "auto", eos_ids=(eos,), max_tokens=60)
        assert facts(found) == facts(plain)
        assert found[0][-1].finish_reason == "stop" and found[0][-1].id == eos
        inside += found[0][-1].accepted
    assert inside > 10


def test_max_tokens_inside_a_draft(engine):
    for max_tokens in range(1, 40):
        for speculate in ("auto", 3, LONGEST_SETTING):
            plain, found = with_oracle(engine, PROMPT, speculate, max_tokens=max_tokens)
            assert facts(found) == facts(plain)
            assert found[0][-1].finish_reason == "length" and len(found[0]) == max_tokens


def test_the_context_ends_inside_a_draft(folder):
    engine = Engine.load(
        write_tiny_hf(folder / "short", max_position_embeddings=48), weights="int8", backend="numba", prefix_cache=0
    )
    for n_prompt in range(20, 48):
        for speculate in ("auto", 8):
            plain, found = with_oracle(engine, (PROMPT * 3)[:n_prompt], speculate, max_tokens=100)
            assert facts(found) == facts(plain)
            assert found[0][-1].finish_reason == "context"


def test_stop_strings_cut_drafted_text(engine):
    whole = engine.generate("some text", settings=Settings(max_tokens=50, speculate="off"))
    for start in range(0, 40, 3):
        stop = (whole.text[start : start + 2],)
        plain = engine.generate("some text", settings=Settings(max_tokens=50, stop=stop, speculate="off"))
        with oracle([token.id for token in whole.tokens]):
            found = engine.generate("some text", settings=Settings(max_tokens=50, stop=stop))
        assert (found.text, found.finish_reason) == (plain.text, plain.finish_reason)
        assert [t.id for t in found.tokens] == [t.id for t in plain.tokens]


def test_an_abandoned_answer_leaves_a_true_cache(engine):
    """Whatever is in the cache beyond the records that were read, those positions are true."""
    plain = [record.id for record in run(engine, PROMPT, "off", max_tokens=30)[0]]
    for n in range(1, 25):
        cache, sampler = KVCache(engine.model.config), Sampler(SamplingOptions())
        with oracle(plain):
            records = generate(engine.model, PROMPT, sampler, cache=cache, max_tokens=30, speculate=8)
            read = [record.id for record in islice(records, n)]
            records.close()  # type: ignore[attr-defined]
        cache.truncate(len(PROMPT) + len(read) - 1)
        rest = generate(engine.model, PROMPT + read, sampler, cache=cache, max_tokens=30 - n, speculate="off")
        assert read + [record.id for record in rest] == plain


def test_interrupted_while_a_draft_is_verified(engine, monkeypatch):
    """Ctrl-C after the pass, before the wrong guesses are taken out of the cache."""
    plain = [record.id for record in run(engine, PROMPT, "off", max_tokens=30)[0]]
    cache, sampler = KVCache(engine.model.config), Sampler(SamplingOptions())
    read: list[int] = []
    calls = [8]

    def interrupted(self: Sampler, logits: np.ndarray) -> int:
        calls[0] -= 1
        if calls[0] == 0:
            raise KeyboardInterrupt
        return int(logits.argmax())

    with oracle([*plain[:6], *[4] * 24]), monkeypatch.context() as patch:
        patch.setattr(Sampler, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            for record in generate(engine.model, PROMPT, sampler, cache=cache, max_tokens=30, speculate="auto"):
                read.append(record.id)
    assert cache.length > len(PROMPT) + len(read)
    cache.truncate(len(PROMPT) + len(read) - 1)
    rest = generate(engine.model, PROMPT + read, sampler, cache=cache, max_tokens=30 - len(read), speculate="off")
    assert read + [record.id for record in rest] == plain


# ---------------------------------------------------------------------------------------------------- what is told


def test_counts_and_times(engine, monkeypatch):
    """Times by a clock that only the model (4 s a forward), the sampler (1 s a token) and the reader (8 s) move on."""
    now = ClockByHand()
    monkeypatch.setattr(edgecal.decoding.generate, "perf_counter", now)
    monkeypatch.setattr(engine.model, "forward", now.after(4.0, engine.model.forward))
    monkeypatch.setattr(Sampler, "__call__", now.after(1.0, Sampler.__call__))
    plain = engine.generate("some text", settings=Settings(max_tokens=60, speculate="off"))
    assert plain.to_dict()["acceptance_rate"] is None
    assert all(token.drafted == 0 and not token.accepted for token in plain.tokens)
    passes, pieces = [], []
    with oracle([token.id for token in plain.tokens]):
        for piece in engine.stream("some text", settings=Settings(max_tokens=60, speculate=8), passes=passes):
            pieces.append(piece)
            now.seconds += 8
    answer = completion(pieces, passes, None)
    drafted, accepted = (sum(getattr(t, name) for t in answer.tokens) for name in ("drafted", "accepted"))
    assert drafted > accepted > 0
    values = json.loads(json.dumps(answer.to_dict()))
    for where in (values, values["passes"][0]):
        assert (where["drafted_tokens"], where["accepted_tokens"]) == (drafted, accepted)
        assert where["acceptance_rate"] == pytest.approx(accepted / drafted)
    for before, record in pairwise(answer.tokens):
        if before.accepted:
            assert record.drafted == 0 and record.model_s == before.model_s, "tokens of one pass share its time"
    forwards: list[list[TokenRecord]] = [[]]
    for token in answer.tokens:
        forwards[-1].append(token)
        if not token.accepted:
            forwards.append([])
    forwards = [tokens for tokens in forwards if tokens]
    assert len(forwards) < 30
    assert all(t.model_s == 4.0 / len(tokens) and t.sample_s == 1.0 for tokens in forwards for t in tokens)
    # all tokens of a forward are there before the first of them is read
    assert answer.total_s == (4 * len(forwards)) + 60 + 8 * (60 - len(forwards[-1]))


@pytest.mark.parametrize("value", ["fast", "", -1, True, 64, 1.5, None])
def test_other_settings_are_refused(engine, value):
    with pytest.raises(OptionError, match="speculate must be 'auto', 'off' or"):
        engine.stream("x", settings=Settings(speculate=value))


def test_numpy_drafts_nothing(folder):
    engine = Engine.load(folder / "llama", backend="numpy")
    with pytest.raises(OptionError, match="speculate 4 needs compiled kernels"):
        engine.stream("x", settings=Settings(speculate=4))
    answer = engine.generate("the the the", settings=Settings(max_tokens=20))
    assert answer.drafted_tokens == 0
    assert engine.generate("the", settings=Settings(max_tokens=2, speculate=0)).drafted_tokens == 0


# -------------------------------------------------------------------------------------------------- the parts


def test_the_index_guesses_what_followed():
    index = NgramIndex([1, 2, 3, 4, 5, 9, 9, 2, 3])
    assert (index.match, index.guess(3)) == (2, [4, 5, 9])
    index.append(4)
    assert (index.match, index.guess(2)) == (3, [5, 9])
    index.append(7)
    assert (index.match, index.guess(2)) == (0, [])


def test_a_longer_match_wins_over_a_later_shorter_one():
    index = NgramIndex([1, 2, 3, 4, 50, 8, 3, 4, 60, 1, 2, 3, 4])
    assert index.match == 4 and index.guess(1) == [50]


def test_a_loop_is_guessed_for_ever():
    assert NgramIndex([7, 8, 1, 2, 3, 1, 2]).guess(7) == [3, 1, 2, 3, 1, 2, 3]


@given(st.lists(st.integers(0, 3), max_size=60))
def test_a_match_is_one(ids):
    """The last `match` ids are those before the place, and the guess begins there."""
    index = NgramIndex(ids)
    if index.match:
        place = index._next
        assert ids[-index.match :] == ids[place - index.match : place]
        assert index.guess(1) == [ids[place]]
    if index.match < 4 and len(ids) > 4:
        assert ids[-4:] not in [ids[i : i + 4] for i in range(len(ids) - 4)]


def simulate(text: list[int], prompt: list[int], slope: float, setting: str | int = "auto") -> float:
    """Passes of one row that the answer `text` takes when a further row costs `slope`."""
    costs = StepCosts()
    costs.measured(1, 1.0)
    speculator = Speculator(prompt, setting, costs)
    spent, at, last = 0.0, 1, text[:1]
    while at < len(text):
        draft = speculator.draft(last, len(text) - at - 1)
        right = next((i for i, token in enumerate(draft) if token != text[at + i]), len(draft))
        costs.measured(len(draft) + 1, 1 + slope * len(draft))
        spent += 1 + slope * len(draft)
        last = text[at : at + right + 1]
        at += right + 1
    return spent


@pytest.mark.parametrize("slope", [0.1, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_text_that_does_not_repeat_is_not_slowed_down(slope, seed):
    """Few different tokens, so that two alike in a row are frequent and mean nothing: at most 2 % and one step."""
    rng = np.random.default_rng(seed)
    prompt, text = rng.integers(0, 25, 400).tolist(), rng.integers(0, 25, 400).tolist()
    assert simulate(text, prompt, slope) <= 1.02 * len(text) + 1
    if slope < 1:
        assert simulate(text, prompt, slope, 8) > 1.02 * len(text) + 1, "a fixed length pays"


@pytest.mark.parametrize(("slope", "least"), [(0.05, 6.0), (0.2, 2.5), (0.5, 1.4)])
def test_a_copy_is_sped_up(slope, least):
    prompt = np.random.default_rng(0).integers(0, 1000, 300).tolist()
    assert simulate(prompt[100:300], prompt, slope) < 199 / least


def test_no_draft_where_rows_cost_more_than_passes():
    """A copy of 199 tokens, every guess right and none worth it: 3 % to find that out."""
    prompt = np.random.default_rng(0).integers(0, 1000, 300).tolist()
    assert simulate(prompt[100:300], prompt, 1.2) <= 1.03 * 199


def test_costs_settle_and_outliers_count_for_little():
    costs = StepCosts()
    costs.measured(1, 0.1)  # the first is ten times too slow
    for _ in range(30):
        costs.measured(1, 0.01)
    assert costs.one_row == pytest.approx(0.01, rel=0.05)
    for rows in (3, 5, 16) * 10:
        costs.measured(rows, 0.01 * (1 + 0.2 * (rows - 1)))
    assert costs.slope == pytest.approx(0.2, rel=0.05)
    costs.measured(5, 9.0)  # another process had the cores
    costs.measured(1, 9.0)
    assert costs.slope < 0.3 and costs.one_row is not None and costs.one_row < 0.012
    for _ in range(4000):
        costs.measured(1, 0.01)
    assert costs.slope == pytest.approx(StepCosts().slope, rel=0.02), "old measurements are forgotten"
