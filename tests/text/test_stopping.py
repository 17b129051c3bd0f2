"""Stop strings: whatever the pieces, the result is that of searching the whole text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecal.errors import OptionError
from edgecal.text.stopping import StopStrings

# Two letters make overlaps, repeats and near misses likely.
text = st.text("ab", max_size=40)
stops = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def run(watcher: StopStrings, pieces: list[str]) -> tuple[str, bool]:
    emitted = ""
    for piece in pieces:
        new, stopped = watcher.push(piece)
        emitted += new
        if stopped:
            return emitted, True
    return emitted + watcher.flush(), False


def search(whole: str, stop_strings: list[str]) -> tuple[str, bool]:
    """The definition: cut before the stop string that ends first; of several, the longest."""
    found = [(at + len(stop), at) for stop in stop_strings if (at := whole.find(stop)) >= 0]
    return (whole[: min(found)[1]], True) if found else (whole, False)


@given(text, stops, st.lists(st.integers(0, 40), max_size=10))
def test_equals_search_in_the_whole_text(whole: str, stop_strings: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(edges)]
    assert run(StopStrings(stop_strings), pieces) == search(whole, stop_strings)


@given(text, stops)
def test_holds_back_no_more_than_needed(whole: str, stop_strings: list[str]) -> None:
    watcher = StopStrings(stop_strings)
    shown, stopped = watcher.push(whole)
    if not stopped:
        held = whole[len(shown) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stop_strings)
        # And nothing that is shown could have become a stop string together with what is held.
        for start in range(len(shown)):
            assert not any(stop.startswith(whole[start:]) for stop in stop_strings)


def test_reports_what_matched_and_stays_stopped() -> None:
    watcher = StopStrings(["\nUser:", "###"])
    assert watcher.push("Fine.\nUs") == ("Fine.", False)
    assert not watcher.stopped
    assert watcher.push("er: next") == ("", True)
    assert watcher.matched == "\nUser:"
    assert watcher.push("more") == ("", True)
    assert watcher.flush() == ""


def test_a_near_miss_is_released() -> None:
    watcher = StopStrings(["<end>"])
    assert watcher.push("a <e") == ("a ", False)
    assert watcher.push("m>b") == ("<em>b", False)
    assert watcher.push("<") == ("", False)
    assert watcher.flush() == "<"


def test_one_stop_string_need_not_be_a_list() -> None:
    assert StopStrings("ab").push("xaby") == ("x", True)


def test_without_stop_strings_text_passes() -> None:
    assert StopStrings().push("anything") == ("anything", False)


@pytest.mark.parametrize("bad", [[""], ["a", ""], [3]])
def test_refuses_what_cannot_stop(bad: list) -> None:
    with pytest.raises(OptionError, match="a stop string must be a text of at least one character"):
        StopStrings(bad)
