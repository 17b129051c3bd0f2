"""The prompt of `edgecal generate`: an argument, a file, standard input, or an instruction and a text to do it to."""

from __future__ import annotations

import codecs
import sys

import click

from edgecal_weights.files import read_bytes

from ..demo import find
from ..errors import PromptError
from ..text.tasks import user_message
from ._progress import progress

_LARGEST = 64 << 20
STDIN = "standard input"
# A file says by its first bytes what it is: UTF-8 of Windows' editors, UTF-16 of PowerShell's `>`
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def prompt_text(prompt: str | None, file: str | None, *, raw: bool) -> str:
    """What the arguments and standard input say together.

    An argument beside a file or beside something on standard input is the instruction, and stands in front of the text
    with an empty line between, as the adapters were trained. White space around a text goes unless `raw`.
    """
    instruction = None if prompt == "-" else prompt
    if file is None and prompt != "-" and sys.stdin.isatty():
        if prompt is None:
            raise click.UsageError("no prompt: give it as an argument, with --file, or on standard input")
        return prompt
    text = read_text("-" if file is None else find(file))
    if not raw:
        text = text.strip()
    if not instruction or not text:
        return instruction or text
    return user_message(instruction, text)


def read_text(name: str) -> str:
    """A text file, or standard input for "-", without its byte order mark; PromptError naming it."""
    if name == "-":
        name = STDIN
        with progress("reading standard input"):
            content = sys.stdin.buffer.read(_LARGEST + 1)
    else:
        content = read_bytes(name, _LARGEST, error=PromptError, pipe=True)
    if len(content) > _LARGEST:
        raise PromptError(f"{name} is larger than {_LARGEST >> 20} MiB: no model's context holds that")
    return decode(content, name)


def decode(content: bytes, name: str) -> str:
    encoding = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not UTF-8 text: {error}") from error
