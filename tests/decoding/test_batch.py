"""Several answers in one loop: each with the tokens that it would get alone, for equality."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecal import Completion, Engine, KVCache, Model, Pass, Recipe, SamplingOptions, Settings, Step
from edgecal.decoding import batch
from edgecal.decoding.batch import LARGEST_BATCH, Batch, Job
from edgecal.decoding.generate import TokenRecord
from edgecal.decoding.sampler import Sampler
from edgecal.decoding.speculation import StepCosts
from edgecal.errors import ContextLengthError, OptionError, PromptError, RecipeError
from tests.clock import ClockByHand
from tests.texts import LENGTHS, PROMPTS
from tests.tiny import FAMILIES, write_tiny_adapter, write_tiny_calibration, write_tiny_hf

PAIR = ("a", "b")
STEPS = Recipe("multi_step", steps=(Step("a", "Shorten"), Step(None, "Polish"), Step("b", "Translate")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("batch")
    for family in FAMILIES:
        write_tiny_hf(root / family, family, max_position_embeddings=256)
        for seed, name in enumerate(PAIR, 1):
            write_tiny_adapter(root / family / name, root / family, seed=seed)
    write_tiny_calibration(root / "lcpp.safetensors", root / "llama", {name: root / "llama" / name for name in PAIR})
    return root


def load(folder: Path, family: str = "llama", prefix_cache: int = 0, **options: str) -> Engine:
    chosen = {"weights": "int8", "backend": "numba", **options}
    adapters = {name: folder / family / name for name in PAIR}
    return Engine.load(folder / family, adapters=adapters, prefix_cache=prefix_cache, **chosen)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(folder)


def facts(answer: Completion) -> tuple[object, ...]:
    tokens = [(t.id, t.index, t.finish_reason) for t in answer.tokens]
    passes = [(p.prompt_tokens, p.new_tokens, p.text) for p in answer.passes]
    return answer.text, answer.finish_reason, answer.method, tokens, passes


def recipes(folder: Path) -> list[Recipe | None]:
    calibration = str(folder / "lcpp.safetensors")
    return [
        None,
        Recipe("single", ("a",)),
        Recipe("linear", PAIR),
        Recipe("learnable_calibration_pp", PAIR, calibration=calibration),
        Recipe("single", ("b",)),
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format", ["fp32", "int8", "int4", "int4_f16", "int4_affine"])
def test_the_tokens_of_one_by_one(folder, family, format):
    """Each prompt with a recipe, a sampler and a length of its own."""
    engine = load(folder, family, weights=format)
    chosen = recipes(folder)
    if family != "llama":
        chosen[3] = Recipe("concat", PAIR)
    settings = [
        Settings(max_tokens=n, sampling=SamplingOptions(temperature=0.9 * (i % 2), seed=i))
        for i, n in enumerate(LENGTHS)
    ]
    alone = [facts(engine.generate(p, recipe=r, settings=s)) for p, r, s in zip(PROMPTS, chosen, settings, strict=True)]
    for batch_size in (1, 2, 8):
        together = engine.generate_batch(PROMPTS, recipes=chosen, settings=settings, batch_size=batch_size)
        assert [facts(answer) for answer in together] == alone


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.text("ab ", min_size=1).filter(str.strip), st.integers(1, 15), st.integers(0, 4)), max_size=9
    ),
    st.integers(1, 5),
    st.booleans(),
)
def test_any_company_gives_the_same_answer(engine, folder, jobs, batch_size, reuse):
    each = recipes(folder)
    together_engine = load(folder, prefix_cache=1 << 22) if reuse else engine
    sampling = SamplingOptions(temperature=1.0, top_k=20, repetition_penalty=1.1, seed=5)
    chosen = [Settings(max_tokens=n, sampling=sampling) for _, n, _ in jobs]
    together = together_engine.generate_batch(
        [prompt for prompt, _, _ in jobs],
        recipes=[each[r] for _, _, r in jobs],
        settings=chosen,
        batch_size=batch_size,
    )
    for answer, (prompt, _, r), settings_ in zip(together, jobs, chosen, strict=True):
        assert facts(answer) == facts(engine.generate(prompt, recipe=each[r], settings=settings_))


def test_stop_strings_end_a_sequence_and_free_its_place(engine, monkeypatch):
    texts = [engine.generate(p, settings=Settings(max_tokens=30)).text for p in PROMPTS]
    settings = [Settings(max_tokens=30, stop=(text[4 + i : 6 + i],)) for i, text in enumerate(texts)]
    alone = [engine.generate(p, settings=s) for p, s in zip(PROMPTS, settings, strict=True)]
    step, rows = engine.model.step, []
    monkeypatch.setattr(engine.model, "step", lambda ids, *rest: rows.append(len(ids)) or step(ids, *rest))
    together = engine.generate_batch(PROMPTS, settings=settings, batch_size=2)
    assert [facts(a) for a in together] == [facts(a) for a in alone]
    assert max(rows) == 2 and sum(rows) == sum(len(a.tokens) - 1 for a in alone), "no step for a complete sequence"


def test_places_are_filled_as_they_become_free(engine):
    """Short answers pass a long one by."""
    requests = [
        engine.prepare(p, settings=Settings(max_tokens=n)) for p, n in zip("abcde", (30, 3, 3, 3, 3), strict=True)
    ]
    ends = [index for index, piece in engine.stream_batch(requests, batch_size=2) if piece.finish_reason]
    assert ends == [1, 2, 3, 4, 0]


def test_end_of_sequence_and_context(folder):
    engine = load(folder)
    prompts = ["y" * n for n in (100, 200, 236)]
    together = engine.generate_batch(prompts, settings=Settings(max_tokens=500))
    assert [facts(a) for a in together] == [
        facts(engine.generate(p, settings=Settings(max_tokens=500))) for p in prompts
    ]
    assert "context" in {a.finish_reason for a in together}
    ids = [3, 4, 5, 6]
    plain = [r.id for _, r in generate_batch(engine.model, waiting(engine, ids, 30))]
    eos = plain[7]
    ended = [r for _, r in generate_batch(engine.model, waiting(engine, ids, 30), eos_ids=(eos,))]
    assert [r.id for r in ended] == plain[: plain.index(eos) + 1] and ended[-1].finish_reason == "stop"


def generate_batch(
    model: Model,
    queue: deque[Job],
    *,
    eos_ids: tuple[int, ...] = (),
    batch_size: int = 8,
    interleave: bool = False,
) -> Iterator[tuple[Job, TokenRecord]]:
    """All that the queue holds, and what is put into it meanwhile."""
    running = Batch(model, eos_ids, batch_size, interleave)
    while queue or len(running):
        while queue and len(running) < batch_size:
            running.add(queue.popleft())
        yield from running.step()


def waiting(engine: Engine, ids: list[int], max_tokens: int) -> deque[Job]:
    sampler = Sampler(SamplingOptions(), ids)
    return deque([Job(ids, sampler, lambda: KVCache(engine.model.config), max_tokens=max_tokens)])


def jobs(engine: Engine, *lengths: int) -> list[Job]:
    """One for each number of tokens, each with a prompt of its own."""
    prompts = [[3 + i, 4, 5, 6] for i in range(len(lengths))]
    config = engine.model.config
    return [
        Job(ids, Sampler(SamplingOptions(), ids), lambda: KVCache(config), max_tokens=n)
        for ids, n in zip(prompts, lengths, strict=True)
    ]


def alone(engine: Engine, *lengths: int) -> list[list[int]]:
    return [[record.id for _, record in generate_batch(engine.model, deque([job]))] for job in jobs(engine, *lengths)]


def test_a_job_joins_while_others_run(engine):
    """At any token, and though nobody waited when it came."""
    lengths = (9, 7, 5)
    wanted = alone(engine, *lengths)
    for at in range(1, 9):
        first, second, third = jobs(engine, *lengths)
        queue, found = deque([first, second]), {first: [], second: [], third: []}
        for job, record in generate_batch(engine.model, queue, batch_size=3):
            found[job].append(record.id)
            if job is first and len(found[first]) == at:
                queue.append(third)
        assert list(found.values()) == wanted


@pytest.mark.parametrize("leaves", [0, 1, 2, 3])
@pytest.mark.parametrize("reads", [0, 1, 2])
def test_a_job_leaves_at_any_token(engine, leaves, reads):
    """Told to stop by the reader of any one's records: in the middle of a step, and the last (3) while it waits."""
    lengths = (9, 9, 9, 4)
    wanted = alone(engine, *lengths)
    for at in range(1, 8):
        every = jobs(engine, *lengths)
        found = {job: [] for job in every}
        before = -1
        for job, record in generate_batch(engine.model, deque(every), batch_size=3):
            found[job].append(record.id)
            if job is every[reads] and len(found[job]) == at:
                every[leaves].stopped = True
                before = len(found[every[leaves]])
        for i, job in enumerate(every):
            assert found[job] == (wanted[i][:before] if i == leaves else wanted[i])
        assert 0 <= before < lengths[leaves]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["fp16", "int8", "fp32"])
