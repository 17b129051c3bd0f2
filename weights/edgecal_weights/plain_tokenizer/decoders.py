"""Decoders: tokens in, tokens out, which are joined at the end."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import groupby
from types import MappingProxyType

from .byte_alphabet import read
from .parts import Part, chain, chosen

Decoder = Callable[[list[str]], list[str]]
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _sequence(part: Part) -> Decoder:
    steps = [chosen(inner, _STEPS) for inner in part.parts("decoders")]
    return chain(part, steps, lambda tokens: sum(map(len, tokens)))


def _byte_level(_part: Part) -> Decoder:
    return lambda tokens: [b"".join(map(read, tokens)).decode(errors="replace")]


def _byte_fallback(_part: Part) -> Decoder:
    """A run of byte tokens is text if all of it is; else each of its bytes is unknown."""

    def decode(tokens: list[str]) -> list[str]:
        found: list[str] = []
        for matched, run in groupby(map(_byte_of, tokens), lambda byte: isinstance(byte, int)):
            if not matched:
                found += [str(token) for token in run]
                continue
            raw = bytes(run)  # type: ignore[arg-type]
            try:
                found.append(raw.decode())
            except UnicodeDecodeError:
                found += ["\ufffd"] * len(raw)
        return found

    return decode


def _byte_of(token: str) -> int | str:
    match = _BYTE.fullmatch(token)
    return int(match[1], 16) if match else token


def _replace(part: Part) -> Decoder:
    old, new = part.text_pattern(), part.short_text("content")
    if old is None:
        part.refuse(" of a regular expression")
    return lambda tokens: [token.replace(old, new) for token in tokens]


def _strip(part: Part) -> Decoder:
    character, start, stop = part.read("content", str), part.read("start", int, 0), part.read("stop", int, 0)

    def strip(token: str) -> str:
        first = min(start, len(token) - len(token.lstrip(character)))
        last = min(stop, len(token) - first - len(token[first:].rstrip(character)))
        return token[first : len(token) - last]

    return lambda tokens: [strip(token) for token in tokens]


def _metaspace(part: Part) -> Decoder:
    mark = part.short_text("replacement") if "replacement" in part.fields else "▁"
    old = "always" if part.read("add_prefix_space", bool, True) else "never"
    first = " " if part.read("prepend_scheme", str, old) == "never" else ""
    return lambda tokens: [token.replace(mark, " " if i else first) for i, token in enumerate(tokens)]


_STEPS: Mapping[str, Callable[[Part], Decoder]] = MappingProxyType(
    {
        "ByteLevel": _byte_level,
        "ByteFallback": _byte_fallback,
        "Fuse": lambda _part: lambda tokens: ["".join(tokens)],
        "Replace": _replace,
        "Strip": _strip,
        "Metaspace": _metaspace,
    }
)
MAKERS: Mapping[str, Callable[[Part], Decoder]] = MappingProxyType({"Sequence": _sequence, **_STEPS})
