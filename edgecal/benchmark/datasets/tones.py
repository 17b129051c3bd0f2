"""llm-toys: texts in a casual, professional and witty tone, and paraphrased. The source of paper 1's tone tasks."""

from __future__ import annotations

from collections.abc import Iterable

from ..tasks import Task
from .dataset import Dataset, Example, Values, text_of


def _examples(values: Values, task: Task) -> Iterable[Example]:
    yield Example("", text_of(values, "original"), (text_of(values, str(task.tone)),))


TONES = Dataset(
    "tones",
    "llm-toys: a text, casual, professional, witty and paraphrased",
    "Apache-2.0",
    lambda task: task.tone is not None and task == Task(tone=task.tone),
    _examples,
    {"test": "paraphrase_tone.json"},
)
