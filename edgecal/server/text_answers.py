"""One text answered: the pieces of a request as they come, what they cost, and how a client is told of it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Hashable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ..completion import Pass, Piece, Request
from ..text.tokenizer import Tokenizer
from .context import Context
from .errors import HttpError
from .served import timings

_REASONS = {"context": "length", "repetition": "stop"}


@dataclass
class Outcome:
    """An answer on its way: filled while `pieces` are read."""

    passes: list[Pass] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    pieces: list[Piece] = field(default_factory=list)

    @property
    def reason(self) -> str | None:
        """In OpenAI's words, which know neither a full context nor an answer that repeats itself."""
        return _REASONS.get(self.finish_reason or "", self.finish_reason)


def new_id(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(12)}"


async def answer(
    context: Context, request: Request, outcome: Outcome, client: Hashable
) -> AsyncGenerator[Piece, None]:
    """The pieces of an answer, all told to `outcome` too. HttpError 504 when its time is over."""
    limit = context.options.timeout_s
    context.metrics.began()
    try:
        async with aclosing(
            context.served.running.stream_request(request, passes=outcome.passes, client=client, timeout_s=limit)
        ) as pieces:
            async for piece in pieces:
                outcome.text += piece.text
                outcome.pieces.append(piece)
                outcome.finish_reason = piece.finish_reason
                yield piece
    except TimeoutError as error:
        raise HttpError(504, f"the answer took longer than {limit:g} s", "timeout_error") from error
    finally:
        context.metrics.ended(outcome.passes)


def usage(outcomes: list[Outcome], prompt: str = "prompt", completion: str = "completion") -> dict[str, Any]:
    """Token counts; the prompt counts once, however many answers it has, the passes of a pipeline each."""
    one = outcomes[0].passes
    read, written = sum(p.prompt_tokens for p in one), sum(p.new_tokens for o in outcomes for p in o.passes)
    return {
        f"{prompt}_tokens": read,
        f"{prompt}_tokens_details": {"cached_tokens": sum(p.reused_tokens for p in one)},
        f"{completion}_tokens": written,
        f"{completion}_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }


def costs(outcomes: list[Outcome]) -> dict[str, Any]:
    """`timings` of the first answer."""
    return timings(outcomes[0].passes)


def chat_logprobs(tokenizer: Tokenizer, pieces: list[Piece]) -> dict[str, Any]:
    """Of tokens, as chat completions have them."""

    def entry(index: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([index], skip_special_tokens=False)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}

    content = []
    for piece in pieces:
        kept = piece.token.logprobs
        if kept is not None:
            top = [entry(index, logprob) for index, logprob in kept.top]
            content.append({**entry(piece.token.id, kept.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}
