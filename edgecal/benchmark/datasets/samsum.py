"""SAMSum (Gliwa et al. 2019): messenger chats with a summary each. Paper 2's set, and paper 1's out-of-domain set."""

from __future__ import annotations

from collections.abc import Iterable

from ..tasks import Task
from .dataset import Dataset, Example, Values, identity, text_of


def _examples(values: Values, task: Task) -> Iterable[Example]:
    yield Example(identity(values, "id"), text_of(values, "dialogue"), (text_of(values, "summary"),))


SAMSUM = Dataset(
    "samsum",
    "SAMSum: messenger chats and summaries",
    "CC BY-NC-ND 4.0",
    lambda task: task == Task("summarize"),
    _examples,
    {"train": "train.json", "validation": "validation.json", "test": "test.json"},
)