def test_prompts_are_read_between_the_tokens_of_others(folder, family, dtype, monkeypatch):
    """No pause allowed: the rows that steps leave, a chunk for fp32 caches, which are not the compiled decoder's. A
    long one: what the prompt has, once it is known how long a token takes. The answers are the same."""
    engine = load(folder, family)
    config, adapters = engine.model.config, [None, *(engine.compile(Recipe("single", (name,)))[0] for name in PAIR)]
    prompts = [[3 + i] * n for i, n in enumerate((5, 140, 17, 30, 1, 200))]
    lengths = (40, 25, 3, 9, 30, 20)

    def fresh() -> list[Job]:
        return [
            Job(ids, Sampler(SamplingOptions(), ids), lambda: KVCache(config, dtype), adapters[i % 3], max_tokens=n)
            for i, (ids, n) in enumerate(zip(prompts, lengths, strict=True))
        ]

    wanted = [[r.id for _, r in generate_batch(engine.model, deque([job]))] for job in fresh()]
    mixed, step = [], engine.model.step_reading
    monkeypatch.setattr(engine.model, "step_reading", lambda ids, *rest: mixed.append(len(ids)) or step(ids, *rest))
    for pause_s in (0, 3600):
        monkeypatch.setattr(batch, "_PAUSE_S", pause_s)
        mixed.clear()
        every, reads = fresh(), []
        found = {job: [] for job in every}
        for job, record in generate_batch(engine.model, deque(every), interleave=True):
            found[job].append(record.id)
            if job is every[0]:
                reads.append(sum(j.cache.length for j in every[1:] if j._cache is not None and not found[j]))
        assert list(found.values()) == wanted
        if pause_s:
            assert len(mixed) == (dtype != "fp32"), "to know how long a token takes"
        else:
            assert max(after - before for before, after in pairwise(reads)) <= (64 if dtype == "fp32" else 23)
            assert len(reads) > 8 and reads[3] > reads[1], "both go on at once"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 12), st.integers(0, 40)), min_size=1, max_size=20),
    st.sampled_from([1, 2, 13, 16, 20]),
)
def test_any_arrival_gives_the_same_answer(engine, arrivals, batch_size):
    """(tokens of the prompt, of the answer, records of others before it comes)."""
    config, made = engine.model.config, []
    for number, (n_prompt, n_new, _) in enumerate(arrivals):
        ids = [3 + (number * 7 + i) % 200 for i in range(n_prompt)]
        sampler = partial(Sampler, SamplingOptions(), ids)
        made.append(lambda ids=ids, new=sampler, n=n_new: Job(ids, new(), lambda: KVCache(config), max_tokens=n))
    wanted = [[r.id for _, r in generate_batch(engine.model, deque([make()]))] for make in made]
    jobs = [make() for make in made]
    coming = sorted(range(len(jobs)), key=lambda i: arrivals[i][2])
    queue, found, records = deque([jobs[coming.pop(0)]]), {job: [] for job in jobs}, 0
    while coming or queue:
        if not queue:
            queue.append(jobs[coming.pop(0)])
        for job, record in generate_batch(engine.model, queue, batch_size=batch_size, interleave=True):
            found[job].append(record.id)
            records += 1
            while coming and arrivals[coming[0]][2] <= records:
                queue.append(jobs[coming.pop(0)])
    assert list(found.values()) == wanted


