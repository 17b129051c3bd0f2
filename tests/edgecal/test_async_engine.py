"""One engine for many asyncio tasks: the answers of one by one, whoever joins, leaves or breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from edgecal import AsyncEngine, Engine, Recipe, Settings, Step
from edgecal.errors import BusyError, ContextLengthError, OptionError, PromptError, RecipeError
from edgecal.scheduler import Scheduler
from tests.texts import LENGTHS, PROMPTS
from tests.tiny import write_tiny_adapter, write_tiny_hf

STEPS = Recipe("multi_step", steps=(Step("a", "Shorten"), Step(None, "Polish")))
TOO_LONG = Recipe("multi_step", steps=(Step("a", "Shorten"), Step(None, "Polish " * 80)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("async")
    write_tiny_hf(root / "model", max_position_embeddings=256)
    for seed, name in enumerate("ab", 1):
        write_tiny_adapter(root / name, root / "model", seed=seed)
    return root


def load(folder: Path) -> Engine:
    adapters = {name: folder / name for name in "ab"}
    return Engine.load(folder / "model", weights="int8", adapters=adapters, backend="numba")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(folder)


@pytest.fixture
def slowly(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 ms a pass, so that what happens meanwhile does."""
    step = engine.model._step

    def delayed(*arguments: Any) -> Any:
        time.sleep(0.005)
        return step(*arguments)

    monkeypatch.setattr(engine.model, "_step", delayed)


def run(
    engine: Engine, body: Callable[[AsyncEngine], Coroutine[Any, Any, Any]], **options: int
) -> Any:
    async def main() -> Any:
        async with AsyncEngine(engine, **options) as served:
            return await asyncio.wait_for(body(served), 60)

    return asyncio.run(main())


RECIPES = [None, "a", Recipe("linear", ("a", "b")), STEPS, "b"]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_answers_of_one_by_one(folder, engine, batch_size):
    alone = [engine.generate(p, recipe=r, max_tokens=n) for p, r, n in zip(PROMPTS, RECIPES, LENGTHS, strict=True)]

    async def body(served: AsyncEngine) -> list[Any]:
        asked = zip(PROMPTS, RECIPES, LENGTHS, strict=True)
        return await asyncio.gather(*(served.generate(p, recipe=r, max_tokens=n) for p, r, n in asked))

    together = run(load(folder), body, batch_size=batch_size)
    assert [(a.text, a.finish_reason, a.method, a.prompt_tokens) for a in together] == [
        (a.text, a.finish_reason, a.method, a.prompt_tokens) for a in alone
    ]
    assert [len(a.passes) for a in together] == [len(a.passes) for a in alone]


def test_who_leaves_is_forgotten_and_the_others_go_on(folder, engine):
    wanted = engine.generate(PROMPTS[1], max_tokens=40).text
    fresh = load(folder)

    async def body(served: AsyncEngine) -> str:
        async def leave_after(n: int) -> None:
            pieces = served.stream(PROMPTS[3], max_tokens=200)
            async for piece in pieces:
                if piece.token.index == n:
                    break
            await pieces.aclose()

        stays = asyncio.create_task(served.generate(PROMPTS[1], max_tokens=40))
        for n in (0, 1, 5):
            await leave_after(n)
        answer = await stays
        assert await served.call(lambda: (served.scheduler.n_running, served.scheduler.n_waiting)) == (0, 0)
        assert served.n_waiting == 0
        return answer.text

    assert run(fresh, body) == wanted
    assert not fresh.prefixes._leased


def test_a_task_that_is_cancelled_leaves(engine, slowly):
    async def body(served: AsyncEngine) -> None:
        task = asyncio.create_task(served.generate(PROMPTS[3], max_tokens=230, stop_at_repetition=False))
        while not served.n_running:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await served.call(lambda: served.scheduler.n_running) == 0

    run(engine, body)


