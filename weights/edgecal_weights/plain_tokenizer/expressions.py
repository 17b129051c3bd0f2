r"""The regular expressions by which byte-level vocabularies cut text, and how `re`, which has no \p{L}, runs them.

A text is first written in a small alphabet: ASCII stays, any other character becomes one that stands for its kind
(capital letter, mark, number, white space ...). In that alphabet a class such as \p{L} is a dozen characters, and
places are those of the text. White space is Unicode's White_Space, as everywhere in the library; Python's own idea of
it has four control characters more.

Only the expressions of this file are run. One out of an untrusted file could keep a processor busy for years.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TURN = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TURN
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_TURN_AND_SLASH = _TURN.replace(r"[\r\n]*", r"[\r\n/]*")
TEKKEN = "|".join(_WORDS) + r"|\p{N}" + _TURN_AND_SLASH
_O200K = "|".join(f"{word}{_SHORT}?" for word in _WORDS) + r"|\p{N}{1,3}" + _TURN_AND_SLASH
KNOWN = frozenset({GPT2, LLAMA3, QWEN2, TEKKEN, _O200K})

WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_NO_BREAK_SPACE, _OTHER = "\xa0", "§"
_STANDS_FOR = {"Lu": "À", "Ll": "à", "Lt": "ǅ", "Lm": "ʰ", "Lo": "ª", "M": "\u0300", "N": "²"}
_ASCII = {"Lu": "A-Z", "Ll": "a-zſ", "N": "0-9"}  # ſ, because an expression that ignores case takes it for an s
_CLASSES = {kind: _ASCII.get(kind, "") + character for kind, character in _STANDS_FOR.items()}
_CLASSES["L"] = "".join(_CLASSES[kind] for kind in ("Lu", "Ll", "Lt", "Lm", "Lo"))
_SPACES = r"\t-\r " + _NO_BREAK_SPACE
_PART = re.compile(r"\\p\{(\w+)\}|(\\[sS])|\\.|\[|\]|.", re.DOTALL)


class _Alphabet(dict[int, str]):
    """For str.translate: what a character is written as, found out when it is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        if code < 128 or character == "ſ":
            written = character
        elif character in WHITE_SPACE:
            written = _NO_BREAK_SPACE
        else:
            written = _STANDS_FOR.get(kind) or _STANDS_FOR.get(kind[0]) or _OTHER
        self[code] = written
        return written


_ALPHABET = _Alphabet()


@lru_cache
def cutter(expression: str) -> Callable[[str], list[str]]:
    """A function that cuts a text into what the expression finds and what lies between; nothing is lost.

    KeyError for a class that is not known.
    """
    find = re.compile(_in_alphabet(expression)).finditer

    def cut(text: str) -> list[str]:
        written = text if text.isascii() else text.translate(_ALPHABET)
        pieces, at = [], 0
        for match in find(written):
            start, end = match.span()
            if start > at:
                pieces.append(text[at:start])
            if end > start:
                pieces.append(text[start:end])
            at = end
        if at < len(text):
            pieces.append(text[at:])
        return pieces

    return cut


def _in_alphabet(expression: str) -> str:
    """The expression for texts in the alphabet: classes spelled out."""
    parts, inside = [], False
    for match in _PART.finditer(expression):
        part, (kind, space) = match[0], match.groups()
        if kind or space:
            members = _CLASSES[kind] if kind else _SPACES
            part = members if inside else f"[{'^' if space == chr(92) + 'S' else ''}{members}]"
        elif part in "[]":
            inside = part == "["
        parts.append(part)
    return "".join(parts)
