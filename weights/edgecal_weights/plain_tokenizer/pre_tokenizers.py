"""Pre-tokenizers: pieces in, smaller pieces out; a piece is what the model then tokenizes by itself.

They get the pieces of a stretch of text between added tokens, and whether it begins the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from .byte_alphabet import spell
from .expressions import GPT2, KNOWN, cutter
from .parts import Part, chosen

PreTokenizer = Callable[[list[str], bool], list[str]]


def _sequence(part: Part) -> PreTokenizer:
    steps = [chosen(inner, _STEPS) for inner in part.parts("pretokenizers")]

    def pre_tokenize(pieces: list[str], begins: bool) -> list[str]:
        for step in steps:
            pieces = step(pieces, begins)
        return pieces

    return pre_tokenize


def _byte_level(part: Part) -> PreTokenizer:
    space = part.read("add_prefix_space", bool, True)
    cut = cutter(GPT2) if part.read("use_regex", bool, True) else None

    def pre_tokenize(pieces: list[str], begins: bool) -> list[str]:
        if space:
            pieces = [piece if piece.startswith(" ") else " " + piece for piece in pieces]
        if cut is not None:
            pieces = [small for piece in pieces for small in cut(piece)]
        return [spell(piece) for piece in pieces]

    return pre_tokenize


def _digits(part: Part) -> PreTokenizer:
    cut = cutter(r"\p{N}" if part.read("individual_digits", bool, False) else r"\p{N}+")
    return lambda pieces, begins: [small for piece in pieces for small in cut(piece)]


def _split(part: Part) -> PreTokenizer:
    behavior, inverted = part.read("behavior", str), part.read("invert", bool, False)
    text = part.text_pattern()
    if text is not None and not inverted and behavior in _MERGED:
        cut = _text_cutter(text, behavior)
    else:
        pattern: Any = part.fields.get("pattern")
        expression = pattern.get("Regex") if isinstance(pattern, Mapping) else None
        if expression not in KNOWN:
            part.refuse(f" by {expression or pattern!r:.60}")
        # The known expressions find everything, so what they find may as well be kept as isolated.
        if (behavior, inverted) not in (("Isolated", False), ("Removed", True)):
            part.refuse(f" with the behavior {behavior:.20}")
        cut = cutter(str(expression))
    return lambda pieces, begins: [small for piece in pieces for small in cut(piece)]


def _metaspace(part: Part) -> PreTokenizer:
    mark = part.short_text("replacement") if "replacement" in part.fields else "▁"
    old = "always" if part.read("add_prefix_space", bool, True) else "never"  # before there were schemes
    scheme = part.read("prepend_scheme", str, old)
    cut = _text_cutter(mark, "MergedWithNext") if part.read("split", bool, True) else lambda text: [text]

    def pre_tokenize(pieces: list[str], begins: bool) -> list[str]:
        found: list[str] = []
        for i, piece in enumerate(pieces):
            piece = piece.replace(" ", mark)
            wanted = scheme == "always" or (scheme == "first" and begins and i == 0)
            found += cut(mark + piece if wanted and not piece.startswith(mark) else piece)
        return found

    return pre_tokenize


_MERGED = ("Isolated", "MergedWithPrevious", "MergedWithNext")


def _text_cutter(text: str, behavior: str) -> Callable[[str], list[str]]:
    """Cuts at each `text`, which stands alone, or goes with its neighbour unless that is a `text` too."""
    find = re.compile(f"({re.escape(text)})")

    def cut(piece: str) -> list[str]:
        parts = [(part, i % 2 == 1) for i, part in enumerate(find.split(piece)) if part]
        if behavior == "Isolated":
            return [part for part, _ in parts]
        turned = behavior == "MergedWithNext"
        found: list[str] = []
        after_match = False
        for part, is_match in reversed(parts) if turned else parts:
            if is_match and not after_match and found:
                found[-1] = part + found[-1] if turned else found[-1] + part
            else:
                found.append(part)
            after_match = is_match
        return found[::-1] if turned else found

    return cut


_STEPS: Mapping[str, Callable[[Part], PreTokenizer]] = MappingProxyType(
    {
        "ByteLevel": _byte_level,
        "Digits": _digits,
        "Split": _split,
        "Metaspace": _metaspace,
    }
)
MAKERS: Mapping[str, Callable[[Part], PreTokenizer]] = MappingProxyType({"Sequence": _sequence, **_STEPS})
