"""The root of every error that edgecal raises on purpose, and the two that arithmetic can raise.

Messages quote what was found, and files come from anybody: a name of a megabyte would fill the screen, the log and the
answer of a server, and one with control characters would be obeyed by the terminal. So the root writes the latter as
escapes, and cuts every message to `LONGEST_MESSAGE` characters, out of the middle: the beginning says where, the end
what to do.
"""

from __future__ import annotations

from typing import Any

LONGEST_MESSAGE = 600
_CUT = " [...] "
_END = 220  # characters that are kept of the end


def as_message(said: object) -> str:
    """What is said, cut and made printable: what every error and warning of edgecal passes through."""
    return _cut(printable(_cut(str(said))))


def _cut(text: str) -> str:
    if len(text) <= LONGEST_MESSAGE:
        return text
    return text[: LONGEST_MESSAGE - _END - len(_CUT)] + _CUT + text[-_END:]


def printable(text: str) -> str:
    """`text` with escapes (\\x1b) in the place of what a terminal may obey; line feeds stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def shown(value: Any, limit: int = 80) -> str:
    """A value as Python writes it, cut at `limit` characters: for messages."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class EdgecalError(Exception):
    """Base of the family: catch this to catch everything that edgecal refuses. Messages have 600 characters at most."""

    def __init__(self, message: object = "", *more: object) -> None:
        super().__init__(as_message(message), *more)


class QuantizationError(EdgecalError, ValueError):
    """A tensor cannot be represented in the asked format (NaN, overflow of the fp16 scales, bad group size)."""


class BackendError(EdgecalError):
    """An unknown back end was asked for, or this machine cannot run it."""
