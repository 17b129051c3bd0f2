"""/v1/completions: texts to be continued as they stand, with `echo` and `logprobs`.

`echo` with `logprobs` and at most one new token is how EleutherAI's harness (`local-completions`) asks how probable a
given text is. The prompt is then scored a few tokens at a time between the tokens of other requests, and the new token
is chosen from the logits that are there anyway.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from ..completion import Pass, Piece, Settings
from ..decoding.generate import TokenRecord
from ..decoding.likelihood import PromptScores
from ..decoding.sampler import Sampler
from ..errors import ContextLengthError
from .asked import Asked, check_text_only, read
from .context import Context
from .errors import HttpError
from .events import DONE, GONE, event, merged, streamed, while_connected
from .fields import Fields
from .text_answers import Outcome, answer, costs, new_id, usage

MOST_PROMPTS = 256
_DEFAULT = 16  # new tokens, as with OpenAI
_MOST_LOGPROBS = 20
_SCORED = 64  # tokens of a prompt between two tokens of others


async def completions(http: HttpRequest) -> Response:
    context = Context.of(http)
    found = await context.fields(http)
    prompts = await asyncio.to_thread(_prompts, found, context)  # long texts hold nobody up
    echo, logprobs = found.flag("echo"), found.whole("logprobs", most=_MOST_LOGPROBS)
    check_text_only(found)
    found.only("suffix", ("",), "text cannot be put in between")
    asked = read(
        found,
        context.served,
        max_tokens=("max_tokens", "n_predict"),
        default=_DEFAULT,
        most=context.options.max_tokens,
    )
    found.finish()
    if asked.recipe is not None and (asked.recipe.steps or asked.recipe.shots):
        raise HttpError(400, f"{asked.recipe.method} makes prompts of its own: ask for it on /v1/chat/completions")
    scored_only = asked.settings.max_tokens == 0
    if scored_only and not echo:
        raise HttpError(400, "max_tokens is 0: that needs echo, which gives the prompt back")
    asked.settings.logprobs, asked.settings.raw = logprobs, True
    reply = _Reply(context, asked, prompts, echo, scored_only, http)
    await reply.prepare()
    if asked.stream:
        return streamed(reply.events())
    done = await while_connected(http, reply.whole())
    return GONE if done is None else JSONResponse(done)


def _prompts(found: Fields, context: Context) -> list[list[int]]:
    """Ids of each: a text, ids, or a list of either."""
    value, tokenizer = found.any("prompt"), context.served.engine.tokenizer
    if value is None or value == []:
        raise HttpError(400, "the prompt is missing: a text, a list of token ids, or a list of either")
    several = value if isinstance(value, list) and not isinstance(value[0], int) else [value]
    if len(several) > MOST_PROMPTS:
        raise HttpError(400, f"{len(several)} prompts are more than the {MOST_PROMPTS} that one request may have")
    made = []
    for number, one in enumerate(several, 1):
        if isinstance(one, str):
            ids = tokenizer.encode(one, add_special_tokens=True)
        elif isinstance(one, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in one):
            ids = list(one)
            limit = context.served.engine.model.config.vocab_size
            if any(not 0 <= i < limit for i in ids):
                raise HttpError(400, f"prompt {number} holds an id that is not from 0 to {limit - 1}")
        else:
            raise HttpError(400, f"prompt {number} must be a text or a list of token ids")
        if not ids:
            raise HttpError(400, f"prompt {number} is empty")
        made.append(ids)
    return made


class _Reply:
    """The choices of one request: `n` for each prompt, in order."""

    def __init__(
        self,
        context: Context,
        asked: Asked,
        prompts: Sequence[list[int]],
        echo: bool,
        scored_only: bool,
        http: HttpRequest,
    ) -> None:
        self._context, self._asked, self._prompts, self._echo = context, asked, prompts, echo
        self._scored_only, self._client = scored_only, context.client(http)
        self._tokenizer = context.served.engine.tokenizer
        self._head = {"id": new_id("cmpl-"), "created": int(time.time()), "model": asked.model}
        self.outcomes = [Outcome() for _ in range(len(prompts) * asked.n)]
        self._scores: dict[int, PromptScores] = {}
        self._streams: list[AsyncGenerator[Piece, None]] = []

    @property
    def _scoring(self) -> bool:
        return self._echo and (self._asked.settings.logprobs is not None or self._scored_only)

    async def prepare(self) -> None:
        """Everything that can be refused is refused here."""
        engine, asked = self._context.served.engine, self._asked
        await self._context.served.running.call(engine.compile, asked.recipe)
        limit = engine.model.config.max_position_embeddings
        for index in range(len(self.outcomes)):
            ids = self._prompts[index // asked.n]
            settings = asked.settings_of(index % asked.n)
            if self._scored_only:
                if len(ids) > limit:
                    raise ContextLengthError(
                        f"the prompt has {len(ids)} tokens and the model's context {limit}", len(ids), limit
                    )
                stream = self._scored(index, ids, None)
            elif self._scoring and settings.max_tokens == 1:
                engine.prepare_ids(ids, recipe=asked.recipe, settings=settings)
                stream = self._scored(index, ids, settings)
            else:
                request = engine.prepare_ids(ids, recipe=asked.recipe, settings=settings)
                stream = answer(self._context, request, self.outcomes[index], self._client)
                if self._scoring:
                    stream = self._after_scores(index, ids, stream)
            self._streams.append(stream)

    async def _score(self, index: int, ids: list[int]) -> PromptScores:
        served = self._context.served
        adapter = (await served.running.call(served.engine.compile, self._asked.recipe))[0]
        runner = served.engine.runner
        scores = PromptScores(runner.model, runner.new_cache(), ids, adapter, self._asked.settings.logprobs or 0)
        while await served.running.call(scores.step, _SCORED):
            pass
        self._scores[index] = scores
        return scores

    async def _scored(self, index: int, ids: list[int], settings: Settings | None) -> AsyncGenerator[Piece, None]:
        """Score the prompt; with `settings`, choose one token behind it."""
        outcome, began = self.outcomes[index], time.perf_counter()
        scores = await self._score(index, ids)
        seconds, n_new = time.perf_counter() - began, 0
        if settings is not None:
            sampler = Sampler(settings.sampling, ids, settings.logprobs)
            token, n_new = sampler(scores.last_logits), 1
            ended = token in self._tokenizer.eos_ids
            text = "" if ended else self._tokenizer.decode([token])
            outcome.text, outcome.finish_reason = text, "stop" if ended else "length"
            record = TokenRecord(
                token, 0, seconds, seconds, 0.0, "stop" if ended else "length", logprobs=sampler.logprobs
            )
            piece = Piece(text, record, record.finish_reason)
            outcome.pieces.append(piece)
        else:
            outcome.finish_reason = "length"
            piece = Piece("", TokenRecord(ids[-1], 0, seconds, seconds, 0.0, "length"), "length")
        outcome.passes.append(Pass(len(ids), n_new, seconds, seconds, outcome.text))
        self._context.metrics.began()
        self._context.metrics.ended(outcome.passes)
        yield piece

    async def _after_scores(
        self, index: int, ids: list[int], stream: AsyncGenerator[Piece, None]
    ) -> AsyncGenerator[Piece, None]:
        await self._score(index, ids)
        async for piece in stream:
            yield piece

    async def whole(self) -> dict[str, Any]:
        async for _ in merged(self._streams):
            pass
        return {
            **self._head,
            "object": "text_completion",
            "choices": [self._choice(index) for index in range(len(self.outcomes))],
            "usage": self._usage(),
            "timings": costs(self.outcomes),
        }

    def _choice(self, index: int) -> dict[str, Any]:
        outcome, ids = self.outcomes[index], self._prompts[index // self._asked.n]
        text = self._echoed(ids) + outcome.text if self._echo else outcome.text
        logprobs = None
        if self._asked.settings.logprobs is not None:
            logprobs = self._logprobs(index, outcome.pieces, 0)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": outcome.reason}

    def _usage(self) -> dict[str, Any]:
        """Each prompt once, each answer."""
        n = self._asked.n
        parts = [usage(self.outcomes[i : i + n]) for i in range(0, len(self.outcomes), n)]
        total = parts[0]
        for part in parts[1:]:
            for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
                total[key] += part[key]
            total["prompt_tokens_details"]["cached_tokens"] += part["prompt_tokens_details"]["cached_tokens"]
        return total

    async def events(self) -> AsyncGenerator[bytes, None]:
        offsets, begun = [0] * len(self.outcomes), set[int]()
        async for index, piece in merged(self._streams):
            outcome, text = self.outcomes[index], piece.text
            if self._echo and index not in begun:
                text = self._echoed(self._prompts[index // self._asked.n]) + text
            if not (text or piece.finish_reason is not None or piece.token.logprobs is not None):
                continue
            logprobs = None
            if self._asked.settings.logprobs is not None:
                pieces = [] if self._scored_only else [piece]
                logprobs = self._logprobs(index, pieces, offsets[index], prompt=index not in begun)
            begun.add(index)
            offsets[index] += len(text)
            ended = piece.finish_reason is not None
            choice = {
                "index": index,
                "text": text,
                "logprobs": logprobs,
                "finish_reason": outcome.reason if ended else None,
            }
            values = {**self._head, "object": "text_completion", "choices": [choice]}
            if self._asked.include_usage:
                values["usage"] = None
            elif ended and len(self.outcomes) == 1:
                values["timings"] = costs(self.outcomes)
            yield event(values)
        if self._asked.include_usage:
            last = {"choices": [], "usage": self._usage(), "timings": costs(self.outcomes)}
            yield event({**self._head, "object": "text_completion", **last})
        yield DONE

    def _echoed(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _logprobs(self, index: int, pieces: list[Piece], offset: int, prompt: bool = True) -> dict[str, Any]:
        """In the form of old: a list for each fact, the first token of a text without a probability."""
        entries: list[tuple[int, float | None, dict[str, float] | None]] = []
        scores = self._scores.get(index)
        if scores is not None and prompt:
            entries.append((scores.ids[0], None, None))
            for token, kept in zip(scores.ids[1:], scores.tokens, strict=True):
                entries.append((token, kept.logprob, self._top(kept.top, token, kept.logprob)))
        for piece in pieces:
            kept_new = piece.token.logprobs
            if kept_new is not None:
                top = self._top(kept_new.top, piece.token.id, kept_new.logprob)
                entries.append((piece.token.id, kept_new.logprob, top))
        texts = [self._tokenizer.decode([token], skip_special_tokens=False) for token, _, _ in entries]
        offsets = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [logprob for _, logprob, _ in entries],
            "top_logprobs": [top for _, _, top in entries],
            "text_offset": offsets,
        }

    def _top(self, top: Sequence[tuple[int, float]], token: int, logprob: float) -> dict[str, float]:
        """Alternatives by their text, the token itself among them; of two that are written alike the more probable."""
        found: dict[str, float] = {}
        for index, value in (*top, (token, logprob)):
            text = self._tokenizer.decode([index], skip_special_tokens=False)
            found[text] = max(value, found.get(text, value))
        return found
