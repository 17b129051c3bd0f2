"""What a benchmark asks: a main task, an auxiliary one, both at once (paper 1), or a main one with two auxiliary ones.

A task is written as its parts with a plus between them: `summarize`, `french`, `summarize+professional`,
`summarize+professional+spanish`. Paper 1's benchmark is the 4 compositional tasks `summarize+translate`,
`summarize+tone`, `reply+translate`, `reply+tone` with 14 sub-tasks; a group's name stands for all of its sub-tasks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import BenchmarkError

MAIN = ("summarize", "reply")
LANGUAGES = {"spanish": "es", "french": "fr", "german": "de"}
"""Paper 1's, with their ISO 639-1 codes."""
TONES = ("professional", "casual", "witty", "paraphrase")


@dataclass(frozen=True)
class Task:
    """`main` is one of MAIN or None; `tone` and `language` (an English name in lower case) are the auxiliary tasks."""

    main: str | None = None
    tone: str | None = None
    language: str | None = None

    @property
    def name(self) -> str:
        return "+".join(part for part in (self.main, self.tone, self.language) if part)

    @property
    def kind(self) -> str:
        """The name of its instruction in a prompt set: `summarize+tone+translate`."""
        parts = (self.main, self.tone and "tone", self.language and "translate")
        return "+".join(part for part in parts if part)

    @property
    def steps(self) -> tuple[Task, ...]:
        """The single tasks that it is made of, in the order of a pipeline."""
        single = (Task(main=self.main), Task(tone=self.tone), Task(language=self.language))
        return tuple(task for task in single if task.name)

    @classmethod
    def parse(cls, name: str) -> Task:
        """BenchmarkError for a name that is no task."""
        found: dict[str, str] = {}
        for part in name.lower().split("+"):
            kind = "main" if part in MAIN else "tone" if part in TONES else "language" if part in LANGUAGES else None
            if kind is None or kind in found:
                wrong = f"a second {kind}" if kind else "unknown"
                raise BenchmarkError(
                    f"task {name!r}: {part!r} is {wrong}; a task is summarize or reply, a tone ({', '.join(TONES)}) or "
                    f"a language ({', '.join(LANGUAGES)}), with a plus between them"
                )
            found[kind] = part
        return cls(**found)


SUB_TASKS = tuple(
    Task(main, **{kind: value})
    for main in MAIN
    for kind, values in (("language", LANGUAGES), ("tone", TONES))
    for value in values
)
"""Paper 1's fourteen."""
GROUPS = tuple(dict.fromkeys(task.kind for task in SUB_TASKS))
"""Paper 1's four."""


def parse_tasks(names: Iterable[str]) -> list[Task]:
    """Tasks by name, a group's or `all` standing for its sub-tasks, each once and in order. BenchmarkError."""
    found: list[Task] = []
    for name in names:
        if name == "all":
            found += SUB_TASKS
        elif name in GROUPS:
            found += [task for task in SUB_TASKS if task.kind == name]
        else:
            found.append(Task.parse(name))
    return list(dict.fromkeys(found))
