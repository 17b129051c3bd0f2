"""Normalizers: text in, text out, before anything is cut."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from .parts import Part, chain, chosen

Normalizer = Callable[[str], str]


def _sequence(part: Part) -> Normalizer:
    return chain(part, [chosen(inner, _STEPS) for inner in part.parts("normalizers")], len)


def _prepend(part: Part) -> Normalizer:
    front = part.short_text("prepend")
    return lambda text: front + text if text else text


def _replace(part: Part) -> Normalizer:
    old, new = part.text_pattern(), part.short_text("content")
    if old is None:
        part.refuse(" of a regular expression")
    return lambda text: text.replace(old, new)


def _form(part: Part) -> Normalizer:
    return partial(unicodedata.normalize, part.type)  # type: ignore[arg-type]


def _lowercase(_part: Part) -> Normalizer:
    return lambda text: "".join(map(str.lower, text))  # each by itself: a final sigma is like any other


_STEPS: Mapping[str, Callable[[Part], Normalizer]] = MappingProxyType(
    {
        "Prepend": _prepend,
        "Replace": _replace,
        "Lowercase": _lowercase,
        **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD"), _form),
    }
)
MAKERS: Mapping[str, Callable[[Part], Normalizer]] = MappingProxyType({"Sequence": _sequence, **_STEPS})
