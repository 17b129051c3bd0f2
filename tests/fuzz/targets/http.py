"""Requests to the server: the first line says which, the rest is the body."""

from __future__ import annotations

import asyncio
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from edgecal import Engine, Recipe
from edgecal.server import Served, ServerOptions, create_app
from edgecal_kernels.errors import LONGEST_MESSAGE
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf

from ..mutate import json_text, raw
from ..target import Target

_SECONDS = 60
_HELLO = [{"role": "user", "content": "Hello"}]
_SEEDS: tuple[tuple[str, Any], ...] = (
    ("POST /v1/chat/completions", {"model": "a", "messages": _HELLO, "max_tokens": 2, "temperature": 0.5, "seed": 1}),
    ("POST /v1/chat/completions", {"messages": _HELLO, "max_tokens": 3, "stream": True, "logprobs": True, "n": 2}),
    ("POST /v1/chat/completions", {"messages": _HELLO, "max_tokens": 1, "recipe": {"method": "ties",
     "adapters": ["a", "b"], "options": {"density": 0.5}}, "stop": ["x"], "top_logprobs": 2, "logprobs": True}),
    ("POST /v1/completions", {"prompt": "Once", "max_tokens": 2, "logprobs": 1, "echo": True}),
    ("POST /completions", {"prompt": [1, 2, 3], "n_predict": 2, "lora": [{"id": 0, "scale": 0.5}], "top_k": 3}),
    ("POST /v1/responses", {"input": "Hi", "max_output_tokens": 2, "instructions": "Be brief"}),
    ("POST /tokenize", {"content": "the text", "with_pieces": True, "add_special": True}),
    ("POST /detokenize", {"tokens": [1, 20, 200]}),
    ("POST /apply-template", {"messages": _HELLO}),
    ("POST /lora-adapters", [{"id": 0, "scale": 0.5}]),
    ("POST /v1/load_lora_adapter", {"lora_name": "c", "lora_path": "b"}),
    ("POST /v1/load_calibration", {"calibration_name": "d", "calibration_path": "pair.safetensors"}),
    ("POST /v1/unload_lora_adapter", {"lora_name": "c"}),
    ("POST /v1/unload_calibration", {"calibration_name": "d"}),
    ("POST /app/settings", {"threads": 1}),
    ("POST /app/answer", {"task": "summarize", "text": "Ann: hi", "methods": ["single"], "max_tokens": 2}),
    ("POST /app/back", {"text": "Bonjour"}),
    ("GET /app/example?task=summarize", None),
    ("GET /app/state", None),
    ("GET /v1/models/a", None),
    ("GET /slots", None),
    ("GET /metrics", None),
)  # fmt: skip


def prepare(folder: Path) -> list[bytes]:
    write_tiny_hf(folder / "model", hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    pair = {x: write_tiny_adapter(folder / "adapters" / x, folder / "model", seed=ord(x), rank=2) for x in "ab"}
    write_tiny_calibration(folder / "adapters" / "pair.safetensors", folder / "model", pair)
    return [f"{head}\n{json.dumps(body) if body is not None else ''}".encode() for head, body in _SEEDS]


class _Server:
    """The application without a socket."""

    def __init__(self, folder: Path) -> None:
        adapters = folder / "adapters"
        named = {name: adapters / name for name in "ab"}
        engine = Engine.load(folder / "model", weights="fp32", backend="numpy", adapters=named)
        served = Served(engine, "tiny", recipes={"both": Recipe("linear", ("a", "b"))}, folder=adapters)
        self.loop = asyncio.new_event_loop()
        self.app = create_app(lambda: served, ServerOptions(folder=adapters, max_tokens=4))
        self.app.context.loop = self.loop
        served.running.start()
        self.app.context.serve(served)

    def ask(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        return self.loop.run_until_complete(asyncio.wait_for(self._ask(method, target, body), _SECONDS))

    async def _ask(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        path, _, query = target.partition("?")
        scope: dict[str, Any] = {"type": "http", "http_version": "1.1", "asgi": {"version": "3.0"}, "scheme": "http"}
        scope |= {"method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode()}
        scope |= {"root_path": "", "client": ("127.0.0.1", 1), "server": ("localhost", 80)}
        scope["headers"] = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        status, content = 0, bytearray()

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            content.extend(message.get("body", b""))

        await self.app(scope, receive, send)
        return status, bytes(content)


_server = cache(_Server)


def run(data: bytes, folder: Path) -> None:
    head, _, body = data.partition(b"\n")
    words = head.decode("ascii", "replace").split()
    method, target = words if len(words) == 2 else ("POST", "/v1/chat/completions")
    status, content = _server(folder).ask(method, target, body)
    assert 200 <= status < 500, f"status {status}: {content[:200]!r}"
    if status >= 400:
        message = json.loads(content)["error"]["message"]
        assert 0 < len(message) <= LONGEST_MESSAGE, f"a message of {len(message)} characters"


def mutate(data: bytes, rng: random.Random) -> bytes:
    head, _, body = data.partition(b"\n")
    if rng.random() < 0.05:
        return raw(data, rng)
    if rng.random() < 0.1:
        head = rng.choice(_SEEDS)[0].encode()
    return head + b"\n" + json_text(body, rng)


TARGET = Target(run, prepare, mutate, seconds=8.0, megabytes=256)
