"""mini: 30 short dialogues that ship with edgecal, with references for all 14 sub-tasks. `mini/card.md` says how it was
made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..tasks import Task
from .dataset import Dataset, Example, Values, identity, text_of

FOLDER = Path(__file__).parents[1] / "mini"
_MAIN = {"summarize": "summary", "reply": "reply"}


def _examples(values: Values, task: Task) -> Iterable[Example]:
    texts = values[_MAIN[str(task.main)]]
    yield Example(
        identity(values, "id"), text_of(values, "dialogue"), (text_of(texts, task.tone or task.language or "plain"),)
    )


MINI = Dataset(
    "mini",
    "30 dialogues that ship with edgecal, all 14 sub-tasks",
    "Apache-2.0",
    lambda task: task.main is not None and not (task.tone and task.language),
    _examples,
    {"test": "mini.jsonl"},
)
