"""Calls through function pointers.

Numba compiles a callee into each of its callers, and several times into a parallel loop. Called through a pointer it is
compiled once. Worth it for the large bodies of parallel loops; small ones are better inlined.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError

from .sync import intrinsic


def by_address(function: Any, *arguments: Any) -> tuple[Any, Callable[[], int]]:
    """For a kernel that returns nothing and takes the Numba types `arguments`: an intrinsic that calls it from another
    kernel, and a Python function that returns its address.

    The intrinsic takes the address and then the arguments; other types do not compile. The function compiles the kernel
    if it is not on disk.
    """

    @intrinsic
    def call(context: Any, code: Any, *given: Any) -> Any:
        convertible = [context.can_convert(a, b) is not None for a, b in zip(given, arguments, strict=False)]
        if len(given) != len(arguments) or not all(convertible):
            raise TypingError(f"{function.__name__} called by its address takes {arguments}, not {given}")

        def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
            convention = context.call_conv
            callee = builder.inttoptr(v[0], convention.get_function_type(types.void, arguments).as_pointer())
            given = [builder.extract_value(v[1], i) for i in range(len(arguments))]
            status, _ = convention.call_function(builder, callee, types.void, arguments, given)
            with cgutils.if_unlikely(builder, status.is_error):
                convention.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return types.void(types.int64, types.Tuple(arguments)), generate

    @lru_cache(maxsize=1)
    def code() -> int:
        function.compile(arguments)  # by types alone, as a call does: a signature would be another name on disk
        compiled = function.overloads[arguments]
        return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))

    return call, code
