"""A clock that tests move on themselves, so that times can be compared for equality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class ClockByHand:
    """Stands in for `perf_counter`: 0, until somebody adds to `seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def after(self, seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, taking so long."""

        def timed(*args: Any, **options: Any) -> Any:
            self.seconds += seconds
            return function(*args, **options)

        return timed
