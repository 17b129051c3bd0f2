"""The application: routes, who may call them, and the life of the engine behind them."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from ..errors import EdgecalError
from . import native, page_api
from .chat import chat_completions
from .completions import completions
from .context import Context, ServerOptions
from .errors import RETRY_AFTER_S, HttpError, body_of, status_of
from .guard import Guard
from .responses import responses
from .served import Served

PAGE = Path(__file__).parent / "page"
FILES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "worker.js": "text/javascript; charset=utf-8",
    "app.webmanifest": "application/manifest+json",
    "icon.svg": "image/svg+xml",
    "icon.png": "image/png",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "manifest-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_LOG = logging.getLogger("edgecal.server")

Endpoint = Callable[[HttpRequest], Awaitable[Response]]


def create_app(
    load: Callable[[], Served],
    options: ServerOptions | None = None,
    *,
    failed: Callable[[EdgecalError], None] | None = None,
    ready: Callable[[Served], None] | None = None,
) -> Guard:
    """An ASGI application that loads what is served when it starts; until then /health says 503.

    `load` runs in a thread. `failed` is told what stands in its way, `ready` when all is loaded.
    """
    options = options or ServerOptions()
    context = Context(options)

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        async def load_all() -> None:
            try:
                served = await _in_a_thread_that_ends(load)
            except EdgecalError as error:
                if failed is None:
                    raise
                failed(error)
                return
            served.running.start()
            context.serve(served)
            if ready is not None:
                ready(served)

        context.loop = asyncio.get_running_loop()
        loading = asyncio.create_task(load_all())
        try:
            yield
        finally:
            await asyncio.wait({loading})
            if context.ready:
                await context.served.running.close()

    app = Starlette(
        routes=_routes(),
        lifespan=life,
        exception_handlers={EdgecalError: _refused, HTTPException: _not_found, Exception: _broken},
    )
    app.state.context = context
    files = ("/", "/health", "/v1/health", "/favicon.ico", *(f"/{name}" for name in FILES))
    return Guard(app, context, files)


async def _in_a_thread_that_ends(load: Callable[[], Served]) -> Served:
    """OpenMP keeps helpers for every thread that ever ran a parallel kernel. With those of a pool's thread beside the
    engine's it counts more threads than cores, and lets none of them spin: a short prompt took 1.5 times as long."""
    executor = ThreadPoolExecutor(1, "edgecal-loading")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, load)
    finally:
        executor.shutdown(wait=False)


def _routes() -> list[Route]:
    get, post = ["GET"], ["POST"]
    table: list[tuple[str, Endpoint, list[str]]] = [
        ("/v1/chat/completions", chat_completions, post),
        ("/v1/completions", completions, post),
        ("/v1/responses", responses, post),
        ("/v1/models", native.models, get),
        ("/v1/models/{name:path}", native.model, get),
        ("/health", native.health, get),
        ("/metrics", native.metrics, get),
        ("/props", native.props, get),
        ("/slots", native.slots, get),
        ("/tokenize", native.tokenize, post),
        ("/detokenize", native.detokenize, post),
        ("/apply-template", native.apply_template, post),
        ("/lora-adapters", native.lora_adapters, ["GET", "POST"]),
        ("/v1/load_lora_adapter", native.load, post),
        ("/v1/unload_lora_adapter", native.unload, post),
        ("/v1/load_calibration", native.load, post),
        ("/v1/unload_calibration", native.unload, post),
        ("/app/state", page_api.state, get),
        ("/app/settings", page_api.settings, post),
        ("/app/example", page_api.example, get),
        ("/app/answer", page_api.answers, post),
        ("/app/back", page_api.back, post),
        ("/", _page, get),
        ("/{file}", _page, get),
    ]
    aliases = {"/chat/completions": chat_completions, "/completions": completions, "/v1/health": native.health}
    table[-2:-2] = [(path, endpoint, get if "health" in path else post) for path, endpoint in aliases.items()]
    return [Route(path, endpoint, methods=methods) for path, endpoint, methods in table]


async def _page(http: HttpRequest) -> Response:
    name = http.path_params.get("file", "index.html")
    if name == "favicon.ico":
        return RedirectResponse("/icon.svg")
    if name not in FILES:
        raise HttpError(404, f"there is no {http.url.path!r:.80} here", "not_found_error")
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return FileResponse(PAGE / name, media_type=FILES[name], headers=headers)


async def _refused(http: HttpRequest, error: Exception) -> Response:
    status = status_of(error)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return JSONResponse({"error": body_of(error)}, status, headers)


async def _not_found(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: f"there is no {http.url.path!r:.80} here", 405: f"{http.method} is not for {http.url.path!r:.80}"}
    message = messages.get(error.status_code, str(error.detail))
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    told = HttpError(error.status_code, message, kind)
    return JSONResponse({"error": body_of(told)}, error.status_code, error.headers)


async def _broken(http: HttpRequest, error: Exception) -> Response:
    _LOG.error("%s %s\n%s", http.method, http.url.path, "".join(traceback.format_exception(error)))
    return JSONResponse({"error": body_of(error)}, status_of(error))

