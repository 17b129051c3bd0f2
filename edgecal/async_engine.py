"""Many answers at a time for asyncio: one engine, one thread that runs it, any number of tasks that wait for pieces.

    async with AsyncEngine(engine) as served:
        async for piece in served.stream("Summarize ...", recipe="linear", max_tokens=100):
            print(piece.text, end="")

Everything that touches the model happens in the thread, between two tokens: requests that join or leave, recipes that
compile, adapters that are loaded (`call`). Long texts become ids in other threads, so that they hold nobody up.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Hashable
from concurrent.futures import Future
from contextlib import aclosing
from functools import partial
from time import monotonic
from typing import Any, TypeAlias, TypeVar

from .adapters.recipe import Recipe
from .completion import Completion, Pass, Piece, Request, Settings, completion
from .decoding.batch import BATCH_SIZE
from .engine import Engine
from .errors import BusyError, OptionError
from .scheduler import Scheduler, Ticket
from .text.prompts import Prompt

MAX_WAITING = 64
_AT_ONCE_S = 0.02  # pieces that follow one another faster than that are told together; nobody reads faster
_SHORT = 20_000  # characters that become ids in the engine's thread: some milliseconds, and nothing changes meanwhile
T = TypeVar("T")
_Pieces: TypeAlias = "asyncio.Queue[Piece | Exception]"


class AsyncEngine:
    """Runs an engine for asyncio tasks, at most `batch_size` requests at a time, `max_waiting` more in a queue.

    While it runs, the engine is used through it alone, and its streams from one event loop. Raises OptionError for an
    impossible size.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        batch_size: int = BATCH_SIZE,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        if max_waiting < 0:
            raise OptionError(f"max_waiting must be 0 or more, found {max_waiting}")
        self.engine, self.batch_size, self.max_waiting = engine, batch_size, max_waiting
        self.scheduler = Scheduler(engine.runner, batch_size, interleave=True, drafts=True)
        self._queues: dict[Ticket, _Pieces] = {}
        self._untold: list[tuple[_Pieces, Piece | Exception]] = []
        self._told_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._open = 0  # requests that were let in and are not over
        self._closing = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="edgecal-engine", daemon=True)

    # ------------------------------------------------------------------------------------------------ life

    def start(self) -> None:
        self._thread.start()

    async def close(self, patience_s: float = 0.0) -> None:
        """Let no request in any more, wait so long for those that run, cancel the others, end the thread."""
        deadline = asyncio.get_running_loop().time() + patience_s
        with self._changed:
            self._closing = True
        while self._open and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        with self._changed:
            self._stopped = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    async def __aenter__(self) -> AsyncEngine:
        self.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    @property
    def n_running(self) -> int:
        return self.scheduler.n_running

    @property
    def n_waiting(self) -> int:
        return max(self._open - self.scheduler.n_running, 0)

    @property
    def running(self) -> list[Ticket]:
        """Those that are being answered at this moment."""
        return self.scheduler.running

    # --------------------------------------------------------------------------------------------- requests

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What `function` returns or raises, run in the engine's thread between two tokens."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

        if not self._post(run):
            raise BusyError("the engine was stopped")
        return await asyncio.wrap_future(future)

    async def prepare(
        self, prompt: Prompt, *, recipe: Recipe | str | None = None, settings: Settings | None = None, **options: Any
    ) -> Request:
        """As `Engine.prepare`."""
        found = self.engine.find_recipe(recipe)
        prepare = partial(self.engine.prepare, prompt, recipe=found, settings=settings, **options)
        texts = [prompt] if isinstance(prompt, str) else [str(message.get("content", "")) for message in prompt]
        if sum(map(len, texts)) <= _SHORT:
            return await self.call(prepare)
        await self.call(self.engine.compile, found)
        return await asyncio.to_thread(prepare)

    async def stream(
        self,
        prompt: Prompt,
        *,
        recipe: Recipe | str | None = None,
        settings: Settings | None = None,
        passes: list[Pass] | None = None,
        client: Hashable = None,
        **options: Any,
    ) -> AsyncGenerator[Piece, None]:
        """Answer `prompt`, piece by piece; arguments as for `Engine.stream`. Leave the loop to cancel.

        Requests of one `client` share its turns. BusyError when too many wait.
        """
        request = await self.prepare(prompt, recipe=recipe, settings=settings, **options)
        async with aclosing(self.stream_request(request, passes=passes, client=client)) as pieces:
            async for piece in pieces:
                yield piece

    async def stream_request(
        self,
        request: Request,
        *,
        passes: list[Pass] | None = None,
        client: Hashable = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """As `stream`, for what `prepare` gave. TimeoutError when it is not complete after `timeout_s`."""
        with self._changed:
            if self._closing:
                raise BusyError("the engine is being stopped and takes no more requests")
            if self._open >= self.batch_size + self.max_waiting:
                raise BusyError(f"{self.max_waiting} requests are waiting already; try again later")
            self._open += 1
        self._loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | Exception]()
        handed_in: list[Ticket] = []

        def add() -> None:
            try:
                ticket = self.scheduler.add(request, passes, client)
            except Exception as error:
                self._tell([(pieces, error)])
                return
            handed_in.append(ticket)
            self._queues[ticket] = pieces

        def leave() -> None:
            for ticket in handed_in:
                self._queues.pop(ticket, None)
                self.scheduler.cancel(ticket)

        self._post(add)
        timer = None
        if timeout_s is not None:
            timer = self._loop.call_later(timeout_s, pieces.put_nowait, TimeoutError("the answer took too long"))
        try:
            while True:
                piece = await pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            if timer is not None:
                timer.cancel()
            self._post(leave)
            with self._changed:
                self._open -= 1

    async def generate(
        self, prompt: Prompt, *, recipe: Recipe | str | None = None, client: Hashable = None, **options: Any
    ) -> Completion:
        """The whole answer; arguments as for `stream`."""
        passes: list[Pass] = []
        found = self.engine.find_recipe(recipe)
        pieces = [p async for p in self.stream(prompt, recipe=found, passes=passes, client=client, **options)]
        return completion(pieces, passes, found)

    # ------------------------------------------------------------------------------------------- the thread

    def _post(self, action: Callable[[], None]) -> bool:
        """Whether there will be another moment between two tokens, in which `action` is done."""
        with self._changed:
            if not self._stopped:
                self._inbox.append(action)
                self._changed.notify()
            return not self._stopped

    def _run(self) -> None:
        scheduler = self.scheduler
        while True:
            with self._changed:
                while not (self._inbox or self._stopped or scheduler.n_running or scheduler.n_waiting):
                    self._changed.wait()
                inbox, self._inbox, stopped = self._inbox, [], self._stopped
            for action in inbox:
                self._try(action)
            if stopped:
                break
            self._try(self._step)
        self._give_up(BusyError("the engine was stopped before the answer was complete"))

    def _step(self) -> None:
        said = list(self.scheduler.step())
        self._tell([(self._queues[ticket], piece) for ticket, piece in said if ticket in self._queues])

    def _try(self, action: Callable[[], None]) -> None:
        """What no request is to blame for (memory that is short) ends those there are; the thread lives on."""
        try:
            action()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """All requests end with this error."""
        self._tell([(pieces, error) for pieces in self._queues.values()])
        self._queues.clear()
        self.scheduler.close()

    def _tell(self, said: list[tuple[_Pieces, Piece | Exception]]) -> None:
        """Hand pieces to the loop, those of several fast steps together: waking it takes a core from the threads that
        compute. The first piece of an answer, its last one and what went wrong do not wait."""
        self._untold += said
        urgent = any(isinstance(p, Exception) or p.finish_reason is not None or p.token.index == 0 for _, p in said)
        now = monotonic()
        if self._untold and (urgent or now - self._told_s >= _AT_ONCE_S):
            told, self._untold, self._told_s = self._untold, [], now
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_put, told)


def _put(said: list[tuple[_Pieces, Piece | Exception]]) -> None:
    for pieces, piece in said:
        pieces.put_nowait(piece)
