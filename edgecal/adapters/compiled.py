"""What a recipe compiles to: one low-rank pair per module, as merged (float32), and in the form that a model runs.

On a float32 base the pairs stay as they were merged. On a packed base they are rounded to int8, as activations are: a
quarter of the memory to read per token, and the same kernels as for the base. The rounding error is 0.4 to 2.1 % of
what the adapter adds, by method: about half a percent for merged LoRAs, most for Learnable Calibration, whose p 1^T x
is a sum over all inputs of which little is left. That is below the error of an int4 base; the mathematics of merging
is untouched by it, and `verify` compares that in float32.

    h += bias + scaling * (B' (A' x))        A', B' int8 with float16 scales, scaling a power of two

A' and B' are A* and B* brought to a largest element between 0.5 and 1, for float16 has few digits left for the scales
of a small matrix; a power of two changes no bit of what they are multiplied with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecal_kernels.quant import Array, QuantizedTensor
from edgecal_weights.lora_file import EMBEDDING, HEAD

from ..errors import AdapterError, QuantizationError

Pack = Callable[[Array, float], QuantizedTensor]


@dataclass(frozen=True, eq=False)
class CompiledPair:
    """What a module adds at run time: h += b @ (a @ x) + bias.

    a float32 (R, k) in C order and b float32 (d, R) in Fortran order, as the kernels read them (given otherwise,
    they are copied), all factors folded in; R may be 0. bias float32 (d,) or None: only a calibration with
    bias_mode "output" has one.
    """

    a: Array
    b: Array
    bias: Array | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", np.ascontiguousarray(self.a, np.float32))
        object.__setattr__(self, "b", np.asfortranarray(self.b, np.float32))

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    def delta(self) -> Array:
        """dW, float32 (d, k), without the bias. For looking and testing."""
        return self.b @ self.a


class _Pairs:
    """What follows from the pairs of an adapter, in whichever form they are."""

    pairs: Mapping[str, Any]

    @property
    def rank(self) -> int:
        """The largest one."""
        return max((pair.rank for pair in self.pairs.values()), default=0)

    @property
    def nbytes(self) -> int:
        """Each array counts once, however many modules share it."""
        arrays = (x for pair in self.pairs.values() for x in (pair.a, pair.b, pair.bias) if x is not None)
        return sum({id(x): x.nbytes for x in arrays}.values())


@dataclass(frozen=True, eq=False)
class CompiledAdapter(_Pairs):
    """One pair per changed module: all that the engine knows of a recipe. Immutable, shared between requests.

    `extra_parameters` and `extra_bytes` are those of the calibration alone, as it lies in its file.
    """

    method: str
    pairs: dict[str, CompiledPair]
    recipe_key: str
    extra_parameters: int = 0
    extra_bytes: int = 0


@dataclass(frozen=True, eq=False)
class RunningPair:
    """h += scaling * (b (a x)) + bias. a (R, k), b (d, R): float32 or int8, both None for rank 0."""

    a: Array | QuantizedTensor | None
    b: Array | QuantizedTensor | None
    scaling: float
    bias: Array | None

    @property
    def rank(self) -> int:
        return 0 if self.a is None else int(self.a.shape[0])


@dataclass(frozen=True, eq=False)
class RunningAdapter(_Pairs):
    """What `Engine.compile` gives: one pair per changed module. Immutable, shared between requests.

    `extra_parameters` and `extra_bytes` are those of the calibration alone, as it lies in its file.
    """

    method: str
    pairs: Mapping[str, RunningPair]
    recipe_key: str
    extra_parameters: int = 0
    extra_bytes: int = 0

    @property
    def changes_vocabulary(self) -> bool:
        """Whether it has a pair of the embedding or of the head."""
        return EMBEDDING in self.pairs or HEAD in self.pairs


def run_form(adapter: CompiledAdapter, pack: Callable[[str], Pack | None]) -> RunningAdapter:
    """`pack(module)` rounds a matrix times a factor to int8, or is None where the pair stays in float32.

    Modules that share a matrix share its int8 form. AdapterError names a module that cannot be rounded.
    """
    known: dict[int, tuple[QuantizedTensor, int]] = {}

    def rounded(matrix: Array, pack: Pack) -> tuple[QuantizedTensor, int]:
        if id(matrix) not in known:
            exponent = _exponent(matrix)
            known[id(matrix)] = pack(matrix, math.ldexp(1.0, -exponent)), exponent
        return known[id(matrix)]

    def run(module: str, pair: CompiledPair) -> RunningPair:
        chosen = pack(module)
        if pair.rank == 0:
            return RunningPair(None, None, 1.0, pair.bias)
        if chosen is None:
            if not (np.isfinite(pair.a).all() and np.isfinite(pair.b).all()):
                raise AdapterError(f"{adapter.method}: the merged pair of {module} has numbers beyond float32")
            return RunningPair(pair.a, pair.b, 1.0, pair.bias)
        try:
            (a, a_exponent), (b, b_exponent) = rounded(pair.a, chosen), rounded(pair.b, chosen)
        except QuantizationError as error:
            raise AdapterError(f"{adapter.method}: the merged pair of {module} cannot run in int8: {error}") from None
        return RunningPair(a, b, math.ldexp(1.0, a_exponent + b_exponent), pair.bias)

    pairs = {module: run(module, pair) for module, pair in adapter.pairs.items()}
    return RunningAdapter(adapter.method, pairs, adapter.recipe_key, adapter.extra_parameters, adapter.extra_bytes)


def _exponent(matrix: Array) -> int:
    """e with 2 ** (e - 1) <= max |matrix| < 2 ** e; 0 where that is 0 or not finite."""
    extreme = max(float(matrix.max(initial=0)), -float(matrix.min(initial=0)))
    return math.frexp(extreme)[1] if math.isfinite(extreme) else 0