@pytest.mark.parametrize("speculate", [3, "auto"])
@pytest.mark.parametrize("joins", [1, 2, 7])
def test_a_job_that_is_alone_guesses_ahead_until_others_come(engine, speculate, joins):
    """The same tokens, greedy and sampled, wherever drafts begin and end."""
    prompt, other = [5, 6, 7, 8] * 8, [9, 10, 11]
    config = engine.model.config
    for sampling in (SamplingOptions(), SamplingOptions(temperature=0.8, seed=3)):

        def job(ids, n, options=sampling, costs=None):
            return Job(
                ids, Sampler(options, ids), lambda: KVCache(config), max_tokens=n, speculate=speculate, costs=costs
            )

        wanted = [[r.id for _, r in generate_batch(engine.model, deque([j]))] for j in (job(prompt, 40), job(other, 6))]
        first, second, queue = job(prompt, 40, costs=StepCosts()), job(other, 6), deque()
        queue.append(first)
        found, drafted = {first: [], second: []}, 0
        for j, record in generate_batch(engine.model, queue):
            found[j].append(record.id)
            drafted += record.drafted
            assert record.index == len(found[j]) - 1
            if j is first and len(found[first]) == joins:
                queue.append(second)
        assert list(found.values()) == wanted
        assert drafted > 0 or speculate == "auto" or sampling.temperature


