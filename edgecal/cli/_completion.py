"""What the shell completes: names that edgecal knows, and paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from ._chat_input import paths

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def complete_words(words: Callable[[], Iterable[str]]) -> Complete:
    """Words that begin so; `words` is asked when they are wanted."""

    def complete(context: Any, parameter: Any, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(word) for word in words() if word.lower().startswith(incomplete.lower())]

    return complete


def complete_paths(names: Callable[[], Iterable[str]], *, named: bool = False) -> Complete:
    """Names, and paths in their company; where no name begins so, the shell's own completion of paths.

    `named`: NAME= may stand in front.
    """

    def complete(context: Any, parameter: Any, incomplete: str) -> list[CompletionItem]:
        prefix, separator, rest = incomplete.partition("=") if named else ("", "", "")
        if not separator:
            prefix, rest = "", incomplete
        found = [prefix + separator + name for name in names() if name.startswith(rest)]
        if not found and not separator:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(word) for word in (*found, *(prefix + separator + path for path in paths(rest)))]

    return complete


def models() -> list[str]:
    return ["demo"]


def adapters() -> list[str]:
    from ..demo import ADAPTERS

    return [f"demo:{name}" for name in ADAPTERS]


def calibrations() -> list[str]:
    from ..demo import CALIBRATIONS

    return [f"demo:{name}" for name in CALIBRATIONS]


def methods() -> Iterable[str]:
    from ..adapters.merge.registry import method_names

    return method_names()


complete_model = complete_paths(models)
