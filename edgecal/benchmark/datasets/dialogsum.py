"""DialogSum (Chen et al. 2021): spoken dialogues with a summary each, the test split with three. Paper 1's main set."""

from __future__ import annotations

from collections.abc import Iterable

from ..tasks import Task
from .dataset import Dataset, Example, Values, identity, text_of


def _examples(values: Values, task: Task) -> Iterable[Example]:
    several = [name for name in ("summary1", "summary2", "summary3") if name in values]
    references = tuple(text_of(values, name) for name in several or ["summary"])
    yield Example(identity(values, "fname", "id"), text_of(values, "dialogue"), references)


DIALOGSUM = Dataset(
    "dialogsum",
    "DialogSum: dialogues and summaries (test: three each)",
    "CC BY-NC-SA 4.0",
    lambda task: task == Task("summarize"),
    _examples,
    {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"},
)
