"""What can be said of dW = B A without forming it: norms, angles, samples of rows.

With Gram matrices of the factors, |B A|_F^2 = sum((B^T B) * (A A^T)) and <B1 A1, B2 A2> = sum((B1^T B2) * (A1 A2^T)):
r x r numbers instead of d x k, at the cost of one pass over each factor. Everything is float64, because squares are
summed; the difference of two nearly equal dW is still better taken from stacked factors than from two norms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .compiled import CompiledPair
from .lora import LoraPair

Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Factors:
    """a (r, k) and b (d, r), float64, all scaling in b."""

    a: Doubles
    b: Doubles

    @classmethod
    def of(cls, pair: LoraPair | CompiledPair) -> Factors:
        scaling = pair.scaling if isinstance(pair, LoraPair) else 1.0
        return cls(pair.a.astype(np.float64), pair.b.astype(np.float64) * scaling)

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    def inner(self, other: Factors) -> float:
        """<dW, dW'> = sum over all elements of their product; both of one (d, k)."""
        return float(np.sum((self.b.T @ other.b) * (self.a @ other.a.T)))

    def norm(self) -> float:
        """|dW|_F."""
        return math.sqrt(max(self.inner(self), 0.0))

    def rows(self, start: int, stop: int, step: int = 1) -> Doubles:
        """These rows of dW."""
        return self.b[start:stop:step] @ self.a


def cosine(product: float, norm: float, other: float) -> float:
    """The cosine of the angle between two dW; nan where one of them is zero."""
    if norm == 0 or other == 0:
        return math.nan
    return max(-1.0, min(1.0, product / (norm * other)))