def test_too_many_are_refused_and_later_ones_let_in(engine, slowly):
    async def body(served: AsyncEngine) -> None:
        running = [served.stream(p, max_tokens=200, stop_at_repetition=False) for p in PROMPTS[:3]]
        begun = [asyncio.create_task(anext(pieces)) for pieces in running]
        await begun[0]
        while served._open < 3:
            await asyncio.sleep(0.001)
        with pytest.raises(BusyError, match="2 requests are waiting already; try again later"):
            await served.generate("x", max_tokens=1)
        for task in begun:
            await task
        for pieces in running:
            await pieces.aclose()
        assert (await served.generate("x", max_tokens=1)).finish_reason == "length"

    run(engine, body, batch_size=1, max_waiting=2)


def test_refusals_and_breaks_reach_only_those_they_belong_to(folder, monkeypatch):
    engine = load(folder)
    wanted = engine.generate("x", max_tokens=30).text

    async def body(served: AsyncEngine) -> None:
        async def refused(error: type[Exception], text: str, prompt: Any, **options: Any) -> None:
            with pytest.raises(error, match=text):
                await served.generate(prompt, **options)

        stays = asyncio.create_task(served.generate("x", max_tokens=30))
        await refused(PromptError, "the prompt is empty", " ")
        await refused(ContextLengthError, "the prompt has", "z" * 500)
        await refused(RecipeError, "no adapter 'nobody'", "x", recipe=Recipe("single", ("nobody",)))
        await refused(OptionError, "there is no option 'warmth'", "x", warmth=1)
        await refused(ContextLengthError, "the prompt has", "x", recipe=TOO_LONG, max_tokens=5)
        assert (await stays).text == wanted
        with monkeypatch.context() as patch:
            patch.setattr(engine.model, "_step", None)
            await refused(TypeError, "not callable", "y")
        assert (await served.generate("x", max_tokens=30)).text == wanted

    run(engine, body)
    assert not engine.prefixes._leased


def test_what_is_called_runs_between_two_tokens(folder):
    engine = load(folder)

    async def body(served: AsyncEngine) -> None:
        before = await served.generate("x", recipe="a", max_tokens=9)
        pieces = served.stream("x", recipe="a", max_tokens=9)
        said = [await anext(pieces)]
        await served.call(engine.add_adapter, folder / "b", "a")  # running answers keep theirs
        said += [piece async for piece in pieces]
        assert "".join(piece.text for piece in said) == before.text
        other = await served.generate("x", recipe="b", max_tokens=9)
        assert (await served.generate("x", recipe="a", max_tokens=9)).text == other.text
        with pytest.raises(RecipeError, match="no adapter 'c' is loaded"):
            await served.call(engine.remove_adapter, "c")

    run(engine, body)


@pytest.mark.parametrize("patience", [0.0, 30.0])
def test_closing_waits_and_then_breaks_off(engine, slowly, patience):
    async def main() -> str:
        served = AsyncEngine(engine)
        served.start()
        pieces = served.stream(PROMPTS[3], max_tokens=20, stop_at_repetition=False)
        await anext(pieces)
        await served.close(patience)
        with pytest.raises(BusyError, match="the engine was stopped"):
            await served.generate("x")
        try:
            return [piece async for piece in pieces][-1].finish_reason
        except BusyError as error:
            return str(error)

    assert asyncio.run(main()) == (
        "length" if patience else "the engine was stopped before the answer was complete"
    )


def test_impossible_sizes(engine):
    for options in ({"batch_size": 0}, {"max_waiting": -1}):
        with pytest.raises(OptionError):
            AsyncEngine(engine, **options)


def test_clients_take_turns(engine):
    """One who sends six and one who sends one: of two places, one each."""
    scheduler = Scheduler(engine.runner, 2)
    requests = [engine.prepare(text, settings=Settings(max_tokens=3)) for text in "abcdefg"]
    names = {scheduler.add(request, client="many" if i < 6 else "one"): i for i, request in enumerate(requests)}
    order = []
    while scheduler.n_running or scheduler.n_waiting:
        order += [names[ticket] for ticket, piece in scheduler.step() if piece.finish_reason]
    assert sorted(order) == list(range(7)) and order.index(6) == 1
