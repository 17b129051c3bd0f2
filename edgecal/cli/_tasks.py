"""--task, --tone and --language: the instruction in front of a text."""

from __future__ import annotations

from dataclasses import dataclass

import click

from edgecal_weights.nearest import nearest

from ..errors import PromptError
from ..text.tasks import TASKS, instruction
from ._completion import complete_words
from ._output import note
from .options import group_of

# Those of paper 1; any other is taken as well
TONES = ("professional", "casual", "witty")
LANGUAGES = ("Spanish", "French", "German", "Italian", "Portuguese", "Chinese", "Japanese", "Korean")


@dataclass(frozen=True)
class TaskOptions:
    """What the options say; `task` None is no instruction."""

    task: str | None = None
    tone: str | None = None
    language: str | None = None

    def instruction(self) -> str | None:
        """The task's, with its fields filled in; PromptError for what does not go together.

        A tone or a language may be any, but for one that is nearly a known one there is a note.
        """
        fields = {name: value for name in ("tone", "language") if (value := getattr(self, name)) is not None}
        if self.task is None:
            if fields:
                raise PromptError(f"--{next(iter(fields))} belongs to a task: give --task summarize+tone or the like")
            return None
        text = instruction(self.task, **fields)
        for name, known in (("tone", TONES), ("language", LANGUAGES)):
            value = fields.get(name)
            if value is None or value.lower() in {word.lower() for word in known}:
                continue
            if (near := nearest(value, known)) is not None:
                note(f"the {name} is taken as it stands, {value!r}; did you mean {near!r}?")
        return text


task_options = group_of(
    "asked",
    TaskOptions,
    click.option(
        "--task",
        shell_complete=complete_words(lambda: TASKS),
        help="Put a task's instruction in front: summarize, reply, translate, summarize+tone, ...",
    ),
    click.option(
        "--tone", shell_complete=complete_words(lambda: TONES), help="For tasks with a tone: professional, casual ..."
    ),
    click.option(
        "--language",
        shell_complete=complete_words(lambda: LANGUAGES),
        help="For tasks that translate: Spanish, French, German ...",
    ),
)
