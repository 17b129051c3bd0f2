"""Lengths as people write them, and what is refused."""

from __future__ import annotations

import pytest

from edgecal.errors import OptionError
from edgecal.profile import Plan
from edgecal.profile.plan import parse_lengths


def test_lists_keep_their_order_and_each_number_once():
    assert parse_lengths("512, 128,512", "-p") == (512, 128)
    assert parse_lengths("0", "-d") == (0,)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1.5", "1e3", "9" * 13, "1-4", "0x10", "٣٫"])
def test_what_is_no_list_of_lengths(text):
    with pytest.raises(OptionError, match="-p .*expected whole numbers between commas"):
        parse_lengths(text, "-p")


def test_bounds():
    with pytest.raises(OptionError, match="0 is below 1"):
        parse_lengths("0", "-t", least=1)
    with pytest.raises(OptionError, match="17 lengths, at most 16"):
        parse_lengths(",".join(map(str, range(17))), "-n")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": (0,), "new": (0,)}, "nothing to measure"),
        ({"prompts": (), "new": ()}, "nothing to measure"),
        ({"depths": ()}, "at least one depth"),
        ({"repeats": 0}, "repeats must be from 1"),
        ({"repeats": 10**9}, "repeats must be from 1"),
        ({"new": (-1,)}, "new are whole numbers"),
        ({"prompts": (1.5,)}, "prompts are whole numbers"),
        ({"threads": (0,)}, "threads are whole numbers of at least 1"),
        ({"temperature": -1.0}, "temperature must be"),
    ],
)
def test_impossible_plans(values, message):
    with pytest.raises(OptionError, match=message):
        Plan(**values)


def test_the_cases_are_the_product_without_zeros():
    plan = Plan((0, 8), (4,), (16, 0))
    assert list(plan.cases()) == [("prompt", 8, 0), ("decode", 4, 0), ("prompt", 8, 16), ("decode", 4, 16)]
    assert plan.longest == 24
