"""Noticing that an answer has run into a loop: the same text again and again, to the last character.

Small models that decode greedily fall into loops and stay there until their tokens are used up. What a loop looks like
is a stretch at the end of the answer that repeats itself with some period p: one character, a line, a paragraph. So
does much that is meant: the rules and empty cells of a table, rows of zeros, closing tags, lists that count. Hence the
rules, all in characters:

* words: a loop after three periods and 240 characters (a line of 40 characters nine times, a paragraph of 400 three
  and a half times);
* words that differ in their numbers only ("12. Fish", "13. Fish"): three times as much, or 53 periods, since plans of a
  month and of a year's weeks are written so;
* white space alone: twice as much;
* everything else (code, markup, tables, numbers, rulers): six times as much, and numbers must be equal.

A stretch counts as words when at least 0.8 of it are letters, leaving white space and digits aside, nothing in it is
a bracket, a bar or another sign of code, and no two spaces stand together.

The answer is watched as text, not as ids: a loop keeps its text, and seldom its tokens, and whether it is made of words
only the text tells.
"""

from __future__ import annotations

import re
import unicodedata

MAX_PERIOD = 800
_PERIODS, _CHARACTERS = 3, 240
_NUMBERED, _SPACE, _OTHER = 3, 2, 6  # times as much
_NUMBERED_PERIODS = 53
_WORDS = 0.8
_CODE = re.compile(r"[{}\[\]<>|=;_\\`\t]|  ")
_BLOCK = 16  # a look every so many characters, and at the place where these stood before
_KEPT = _OTHER * (_PERIODS * MAX_PERIOD + _CHARACTERS)


class RepetitionDetector:
    """Watches one answer. How it is cut into pieces makes no difference; a look costs microseconds.

    `repeated` is the text that comes again and again, with every number as "0" where these differ; None before.
    """

    def __init__(self) -> None:
        self.repeated: str | None = None
        self._waiting = ""
        self._exact = self._numberless = ""  # the end of the answer; the same with every number as "0"

    def push(self, text: str) -> bool:
        """Take the next piece of the answer; True as soon as the answer is a loop, and from then on."""
        self._waiting += text
        while self.repeated is None and len(self._waiting) >= _BLOCK:
            block, self._waiting = self._waiting[:_BLOCK], self._waiting[_BLOCK:]
            for char in block:
                if not (char.isdigit() and self._exact[-1:].isdigit()):
                    self._numberless += "0" if char.isdigit() else char
                self._exact += char
            self._exact, self._numberless = self._exact[-_KEPT:], self._numberless[-_KEPT:]
            self.repeated = _loop(self._exact) or _loop(self._numberless, numberless=True)
        return self.repeated is not None


def _loop(text: str, numberless: bool = False) -> str | None:
    """The unit that the end of the text repeats often enough to be a loop."""
    end, at = text[-_BLOCK:], len(text) - _BLOCK
    first = max(0, at - MAX_PERIOD)
    while (at := text.rfind(end, first, at + _BLOCK - 1)) >= 0:
        period = len(text) - _BLOCK - at
        enough = _PERIODS * period + _CHARACTERS
        if _repeats(text, period, enough):  # else these few characters stand there by chance
            unit = text[-period:]
            if not numberless:
                enough *= 1 if _is_words(unit) else _SPACE if unit.isspace() else _OTHER
            elif _is_words(unit):
                enough = min(_NUMBERED * enough, _NUMBERED_PERIODS * period)
            else:
                return None
            return unit if _repeats(text, period, enough) else None
    return None


def _repeats(text: str, period: int, length: int) -> bool:
    return len(text) >= length and text[-length:-period] == text[period - length :]


def _is_words(unit: str) -> bool:
    kinds = [unicodedata.category(char)[0] for char in unit if not char.isspace() and not char.isdigit()]
    letters = sum(kind in "LM" for kind in kinds)  # marks: the vowels of Hindi and Thai
    return letters > 0 and letters >= _WORDS * len(kinds) and not _CODE.search(unit)
