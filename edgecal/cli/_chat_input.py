"""What the user of `edgecal chat` types: lines with editing and history, or a pipe; messages of several lines.

A message goes on after a backslash at the end of a line, and between two lines with three quotation marks. In a block
of the second kind nothing is a command, so it is also the way to send text that begins with a slash. Several lines
pasted into a terminal are one message, as long as GNU readline edits the line: it asks the terminal to mark what is
pasted, and waits for Enter.
"""

from __future__ import annotations

import codecs
import glob
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from edgecal_weights.files import atomic_write

from ..errors import PromptError, StorageError

PROMPT, CONTINUATION, QUOTES = ">>> ", "... ", '"""'
_LARGEST_LINE = 64 << 20
_HISTORY_LINES = 1000


@dataclass(frozen=True)
class Typed:
    """One message or command; `literal` when it was quoted and is a message whatever it begins with."""

    text: str
    literal: bool = False


class PipeReader:
    """Lines of standard input when nobody is typing: no prompts, and bytes that are no text are refused one by one."""

    def read_line(self, prompt: str) -> str | None:
        """A line without its end; None at the end of the input. PromptError for one that is no text or too long."""
        raw = sys.stdin.buffer.readline(_LARGEST_LINE + 1)
        if len(raw) > _LARGEST_LINE:
            while raw and not raw.endswith(b"\n"):
                raw = sys.stdin.buffer.readline(_LARGEST_LINE)
            raise PromptError(f"a line of standard input is longer than {_LARGEST_LINE >> 20} MiB")
        if not raw:
            return None
        try:
            return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise PromptError(f"a line of standard input is not UTF-8 text: {error}") from error

    def close(self) -> None:
        """Nothing to keep."""


class TerminalReader:
    """Lines typed at a terminal; with the readline module also editing, completion, and a history kept in a file.

    `complete` gives the words that can end a line that begins a command.
    """

    def __init__(self, history: Path, complete: Callable[[str], Sequence[str]]) -> None:
        self._history, self._complete = history, complete
        self._matches: list[str] = []
        self._readline = _find_readline()
        if self._readline is not None:
            self._set_up(self._readline)

    def _set_up(self, readline: ModuleType) -> None:
        readline.set_history_length(_HISTORY_LINES)
        readline.set_completer_delims(" \t\n")
        readline.set_completer(self._next_match)
        if "libedit" in (readline.__doc__ or ""):
            readline.parse_and_bind("bind ^I rl_complete")
        else:
            readline.parse_and_bind("tab: complete")
            readline.parse_and_bind("set enable-bracketed-paste on")  # CPython has switched it off
        try:
            readline.read_history_file(self._history)
        except FileNotFoundError:
            return
        except OSError as error:
            print(f"the history of earlier chats cannot be read ({self._history}: {error})", file=sys.stderr)

    def _next_match(self, word: str, state: int) -> str | None:
        if state == 0 and self._readline is not None:
            line = self._readline.get_line_buffer()[: self._readline.get_endidx()]
            words = self._complete(line) if line.startswith("/") else ()
            self._matches = [w for w in words if w.startswith(word)]
        return self._matches[state] if state < len(self._matches) else None

    def read_line(self, prompt: str) -> str | None:
        """A line; None for Ctrl-D. PromptError for bytes that are no text. Ctrl-C is the caller's business."""
        try:
            return input(prompt)
        except EOFError:
            print()
            return None
        except UnicodeDecodeError as error:
            raise PromptError(f"the line is not text in the terminal's encoding: {error}") from error

    def close(self) -> None:
        """Keep the history for the next chat; other users cannot read it."""
        if self._readline is None:
            return
        try:
            self._history.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._history, mode=0o600) as partial:
                self._readline.write_history_file(partial)
        except (OSError, StorageError) as error:
            print(f"the history could not be kept ({error})", file=sys.stderr)


def _find_readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:  # not part of every Python; the terminal's own line editing remains
        return None
    return readline


def read_message(reader: PipeReader | TerminalReader) -> Typed | None:
    """The next message or command, joined from its lines; None at the end. Input that ends inside one completes it."""
    line = reader.read_line(PROMPT)
    if line is None:
        return None
    line = line.rstrip("\n")
    if "\n" in line:
        return Typed(line, literal=True)  # pasted
    if line.lstrip().startswith(QUOTES):
        return Typed(_read_block(reader, line.lstrip().removeprefix(QUOTES)), literal=True)
    lines = []
    while line is not None and line.endswith("\\"):
        lines.append(line[:-1])
        line = reader.read_line(CONTINUATION)
    return Typed("\n".join(lines if line is None else [*lines, line]))


def _read_block(reader: PipeReader | TerminalReader, line: str) -> str:
    lines: list[str] = []
    while not line.rstrip().endswith(QUOTES):
        lines.append(line)
        following = reader.read_line(CONTINUATION)
        if following is None:
            return "\n".join(lines).strip("\n")
        line = following
    return "\n".join([*lines, line.rstrip().removesuffix(QUOTES)]).strip("\n")


def paths(beginning: str) -> list[str]:
    """Paths that begin so, directories with a slash: completion of file names."""
    found = glob.glob(glob.escape(os.path.expanduser(beginning)) + "*")
    home = os.path.expanduser("~")
    if beginning.startswith("~"):
        found = [path.replace(home, "~", 1) for path in found]
    return sorted(path + "/" if os.path.isdir(os.path.expanduser(path)) else path for path in found)
