"""/v1/responses, text in and text out: OpenAI's newer interface, with its events in order."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from ..completion import Request
from .asked import Asked, check_text_only, messages, read
from .context import Context
from .errors import HttpError, body_of
from .events import GONE, event, streamed, while_connected
from .text_answers import Outcome, answer, costs, new_id, usage


async def responses(http: HttpRequest) -> Response:
    context = Context.of(http)
    found = await context.fields(http)
    conversation = _conversation(found.any("input"), found.text("instructions"))
    check_text_only(found)
    found.only("reasoning", ({},), "there is no reasoning to be set")
    found.only("truncation", ("disabled",), "a prompt that is too long is refused")
    found.only("include", ([],), "there is nothing more to include")
    found.only("previous_response_id", (), "earlier responses are not kept: send the whole conversation")
    found.only("conversation", (), "conversations are not kept: send the whole conversation")
    asked = read(
        found,
        context.served,
        max_tokens=("max_output_tokens",),
        default=context.options.max_tokens,
        most=context.options.max_tokens,
        advised=True,
    )
    found.finish()
    if asked.n != 1:
        raise HttpError(400, "a response is one answer: n must be 1")
    prompt = context.prompt_of(conversation, asked.recipe)
    request = await context.served.running.prepare(prompt, recipe=asked.recipe, settings=asked.settings)
    reply = _Reply(context, asked, request, http)
    if asked.stream:
        return streamed(reply.events(), reply.failed)
    done = await while_connected(http, reply.whole())
    return GONE if done is None else JSONResponse(done)


def _conversation(value: Any, instructions: str | None) -> list[dict[str, str]]:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, Mapping) and item.get("type", "message") != "message":
                raise HttpError(400, f"input[{index}] is a {item.get('type')!r:.40}: only messages are served")
    system = [{"role": "system", "content": instructions}] if instructions else []
    return [*system, *messages(value, "input")]


class _Reply:
    """One response, whole or as events that are numbered from 0."""

    def __init__(self, context: Context, asked: Asked, request: Request, http: HttpRequest) -> None:
        self._asked, self.outcome = asked, Outcome()
        self._pieces = answer(context, request, self.outcome, context.client(http))
        self._id, self._item_id, self._created = new_id("resp_"), new_id("msg_"), int(time.time())
        self._number = 0

    async def whole(self) -> dict[str, Any]:
        async for _ in self._pieces:
            pass
        return self._response(self._ended())

    def _ended(self) -> str:
        return "incomplete" if self.outcome.reason == "length" else "completed"

    def _response(self, status: str, error: dict[str, Any] | None = None) -> dict[str, Any]:
        settings, over = self._asked.settings, status in ("completed", "incomplete")
        values: dict[str, Any] = {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": None,
            "max_output_tokens": settings.max_tokens,
            "model": self._asked.model,
            "output": [self._item(status)] if over else [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": settings.sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": settings.sampling.top_p,
            "truncation": "disabled",
            "usage": usage([self.outcome], "input", "output") if over else None,
            "metadata": {},
        }
        return values | ({"timings": costs([self.outcome])} if over else {})

    def _item(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part(self.outcome.text)]
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    async def events(self) -> AsyncGenerator[bytes, None]:
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress"))
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        yield self._event("response.content_part.added", **place, part=self._part(""))
        async for piece in self._pieces:
            if piece.text:
                yield self._event("response.output_text.delta", **place, delta=piece.text, logprobs=[])
        text, status = self.outcome.text, self._ended()
        yield self._event("response.output_text.done", **place, text=text, logprobs=[])
        yield self._event("response.content_part.done", **place, part=self._part(text))
        yield self._event("response.output_item.done", output_index=0, item=self._item(status))
        yield self._event(f"response.{status}", response=self._response(status))

    def failed(self, error: Exception) -> bytes:
        told = body_of(error)
        response = self._response("failed", {"code": told["type"], "message": told["message"]})
        return self._event("response.failed", response=response)

    def _event(self, kind: str, **values: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **values}, kind)
