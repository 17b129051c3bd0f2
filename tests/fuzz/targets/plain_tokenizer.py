"""tokenizer.json as plain Python reads it, where the tokenizers library is missing."""

from __future__ import annotations

from pathlib import Path

from edgecal_weights.plain_tokenizer.decode_stream import DecodeStream
from edgecal_weights.plain_tokenizer.tokenizer import Tokenizer

from ..mutate import json_text
from ..target import Target
from .tokenizer import TEXT, prepare


def run(data: bytes, folder: Path) -> None:
    tokenizer = Tokenizer.from_bytes(data, folder / "tokenizer.json")
    ids = tokenizer.encode(TEXT, add_special_tokens=True).ids
    tokenizer.decode(ids)
    stream = DecodeStream(skip_special_tokens=True)
    for index in ids:
        stream.step(tokenizer, index)


TARGET = Target(run, prepare, json_text)
