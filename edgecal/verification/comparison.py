"""Two arrays side by side: how far apart they are, where, and whether that is within a stated tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorComparison:
    """One tensor. `worst` is the index of the largest error in the whole tensor (not the thinned one), `found` and
    `wanted` are edgecal's and the reference's number there. `limit` is on `measure`: "relative", "absolute" or "equal"
    (ids). Where nothing could be compared the numbers are nan and `note` says why.
    """

    tensor: str
    shape: tuple[int, ...]
    measure: str
    limit: float
    passed: bool
    max_abs: float = math.nan
    max_rel: float = math.nan
    cosine: float = math.nan
    worst: tuple[int, ...] | None = None
    found: float = math.nan
    wanted: float = math.nan
    note: str = ""

    @property
    def kind(self) -> str:
        return self.tensor.partition("/")[0]


def failed(name: str, shape: tuple[int, ...], measure: str, limit: float, note: str) -> TensorComparison:
    return TensorComparison(name, shape, measure, limit, False, note=note)


def compare_ids(name: str, found: list[int], wanted: list[int], what: str) -> TensorComparison:
    if found == wanted:
        return TensorComparison(name, (len(wanted),), "equal", 0, True)
    i = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
    return TensorComparison(
        name,
        (len(wanted),),
        "equal",
        0,
        False,
        worst=(i,),
        found=found[i] if i < len(found) else math.nan,
        wanted=wanted[i] if i < len(wanted) else math.nan,
        note=f"{what} differ from position {i} on; {len(found)} here, {len(wanted)} there",
    )


class Deviation:
    """How far apart two tensors are, gathered block by block of rows: running maxima and sums."""

    def __init__(self) -> None:
        self.max_abs, self.max_wanted = 0.0, 0.0
        self.product, self.found_square, self.wanted_square = 0.0, 0.0, 0.0
        self.worst, self.found, self.wanted = (0, 0), math.nan, math.nan
        self.note = ""

    def add(self, found: NDArray[np.floating], wanted: NDArray[np.floating], first_row: int) -> None:
        """Both (n, m); `first_row` is the number of the first in the file."""
        ours, theirs = found.astype(np.float64), wanted.astype(np.float64)
        for values, whose in ((theirs, "the reference"), (ours, "edgecal's result")):
            finite = np.isfinite(values)
            if not finite.all() and not self.note:
                row, column = (int(i) for i in np.argwhere(~finite)[0])
                self.worst, self.max_abs = (first_row + row, column), math.nan
                self.found, self.wanted = float(ours[row, column]), float(theirs[row, column])
                self.note = f"{whose} is {values[row, column]}"
        if self.note:
            return
        error = np.abs(ours - theirs)
        self.max_wanted = max(self.max_wanted, float(np.abs(theirs).max(initial=0)))
        self.product += float(np.vdot(ours, theirs))
        self.found_square += float(np.vdot(ours, ours))
        self.wanted_square += float(np.vdot(theirs, theirs))
        if error.size and (error.max() > self.max_abs or math.isnan(self.found)):
            row, column = (int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
            self.max_abs, self.worst = float(error[row, column]), (first_row + row, column)
            self.found, self.wanted = float(ours[row, column]), float(theirs[row, column])

    def result(
        self,
        name: str,
        shape: tuple[int, ...],
        measure: str,
        limit: float,
        steps: tuple[int, int],
        note: str = "",
    ) -> TensorComparison:
        """`steps`: every how many rows and columns of the whole tensor were compared."""
        both = math.sqrt(self.found_square) * math.sqrt(self.wanted_square)
        relative = self.max_abs / self.max_wanted if self.max_wanted else (0.0 if self.max_abs == 0 else math.inf)
        judged = relative if measure == "relative" else self.max_abs
        return TensorComparison(
            name,
            shape,
            measure,
            limit,
            passed=not self.note and judged <= limit,
            max_abs=self.max_abs,
            max_rel=relative if not self.note else math.nan,
            cosine=self.product / both if both and not self.note else math.nan,
            worst=(self.worst[0] * steps[0], self.worst[1] * steps[1]),
            found=self.found,
            wanted=self.wanted,
            note=self.note or note,
        )
