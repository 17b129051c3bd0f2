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


# "X" and "Y" stand for special tokens in the written text; an upper-case letter is hidden.
written = st.text("abXY", max_size=30)
naming = st.lists(st.text("abXY", min_size=1, max_size=4), max_size=4)


def by_definition(whole: str, stop_strings: list[str]) -> tuple[str, bool]:
    """Stop strings that name a token are searched in what is written, the others in what is shown."""
    found = []
    for stop in stop_strings:
        if any(token in stop for token in "XY"):
            # A token that no stop string contains is not there at all.
            seen = [i for i, c in enumerate(whole) if c.islower() or any(c in other for other in stop_strings)]
        else:
            seen = [i for i, c in enumerate(whole) if c.islower()]
        at = "".join(whole[i] for i in seen).find(stop)
        if at >= 0:
            found.append((seen[at + len(stop) - 1] + 1, seen[at]))
    end = min(found)[1] if found else len(whole)
    return "".join(c for c in whole[:end] if c.islower()), bool(found)


@given(written, naming, st.lists(st.integers(0, 30), max_size=8))
def test_special_tokens_take_part_and_are_not_shown(whole: str, stop_strings: list[str], cuts: list[int]) -> None:
    watcher, emitted, stopped = StopStrings(stop_strings, "XY"), "", False
    edges = {0, len(whole), *(min(cut, len(whole)) for cut in cuts)}
    edges |= {i + 1 for i, char in enumerate(whole) if char.isupper()}
    for a, b in pairwise(sorted(edges)):
        piece = whole[a:b]
        special = piece[-1] if piece[-1].isupper() else ""
        new, stopped = watcher.push(piece.removesuffix(special), special)
        emitted += new
        if stopped:
            break
    assert (emitted + watcher.flush(), stopped) == by_definition(whole, stop_strings)


def test_special_tokens_that_no_stop_string_contains_do_not_matter() -> None:
    watcher = StopStrings(["<", "ab", "end|>x"], ["<|end|>"])
    assert not watcher.watches("<|end|>")
    assert watcher.push("a", "<|end|>") == ("", False)
    assert watcher.push("b") == ("", True)


@pytest.mark.parametrize("stop", ["<|start|>", "b<|start|>", "<|start|>user", "b<|start|>user", "<|end|><|start|>"])
def test_a_stop_string_of_special_tokens(stop: str) -> None:
    watcher = StopStrings([stop], ["<|start|>", "<|end|>", ""])
    shown = ""
    for text, special in [("ab", ""), ("", "<|end|>"), ("", ""), ("b", "<|start|>"), ("us", ""), ("er", "")]:
        new, stopped = watcher.push(text, special)
        shown += new
        if stopped:
            break
    # "<|end|><|start|>" has a "b" in between here, and the watched "<|end|>" shows in no text
    assert stopped == (stop != "<|end|><|start|>")
    expected = {"<|start|>": "abb", "<|start|>user": "abb", "<|end|><|start|>": "abbuser"}
    assert shown + watcher.flush() == expected.get(stop, "ab")


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
