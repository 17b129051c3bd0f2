"""DialogSumX (ConvSumX, Feng et al. 2023): English dialogues of DialogSum with human summaries in other languages."""

from __future__ import annotations

from collections.abc import Iterable

from ..tasks import LANGUAGES, Task
from .dataset import Dataset, Example, Values, identity, text_of


def _examples(values: Values, task: Task) -> Iterable[Example]:
    column = f"{LANGUAGES[task.language]}_summary" if task.language else "en_summary"
    yield Example(identity(values, "fname", "id"), text_of(values, "en_dialogue"), (text_of(values, column),))


DIALOGSUMX = Dataset(
    "dialogsumx",
    "DialogSumX: English dialogues, summaries in French and English",
    "none stated",
    lambda task: task in (Task("summarize"), Task("summarize", language="french")),
    _examples,
    {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"},
)
