"""Who may talk to the server: an ASGI layer around the application that looks at every request's headers.

* The Host header must be an address, this machine's name, or a name that was allowed. A page of a foreign site whose
  name was made to point here (DNS rebinding) has its own name there.
* A request of a page of another origin is refused unless that origin was allowed (CORS), whether the browser would
  show that page the answer or not.
* Where a token is set, everything but the page's own files and /health asks for it, compared in constant time.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import socket
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from .context import Context
from .errors import HttpError, body_of

_METHODS = b"GET, POST, OPTIONS"


class Guard:
    """`app` with the options of `context` around it; `open_paths` are served without a token."""

    def __init__(self, app: Any, context: Context, open_paths: Collection[str] = ()) -> None:
        self.context = context
        options = context.options
        self._app, self._token, self._origins, self._open = app, options.token, options.origins, frozenset(open_paths)
        own = socket.gethostname().lower()
        self._hosts = {"localhost", own, f"{own.partition('.')[0]}.local", *(host.lower() for host in options.hosts)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin")
        allowed = origin is not None and (origin in self._origins or "*" in self._origins)
        extra = [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")] if allowed else []  # type: ignore[union-attr]
        try:
            self._check(scope, headers, origin, allowed)
        except HttpError as error:
            await _answer(send, error, extra)
            return
        if scope["method"] == "OPTIONS" and allowed:
            asked = headers.get("access-control-request-headers", "authorization, content-type").encode("latin-1")
            fields = [(b"access-control-allow-methods", _METHODS), (b"access-control-allow-headers", asked)]
            await send({"type": "http.response.start", "status": 204, "headers": [*extra, *fields]})
            await send({"type": "http.response.body", "body": b""})
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        await self._app(scope, receive, with_headers)

    def _check(self, scope: Any, headers: dict[str, str], origin: str | None, allowed: bool) -> None:
        host = headers.get("host", "")
        if not self._is_own(host):
            message = f"this server is not {host!r:.80}; name it with --host-name if it is"
            raise HttpError(403, message, "forbidden_error")
        if origin is not None and not allowed and urlsplit(origin).netloc.lower() != host.lower():
            raise HttpError(403, f"pages of {origin!r:.80} may not call this server (--cors)", "forbidden_error")
        if self._token is None or scope["path"] in self._open or scope["method"] == "OPTIONS":
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            message = "the token is missing or wrong: send Authorization: Bearer TOKEN"
            raise HttpError(401, message, "authentication_error")

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        if not name:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


async def _answer(send: Any, error: HttpError, extra: list[tuple[bytes, bytes]]) -> None:
    content = json.dumps({"error": body_of(error)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), *extra]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
