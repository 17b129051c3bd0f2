"""How much a piece of code does, in calls of functions: the same number on a busy machine as on an idle one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Work:
    """`calls`: functions that were called so far, those written in C counted like those in Python."""

    calls = 0


@contextmanager
def counted(most: int = 1 << 62) -> Iterator[Work]:
    """Counts in this thread. At more than `most` calls AssertionError is raised in the middle of the work, so that what
    would take hours ends there."""
    work, before = Work(), sys.getprofile()

    def count(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            work.calls += 1
            if work.calls > most:
                sys.setprofile(before)
                raise AssertionError(f"more than {most:,} calls")

    sys.setprofile(count)
    try:
        yield work
    finally:
        sys.setprofile(before)
