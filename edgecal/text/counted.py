"""Numbers of things, for messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """ "1 window", "1,200 windows": for nouns that take an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
