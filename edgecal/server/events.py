"""Answers that come piece by piece: server-sent events, with a comment as a sign of life while there is nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import Response

from .errors import body_of

PING_S = 5.0
DONE = b"data: [DONE]\n\n"
T = TypeVar("T")


def event(value: Any, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


def streamed(
    events: AsyncGenerator[bytes, None], failed: Callable[[Exception], bytes] | None = None
) -> EventStream:
    """The response that sends `events`. What goes wrong on the way is the last one, in the words of `failed`."""
    return EventStream(events, failed or _failure)


def _failure(error: Exception) -> bytes:
    return event({"error": body_of(error)}) + DONE


class EventStream(Response):
    """Sends each event as soon as it is there, and a comment where there was none for a while; stops, and closes
    `events`, when the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], failed: Callable[[Exception], bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._failed = events, failed
        self._sent = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        loop = asyncio.get_running_loop()
        self._sent = loop.time()

        async def write(content: bytes) -> None:
            self._sent = loop.time()
            await send({"type": "http.response.body", "body": content, "more_body": True})

        sending = asyncio.ensure_future(self._write_all(write))
        others = [asyncio.ensure_future(_gone(receive)), asyncio.ensure_future(self._ping(write, loop))]
        try:
            await asyncio.wait({sending, others[0]}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, *others):
                task.cancel()
            # The client may have gone: what is left to do is little, and must not be broken off as well
            with anyio.CancelScope(shield=True):
                await asyncio.gather(sending, *others, return_exceptions=True)
                await self._events.aclose()
        if not sending.cancelled() and sending.exception() is None:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write_all(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        try:
            async for content in self._events:
                await write(content)
        except OSError:
            raise  # the connection's
        except Exception as error:
            await write(self._failed(error))

    async def _ping(self, write: Callable[[bytes], Awaitable[None]], loop: asyncio.AbstractEventLoop) -> None:
        while True:
            await asyncio.sleep(max(self._sent + PING_S - loop.time(), 0.01))
            if loop.time() - self._sent >= PING_S:
                await write(b": still at work\n\n")


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives; it is cancelled, and None returned, when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, gone):
            if not one.done():
                one.cancel()
        await asyncio.wait({task, gone})


async def merged(streams: list[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """The items of several streams as they come, each with the number of its stream."""
    if len(streams) == 1:  # without a detour
        async with aclosing(streams[0]) as only:
            async for one in only:
                yield 0, one
        return
    items: asyncio.Queue[tuple[int, T | None, Exception | None]] = asyncio.Queue()

    async def read(index: int, stream: AsyncGenerator[T, None]) -> None:
        error: Exception | None = None
        try:
            async with aclosing(stream):
                async for item in stream:
                    items.put_nowait((index, item, None))
        except Exception as problem:
            error = problem
        items.put_nowait((index, None, error))

    readers = [asyncio.ensure_future(read(index, stream)) for index, stream in enumerate(streams)]
    try:
        left = len(readers)
        while left:
            index, item, error = await items.get()
            if error is not None:
                raise error
            if item is None:
                left -= 1
            else:
                yield index, item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


GONE = Response(status_code=499)
"""To nobody: the client has gone."""
