"""What a command writes on stdout and stderr, whatever they are: a terminal, a pipe, an old code page, or closed.

Text that the stream's encoding lacks becomes a `\\u2019`, so that nothing is lost and nothing fails half-way; JSON is
ASCII where stdout is not UTF-8. What a closed stdout should have held is a refusal when it is written and not before, a
closed stderr swallows, a closed stdin is empty. Everything is written through here: click's own echo gives an ASCII
stream UTF-8.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import math
import os
import sys
import textwrap
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

BROKEN_PIPE = 141  # what a shell sees of a tool that SIGPIPE ends


def prepare_streams() -> None:
    """Once, before anything is read or written."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # else the next file that is opened would take the place of the stream that is closed
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 (as long as the process)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = _Closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Closed(io.TextIOBase):
    """A stdout that was closed before the start (`>&-`)."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError("text is expected")
        if text:
            raise OSError(errno.EBADF, "it is closed", "standard output")
        return 0


def leave_broken_pipe() -> NoReturn:
    """The reader has gone (`| head`): leave in silence, also when Python flushes what is left."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(descriptor, stream.fileno())
    sys.exit(BROKEN_PIPE)


def echo(text: str = "", *, nl: bool = True, err: bool = False, **style: Any) -> None:
    """Write a line (or a piece of one) at once; `style` as for click.style, where it is a terminal."""
    stream = sys.stderr if err else sys.stdout
    click.echo(click.style(text, **style) if style else text, file=stream, nl=nl)


def tell(text: str, *, err: bool = False, **style: Any) -> None:
    """Sentences of ours for a person: as `echo`, but lines end between words at a terminal that is too narrow."""
    width = _terminal_width(sys.stderr if err else sys.stdout)
    echo(text if width is None else "\n".join(_fold(line, width) for line in text.split("\n")), err=err, **style)


def _terminal_width(stream: TextIO) -> int | None:
    """Its columns, which COLUMNS overrules; None where it is no terminal."""
    if not stream.isatty():
        return None
    try:
        return int(os.environ.get("COLUMNS", "")) or None
    except ValueError:
        pass
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def _fold(line: str, width: int) -> str:
    """What is indented goes on two columns further in; a word that is too long, a path, stays one."""
    indent = " " * (len(line) - len(line.lstrip()))
    lines = textwrap.wrap(
        line,
        max(width, 20),
        subsequent_indent=indent and indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
    return "\n".join(lines)


def note(text: str) -> None:
    """What a person should know beside the result, on stderr; --quiet wants no such thing."""
    context = click.get_current_context(silent=True)
    if context is None or not context.params.get("quiet"):
        tell(f"note: {text}", err=True)


def echo_json(value: Any, *, err: bool = False) -> None:
    """One line. Numbers that JSON has no word for (NaN, infinite) are null."""
    escape = not is_utf8(sys.stderr if err else sys.stdout)
    try:
        text = json.dumps(value, ensure_ascii=escape, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=escape)
    echo(text, err=err)


def is_utf8(stream: TextIO) -> bool:
    try:
        return codecs.lookup(stream.encoding or "utf-8").name == "utf-8"
    except (LookupError, AttributeError):
        return False


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def screen(*, err: bool = False) -> Console:
    """Where tables go. It does not interpret markup: names come from files."""
    from rich.console import Console  # not needed for --help

    class Screen(Console):
        def on_broken_pipe(self) -> None:  # rich's own would exit with 1
            raise BrokenPipeError

    return Screen(markup=False, emoji=False, highlight=False, stderr=err)
