"""Keys and values of earlier prompts, kept for those that begin alike.

Requests for one task begin with the same instruction, a second question about a document with the document, a turn of a
conversation with all turns before it. What their tokens wrote into the KV cache depends on the tokens before them, the
weights and the adapters, and on nothing else. So an entry here is found by its `owner` (model, cache format and content
of the adapters: the engine says what that is) and by comparing tokens one by one; nothing else decides, and a request
after an adapter was replaced can never meet the keys of the old one.

A request takes a `Lease`: a cache of its own that holds the longest beginning found, at most all tokens but the last,
whose logits are what is asked for. An entry that the request continues is handed over; one that it only shares a
beginning with is copied, which takes a thousandth of the time of computing it, and stays. That holds for entries that
are leased at this moment, too: positions that are filled are never written again while a lease lasts. `release` brings
the cache back with whatever its tokens say that it holds, be the request complete or interrupted anywhere.

Kept entries obey a budget in bytes; the least recently used go first. Caches on lease belong to their requests and do
not count.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from weakref import WeakSet

from ..cache import KVCache

_LOSS = 32  # an entry that would lose no more tokens than this is handed over, others are copied
_LEAST = 16  # tokens that are worth a copy


@dataclass(eq=False)
class Lease:
    """A KV cache for one request. `tokens` are the prompt and, as they come, those of the answer: whoever holds the
    lease appends them. The cache holds true keys of tokens[:cache.length], or of all tokens when it is longer.

    `reused` is the length that the cache had from the start.
    """

    owner: Hashable
    cache: KVCache
    tokens: list[int] = field(default_factory=list)
    reused: int = 0

    @property
    def length(self) -> int:
        return min(self.cache.length, len(self.tokens))


class PrefixCache:
    """Entries within `max_bytes` (0: keeps nothing; None: no limit), at most `max_entries`. Threads may share it.

    `reused_tokens` and `prompt_tokens` are sums over all leases so far, `last_reused` that of the latest.
    """

    def __init__(self, max_bytes: int | None, max_entries: int | None = None) -> None:
        self.max_bytes, self.max_entries = max_bytes, max_entries
        self.prompt_tokens = self.reused_tokens = self.last_reused = 0
        self._kept: list[Lease] = []  # the least recently used first
        self._leased: WeakSet[Lease] = WeakSet()  # weak: a request that was dropped leaves nothing behind
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Of all caches, kept and on lease."""
        with self._lock:
            return sum(entry.cache.nbytes for entry in (*self._kept, *self._leased))

    @property
    def n_tokens(self) -> int:
        """Positions filled in all caches, kept and on lease."""
        with self._lock:
            return sum(entry.length for entry in (*self._kept, *self._leased))

    def __len__(self) -> int:
        """Entries kept."""
        return len(self._kept)

    def clear(self) -> None:
        """Drop what is kept."""
        with self._lock:
            self._kept.clear()

    def lease(self, owner: Hashable, ids: Sequence[int], new: Callable[[], KVCache]) -> Lease:
        """A cache with a beginning of `ids` in it; `new` makes an empty one. To be given back with `release`."""
        with self._lock:
            entry, shared = self._find(owner, ids)
            if entry is not None and entry in self._kept:
                self._kept.remove(entry)
                if self.max_entries != 1 and entry.length - shared > _LOSS:
                    self._kept.append(entry)
                    entry = self._copy(entry, shared, len(ids), new)
            elif entry is not None:
                entry = self._copy(entry, shared, len(ids), new)
            if entry is None:
                shared = 0
                if self.max_entries == 1:  # its memory is wanted for the new one
                    self._kept.clear()
                entry = Lease(owner, new())
            entry.cache.truncate(shared)
            entry.tokens, entry.reused = list(ids), shared
            self._leased.add(entry)
            self.prompt_tokens += len(ids)
            self.reused_tokens += shared
            self.last_reused = shared
            return entry

    def release(self, lease: Lease) -> None:
        """Keep what the cache holds, if there is room; the lease must not be used any more."""
        with self._lock:
            self._leased.discard(lease)
            length = lease.length
            lease.cache.truncate(length)
            del lease.tokens[length:]
            if length == 0 or (self.max_bytes is not None and lease.cache.nbytes > self.max_bytes):
                return
            self._kept = [
                e for e in self._kept if e.owner != lease.owner or lease.tokens[: e.length] != e.tokens[: e.length]
            ]
            self._kept.append(lease)
            while self._over_budget():
                del self._kept[0]

    def _over_budget(self) -> bool:
        if self.max_entries is not None and len(self._kept) > self.max_entries:
            return True
        return self.max_bytes is not None and sum(entry.cache.nbytes for entry in self._kept) > self.max_bytes

    def _find(self, owner: Hashable, ids: Sequence[int]) -> tuple[Lease | None, int]:
        """The entry with the longest common beginning; of equals a kept one, the latest."""
        best, longest = None, 0
        if self.max_bytes == 0:
            return best, longest
        for entry in (*self._leased, *self._kept):
            if entry.owner == owner:
                shared = _common_length(entry.tokens, ids, min(entry.length, len(ids) - 1))
                if shared >= max(longest, 1):
                    best, longest = entry, shared
        if best is not None and longest < _LEAST and longest < best.length - _LOSS and self.max_entries != 1:
            return None, 0
        return best, longest

    @staticmethod
    def _copy(entry: Lease, length: int, room: int, new: Callable[[], KVCache]) -> Lease:
        cache = new()
        cache.reserve(room)
        cache.copy_from(entry.cache, length)
        return Lease(entry.owner, cache)


def _common_length(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    if a[:limit] == b[:limit]:
        return limit
    return next(i for i in range(limit) if a[i] != b[i])
