"""--task, --tone and --language: the instruction in front of a text."""

from __future__ import annotations

from dataclasses import dataclass

import click

from ..errors import PromptError
from .options import group_of


@dataclass(frozen=True)
class TaskOptions:
    """What the options say; `task` None is no instruction."""

    task: str | None = None
    tone: str | None = None
    language: str | None = None

    def instruction(self) -> str | None:
        """The task's, with its fields filled in; PromptError for what does not go together."""
        from ..text.tasks import instruction

        fields = {name: value for name in ("tone", "language") if (value := getattr(self, name)) is not None}
        if self.task is not None:
            return instruction(self.task, **fields)
        if fields:
            raise PromptError(f"--{next(iter(fields))} belongs to a task: give --task summarize+tone or the like")
        return None


task_options = group_of(
    "asked",
    TaskOptions,
    click.option("--task", help="Put a task's instruction in front: summarize, reply, translate, summarize+tone, ..."),
    click.option("--tone", help="For tasks with a tone: professional, casual, witty ..."),
    click.option("--language", help="For tasks that translate: Spanish, French, German ..."),
)
