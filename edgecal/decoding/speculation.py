"""Drafts without a draft model: what followed the last time the text read like this (prompt lookup).

A summary, a reply or a rewrite copies names and phrases from its prompt. While it copies, the next tokens can be
guessed by looking up the latest ones in everything read and written so far. A guess of k tokens costs one forward pass
of k + 1 rows, which reads the weights once: where reading them is what takes the time, k right guesses come nearly for
free. The pass gives the logits after each of them, and the sampler chooses from these in order, one position after the
other, as it would have without a draft; at the first choice that is not the guess the rest is thrown away. An output
row has the same bits whatever pass computed it, and the sampler draws one random number per token, so the text is the
same token for token, greedy or sampled. (Prompt lookup: A. Saxena 2023; verification: Leviathan et al. 2023, arXiv
2211.17192, for the case of a draft that is certain.)

Three parts decide, and none of them looks at more than the last token and what it kept:

* `NgramIndex` finds the place. A dictionary per length maps the last 4 or 2 tokens to what followed them most
  recently; a place that goes on agreeing is kept, and the longer it has agreed the more it is believed.
* It also counts how often a match of each length was right. Whether a draft was made or not, the next token tells, so
  the rate of acceptance is known before anything is risked on it.
* `StepCosts` are measured times, `Speculator` is the choice: the length of draft with most expected tokens per second,
  or none. What may be lost to wrong guesses is bounded besides: half a step, and 1 % of the answer so far.

Trap: times decide how much is drafted, so the counts differ from run to run. The text never does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from ..errors import OptionError

Speculate = Literal["auto", "off"] | int
LONGEST_DRAFT = 15  # of "auto": a pass of 16 rows
LONGEST_SETTING = 63
_LENGTHS = (4, 2)  # of the n-grams that are looked up, longest first
_BITS = 22  # a vocabulary has fewer ids (config.py refuses more)
_MASKS = tuple((1 << _BITS * n) - 1 for n in _LENGTHS)
# Length of a match, up to: how likely it goes on, before anything is known (summaries and replies of the demo model)
_RATES = ((2, 0.5), (4, 0.5), (7, 0.6), (12, 0.85), (1 << 62, 0.95))
_MEMORY = 16  # trials after which older ones fade
_GAIN = 1.05  # expected speed-up from which a draft is worth it
_SLOPE = 0.25  # what one more row costs, in passes of one row, as long as it was not measured
_TRUST = 20.0  # in it, as a sum of squares
_FADE, _FORGET = 0.97, 0.002  # per pass of several rows, and of one
_OUTLIER = 2.0  # times what was expected: more is not believed
_ALLOWANCE, _SHARE = 0.5, 0.01  # passes that may be lost: at once, and per token of the answer
_CREDIT = 4.0  # the most that earlier gains count against later losses


def check_speculate(value: object) -> None:
    """OptionError unless it is "auto", "off" or a length of drafts from 0 (off) to 63."""
    if value in ("auto", "off") and isinstance(value, str):
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LONGEST_SETTING:
        raise OptionError(
            f"speculate must be 'auto', 'off' or the length of drafts, 0 to {LONGEST_SETTING}; found {value!r}"
        )


class NgramIndex:
    """The text so far, and the place in it that continues like its end. Constant work per token.

    `match` is the length over which the two are known to agree, 0 for none; it is at least the shortest n-gram.
    """

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self.ids: list[int] = []
        self.match = 0
        self._next = 0  # the place: ids[_next] is the guess
        self._key = 0  # the last 4 ids in one number
        self._places: tuple[dict[int, int], ...] = tuple({} for _ in _LENGTHS)
        self._rates = [[rate, 4.0] for _, rate in _RATES]  # estimate, trials that it stands for
        for token in ids:
            self._add(token)

    def append(self, token: int) -> None:
        """The next token of the answer; whether the guess was right is counted."""
        if self.match:
            rate = self._rates[_bucket(self.match)]
            rate[0] += ((self.ids[self._next] == token) - rate[0]) / (rate[1] + 1)
            rate[1] = min(rate[1] + 1, _MEMORY)
        self._add(token)

    def _add(self, token: int) -> None:
        ids = self.ids
        goes_on = self.match > 0 and ids[self._next] == token
        ids.append(token)
        here = len(ids)
        if goes_on:
            self.match, self._next = self.match + 1, self._next + 1
        else:
            self.match = 0
        self._key = key = (self._key << _BITS | token) & _MASKS[0]
        for length, mask, places in zip(_LENGTHS, _MASKS, self._places, strict=True):
            if here < length:
                continue
            part = key & mask
            if length > self.match:
                found = places.get(part)
                if found is not None:
                    self.match, self._next = length, found
            places[part] = here

    def rate(self, match: int) -> float:
        """How likely a match of this length goes on for another token."""
        return self._rates[_bucket(match)][0]

    def guess(self, length: int) -> list[int]:
        """The next `length` tokens if the text repeats itself; none without a match."""
        if not self.match:
            return []
        found = self.ids[self._next : self._next + length]
        period = len(found)
        while len(found) < length:  # the place is near the end: the text runs in a circle
            found.append(found[-period])
        return found


def _bucket(match: int) -> int:
    return next(i for i, (longest, _) in enumerate(_RATES) if match <= longest)


class StepCosts:
    """What forward passes cost, as measured lately: seconds of one row, and what each further row adds, as a share of
    that. One for all requests of a model.

    Further rows cost about the same each (measured: 1.8, 2.7 and 4.2 passes of one row for 5, 9 and 16 on the demo
    model), so one number, fitted to all passes, is known sooner and better than a time for each length. Single outliers
    (another process, the first call of a kernel) count for little. Threads may share it: a lost update is a
    measurement less.
    """

    def __init__(self) -> None:
        self.one_row: float | None = None
        self._xx, self._xy = _TRUST, _TRUST * _SLOPE  # of the fit y = slope * x, x rows beyond the first

    @property
    def slope(self) -> float:
        return self._xy / self._xx

    def ratio(self, rows: int) -> float:
        """What a pass of `rows` takes, in passes of one."""
        return 1.0 + (rows - 1) * self.slope

    def measured(self, rows: int, seconds: float) -> None:
        one = self.one_row
        if one is None:
            self.one_row = seconds if rows == 1 else None
            return
        # The same limit for both kinds: on a busy machine the times of one must not seem to grow more than the other's
        seconds = min(seconds, _OUTLIER * one * self.ratio(rows))
        if rows == 1:
            self.one_row = one + (seconds - one) * (0.3 if seconds < 0.8 * one else 0.1)
            # What was learned long ago gives way: an unlucky measurement must not end drafting for ever
            self._xx += _FORGET * (_TRUST - self._xx)
            self._xy += _FORGET * (_TRUST * _SLOPE - self._xy)
        else:
            x, y = rows - 1, max(seconds / one - 1, 0.0)
            self._xx, self._xy = _FADE * self._xx + x * x, _FADE * self._xy + x * y


class Speculator:
    """Says before each forward pass of one answer what to add to it.

    `setting` is "auto" or the length of every draft (as far as there is something to guess from).
    """

    def __init__(self, ids: Iterable[int], setting: Speculate, costs: StepCosts) -> None:
        self.costs = costs
        self._index = NgramIndex(ids)
        self._fixed = setting if isinstance(setting, int) else None
        self._drafted = 0  # length of the last draft
        self._lost = 0.0  # in passes of one row; negative when drafts have paid

    def draft(self, tokens: Sequence[int], room: int) -> list[int]:
        """The guess to verify in the next pass, at most `room` tokens, often none. `tokens` are those that the last
        pass gave: what was right of the draft before, and one more."""
        for token in tokens:
            self._index.append(token)
        gained = len(tokens) - self.costs.ratio(self._drafted + 1)
        self._lost = max(self._lost - (gained if self._drafted else 0.0) - _SHARE * len(tokens), -_CREDIT)
        length = 0
        if self._index.match and room > 0:
            length = self._best_length(min(room, LONGEST_DRAFT)) if self._fixed is None else min(self._fixed, room)
        self._drafted = length
        return self._index.guess(length) if length else []

    def _best_length(self, longest: int) -> int:
        if self.costs.one_row is None:
            return 0
        best, best_gain = 0, _GAIN
        expected, all_right = 1.0, 1.0  # tokens of the pass; that the whole draft is right
        for length in range(1, longest + 1):
            all_right *= self._index.rate(self._index.match + length - 1)
            expected += all_right
            ratio = self.costs.ratio(length + 1)
            if self._lost + ratio - 1 > _ALLOWANCE:
                break
            if expected / ratio > best_gain:
                best, best_gain = length, expected / ratio
        return best
