"""Byte pair encoding: the best-ranked pair of neighbours becomes one token, until no pair has a rank.

Neighbours are found through two arrays of links and pairs through a heap, so a piece of n characters, which can be a
whole prompt (SentencePiece cuts nothing), takes n log n steps.
"""

from __future__ import annotations

import heapq
from itertools import pairwise

from .parts import Part
from .vocabulary import Vocabulary

_REMEMBERED = 20_000  # pieces with their ids
_LONG = 64  # characters of a piece that is not worth remembering


class Bpe:
    """The model of a tokenizer.json: `tokenize(piece)` gives ids.

    `part` has `vocab`, an object from token to id, and `merges`, pairs of tokens (or both in one string) in the order
    of their ranks. FileFormatError for what contradicts itself.
    """

    def __init__(self, part: Part) -> None:
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if part.fields.get(key):
                part.refuse(f" with {key}")
        self.vocabulary = Vocabulary(part, part.read("vocab", dict))
        self._ids = self.vocabulary.ids
        self._size = len(self.vocabulary.tokens)
        self._ranks, self._made = self._read_merges(part)
        self._whole = part.read("ignore_merges", bool, False)
        self._fuse_unknown = part.read("fuse_unk", bool, False)
        self._bytes = self.vocabulary.bytes() if part.read("byte_fallback", bool, False) else None
        unknown = part.read("unk_token", str, "")
        if unknown and unknown not in self._ids:
            part.fail(f"unk_token {unknown!r:.60} is not in the vocabulary")
        self._unknown = self._ids.get(unknown) if unknown else None
        self._known: dict[str, list[int]] = {}

    def _read_merges(self, part: Part) -> tuple[dict[int, int], list[int]]:
        """Rank by pair, a pair being `left * size + right`, and what each rank makes."""
        ids, size = self._ids, self._size
        ranks, made = {}, []
        for rank, merge in enumerate(part.read("merges", list)):
            try:
                left, right = merge.split(" ") if isinstance(merge, str) else merge
                ranks[ids[left] * size + ids[right]] = rank
                made.append(ids[left + right])
            except (KeyError, TypeError, ValueError):
                part.fail(f"entry {rank} of merges, {merge!r:.80}, does not make a token of the vocabulary out of two")
        return ranks, made

    def merges(self) -> list[list[str]]:
        """The pairs of tokens, in the order of their ranks."""
        tokens = self.vocabulary.tokens
        pairs = sorted(self._ranks, key=self._ranks.__getitem__)
        return [[tokens[pair // self._size] or "", tokens[pair % self._size] or ""] for pair in pairs]

    def tokenize(self, piece: str) -> list[int]:
        known = self._known.get(piece)
        if known is None:
            whole = self._ids.get(piece) if self._whole else None
            known = self._merge(self._characters(piece)) if whole is None else [whole]
            if len(piece) <= _LONG:
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[piece] = known
        return known

    def _characters(self, piece: str) -> list[int]:
        """An id for each character; of one that is no token its bytes, the unknown token, or nothing."""
        found: list[int] = []
        unknown = False  # one is to be added, after any bytes that come before the next known character
        for character in piece:
            index = self._ids.get(character)
            if index is None:
                if self._bytes is not None:
                    found += [self._bytes[byte] for byte in character.encode()]
                elif self._unknown is not None:
                    if unknown and not self._fuse_unknown:
                        found.append(self._unknown)
                    unknown = True
                continue
            if unknown and self._unknown is not None:
                found.append(self._unknown)
                unknown = False
            found.append(index)
        if unknown and self._unknown is not None:
            found.append(self._unknown)
        return found

    def _merge(self, ids: list[int]) -> list[int]:
        ranks, made, size, n = self._ranks, self._made, self._size, len(ids)
        if n < 2:
            return ids
        # One integer for rank and place: the best rank comes first, of equals the one on the left.
        heap = [
            rank * n + place
            for place, (left, right) in enumerate(pairwise(ids))
            if (rank := ranks.get(left * size + right)) is not None
        ]
        heapq.heapify(heap)
        following, before = [*range(1, n), -1], [*range(-1, n - 1)]
        gone = -1
        while heap:
            rank, place = divmod(heapq.heappop(heap), n)
            left, behind = ids[place], following[place]
            if left == gone or behind < 0:
                continue
            present = ranks.get(left * size + ids[behind])
            if present is None or made[present] != made[rank]:
                continue
            ids[place] = merged = made[rank]
            ids[behind] = gone
            after = following[place] = following[behind]
            if after >= 0:
                before[after] = place
                if (rank := ranks.get(merged * size + ids[after], -1)) >= 0:
                    heapq.heappush(heap, rank * n + place)
            ahead = before[place]
            if ahead >= 0 and (rank := ranks.get(ids[ahead] * size + merged, -1)) >= 0:
                heapq.heappush(heap, rank * n + ahead)
        return [index for index in ids if index != gone]
