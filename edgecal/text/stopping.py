"""Stop strings over text that arrives in pieces.

A stop string may begin in one piece and end three pieces later, so text that could still turn into one is
held back. Where the pieces are cut makes no difference: generation stops at the stop string that is
*completed* first, and if several are completed by the same character, at the one that began first.

Special tokens are not shown, but a stop string may name one ("<|im_start|>", "\\nUser<|im_start|>"). Such stop
strings are searched in the text with those tokens written out, all others in what is shown.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import OptionError


class StopStrings:
    """Watches a stream of text for any of `stops`; what is emitted never contains one, nor anything after it.

    `matched` is the stop string that was found, or None.

    Args:
        stops: texts to stop at.
        special_tokens: the written form of tokens that are not shown. Those that no stop string contains do not matter.

    Raises:
        OptionError: an empty stop string (it would stop everything) or something that is not text.
    """

    def __init__(self, stops: Iterable[str] = (), special_tokens: Iterable[str] = ()) -> None:
        self.stops = (stops,) if isinstance(stops, str) else tuple(stops)
        for stop in self.stops:
            if not isinstance(stop, str) or not stop:
                raise OptionError(f"a stop string must be a text of at least one character, found {stop!r}")
        self._watched = {token for token in special_tokens if token and any(token in stop for stop in self.stops)}
        self._naming = tuple(stop for stop in self.stops if any(token in stop for token in self._watched))
        self._plain = tuple(stop for stop in self.stops if stop not in self._naming)
        self.matched: str | None = None
        self._held = ""
        self._shown: list[bool] = []  # for each character of _held

    @property
    def stopped(self) -> bool:
        return self.matched is not None

    def watches(self, special_token: str) -> bool:
        """Whether a stop string contains this special token."""
        return special_token in self._watched

    def push(self, text: str, special_token: str = "") -> tuple[str, bool]:
        """Take the next piece, and the special token behind it.

        Returns what may be shown now, and whether a stop string is complete.
        """
        if self.stopped:
            return "", True
        hidden = special_token if self.watches(special_token) else ""
        text, shown = self._held + text + hidden, [*self._shown, *[True] * len(text), *[False] * len(hidden)]
        places = [place for place, visible in enumerate(shown) if visible]
        visible = "".join(text[place] for place in places)
        hits = [(start + len(stop), start, stop) for stop in self._naming if (start := text.find(stop)) >= 0]
        for stop in self._plain:
            if (start := visible.find(stop)) >= 0:
                hits.append((places[start + len(stop) - 1] + 1, places[start], stop))
        if hits:
            _, end, self.matched = min(hits)
        else:
            end = len(text) - _open_suffix(text, self._naming)
            if open_suffix := _open_suffix(visible, self._plain):
                end = min(end, places[len(visible) - open_suffix])
        self._held, self._shown = ("", []) if hits else (text[end:], shown[end:])
        return "".join(text[place] for place in places if place < end), self.stopped

    def flush(self) -> str:
        """What was held back, once it is certain that nothing follows."""
        held = "".join(char for char, visible in zip(self._held, self._shown, strict=True) if visible)
        self._held, self._shown = "", []
        return held


def _open_suffix(text: str, stops: Iterable[str]) -> int:
    """Length of the longest end of `text` with which some stop string begins."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
