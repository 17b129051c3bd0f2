"""What a merge function is told beside the factors and the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..calibration import ModuleCalibration
from ..lora import Array
from ..merge_kernels import Kernels
from .workspace import Arena


@dataclass(frozen=True)
class Context:
    """`module` is the path that is being merged and `shape` its (d, k). `adapters` are the names of the whole recipe;
    `positions` says which of them the given pairs are, because an adapter that leaves the module alone has none.
    `largest_rank` is that of the adapters over all their modules. Results are allocated from `arena`. `kernels` do the
    work on whole factors.
    """

    calibration: ModuleCalibration | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""
    shape: tuple[int, int] = (0, 0)
    adapters: tuple[str, ...] = ()
    positions: tuple[int, ...] = ()
    largest_rank: int | None = None
    arena: Arena | None = None
    kernels: Kernels = None

    def empty(self, *shape: int) -> Array:
        """A float32 array for the result."""
        return np.empty(shape, np.float32) if self.arena is None else self.arena.empty(shape)

    def without_arena(self) -> Context:
        """For arrays that are on the way to a result: those of an arena live as long as all of it."""
        return replace(self, arena=None)

    def placed(self, count: int) -> tuple[int, ...]:
        """`positions`, or 0, 1, ... where a caller has pairs and no recipe."""
        return self.positions or tuple(range(count))

    def names(self, count: int) -> list[str]:
        """The adapters of the given pairs."""
        return [self.adapters[i] if self.adapters else str(i) for i in self.placed(count)]

    def needed_calibration(self, method: str) -> ModuleCalibration:
        if self.calibration is None:
            raise ValueError(f"{method} without its calibration")
        return self.calibration


PLAIN = Context()
