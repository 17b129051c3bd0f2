"""`edgecal generate --prompts FILE`: many prompts out of a file of JSON lines, answered in batches, JSON lines out.

A line is an object with the prompt under "prompt", "text" or "dialogue", or "messages" (a list of {role, content}).
What it has besides overrides the options of the command for this prompt alone: "recipe" (as in a recipe file, naming
loaded adapters), "max_tokens", "stop" and the sampler's options ("temperature" ...). An "id" comes back with the
answer. Other keys are left alone: data sets have more columns.

Answers are written in the order of the lines, as soon as all before them are there. A prompt that is refused (too long,
empty) gets an "error" in the place of its answer and the others run; a line that is no such object refuses the file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from edgecal_weights.files import kind_of

from ..adapters.recipe import Recipe
from ..errors import EdgecalError, PromptError
from ..text.counted import counted
from ..text.json_lines import each_object, one_key, read_input
from ._output import echo_json
from ._progress import progress
from ._sampling import OPTIONS, SAMPLING

if TYPE_CHECKING:
    from ..completion import Pass, Piece, Request, Settings
    from ..engine import Engine
    from ..text.prompts import Prompt

_TEXTS = ("prompt", "text", "dialogue")
_OWN = (*SAMPLING, "max_tokens", "stop", "stop_at_repetition")  # the keys that override an option


@dataclass(frozen=True)
class Line:
    """One prompt of the file. `text` is None where there are `messages`; `overrides` are of _OWN."""

    number: int
    id: Any
    text: str | None
    messages: list[dict[str, str]] | None
    recipe: Recipe | None
    overrides: dict[str, Any]


def read_lines(name: str) -> list[Line]:
    """The prompts of a file (- is standard input). PromptError naming the file and the line."""
    name, raw = read_input(name)
    lines = each_object(raw, name, _line)
    if not lines:
        raise PromptError(f"{name} holds no prompts")
    return lines


def _line(number: int, values: dict[str, Any]) -> Line:
    key = one_key(values, (*_TEXTS, "messages"))
    value, messages = values[key], None
    if key == "messages":
        messages, value = _messages(value), None
    elif not isinstance(value, str):
        raise PromptError(f"{key!r} must be a text, found {kind_of(value)}")
    recipe = None
    if values.get("recipe") is not None:
        if not isinstance(values["recipe"], dict):
            raise PromptError("'recipe' must be an object, as in a recipe file")
        recipe = Recipe.from_dict(values["recipe"])
        if recipe.paths:
            raise PromptError("'recipe' says where adapters are: load them with --adapter and name them here")
    overrides = {key: values[key] for key in _OWN if values.get(key) is not None}
    return Line(number, values.get("id"), value, messages, recipe, overrides)


def _messages(value: Any) -> list[dict[str, str]]:
    if isinstance(value, list) and all(
        isinstance(m, dict) and set(m) == {"role", "content"} and all(isinstance(x, str) for x in m.values())
        for m in value
    ):
        return value
    raise PromptError("'messages' must be a list of {role, content}, both text")


def settings_of(line: Line, settings: Settings) -> Settings:
    """`settings` with what the line overrides; OptionError for a value that cannot be."""
    return settings.with_options(**{name: OPTIONS[name].of_json(value) for name, value in line.overrides.items()})


def answer_all(
    engine: Engine,
    lines: list[Line],
    question: Callable[[str], Prompt],
    recipe: Recipe,
    settings: Settings,
    *,
    batch_size: int,
    with_tokens: bool,
) -> Run:
    """Write an answer for each line on stdout. `question` puts the task and the system message around a text."""
    run = Run(lines, recipe, with_tokens)
    requests: list[Request] = []
    places: list[int] = []
    for place, line in enumerate(lines):
        try:
            prompt = line.messages if line.text is None else question(line.text)
            assert prompt is not None
            requests.append(engine.prepare(prompt, recipe=line.recipe or recipe, settings=settings_of(line, settings)))
            places.append(place)
        except EdgecalError as error:
            run.refuse(place, error)
    with progress("answering") as report:
        try:
            run.write()
            passes: list[list[Pass]] = [[] for _ in requests]
            pieces: list[list[Piece]] = [[] for _ in requests]
            for index, piece in engine.stream_batch(requests, batch_size=batch_size, passes=passes):
                pieces[index].append(piece)
                run.new_tokens += 1
                if piece.finish_reason is not None:
                    run.finish(places[index], pieces[index], passes[index])
                    pieces[index] = []
                report(run.refused + run.done, len(lines), f"{run.new_tokens} tokens")
        finally:
            run.write(everything=True)
    return run


class Run:
    """What has come so far, and what of it is written."""

    def __init__(self, lines: list[Line], recipe: Recipe, with_tokens: bool) -> None:
        self.lines, self.recipe, self.with_tokens = lines, recipe, with_tokens
        self.results: dict[int, dict[str, Any]] = {}
        self.refused = self.written = self.done = self.new_tokens = 0
        self.prompt_tokens = self.reused_tokens = 0
        self._began = monotonic()

    def refuse(self, place: int, error: EdgecalError) -> None:
        self.results[place] = {"error": {"type": type(error).__name__, "message": str(error)}}
        self.refused += 1

    def finish(self, place: int, pieces: list[Piece], passes: list[Pass]) -> None:
        from ..completion import completion, token_dicts

        answer = completion(pieces, passes, self.lines[place].recipe or self.recipe)
        self.prompt_tokens += answer.prompt_tokens
        self.reused_tokens += answer.reused_tokens
        self.results[place] = answer.to_dict() | ({"tokens": token_dicts(pieces)} if self.with_tokens else {})
        self.done += 1
        self.write()

    def write(self, everything: bool = False) -> None:
        """All answers up to the first that is missing; `everything`: those behind it, too."""
        while self.written < len(self.lines):
            place = self.written
            if place in self.results:
                line = self.lines[place]
                identity = {"index": place} | ({"id": line.id} if line.id is not None else {})
                echo_json(identity | self.results.pop(place))
            elif not everything:
                break
            self.written += 1
        sys.stdout.flush()

    def summary(self) -> str:
        """What all of it took, in a line."""
        seconds = monotonic() - self._began
        reused = f" ({self.reused_tokens} of them from the cache)" if self.reused_tokens else ""
        return (
            f"[{counted(self.done, 'answer')}: {self.prompt_tokens} prompt tokens{reused}, {self.new_tokens} new "
            "tokens in "
            f"{seconds:.2f} s ({self.new_tokens / max(seconds, 1e-9):.1f}/s)]"
        )
