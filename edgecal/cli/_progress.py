"""Signs of life on stderr while something takes long: how far it is, and for how long it has been running.

At a terminal a line that is drawn anew and wiped off at the end; in a pipe or a log nothing for the first seconds, then
a line, then one after 10, 20, 40, 80 ... seconds. Nothing with --quiet, and with --json only at a terminal, since a
program may read the refusal that is JSON on stderr then. The rule is here and nowhere else: the options are looked up
in the command that is running.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from time import monotonic
from typing import Literal, Protocol, TypeVar

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

PATIENCE = 3.0  # seconds without a word where no terminal is
_FIRST, _LONGEST = 10.0, 60.0  # between two lines
_BAR = 12
Unit = Literal["bytes", ""]
T = TypeVar("T")


class Report(Protocol):
    """How far it is: `done` of `total` (0 or None: unknown), and what is being done."""

    def __call__(self, done: int = 0, total: int | None = None, note: str = "") -> None: ...


@contextmanager
def progress(title: str, *, unit: Unit = "", patience: float = PATIENCE, still: bool = False) -> Iterator[Report]:
    """Show `title` for as long as the block runs, and what the callback is told.

    `patience`: seconds before the first line in a log; 0 for what is known to take long. `still`: draw only when the
    callback is called, because a thread that draws meanwhile would take time from what is being measured.
    """
    where = _where()
    if where is None:
        yield lambda done=0, total=None, note="": None
    elif where.is_terminal and not where.is_dumb_terminal:
        with _Bar(title, where, unit, still) as bar:
            yield bar
    else:
        with _Lines(title, unit, patience, still) as lines:
            yield lines


def while_reading(start: Callable[[Callable[[int], None]], Generator[T, None, None]]) -> Generator[T, None, None]:
    """The pieces of an answer, with progress until the first is there.

    `start` begins the answer and tells the callback it is given how many tokens of the prompt are read.
    """
    with progress("reading the prompt") as report:
        pieces = start(lambda n_tokens: report(note=f"{n_tokens:,} tokens"))
        first = next(pieces, None)
    with closing(pieces):
        if first is not None:
            yield first
            yield from pieces


def _where() -> Console | None:
    """The console to draw on, None where nothing is to be said."""
    context = click.get_current_context(silent=True)
    options = context.params if context is not None else {}
    if sys.stderr is None or options.get("quiet"):
        return None
    console = Console(stderr=True, highlight=False, emoji=False)
    return None if options.get("as_json") and not console.is_terminal else console


class _Bar:
    """A line at a terminal: bar and count where a total is known, the seconds, and what is being done."""

    def __init__(self, title: str, console: Console, unit: Unit, still: bool) -> None:
        self._title, self._console, self._unit, self._still = title, console, unit, still
        self._done, self._total, self._note, self._began = 0, 0, "", monotonic()
        self._live = Live(
            get_renderable=self._line,
            console=console,
            transient=True,
            auto_refresh=not still,
            refresh_per_second=8,
            redirect_stdout=sys.stdout.isatty(),  # else what goes to a file or a pipe would go to the terminal
        )

    def __enter__(self) -> _Bar:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *raised: object) -> None:
        self._live.stop()

    def __call__(self, done: int = 0, total: int | None = None, note: str = "") -> None:
        self._done, self._total, self._note = done, total or 0, note
        if self._still:
            self._live.refresh()

    def _line(self) -> Text:
        """Numbers are whole; title and note share what is left of the width."""
        elapsed = monotonic() - self._began
        plain, width = self._console.options.ascii_only, self._console.width - 1
        turning = "" if self._still else ("-\\|/" if plain else "⠋⠙⠸⠴⠦⠇")[int(8 * elapsed) % (4 if plain else 6)]
        count, seconds = _count(self._done, self._total, self._unit), f"{elapsed:.0f} s"
        bar = self._total and width >= 70
        filled = min(_BAR, _BAR * self._done // self._total) if bar else 0
        left = width - sum(len(part) + 1 for part in (turning, count, seconds) if part) - (_BAR + 1 if bar else 0)
        title = Text(self._title)
        title.truncate(max(left if not self._note else left * 2 // 3, 1), overflow="ellipsis")
        parts = [Text(turning, "green"), title]
        if bar:
            full, empty = ("=", "-") if plain else ("━", "─")
            parts.append(Text.assemble((full * filled, "cyan"), (empty * (_BAR - filled), "dim")))
        note = Text(self._note, "dim")
        note.truncate(max(left - title.cell_len - 1, 0), overflow="ellipsis")
        line = Text(" ").join(part for part in (*parts, Text(count), Text(seconds, "cyan"), note) if part)
        line.no_wrap = True
        return line


class _Lines:
    """Lines in a log, from a thread unless `still`."""

    def __init__(self, title: str, unit: Unit, patience: float, still: bool) -> None:
        self._title, self._unit, self._still = title, unit, still
        self._said, self._began = "", monotonic()
        self._next = self._began + patience
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Lines:
        if self._next <= self._began:
            self._speak()
        if not self._still:
            self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        if not self._still:
            self._thread.join()

    def __call__(self, done: int = 0, total: int | None = None, note: str = "") -> None:
        self._said = ", ".join(part for part in (_count(done, total, self._unit), note) if part)
        if self._still and monotonic() >= self._next:
            self._speak()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.0, self._next - monotonic())):
            self._speak()

    def _speak(self) -> None:
        now = monotonic()
        elapsed = now - self._began
        parts = [part for part in (self._said, "" if elapsed < 1 else f"{elapsed:.0f} s") if part]
        click.echo(f"{self._title} ... {', '.join(parts)}".rstrip(), file=sys.stderr)
        self._next = now + min(_LONGEST, max(_FIRST, elapsed))


def _count(done: int, total: int | None, unit: Unit) -> str:
    if unit == "bytes":
        megabytes = f"{done / 1e6:.1f}"
        return f"{megabytes}/{total / 1e6:.1f} MB" if total else f"{megabytes} MB" if done else ""
    return f"{done:,}/{total:,}" if total else f"{done:,}" if done else ""
