"""Kernels that were compiled before, loaded from disk without what only a compiler wants of them.

Beside the machine code of a kernel Numba keeps its code for LLVM, so that another kernel which calls it can be compiled
with it, and unpacks that whenever the kernel is loaded. Of the kernels of one request it is 1.7 MiB packed and 17 MiB
unpacked, and nobody looks at it: whoever calls a kernel was compiled before, too. So it stays packed until it is asked
for.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite.binding import parse_bitcode
from numba.core.caching import FunctionCache


class KeptKernels(FunctionCache):
    """Numba's cache of one function, as its decorator's `cache=True` makes it."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was compiled for these types, or None."""
        loaded = super().load_overload(sig, target_context)
        if loaded is not None:
            _pack(loaded.library)
        return loaded


def _pack(library: Any) -> None:
    """Keep a library's code for LLVM packed. These names are Numba's own: where one of its releases has other ones,
    nothing is packed and everything runs as before."""
    module = getattr(library, "_shared_module", None)
    if module is not None and hasattr(library, "_get_module_for_linking"):
        library._get_module_for_linking = partial(parse_bitcode, module.as_bitcode())
        library._shared_module = None
