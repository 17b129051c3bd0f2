"""What is measured on one answer: overlap with the references, and whether it did both tasks.

ROUGE is the rouge-score library's. Its own tokenizer keeps a-z and 0-9 only: "résumé" becomes "r sum". So overlap is
reported twice, by that tokenizer (what other papers print) and by one that knows all letters (`rougeN_unicode`), which
is what counts outside English. Of several references the best counts, as the smart-reply papers do.

Weighted ROUGE is paper 1's R1/6 + R2/3 + R3/2. Everything is a share between 0 and 1, the length ratio apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..decoding.repetition import RepetitionDetector
from ..errors import BenchmarkError
from .tasks import LANGUAGES, Task

ROUGE = ("rouge1", "rouge2", "rouge3", "rougeL")
WEIGHTS = {"rouge1": 1 / 6, "rouge2": 1 / 3, "rouge3": 1 / 2}
_WORD = re.compile(r"\w+")
_COPIED = 8  # words in a row that stand in the input as well
_INSTALL = "install the benchmark's extra: pip install 'edgecal[eval]'"

FAILURES = ("empty", "wrong language", "continued the dialogue", "copied the input", "repeated itself")
"""What an answer may be in the place of one, in the order in which it is judged."""


class UnicodeTokenizer:
    """Words of any script, in lower case; rouge-score's interface."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def weighted_rouge(scores: Mapping[str, float]) -> float:
    """R1/6 + R2/3 + R3/2 (paper 1)."""
    return sum(weight * scores[name] for name, weight in WEIGHTS.items())


class Metrics:
    """Scores of answers to one task. `stemmer` is rouge-score's Porter stemmer, for its own tokenizer only."""

    def __init__(self, task: Task, *, stemmer: bool = False) -> None:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise BenchmarkError(f"ROUGE needs the library rouge-score; {_INSTALL}") from error
        self.task = task
        self._scorers = {
            "": RougeScorer(list(ROUGE), use_stemmer=stemmer),
            "_unicode": RougeScorer(list(ROUGE), tokenizer=UnicodeTokenizer()),
        }

    def scores(self, answer: str, text: str, references: Sequence[str]) -> dict[str, Any]:
        """Every metric by name; those of overlap only where there are references."""
        found: dict[str, Any] = {}
        if references:
            for ending, scorer in self._scorers.items():
                best = self._best(scorer, answer, references)
                found |= {f"{name}{ending}": value for name, value in best.items()}
                found[f"weighted_rouge{ending}"] = weighted_rouge(best)
            found["length_ratio"] = length_ratio(answer, references)
        asked = LANGUAGES.get(self.task.language or "", "en")
        said = language_of(answer)
        found |= {
            "language": said,
            "right_language": float(said == asked),
            "copy_rate": copy_rate(answer, text),
            "repetition_rate": repetition_rate(answer),
        }
        found["failure"] = failure_of(answer, text, found)
        return found

    @staticmethod
    def _best(scorer: Any, answer: str, references: Sequence[str]) -> dict[str, float]:
        """F-measures against the reference that gives the highest of each."""
        each = [scorer.score(reference, answer) for reference in references]
        return {name: max(float(one[name].fmeasure) for one in each) for name in ROUGE}


def length_ratio(answer: str, references: Sequence[str]) -> float:
    """Words of the answer by those of the references on average."""
    mean = sum(len(_WORD.findall(reference)) for reference in references) / len(references)
    return len(_WORD.findall(answer)) / mean if mean else 0.0


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def copy_rate(answer: str, text: str, n: int = 4) -> float:
    """Share of the answer's runs of `n` words that stand in the input as well; 0 for shorter answers."""
    tokenize = UnicodeTokenizer().tokenize
    mine, there = _grams(tokenize(answer), n), set(_grams(tokenize(text), n))
    return sum(gram in there for gram in mine) / len(mine) if mine else 0.0


def repetition_rate(answer: str, n: int = 4) -> float:
    """Share of the answer's runs of `n` words that have been there before (1 - distinct / all)."""
    grams = _grams(UnicodeTokenizer().tokenize(answer), n)
    return 1 - len(Counter(grams)) / len(grams) if grams else 0.0


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """py3langid's model, among the benchmark's languages and English: an answer in any other is wrong all the same."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise BenchmarkError(f"telling languages needs the library py3langid; {_INSTALL}") from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(["en", *LANGUAGES.values()])
    return identifier


def language_of(text: str) -> str:
    """ISO 639-1 code, of the benchmark's languages and English; empty for a text without letters."""
    if not any(char.isalpha() for char in text):
        return ""
    return str(_identifier().classify(text)[0])


def loops(answer: str) -> bool:
    """Whether it runs into a loop, as the detector that ends such answers judges."""
    return RepetitionDetector().push(answer + " " * 16)


def failure_of(answer: str, text: str, scores: Mapping[str, Any]) -> str:
    """The first of FAILURES that it is; empty for none."""
    if not answer.strip():
        return "empty"
    if not scores["right_language"]:
        return "wrong language"
    if continues(answer, text):
        return "continued the dialogue"
    if scores["copy_rate"] > 0.6 and len(_WORD.findall(answer)) >= _COPIED:
        return "copied the input"
    return "repeated itself" if loops(answer) or scores["repetition_rate"] > 0.5 else ""


def continues(answer: str, text: str) -> bool:
    """Whether it is more of the dialogue: two lines or more that begin with the name of a speaker of the input."""
    speakers = set(re.findall(r"^([^:\n]{1,30}):", text, re.MULTILINE))
    said = re.findall(r"^([^:\n]{1,30}):", answer, re.MULTILINE)
    return sum(name in speakers for name in said) >= 2