def test_pipelines_run_beside_others(engine):
    chosen = [STEPS, None, STEPS, Recipe("single", ("a",)), STEPS]
    settings = Settings(max_tokens=10)
    together = engine.generate_batch(PROMPTS, recipes=chosen, settings=settings, batch_size=3)
    for answer, prompt, recipe in zip(together, PROMPTS, chosen, strict=True):
        assert facts(answer) == facts(engine.generate(prompt, recipe=recipe, settings=settings))
        assert len(answer.passes) == (3 if recipe is STEPS else 1)


def test_prompts_of_a_batch_share_their_beginning(folder):
    """Even the first of them, which is still running, lends it."""
    engine = load(folder, prefix_cache=1 << 22)
    prompts = ["A long instruction for all of them, which is read once: " + text for text in PROMPTS]
    answers = engine.generate_batch(prompts, settings=Settings(max_tokens=6), batch_size=4)
    assert answers[0].reused_tokens == 0 and all(a.reused_tokens > 40 for a in answers[1:])
    assert not engine.prefixes._leased
    again = engine.generate_batch(prompts, settings=Settings(max_tokens=6), batch_size=4)
    assert [a.text for a in again] == [a.text for a in answers]
    assert all(a.reused_tokens > a.prompt_tokens - 33 for a in again), (
        "a few tokens are not worth an entry of their own"
    )


