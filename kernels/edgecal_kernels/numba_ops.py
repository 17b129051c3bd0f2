"""The back end that Numba compiles in this process: `Operations` with the kernels of the files beside this one.

Every kernel is written once, against the vectors of `simd`; the instruction set is chosen when it is compiled. The
arithmetic of an output element does not depend on how many tokens or threads share the work, so a prompt gives the
same bits in one chunk, in several, or token by token.

Trap: Numba's disk cache notices changes of a kernel's own file but not of `simd`, `isa` or another kernel it calls;
jit.py therefore keeps a cache directory per content of all these files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

from . import isa, merging
from .adapter_inner import inner_code, inner_share, inner_together
from .attention import attend_share, attend_together
from .attention import share_code as attention_code
from .blocks import TILES
from .cache_write import remember_share, remember_together, rotate_share, rotate_together
from .decoder_walk import walk_code, walk_together
from .dense import add_lora_share, add_lora_together, dense_share, dense_together
from .elementwise import gate_all, normalize
from .embedding import embed_rows
from .jit import preparing_seconds
from .linear_product import linear_share, linear_together
from .linear_product import share_code as product_code
from .operations import Kernels, Operations
from .packing import pack_share, pack_together
from .rounding import round_share, round_together
from .threads import number_of_threads, use_threads


def _threads() -> int:
    return int(numba.get_num_threads())


def _walkers() -> int:
    """All of OpenMP's threads run at the same time, but a work-stealing layer's might not: one of any other's."""
    try:
        return _threads() if numba.threading_layer() == "omp" else 1
    except ValueError:  # no parallel kernel ran yet, so it is not settled: this step will be the first
        return 1


def _shared(share: Any, together: Any, code: Callable[[], int] | None = None) -> Callable[..., None]:
    """A kernel as `Kernels` has it, from the one that does a share and the one whose threads do them all, which calls
    the first by its address where it has one."""

    def run(*arguments: Any) -> None:
        *given, shares = arguments
        if shares == 1:
            share(*given, 0, 1)
        elif code is None:
            together(*given, shares)
        else:
            together(code(), *given, shares)

    return run


def _walk(*arguments: int) -> None:
    walk_together(walk_code(), *arguments)


OPERATIONS = Operations(
    NAME="numba",
    INSTRUCTIONS=isa.active_name(),
    kernels=Kernels(
        tiles=TILES,
        threads=_threads,
        walkers=_walkers,
        round=_shared(round_share, round_together),
        multiply=_shared(linear_share, linear_together, product_code),
        inner=_shared(inner_share, inner_together, inner_code),
        dense=_shared(dense_share, dense_together),
        add_lora=_shared(add_lora_share, add_lora_together),
        embed=embed_rows,
        normalize=normalize,
        gate=gate_all,
        rotate=_shared(rotate_share, rotate_together),
        remember=_shared(remember_share, remember_together),
        attend=_shared(attend_share, attend_together, attention_code),
        pack=_shared(pack_share, pack_together),
        walk=_walk,
    ),
    merging=merging,
    number_of_threads=number_of_threads,
    use_threads=use_threads,
    preparing_seconds=preparing_seconds,
)
