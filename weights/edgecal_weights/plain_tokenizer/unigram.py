"""Unigram: of all ways to cut a piece into tokens the one with the largest sum of scores (Kudo 2018), by Viterbi."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from .parts import Part
from .vocabulary import Vocabulary

_LONGEST = 512  # characters of a token: each place of a text is compared with all lengths that there are
_UNKNOWN_PENALTY = 10.0  # below the lowest score, as in sentencepiece


class Unigram:
    """The model of a tokenizer.json: `vocab` is a list of (token, score), `unk_id` the place of the unknown token."""

    def __init__(self, part: Part) -> None:
        entries: list[Any] = part.read("vocab", list)
        try:
            pairs = [(str.__str__(token), float(score)) for token, score in entries]
        except (TypeError, ValueError):
            part.fail("vocab is not a list of tokens with their scores")
        if any(len(token) > _LONGEST for token, _ in pairs):
            part.fail(f"vocab holds a token of more than {_LONGEST} characters")
        self.pairs = pairs
        self.vocabulary = Vocabulary(part, {token: index for index, (token, _) in enumerate(pairs)})
        self._unknown = part.fields.get("unk_id")
        if self._unknown is not None and (type(self._unknown) is not int or not 0 <= self._unknown < len(pairs)):
            part.fail(f"unk_id is {self._unknown!r:.40}, and vocab has {len(pairs)} tokens")
        self._scores = {token: pairs[index][1] for token, index in self.vocabulary.ids.items()}
        self._penalized = min((score for _, score in pairs), default=0.0) - _UNKNOWN_PENALTY
        self._bytes = self.vocabulary.bytes() if part.read("byte_fallback", bool, False) else None
        self._part = part
        lengths: dict[str, set[int]] = defaultdict(set)
        for token, _ in pairs:
            if token:
                lengths[token[0]].add(len(token))
        self._lengths = {first: sorted(found) for first, found in lengths.items()}

    def tokenize(self, piece: str) -> list[int]:
        found: list[int] = []
        for text in self._best(piece):
            index = self.vocabulary.ids.get(text)
            if index is not None:
                found.append(index)
            elif self._bytes is not None:
                found += [self._bytes[byte] for byte in text.encode()]
            else:
                found.append(self._known_unknown())
        return found

    def _best(self, piece: str) -> list[str]:
        """The best cut; neighbours that no token has are one text."""
        size = len(piece)
        best, begins = [0.0] * (size + 1), [-1] * (size + 1)
        unknown = [False] * (size + 1)
        for start, first in enumerate(piece):
            here, single = best[start], False
            for length in self._lengths.get(first, ()):
                end = start + length
                score = self._scores.get(piece[start:end]) if end <= size else None
                if score is None:
                    continue
                single = single or length == 1
                if begins[end] < 0 or here + score > best[end]:
                    best[end], begins[end] = here + score, start
                    unknown[end] = self.vocabulary.ids[piece[start:end]] == self._unknown
            end = start + 1
            if not single and (begins[end] < 0 or here + self._penalized > best[end]):
                self._known_unknown()
                best[end], begins[end], unknown[end] = here + self._penalized, start, True
        parts: list[tuple[str, bool]] = []
        end = size
        while end > 0:
            start = begins[end]
            if unknown[end] and parts and parts[-1][1]:
                parts[-1] = (piece[start:end] + parts[-1][0], True)
            else:
                parts.append((piece[start:end], unknown[end]))
            end = start
        return [text for text, _ in reversed(parts)]

    def _known_unknown(self) -> int:
        if self._unknown is None:
            self._part.fail("a text holds a character that is no token, and unk_id is missing")
        return int(self._unknown)
