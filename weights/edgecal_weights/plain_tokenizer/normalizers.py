"""Normalizers: text in, text out, before anything is cut."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from .parts import Part, chosen

Normalizer = Callable[[str], str]


def _sequence(part: Part) -> Normalizer:
    steps = [chosen(inner, MAKERS) for inner in part.parts("normalizers")]

    def normalize(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return normalize


def _prepend(part: Part) -> Normalizer:
    front: str = part.read("prepend", str)
    return lambda text: front + text if text else text


def _replace(part: Part) -> Normalizer:
    old, new = part.text_pattern(), part.read("content", str)
    if old is None:
        part.refuse(" of a regular expression")
    return lambda text: text.replace(old, new)


def _form(part: Part) -> Normalizer:
    return partial(unicodedata.normalize, part.type)  # type: ignore[arg-type]


def _lowercase(_part: Part) -> Normalizer:
    return lambda text: "".join(map(str.lower, text))  # each by itself: a final sigma is like any other


MAKERS: Mapping[str, Callable[[Part], Normalizer]] = MappingProxyType(
    {
        "Sequence": _sequence,
        "Prepend": _prepend,
        "Replace": _replace,
        "Lowercase": _lowercase,
        **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD"), _form),
    }
)
