"""/v1/chat/completions, as OpenAI's clients know it, with `recipe`, `lora` and `timings` beside."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from ..completion import Piece, Request
from .asked import Asked, check_text_only, messages, read
from .context import Context
from .errors import HttpError
from .events import DONE, GONE, event, merged, streamed, while_connected
from .text_answers import Outcome, answer, chat_logprobs, costs, new_id, usage


async def chat_completions(http: HttpRequest) -> Response:
    context = Context.of(http)
    found = await context.fields(http)
    conversation = messages(found.any("messages"))
    check_text_only(found)
    with_logprobs, top = found.flag("logprobs"), found.whole("top_logprobs", most=20)
    if top is not None and not with_logprobs:
        raise HttpError(400, "top_logprobs needs logprobs: true")
    asked = read(
        found,
        context.served,
        max_tokens=("max_completion_tokens", "max_tokens", "n_predict"),
        default=context.options.max_tokens,
        most=context.options.max_tokens,
        advised=True,
    )
    found.finish()
    if with_logprobs:
        asked.settings.logprobs = top or 0
    prompt = context.prompt_of(conversation, asked.recipe)
    requests = [
        await context.served.running.prepare(prompt, recipe=asked.recipe, settings=asked.settings_of(choice))
        for choice in range(asked.n)
    ]
    reply = _Reply(context, asked, requests, http)
    if asked.stream:
        return streamed(reply.events())
    done = await while_connected(http, reply.whole())
    return GONE if done is None else JSONResponse(done)


class _Reply:
    """The choices of one request, together or piece by piece."""

    def __init__(self, context: Context, asked: Asked, requests: list[Request], http: HttpRequest) -> None:
        self._context, self._asked = context, asked
        self.outcomes = [Outcome() for _ in requests]
        self._streams = [
            answer(context, request, outcome, context.client(http))
            for request, outcome in zip(requests, self.outcomes, strict=True)
        ]
        self._head = {"id": new_id("chatcmpl-"), "created": int(time.time()), "model": asked.model}

    async def whole(self) -> dict[str, Any]:
        async for _ in merged(self._streams):
            pass
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": outcome.text, "refusal": None},
                "logprobs": self._logprobs(outcome.pieces),
                "finish_reason": outcome.reason,
            }
            for index, outcome in enumerate(self.outcomes)
        ]
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(self.outcomes),
            "timings": costs(self.outcomes),
        }

    async def events(self) -> AsyncGenerator[bytes, None]:
        for index in range(len(self.outcomes)):
            yield self._chunk(index, {"role": "assistant", "content": ""}, None)
        async for index, piece in merged(self._streams):
            if piece.text or piece.finish_reason is not None or piece.token.logprobs is not None:
                delta = {"content": piece.text} if piece.text or piece.finish_reason is None else {}
                yield self._chunk(index, delta, piece)
        if self._asked.include_usage:
            last = {"choices": [], "usage": usage(self.outcomes), "timings": costs(self.outcomes)}
            yield event({**self._head, "object": "chat.completion.chunk", **last})
        yield DONE

    def _chunk(self, index: int, delta: dict[str, Any], piece: Piece | None) -> bytes:
        ended = piece is not None and piece.finish_reason is not None
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs([piece] if piece is not None else []),
            "finish_reason": self.outcomes[index].reason if ended else None,
        }
        values = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        if self._asked.include_usage:
            values["usage"] = None
        elif ended and len(self.outcomes) == 1:
            values["timings"] = costs(self.outcomes)
        return event(values)

    def _logprobs(self, pieces: list[Piece]) -> dict[str, Any] | None:
        if self._asked.settings.logprobs is None:
            return None
        return chat_logprobs(self._context.served.engine.tokenizer, pieces)
