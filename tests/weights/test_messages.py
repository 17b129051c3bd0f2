"""What a file says may stand in a message: cut, and without what a terminal obeys."""

from __future__ import annotations

import pickle
import warnings

import pytest

from edgecal.errors import ContextLengthError, EdgecalError, RecipeError
from edgecal_kernels.errors import LONGEST_MESSAGE, as_message, printable, shown
from edgecal_weights.errors import EdgecalWarning
from edgecal_weights.files import exchange, is_number, parse_json


def test_a_long_message_keeps_its_beginning_and_its_end():
    message = str(RecipeError(f"recipe.yaml: the key 'method' is {'x' * 10_000!r}, expected a name"))
    assert len(message) == LONGEST_MESSAGE
    assert message.startswith("recipe.yaml: the key 'method' is 'xxx") and message.endswith("', expected a name")
    assert " [...] " in message
    assert str(EdgecalError("short")) == "short" and str(EdgecalError()) == ""


def test_control_characters_are_escapes():
    assert str(EdgecalError("a\x1b[2Jb\0c\u202e\ud800\nd é 日")) == "a\\x1b[2Jb\\x00c\\u202e\\ud800\nd é 日"
    assert len(str(EdgecalError("\x1b" * 600))) == LONGEST_MESSAGE
    assert printable("plain text") == "plain text"
    with pytest.warns(EdgecalWarning) as caught:
        warnings.warn(EdgecalWarning("\x07" + "y" * 900), stacklevel=1)
    told = str(caught[0].message)
    assert told.startswith("\\x07yyy") and len(told) == LONGEST_MESSAGE


def test_errors_survive_pickling_and_keep_what_they_carry():
    error = ContextLengthError("z" * 900, 5, 4)
    assert (error.n_tokens, error.limit, len(str(error))) == (5, 4, LONGEST_MESSAGE)
    again = pickle.loads(pickle.dumps(RecipeError("q" * 900)))
    assert str(again) == as_message("q" * 900)


def test_values_are_shown_shortened():
    assert shown("abc") == "'abc'" and shown(list(range(1000)))[-4:] == "1..." and len(shown("x" * 500)) == 80


@pytest.mark.parametrize(("depth", "taken"), [(100, True), (101, False), (900, False), (100_000, False)])
def test_json_nests_a_hundred_levels(depth, taken):
    for opened, closed in (("[", "]"), ('{"a":', "}")):
        text = opened * depth + "0" * (opened != "[") + closed * depth
        if taken:
            parse_json(text)
        else:
            with pytest.raises(ValueError, match="nested too deep: more than 100 levels"):
                parse_json(text)


def test_what_is_a_number():
    assert is_number(1) and is_number(-0.5) and is_number(10**300)
    assert not any(map(is_number, (True, "1", None, float("nan"), float("inf"), 10**400, [1])))


def test_two_folders_exchange_their_names(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    if exchange(one, other):
        assert (one / "name").read_text() == "other" and (other / "name").read_text() == "one"
    (tmp_path / "link").symlink_to(one)
    assert not exchange(tmp_path / "link", other) and not exchange(one, tmp_path / "nothing")
