"""Scores: ROUGE as the library has it, Weighted ROUGE by hand, languages on real lines, failures on made-up answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from edgecal.benchmark import Task, load_examples
from edgecal.benchmark.metrics import ROUGE, Metrics, copy_rate, language_of, repetition_rate, weighted_rouge
from edgecal.benchmark.statistics import difference, estimate

SUMMARY, FRENCH = Task("summarize"), Task("summarize", language="french")
TATOEBA = Path(__file__).parent / "tatoeba.tsv"  # a few lines of each language: Tatoeba, CC BY 2.0 FR
NAMES = ("the", "a", "cat", "dog", "sat", "on", "mat", "ran", "home", "again")
WORDS = st.lists(st.sampled_from(NAMES), max_size=12).map(" ".join)


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_is_that_of_the_library(stemmer):
    """To the last digit, on every pair of a summary and another one."""
    texts = [e.references[0] for e in load_examples("mini", SUMMARY).examples]
    library, ours = RougeScorer(list(ROUGE), use_stemmer=stemmer), Metrics(SUMMARY, stemmer=stemmer)
    for reference, answer in zip(texts, texts[1:] + texts[:1], strict=True):
        theirs = library.score(reference, answer)
        found = ours.scores(answer, "", [reference])
        assert [found[name] for name in ROUGE] == [theirs[name].fmeasure for name in ROUGE]


def test_weighted_rouge_by_hand():
    """Reference "a b c d", answer "a b c x": of 4 words 3, of 3 pairs 2, of 2 triples 1: F 0.75, 0.667, 0.5."""
    found = Metrics(SUMMARY).scores("a b c x", "", ["a b c d"])
    assert [found[name] for name in ROUGE] == pytest.approx([3 / 4, 2 / 3, 1 / 2, 3 / 4])
    assert found["weighted_rouge"] == pytest.approx(0.75 / 6 + (2 / 3) / 3 + 0.5 / 2)
    assert weighted_rouge({"rouge1": 1, "rouge2": 1, "rouge3": 1}) == pytest.approx(1)


def test_of_several_references_the_best_counts():
    metrics = Metrics(SUMMARY)
    each = [metrics.scores("a b c", "", [reference])["rouge1"] for reference in ("a x y", "a b c d", "z")]
    assert metrics.scores("a b c", "", ["a x y", "a b c d", "z"])["rouge1"] == max(each)
    assert metrics.scores("a b", "", ["a b c d", "a b"])["length_ratio"] == pytest.approx(2 / 3)


def test_accents_are_letters_in_the_second_figure_only():
    """rouge-score's tokenizer makes "r sum" of "résumé": parts of other words count as the same word."""
    found = Metrics(FRENCH).scores("résumé", "", ["r sum"])
    assert found["rouge1"] == 1 and found["rouge1_unicode"] == 0
    same = Metrics(FRENCH).scores("Élève à l'école", "", ["élève à l'école"])
    assert same["rouge1_unicode"] == 1


@given(WORDS, WORDS)
def test_scores_are_shares(answer, reference):
    found = Metrics(SUMMARY).scores(answer, "the cat sat on the mat", [reference])
    assert all(0 <= v <= 1 for k, v in found.items() if isinstance(v, float) and k != "length_ratio")
    assert copy_rate(answer, answer) in (0, 1) and 0 <= repetition_rate(answer) <= 1


def lines() -> list[tuple[str, str]]:
    return [tuple(line.split("\t")) for line in TATOEBA.read_text("utf-8").splitlines()]  # type: ignore[misc]


def test_languages_of_real_lines(record_property):
    """Sentences of people, of the length of a short answer."""
    right: dict[str, list[bool]] = {}
    for code, text in lines():
        right.setdefault(code, []).append(language_of(text) == code)
    accuracy = {code: sum(found) / len(found) for code, found in right.items()}
    for code, share in accuracy.items():
        record_property(f"accuracy {code}", share)
    assert set(accuracy) == {"en", "es", "fr", "de"} and min(accuracy.values()) >= 0.9, accuracy


def test_languages_of_minis_references():
    """Every one of the 180 translations is told from the other languages, and all English versions are English."""
    for word, code in (("spanish", "es"), ("french", "fr"), ("german", "de")):
        for main in ("summarize", "reply"):
            texts = [e.references[0] for e in load_examples("mini", Task(main, language=word)).examples]
            assert {language_of(text) for text in texts} == {code}
    assert {language_of(e.references[0]) for e in load_examples("mini", SUMMARY).examples} == {"en"}
    assert language_of("12:30!") == language_of("") == ""


INPUT = "Ann: Shall we meet at the station at nine tomorrow morning?\nBob: Yes, and bring the tickets with you, please."


@pytest.mark.parametrize(
    ("answer", "task", "failure"),
    [
        ("Ann and Bob will meet at nine.", SUMMARY, ""),
        (" \n", SUMMARY, "empty"),
        ("Ann and Bob will meet at the station.", FRENCH, "wrong language"),
        ("Ann et Bob se retrouvent à la gare demain matin.", FRENCH, ""),
        ("Ann et Bob se retrouvent à la gare demain matin.", SUMMARY, "wrong language"),
        ("Ann: Fine, I will do that.\nBob: Good, see you then.", SUMMARY, "continued the dialogue"),
        ("Ann: Fine, I will do that.", SUMMARY, ""),
        ("Shall we meet at the station at nine tomorrow morning?", SUMMARY, "copied the input"),
        ("They will meet and talk about it. " * 20, SUMMARY, "repeated itself"),
    ],
)
def test_failures(answer, task, failure):
    assert Metrics(task).scores(answer, INPUT, ["x"])["failure"] == failure


def test_without_references_there_is_no_overlap():
    found = Metrics(SUMMARY).scores("Ann and Bob meet.", INPUT, [])
    assert "rouge1" not in found and "length_ratio" not in found and found["failure"] == ""


def test_intervals_hold_the_mean_and_repeat():
    values = [0.1, 0.5, 0.4, 0.9, 0.3] * 10
    one = estimate(values)
    assert one.mean == pytest.approx(0.44) and one.low < one.mean < one.high and one == estimate(values)
    # for independent draws the interval is that of the normal distribution, within the noise of 2,000 draws
    half = 1.96 * (sum((v - 0.44) ** 2 for v in values) / len(values) / len(values)) ** 0.5
    assert one.high - one.low == pytest.approx(2 * half, rel=0.1)
    same = difference([v + 0.1 for v in values], values)
    assert (same.low, same.mean, same.high) == pytest.approx((0.1, 0.1, 0.1)), "pair by pair nothing varies"
    with pytest.raises(ValueError, match="pairs are needed"):
        difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no values"):
        estimate([])
