"""Running text out of a file: plain text, or a text of each line of JSON. What a model is measured or calibrated on.

A file is JSON lines if its name ends like one, or if its first line is an object; anything else is plain text. Each
line is a document. Documents are encoded by themselves, with an empty line behind each, so that nothing depends on
which of them come first; plain text is one document, as it stands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecal_weights.files import kind_of, parse_json

from ..errors import PromptError
from .json_lines import each_object, names, read_input
from .tokenizer import Tokenizer

FIELDS = ("text", "dialogue", "prompt", "content")  # the first that a line has, unless a field is named
_JSON_LINES = (".jsonl", ".ndjson")


def read_documents(path: str | Path, field: str | None = None) -> list[str]:
    """The documents of a file (- is standard input). `field` names the text of a JSON line and asks for JSON lines.

    Raises PromptError naming the file, and the line that is not as expected.
    """
    name, raw = read_input(path)
    return split_documents(raw, name, field)


def split_documents(raw: bytes, name: str, field: str | None = None) -> list[str]:
    """As `read_documents`, of the content of the file called `name`."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not UTF-8 text: {error}") from error
    if not text.strip():
        raise PromptError(f"{name} holds no text")
    if field is None and not name.endswith(_JSON_LINES) and not _begins_with_object(text):
        return [text]
    return each_object(raw, name, lambda number, values: _document(values, field))


def _begins_with_object(text: str) -> bool:
    try:
        return isinstance(parse_json(text.lstrip().partition("\n")[0]), dict)
    except ValueError:
        return False


def _document(values: dict[str, Any], field: str | None) -> str:
    found = [key for key in ((field,) if field else FIELDS) if key in values]
    if not found:
        wanted = repr(field) if field else f"one of {', '.join(map(repr, FIELDS))}"
        raise PromptError(f"expected {wanted}, found the keys {names(values)}; name the one with the text (--field)")
    text = values[found[0]]
    if not isinstance(text, str):
        raise PromptError(f"{found[0]!r} must be a text, found {kind_of(text)}")
    return text + "\n\n"


def windows(
    tokenizer: Tokenizer, documents: list[str], length: int, most: int | None = None
) -> list[NDArray[np.int64]]:
    """The ids of `documents` one behind the other, cut into windows of `length` tokens; the last may be shorter.

    `most` tokens at most. Where the tokenizer puts a token in front of a text (a beginning of text), every window
    begins with it, in the place of its first token, as in llama.cpp's perplexity. A last window of one token is left
    out. PromptError where fewer than two tokens are there.
    """
    first = tokenizer.encode("", add_special_tokens=True)[:1]
    ids: list[int] = []
    for document in documents:
        ids += tokenizer.encode(document)
        if most is not None and len(ids) >= most:
            break
    flat = np.array(ids[:most], np.int64)
    found = [flat[start : start + length].copy() for start in range(0, len(flat) - 1, length)]
    if not found:
        raise PromptError(f"the text has {len(flat)} tokens; at least two are needed")
    for window in found:
        window[: len(first)] = first
    return found
