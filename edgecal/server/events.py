"""Answers that come piece by piece: server-sent events, with a comment as a sign of life while there is nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from .errors import body_of

PING_S = 5.0
DONE = b"data: [DONE]\n\n"
T = TypeVar("T")


def event(value: Any, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


def streamed(
    events: AsyncGenerator[bytes, None], failed: Callable[[Exception], bytes] | None = None
) -> StreamingResponse:
    """The response that sends `events`. What goes wrong on the way is the last one, in the words of `failed`."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_alive(events, failed or _failure), media_type="text/event-stream", headers=headers)


def _failure(error: Exception) -> bytes:
    return event({"error": body_of(error)}) + DONE


async def _alive(events: AsyncGenerator[bytes, None], failed: Callable[[Exception], bytes]) -> AsyncIterator[bytes]:
    following: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            following = asyncio.ensure_future(anext(events, None))
            while not (await asyncio.wait({following}, timeout=PING_S))[0]:
                yield b": still at work\n\n"
            try:
                found = following.result()
            except Exception as error:
                yield failed(error)
                return
            if found is None:
                return
            yield found
    finally:
        # The client may have gone: what is left to do is little, and must not be broken off as well
        with anyio.CancelScope(shield=True):
            if following is not None and not following.done():
                following.cancel()
                await asyncio.wait({following})
            await events.aclose()


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives; it is cancelled, and None returned, when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, gone):
            if not one.done():
                one.cancel()
        await asyncio.wait({task, gone})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def merged(streams: list[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """The items of several streams as they come, each with the number of its stream."""
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
