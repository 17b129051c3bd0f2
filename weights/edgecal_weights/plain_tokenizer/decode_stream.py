"""Text out of ids as they come, for decoders that cannot be run token by token."""

from __future__ import annotations

from .tokenizer import Tokenizer


class DecodeStream:
    """As the library's: decodes the last ids again with each new one, and keeps text back that ends in half a
    character."""

    def __init__(self, skip_special_tokens: bool = False) -> None:
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._told = ""  # what the ids but for the newest ones stand for
        self._told_ids = 0

    def step(self, tokenizer: Tokenizer, index: int) -> str | None:
        """The text that became certain; None if nothing did."""
        if not self._told and self._ids:
            text = tokenizer.decode(self._ids, self._skip)
            if not text.endswith("\ufffd"):
                self._told, self._told_ids = text, len(self._ids)
        self._ids.append(index)
        text = tokenizer.decode(self._ids, self._skip)
        if len(text) <= len(self._told) or text.endswith("\ufffd"):
            return None
        new = text[len(self._told) :]
        behind = len(self._ids) - self._told_ids
        self._ids = self._ids[self._told_ids :]
        self._told, self._told_ids = tokenizer.decode(self._ids, self._skip), behind
        return new
