"""What is wrong with a request, as the answer that clients of OpenAI and of llama.cpp's server understand:

    {"error": {"code": 400, "message": "...", "type": "invalid_request_error"}}
"""

from __future__ import annotations

from typing import Any

from ..errors import (
    BusyError,
    ContextLengthError,
    EdgecalError,
    HubError,
    ModelNotFoundError,
    StorageError,
)

RETRY_AFTER_S = 5
_FAILED = "the server failed at this request; its log says why"
_SHORT_OF_MEMORY = "there is not enough memory for this request now: ask for less, or later"


class HttpError(EdgecalError):
    """A request that is refused; `status` is HTTP's, `kind` the error's type."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


def status_of(error: BaseException) -> int:
    if isinstance(error, HttpError):
        return error.status
    if isinstance(error, BusyError):
        return 503 if "stopped" in str(error) else 429
    if isinstance(error, MemoryError):
        return 503
    if isinstance(error, ModelNotFoundError):
        return 404
    if isinstance(error, (HubError, StorageError)):
        return 500
    return 400 if isinstance(error, EdgecalError) else 500


def body_of(error: BaseException) -> dict[str, Any]:
    """What stands under "error". Of what nobody foresaw it says no more than that it happened."""
    status = status_of(error)
    message = str(error) if isinstance(error, EdgecalError) else _SHORT_OF_MEMORY if status == 503 else _FAILED
    values: dict[str, Any] = {"code": status, "message": message, "type": _kind(error, status)}
    if isinstance(error, ContextLengthError):
        values |= {"n_prompt_tokens": error.n_tokens, "n_ctx": error.limit}
    return values


def _kind(error: BaseException, status: int) -> str:
    if isinstance(error, HttpError):
        return error.kind
    if isinstance(error, ContextLengthError):
        return "exceed_context_size_error"
    known = {404: "not_found_error", 429: "rate_limit_error", 500: "server_error", 503: "unavailable_error"}
    return known.get(status, "invalid_request_error")
