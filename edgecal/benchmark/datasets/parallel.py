"""Sentence pairs as Tatoeba and TED give them: English TAB translation in en-es.tsv, en-fr.tsv, en-de.tsv, or JSON
lines with {"translation": {"en": ..., "fr": ...}}, as such sets are on the hub."""

from __future__ import annotations

from collections.abc import Iterable

from ..tasks import LANGUAGES, Task
from .dataset import Dataset, Example, Values, text_of


def _examples(values: Values, task: Task) -> Iterable[Example]:
    pair = values.get("translation", values)
    yield Example("", text_of(pair, "0", "en"), (text_of(pair, "1", LANGUAGES.get(task.language or "", "")),))


PARALLEL = Dataset(
    "parallel",
    "sentence pairs, English and another language (Tatoeba, TED)",
    "Tatoeba: CC BY 2.0",
    lambda task: task.language is not None and task == Task(language=task.language),
    _examples,
    {"test": "en-{code}.tsv"},
)
