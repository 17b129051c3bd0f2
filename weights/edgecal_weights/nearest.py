"""Did you mean ...? The name that was probably meant, for messages about names that nothing has."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The name that was probably meant; None where nothing is near."""
    by_lower = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if found:
        return by_lower[found[0]]
    beginning = [name for lower, name in by_lower.items() if len(word) > 1 and lower.startswith(word.lower())]
    return beginning[0] if len(beginning) == 1 else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean 'linear'?)" or nothing, for behind the word in a message."""
    near = nearest(word, known)
    return f" (did you mean {near!r}?)" if near else ""
