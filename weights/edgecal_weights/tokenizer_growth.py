"""How much longer a tokenizer can make a text before it is cut: steps that each double it are a bomb in a few lines.

Normalizers, pre-tokenizers and decoders may be sequences, and every step works on what the one before it made. Fifty
times "a becomes aa", or fifty times bytes written as characters, would fill any memory, whoever runs them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import FileFormatError

_MOST = 256.0  # times; ordinary tokenizers have 1 to 8
_LISTS = ("normalizers", "pretokenizers", "decoders")


def check_growth(steps: Iterable[Any], path: Path) -> None:
    """FileFormatError unless each of these parts of a tokenizer.json (JSON values) leaves texts at a bearable size."""
    for step in steps:
        if _growth(step) > _MOST:
            name = step.get("type", "list of steps")
            raise FileFormatError(
                f"{path}: its {name} may make a text more than {_MOST:g} times as long; no tokenizer needs that"
            )


def steps_of(tokenizer: Any) -> list[Any]:
    """These parts of a tokenizer of the tokenizers library, as JSON values."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder)
    return [json.loads(part.__getstate__()) for part in parts if part is not None]


def _growth(step: Any) -> float:
    if not isinstance(step, dict):
        return 1.0
    if step.get("type") == "ByteLevel":  # a byte beyond ASCII becomes a character of two
        return 2.0
    if step.get("type") == "Replace":
        pattern, content = step.get("pattern"), step.get("content")
        text = pattern.get("String") if isinstance(pattern, dict) else None
        found = len(text) if isinstance(text, str) else 0  # an expression may match nothing, between all characters
        return max(1.0, len(content) / found if found else 1.0 + len(content)) if isinstance(content, str) else 1.0
    grown = 1.0
    for key in _LISTS:
        inner = step.get(key)
        for one in inner if isinstance(inner, list) else ():
            grown = min(grown * _growth(one), 2 * _MOST)
    return grown
