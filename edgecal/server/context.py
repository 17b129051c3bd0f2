"""What every route has at hand: what is served, how it may be asked, and the reading of a request's body."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request as HttpRequest

from edgecal_weights.files import parse_json

from ..adapters.recipe import Recipe
from ..errors import OptionError
from .errors import HttpError
from .fields import Fields
from .metrics import Metrics
from .served import Served

_DRAINED = 64 << 20  # bytes of a body that is too large which are still taken, so that the refusal is read


@dataclass(frozen=True)
class ServerOptions:
    """How the server may be asked. `token` None asks for none; `hosts` are names that it goes by beside addresses and
    this machine's own, `origins` those whose pages may call it. `max_body` in bytes, `max_tokens` of one answer,
    `timeout_s` of one request, `folder` what may be loaded from at run time. OptionError for what cannot be."""

    token: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_body: int = 1 << 20
    max_tokens: int = 1024
    timeout_s: float = 600.0
    batch_size: int = 8
    max_waiting: int = 64
    folder: Path | None = None
    grace_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("max_body", "max_tokens", "timeout_s", "batch_size"):
            if getattr(self, name) <= 0:
                raise OptionError(f"{name} must be above 0, found {getattr(self, name)}")
        if self.token is not None and (len(self.token) < 8 or not self.token.isascii() or not self.token.isprintable()):
            raise OptionError("the token must have at least 8 characters, all of them ASCII")
        if self.folder is not None and not self.folder.is_dir():
            raise OptionError(f"there is no folder {self.folder}")


@dataclass
class Context:
    """`ready` is set once the model is loaded; what is served is there from then on. `loop` is the server's."""

    options: ServerOptions
    ready: bool = False
    loop: asyncio.AbstractEventLoop | None = None
    _served: Served | None = None
    _metrics: Metrics | None = None

    @classmethod
    def of(cls, http: HttpRequest) -> Context:
        """HttpError 503 while the model is loading."""
        context: Context = http.app.state.context
        if not context.ready:
            raise HttpError(503, "the model is being loaded; try again in a few seconds", "unavailable_error")
        return context

    def serve(self, served: Served) -> None:
        self._served = served
        self._metrics = Metrics(lambda: served.running.n_running, lambda: served.running.n_waiting)
        self.ready = True

    @property
    def served(self) -> Served:
        assert self._served is not None
        return self._served

    @property
    def metrics(self) -> Metrics:
        assert self._metrics is not None
        return self._metrics

    async def fields(self, http: HttpRequest) -> Fields:
        """The body's JSON object; HttpError 400 for what is none, 413 for too long a one."""
        return Fields(await self.json(http))

    async def json(self, http: HttpRequest) -> Any:
        """The body's JSON value."""
        content, length = bytearray(), 0
        async for chunk in http.stream():
            length += len(chunk)
            if length <= self.options.max_body:
                content += chunk
            elif length > _DRAINED:
                break
        if length > self.options.max_body:
            raise HttpError(413, f"the body has more than {self.options.max_body:,} bytes", "request_too_large")
        try:
            return parse_json(bytes(content).decode("utf-8"), unique=False)
        except UnicodeDecodeError as error:
            raise HttpError(400, f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
        except (json.JSONDecodeError, ValueError) as error:
            raise HttpError(400, f"the body is not valid JSON: {error!s:.200}") from error

    def client(self, http: HttpRequest) -> Hashable:
        """Whose turn it is: the address that asks."""
        return http.client.host if http.client is not None else None

    def prompt_of(self, conversation: Sequence[dict[str, str]], recipe: Recipe | None) -> Any:
        """Messages as the engine takes them; a pipeline works on the text of the one user message."""
        if recipe is None or not recipe.steps:
            return list(conversation)
        texts = [message["content"] for message in conversation if message["role"] == "user"]
        if len(texts) != 1 or len(conversation) != 1:
            raise HttpError(400, "multi_step works on one text: give one user message")
        return texts[0]
