"""Rows of one's own: `input`, `reference` or `references`, and where they matter `id`, `language`, `tone`, `task`.

A row that names a task, a tone or a language serves that one only; the others serve every task that is asked.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..tasks import LANGUAGES, TONES, Task
from .dataset import Dataset, Example, Values, identity, text_of

_TEXTS = ("input", "text", "dialogue", "prompt")
_REFERENCES = ("reference", "target", "output", "summary", "reply")


def _examples(values: Values, task: Task) -> Iterable[Example]:
    for name, known in (("tone", TONES), ("language", LANGUAGES)):
        said = values.get(name)
        if said is None:
            continue
        if not isinstance(said, str) or said.lower() not in known:
            raise ValueError(f"unknown {name} {said!r}; known: {', '.join(known)}")
        if said.lower() != getattr(task, name):
            return
    if values.get("task") is not None and Task.parse(str(values["task"])) != task:
        return
    yield Example(identity(values, "id", "fname"), text_of(values, *_TEXTS), _references(values))


def _references(values: Values) -> tuple[str, ...]:
    several = values.get("references")
    if several is None:
        return (text_of(values, *_REFERENCES),)
    if not isinstance(several, list) or not several:
        raise ValueError("'references' has to be a list of texts, and not an empty one")
    return tuple(text_of({"references": item}, "references") for item in several)


OWN = Dataset(
    "own",
    "a file of one's own: input, reference or references, id, language, tone, task",
    "",
    lambda task: True,
    _examples,
)
