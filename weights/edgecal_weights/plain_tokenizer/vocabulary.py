"""The tokens of a model and their ids, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .parts import Part

_HOLES = 1 << 16  # ids without a token, at most: a list of tokens by id has to fit into memory


class Vocabulary:
    """`ids` by token, and `tokens` by id, None where an id has no token."""

    def __init__(self, part: Part, ids: Mapping[Any, Any]) -> None:
        if not all(type(index) is int and index >= 0 for index in ids.values()):
            part.fail("vocab holds an id that is not a number from 0 on")
        size = max(ids.values(), default=-1) + 1
        if size > 2 * len(ids) + _HOLES:
            part.fail(f"vocab holds {len(ids)} tokens and the id {size - 1}")
        self.ids: dict[str, int] = dict(ids)
        self.tokens: list[str | None] = [None] * size
        for token, index in ids.items():
            self.tokens[index] = token

    def bytes(self) -> list[int] | None:
        """The ids of "<0x00>" ... "<0xFF>"; None unless all of them are there."""
        found = [self.ids.get(f"<0x{byte:02X}>") for byte in range(256)]
        return None if None in found else [index for index in found if index is not None]
