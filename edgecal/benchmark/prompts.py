"""Prompt sets: the words in which a task is asked, as YAML files that one may copy, edit and name.

    layout: user                      # or system: the instruction as system message, the text alone as user message
    summarize: Summarize the following text
    summarize+tone: Summarize the following text and change its tone to {tone}

A key is a task's kind, or a task's own name where one sub-task is asked in other words (`summarize+paraphrase`).
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..adapters.recipe import Shot
from ..adapters.recipe_file import read_recipe
from ..errors import BenchmarkError, RecipeError
from ..text.tasks import user_message
from .tasks import Task

FOLDER = Path(__file__).parent / "prompts"
SETS = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
_FIELDS = {"tone", "language"}
Message = dict[str, str]


@dataclass(frozen=True)
class PromptSet:
    """`templates` by kind of task or name of a sub-task; `layout` is "user" or "system"."""

    name: str
    layout: str
    templates: Mapping[str, str]

    @property
    def digest(self) -> str:
        """16 hex digits, equal for equal words."""
        text = json.dumps([self.layout, dict(self.templates)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def instruction(self, task: Task) -> str:
        """BenchmarkError for a task that the set has no words for."""
        for key in (task.name, task.kind):
            if key in self.templates:
                # Languages are written with a capital in English
                language = (task.language or "").capitalize()
                return self.templates[key].format(tone=task.tone, language=language)
        known = ", ".join(self.templates)
        raise BenchmarkError(f"the prompt set {self.name} has no words for {task.kind}; it has: {known}")

    def messages(self, task: Task, text: str) -> list[Message]:
        """The conversation that asks for `task` on `text`."""
        system = [{"role": "system", "content": self.instruction(task)}] if self.layout == "system" else []
        return [*system, {"role": "user", "content": self._asked(task, text)}]

    def shot(self, task: Task, text: str, answer: str) -> Shot:
        """An example of `task` for in_context, in the same words."""
        return Shot(self._asked(task, text), answer)

    def _asked(self, task: Task, text: str) -> str:
        return text if self.layout == "system" else user_message(self.instruction(task), text)


def load_prompts(name: str) -> PromptSet:
    """A set that ships (`paper1`, `paper2`, `colon`), or the path of a YAML or JSON file. BenchmarkError."""
    path = FOLDER / f"{name}.yaml" if name in SETS else Path(name).expanduser()
    if not path.exists():
        raise BenchmarkError(f"there is no prompt set {name!r}: expected a file, or one of {', '.join(SETS)}")
    try:
        values = read_recipe(path)
    except RecipeError as error:
        raise BenchmarkError(str(error)) from error
    layout = values.pop("layout", "user")
    if layout not in ("user", "system"):
        raise BenchmarkError(f"{path}: layout is {layout!r}, expected user or system")
    for key, template in values.items():
        _check(path, key, template)
    return PromptSet(path.stem, layout, values)


def _check(path: Path, key: str, template: object) -> None:
    if not isinstance(template, str):
        raise BenchmarkError(f"{path}: {key} is {template!r}, expected a text")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise BenchmarkError(f"{path}: {key}: {error}; write {{{{ for a brace") from error
    for _, name, format, conversion in parts:
        if name is not None and (name not in _FIELDS or format or conversion):
            raise BenchmarkError(f"{path}: {key} has the field {{{name}}}; there are {{tone}} and {{language}}")
