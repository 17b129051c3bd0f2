"""Stop strings over text that arrives in pieces.

A stop string may begin in one piece and end three pieces later, so text that could still turn into one is
held back. Where the pieces are cut makes no difference: generation stops at the stop string that is
*completed* first, and if several are completed by the same character, at the one that began first.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import OptionError


class StopStrings:
    """Watches a stream of text for any of `stops`; what is emitted never contains one, nor anything after it.

    `matched` is the stop string that was found, or None.

    Raises:
        OptionError: an empty stop string (it would stop everything) or something that is not text.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self.stops = (stops,) if isinstance(stops, str) else tuple(stops)
        for stop in self.stops:
            if not isinstance(stop, str) or not stop:
                raise OptionError(f"a stop string must be a text of at least one character, found {stop!r}")
        self.matched: str | None = None
        self._held = ""

    @property
    def stopped(self) -> bool:
        return self.matched is not None

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next piece; returns what may be shown now, and whether a stop string is complete."""
        if self.stopped:
            return "", True
        text = self._held + text
        hits = [(start + len(stop), start, stop) for stop in self.stops if (start := text.find(stop)) >= 0]
        if hits:
            _, start, self.matched = min(hits)
            self._held = ""
            return text[:start], True
        safe = len(text) - self._open_suffix(text)
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """What was held back, once it is certain that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _open_suffix(self, text: str) -> int:
        """Length of the longest end of `text` with which some stop string begins."""
        longest = 0
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
