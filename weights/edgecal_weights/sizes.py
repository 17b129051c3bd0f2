"""Sizes as people write them: "500M", "1.5G"."""

from __future__ import annotations

import re

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def read_size(text: str) -> int | None:
    """Bytes; a unit is a power of 1024. None for what is no size."""
    match = _SIZE.fullmatch(text.strip())
    return None if match is None else int(float(match[1]) * _UNITS[match[2].upper()])


def mebibytes(nbytes: int) -> str:
    """For a sentence: "620 MiB"."""
    return f"{nbytes / (1 << 20):,.0f} MiB"
