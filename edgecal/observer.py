"""What a model tells whoever watches it. While nobody does, that is one test per forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Forward:
    """One forward pass. `rows` sequences take part with `tokens` new tokens in all.

    `kind` is "prefill" (a chunk of a prompt) or "decode" (the next token of each sequence; of a single one maybe with
    the draft behind it). `depth` positions are in the longest cache before it.
    """

    kind: Literal["prefill", "decode"]
    tokens: int
    depth: int
    rows: int = 1


class ForwardObserver(Protocol):
    """Called in the thread that runs the pass. One that breaks off (Ctrl-C, an error) began and never ends."""

    def forward_began(self, forward: Forward) -> None: ...

    def forward_ended(self) -> None: ...
