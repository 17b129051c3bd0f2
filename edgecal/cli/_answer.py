"""An answer on stdout, as it comes. A pipe gets the model's text and nothing else; at a terminal lines end between
words, and what a terminal would obey instead of showing is made visible."""

from __future__ import annotations

import shutil
import sys

from rich.cells import cell_len

from ._output import echo

CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class AnswerWriter:
    """Text goes in by `write` in any pieces, and out in whole words; `end` writes the rest."""

    def __init__(self, *, at_terminal: bool | None = None) -> None:
        self._wraps = sys.stdout.isatty() if at_terminal is None else at_terminal
        self._column = 0
        self._gap = self._word = ""
        self._torn = False  # the beginning of a word longer than the line is written

    def write(self, text: str) -> None:
        if not self._wraps:
            echo(text, nl=False)
            return
        width = shutil.get_terminal_size().columns - 1
        out = "".join(self._push(character, width) for character in text.translate(CONTROL))
        echo(out, nl=False)

    def end(self) -> None:
        """What is left, and the end of the line."""
        echo(self._flush(shutil.get_terminal_size().columns - 1) if self._wraps else "")
        self._column, self._gap = 0, ""

    def _push(self, character: str, width: int) -> str:
        if character == "\n":
            out = self._flush(width) + "\n"
            self._column, self._gap, self._torn = 0, "", False
            return out
        if character in " \t":
            out = self._flush(width)
            self._torn = False
            self._gap += character
            return out
        if cell_len(character) > 1:  # Chinese, Japanese, Korean: a line may end between any two
            out = self._flush(width)
            self._torn = False
            self._word = character
            return out + self._flush(width)
        self._word += character
        if cell_len(self._word) < width:
            return ""
        out = self._flush(width)
        self._torn = True
        return out

    def _flush(self, width: int) -> str:
        """The word, behind its gap or on a line of its own."""
        if not self._word:
            return ""
        gap, word = self._gap, self._word
        length, column = cell_len(word), len((self._column * " " + gap).expandtabs(8))
        self._gap = self._word = ""
        if self._torn:  # the terminal breaks it
            self._column = (column + length) % (width + 1)
            return word
        if self._column and column + length > width:
            self._column = length
            return "\n" + word
        self._column = column + length
        return gap + word


def write_answer(text: str) -> None:
    """A whole text that is there already."""
    writer = AnswerWriter()
    writer.write(text)
    writer.end()
