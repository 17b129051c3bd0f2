"""MODEL, which a command takes as its first argument or, as llama.cpp's programs do, as -m."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import click

from ._completion import complete_model

MODEL = click.argument("model", required=False, shell_complete=complete_model)
NAMED = click.option(
    "-m", "--model", "named", metavar="MODEL", shell_complete=complete_model, help="The same as MODEL."
)


def model_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives `command` the `model` of either spelling. UsageError where there is none, or two."""

    @functools.wraps(command)
    def with_model(*given: Any, model: str | None, named: str | None, **values: Any) -> Any:
        chosen, others = model_and_words(named, (model,))
        if chosen is None or others:
            name = click.get_current_context().info_name
            raise click.UsageError(f"say which model, once: edgecal {name} MODEL, or -m MODEL")
        return command(*given, model=chosen, **values)

    return MODEL(NAMED(with_model))


def model_and_words(named: str | None, arguments: Sequence[str | None]) -> tuple[str | None, list[str]]:
    """The model, None if nothing says it, and the other words: all `arguments`, unless the first is the model."""
    words = [word for word in arguments if word is not None]
    return (words[0] if words else None, words[1:]) if named is None else (named, words)
