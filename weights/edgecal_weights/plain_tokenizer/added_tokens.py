"""Added tokens: texts that are a token as they stand, wherever they occur."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .expressions import WHITE_SPACE

_LONGEST = 512  # characters: each place of a text is compared with all lengths that there are


@dataclass
class AddedToken:
    """As the library's: `lstrip` and `rstrip` take white space beside it along, `single_word` wants no letter beside
    it, a `normalized` one is looked for in the normalized text."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool | None = None
    special: bool = False

    def __post_init__(self) -> None:
        self.content.encode()  # AttributeError or UnicodeEncodeError here, rather than in the middle of a text
        if len(self.content) > _LONGEST:
            raise ValueError(f"a token of {len(self.content):,} characters, at most {_LONGEST} are served")
        if self.normalized is None:
            self.normalized = not self.special
        flags = (self.single_word, self.lstrip, self.rstrip, self.normalized, self.special)
        if not all(isinstance(flag, bool) for flag in flags):
            raise TypeError("the flags of a token are true or false")


class Finder:
    """Finds the tokens in a text: the leftmost, and of those that begin there the longest."""

    def __init__(self, tokens: dict[str, tuple[int, AddedToken]]) -> None:
        self._tokens = tokens
        lengths: dict[str, set[int]] = {}
        for text in tokens:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        firsts = "".join(map(re.escape, lengths))
        self._first = re.compile(f"[{firsts}]") if firsts else None

    def texts(self) -> dict[int, str]:
        """What is looked for, by id."""
        return {index: text for text, (index, _) in self._tokens.items()}

    def split(self, text: str) -> Iterator[tuple[int, str | int]]:
        """Stretches of plain text and ids of tokens, each with the place where it begins."""
        at = 0
        for start, end, (index, token) in self._matches(text):
            if token.single_word and (_is_word(text[start - 1 : start]) or _is_word(text[end : end + 1])):
                continue
            if token.lstrip:
                start = max(at, len(text[:start].rstrip(WHITE_SPACE)))
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip(WHITE_SPACE))
            if start > at:
                yield at, text[at:start]
            yield start, index
            at = end
        if at < len(text):
            yield at, text[at:]

    def _matches(self, text: str) -> Iterator[tuple[int, int, tuple[int, AddedToken]]]:
        if self._first is None:
            return
        at = 0
        while (first := self._first.search(text, at)) is not None:
            start = first.start()
            at = start + 1
            for length in self._lengths[first[0]]:
                found = self._tokens.get(text[start : start + length])
                if found is not None:
                    at = start + length
                    yield start, at, found
                    break


def _is_word(character: str) -> bool:
    kind = unicodedata.category(character) if character else ""
    return kind[:1] in ("L", "M") or kind in ("Nd", "Nl", "Pc") or character in ("\u200c", "\u200d")


def finders(tokens: dict[int, AddedToken], normalize: Callable[[str], str] | None) -> tuple[Finder, Finder]:
    """For the text as it comes, and for the normalized text."""
    plain: dict[str, tuple[int, AddedToken]] = {}
    normalized: dict[str, tuple[int, AddedToken]] = {}
    for index, token in tokens.items():
        if token.normalized:
            text = normalize(token.content) if normalize is not None else token.content
            if text:
                normalized.setdefault(text, (index, token))
        else:
            plain[token.content] = (index, token)
    return Finder(plain), Finder(normalized)
