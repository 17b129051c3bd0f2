"""SafePattern means what `re` means, and never takes long."""

from __future__ import annotations

import re
import warnings

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgecal_weights.errors import AdapterError
from edgecal_weights.safe_pattern import PatternBudget, SafePattern
from tests.work import counted

ATOMS = [
    "a",
    "b",
    ".",
    "[ab]",
    "[^a]",
    "[a-c1]",
    r"\.",
    r"\w",
    r"\d",
    r"\W",
    "1",
    "(?:ab|a)",
    "(a|b1)",
    r"\b",
    r"\B",
]
ATOMS += ["^", "$", r"\A", r"\Z", "(?=a)", "(?!b)", "(?:)", "", r"[^\d.]", r"\S"]
PATTERNS = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{0,2}", "{2}", "{1,}", "*?", "+?", "??"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=8,
)
# Never empty, as module names are: what \B means on "" differs between versions of Python.
TEXTS = st.text("ab.1", min_size=1, max_size=8)


def compiled(pattern: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return re.compile(pattern)


@settings(max_examples=400, deadline=None)
@given(PATTERNS, TEXTS)
def test_equals_re_fullmatch(pattern: str, text: str) -> None:
    expected = compiled(pattern).fullmatch(text) is not None
    assert SafePattern(pattern, "test", PatternBudget()).matches(text) == expected


@settings(max_examples=200, deadline=None)
@given(PATTERNS, TEXTS)
def test_suffix_equals_pefts_rule(pattern: str, text: str) -> None:
    try:
        expected = compiled(rf"(.*\.)?({pattern})$").match(text) is not None
    except re.error:
        assume(False)
    assert SafePattern(pattern, "test", PatternBudget(), suffix=True).matches(text) == expected


UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|k_proj|down_proj))"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:q_proj|k_proj|v_proj|down_proj)))"
)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        (UNSLOTH, "model.layers.12.mlp.down_proj", True),
        (UNSLOTH, "model.layers.12.mlp.up_proj", False),
        (r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$", "decoder.block.0.SelfAttention.q", True),
        (r"^(?!.*visual).*(q_proj|k_proj)$", "model.layers.0.self_attn.k_proj", True),
        (r"^(?!.*visual).*(q_proj|k_proj)$", "visual.layers.0.self_attn.k_proj", False),
        (r"^(model(?=\.).*\.(q_proj|v_proj))$", "model.layers.0.self_attn.v_proj", True),
    ],
)
def test_patterns_of_real_trainers(pattern: str, name: str, expected: bool) -> None:
    assert SafePattern(pattern, "test", PatternBudget()).matches(name) is expected
    assert (re.fullmatch(pattern, name) is not None) is expected


BOMBS = [
    "(a+)+b",
    "(a|a)*b",
    "((((a*)*)*)*)*b",
    "(.*)*(.*)*(.*)*x",
    "(x+x+)+y" * 100,
    ".*?" * 1000 + "x",
    "(?:a?){4000000000}b",
    "(?:){1000000000}",
    "(?=(a+)+b)" * 50,
    "(?:" + "|".join(["(?:a*)*"] * 400) + ")*b",
    "(" * 2000 + ")" * 2000,
    "a" * 100_000,
]


@pytest.mark.parametrize("pattern", BOMBS, ids=lambda pattern: pattern[:12])
def test_bombs_end_quickly(pattern: str) -> None:
    budget = PatternBudget(200_000)
    try:
        with counted(5_000_000):  # the parser's own included
            matcher = SafePattern(pattern, "file: key", budget)
            assert not any(matcher.matches("a" * 200) for _ in range(10)) or "b" not in pattern
    except AdapterError as error:
        assert "file: key" in str(error)


@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        (r"(a)\1", "back-reference"),
        ("(?i)a", "inline flags"),
        ("(?i:a)", "inline flags"),
        ("(?<=a)b", "lookbehind"),
        ("(", "not a regular expression"),
    ],
)
def test_what_is_not_served_is_named(pattern: str, word: str) -> None:
    with pytest.raises(AdapterError, match=word):
        SafePattern(pattern, "file", PatternBudget()).matches("ab")
