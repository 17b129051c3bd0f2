"""Batches with text around them: prepared requests in, pieces out, and each cache back where it came from.

`batch` knows ids only. Here a sequence gets its lease of the prefix cache when its turn comes, its tokens become text,
a stop string ends it, and the next step of a pipeline enters as soon as the one before is complete.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from collections.abc import Sequence as Many
from typing import TYPE_CHECKING

from .cache import KVCache
from .completion import Answer, Pass, Piece, Request, numbered
from .decoding.batch import Sequence, generate_batch
from .decoding.prefix_cache import Lease
from .decoding.sampler import Sampler

if TYPE_CHECKING:
    from .engine import Engine


class _Member:
    """A request in the batch: its sequence, its lease from the moment it runs, its text."""

    def __init__(self, engine: Engine, index: int, request: Request) -> None:
        settings = request.settings
        self.engine, self.index, self.request = engine, index, request
        self.answer = Answer(engine.tokenizer, settings.stop, len(request.ids))
        self.lease: Lease | None = None
        self.sequence = Sequence(
            request.ids,
            Sampler(settings.sampling, request.ids),
            self.open,
            request.adapter,
            settings.max_tokens,
            settings.prefill_chunk,
        )

    def open(self) -> KVCache:
        self.lease = self.engine.prefixes.lease(self.request.owner, self.request.ids, self.engine.new_cache)
        return self.lease.cache

    def close(self) -> int:
        """Give the cache back; how many tokens it had from the start."""
        lease, self.lease = self.lease, None
        if lease is None:
            return 0
        self.engine.prefixes.release(lease)
        return lease.reused


def stream_batch(
    engine: Engine, requests: Many[Request], batch_size: int, passes: Many[list[Pass]]
) -> Generator[tuple[int, Piece], None, None]:
    """See `Engine.stream_batch`."""
    members: dict[Sequence, _Member] = {}
    waiting: deque[Sequence] = deque()

    def add(index: int, request: Request) -> Sequence:
        member = _Member(engine, index, request)
        members[member.sequence] = member
        return member.sequence

    waiting.extend(add(index, request) for index, request in enumerate(requests))
    try:
        for sequence, token in generate_batch(
            engine.model, waiting, eos_ids=engine.tokenizer.eos_ids, batch_size=batch_size
        ):
            member = members[sequence]
            assert member.lease is not None
            member.lease.tokens.append(token.id)
            piece, following = member.answer.push(token), member.request.following
            if piece.finish_reason is not None:
                sequence.stopped = True
                del members[sequence]
                passes[member.index].append(member.answer.cost(member.close()))
                if following is not None:  # before those that have not begun
                    with numbered(member.index + 1):
                        waiting.appendleft(add(member.index, following(member.answer.text)))
            if following is None:
                yield member.index, piece
    finally:
        for member in members.values():
            member.close()
