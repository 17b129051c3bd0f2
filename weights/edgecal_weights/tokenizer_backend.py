"""The tokenizers library, or plain Python where it is not installed; the rest of edgecal takes either from here.

`AddedToken`, `DecodeStream` and `Tokenizer` are the library's, or those of `plain_tokenizer`, which have the same names
and give the same ids and texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tokenizer_faults import tokenizer_faults
from .tokenizer_growth import check_growth, steps_of

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import DecodeStream

    PLAIN = False
else:
    try:
        from tokenizers import AddedToken, Tokenizer
        from tokenizers.decoders import DecodeStream

        PLAIN = False
    except ImportError:
        from .plain_tokenizer.added_tokens import AddedToken
        from .plain_tokenizer.decode_stream import DecodeStream
        from .plain_tokenizer.tokenizer import Tokenizer

        PLAIN = True

__all__ = ["PLAIN", "AddedToken", "DecodeStream", "Tokenizer", "build", "decoder_fields", "read"]


def read(content: bytes, path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json. FileFormatError for what is none; without the library UnsupportedModelError
    for what plain Python does not serve."""
    if PLAIN:
        return Tokenizer.from_bytes(content, path)  # type: ignore[attr-defined]
    with tokenizer_faults(path):
        tokenizer = Tokenizer.from_buffer(content)  # the library takes no path that is not UTF-8
        steps = steps_of(tokenizer)
    check_growth(steps, path)
    return tokenizer


def build(fields: Mapping[str, Any], tokens: Iterable[AddedToken], path: Path) -> Tokenizer:
    """The tokenizer of what a tokenizer.json would say, with these tokens added in their order.

    The model's `vocab` and `merges` (pairs) go to the library as objects: as JSON they would take seconds.
    """
    if PLAIN:
        tokenizer = Tokenizer(fields, path)  # type: ignore[arg-type, call-arg]
    else:
        from tokenizers import models

        model = {key: value for key, value in fields["model"].items() if key != "type"}
        empty = {"type": "BPE", "vocab": {}, "merges": []}
        around = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], **fields, "model": empty}
        tokenizer = Tokenizer.from_str(json.dumps(around))
        tokenizer.model = models.BPE(**model)
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def decoder_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """The decoder as tokenizer.json has it; empty if there is none. The vocabulary is not written out for that."""
    if PLAIN:
        return tokenizer.decoder_fields or {}  # type: ignore[attr-defined]
    return json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