def test_times_and_costs(engine, monkeypatch):
    """By a clock that only the model (4 s a forward), the samplers (1 s a token) and the reader (8 s) move on."""
    now = ClockByHand()
    monkeypatch.setattr("edgecal.decoding.batch.perf_counter", now)
    for name in ("forward", "step"):
        monkeypatch.setattr(engine.model, name, now.after(4.0, getattr(engine.model, name)))
    monkeypatch.setattr(Sampler, "__call__", now.after(1.0, Sampler.__call__))
    passes: list[list[Pass]] = [[], []]
    requests = [engine.prepare(p, settings=Settings(max_tokens=12)) for p in PROMPTS[:2]]
    pieces = []
    for piece in engine.stream_batch(requests, passes=passes):
        pieces.append(piece)
        now.seconds += 8
    for index in (0, 1):
        tokens = [piece.token for i, piece in pieces if i == index]
        assert [t.index for t in tokens] == list(range(12))
        assert [t.model_s for t in tokens] == [4.0] + [2.0] * 11, "a prompt alone, and the half of every step"
        assert {t.sample_s for t in tokens} == {1.0}
        # up to the second token: the other's prompt, or what was chosen and read before in the first step
        assert [t.at_s for t in tokens[:2]] == [5.0, (5 + 8) + (5 + 8) + 5 if index == 0 else (5 + 8) + (5 + 8) + 1]
        assert [b.at_s - a.at_s for a, b in pairwise(tokens[1:])] == [4.0 + 2 * (1 + 8)] * 10
        assert passes[index][0].new_tokens == 12 and passes[index][0].total_s == tokens[-1].at_s


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_batch_that_breaks_off_leaves_true_entries(folder, monkeypatch, error):
    engine, wanted = load(folder, prefix_cache=1 << 22), load(folder)
    requests = [engine.prepare(p, settings=Settings(max_tokens=20)) for p in PROMPTS]
    pieces = engine.stream_batch(requests, batch_size=3)
    assert len(list(islice(pieces, 10))) == 10
    if error is None:
        pieces.close()
    else:

        def interrupted(*args: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(engine.model, "step", interrupted)
            with pytest.raises(error):
                list(pieces)
    assert not engine.prefixes._leased
    for prompt in PROMPTS:
        assert facts(engine.generate(prompt)) == facts(wanted.generate(prompt))


def test_nothing_to_do_is_no_error(engine):
    assert engine.generate_batch([]) == []


def test_refusals_come_first_and_name_the_prompt(engine, monkeypatch):
    monkeypatch.setattr(engine.model, "forward", None)
    with pytest.raises(PromptError, match="prompt 2: the prompt is empty"):
        engine.generate_batch(["x", " "])
    with pytest.raises(ContextLengthError, match="prompt 3: the prompt has .* shorten it by"):
        engine.generate_batch(["x", "y", "z" * 500])
    with pytest.raises(PromptError, match="prompt 1: a multi-step recipe works on a text"):
        engine.generate_batch([[{"role": "user", "content": "x"}]], recipes=STEPS)
    with pytest.raises(RecipeError, match="no adapter 'nobody' is loaded"):
        engine.generate_batch(["x"], recipes=Recipe("single", ("nobody",)))
    with pytest.raises(OptionError, match="2 recipes for 1 prompt: give one for all, or one for each"):
        engine.generate_batch(["x"], recipes=[None, None])
    with pytest.raises(OptionError, match="max_tokens must be at least 1"):
        engine.generate_batch(["x"], settings=Settings(max_tokens=0))
    for wrong in (0, -1, LARGEST_BATCH + 1, True, 2.5):
        with pytest.raises(OptionError, match="the batch size must be a whole number from 1"):
            engine.generate_batch(["x"], batch_size=wrong)


def test_a_step_whose_prompt_outgrows_the_context_names_it(engine):
    long = Recipe("multi_step", steps=(Step("a", "Shorten"), Step(None, "Polish " * 80)))
    with pytest.raises(ContextLengthError, match="prompt 2: the prompt has"):
        engine.generate_batch(["x", "y"], recipes=[None, long], settings=Settings(max_tokens=5))
