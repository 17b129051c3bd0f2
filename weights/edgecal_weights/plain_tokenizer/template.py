"""Post-processors: what is put around the ids of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .parts import Part, chosen, make

Template = Callable[[list[int]], list[int]]


def make_template(fields: Any, path: Path) -> Template:
    """Nothing is put around where there is no post-processor."""
    return make(fields, "post_processor", path, MAKERS) or _as_it_is


def _as_it_is(ids: list[int]) -> list[int]:
    return ids


def _sequence(part: Part) -> Template:
    steps = [chosen(inner, _STEPS) for inner in part.parts("processors")]

    def process(ids: list[int]) -> list[int]:
        for step in steps:
            ids = step(ids)
        return ids

    return process


def _template(part: Part) -> Template:
    front: list[int] = []
    behind: list[int] = []
    seen = False
    special = part.read("special_tokens", Mapping, {})
    for piece in part.read("single", list):
        if isinstance(piece, Mapping) and "Sequence" in piece and not seen:
            seen = True
            continue
        try:
            ids = special[piece["SpecialToken"]["id"]]["ids"]
        except (KeyError, TypeError):
            part.fail(f"single holds {piece!r:.80}, expected one sequence and special tokens that are named")
        if not isinstance(ids, list) or not all(type(index) is int and index >= 0 for index in ids):
            part.fail(f"special_tokens holds the ids {ids!r:.60}")
        (behind if seen else front).extend(ids)
    if not seen:
        part.fail("single has no place for the text")
    return lambda ids: [*front, *ids, *behind]


_STEPS: Mapping[str, Callable[[Part], Template]] = MappingProxyType(
    {"TemplateProcessing": _template, "ByteLevel": lambda _part: _as_it_is}
)
MAKERS: Mapping[str, Callable[[Part], Template]] = MappingProxyType({"Sequence": _sequence, **_STEPS})
