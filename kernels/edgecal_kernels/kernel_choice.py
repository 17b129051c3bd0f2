"""One of several kernels, chosen by a number when it is called: a `switch` in the generated code.

Numba has no way to write it down. What is chosen with `if` must stand in the source, one branch for each kernel; here
the kernels may come from a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from .sync import intrinsic


def one_of(kernels: Sequence[Any]) -> Any:
    """For kernels that take the same arguments and return nothing: what calls them in another kernel.

    It takes the place of a kernel in `kernels` and its arguments as a tuple. At a place where there is none, it does
    nothing.
    """

    @intrinsic
    def call(context: Any, place: Any, arguments: Any) -> Any:
        functions = [context.resolve_value_type(kernel) for kernel in kernels]
        signatures = [function.get_call_type(context, arguments.types, {}) for function in functions]

        def generate(context: Any, builder: Any, sig: Any, v: Any) -> Any:
            given = [builder.extract_value(v[1], i) for i in range(len(arguments))]
            after = builder.append_basic_block("after")
            switch = builder.switch(v[0], after)
            for i, (function, signature) in enumerate(zip(functions, signatures, strict=True)):
                case = builder.append_basic_block(f"case {i}")
                switch.add_case(ir.Constant(v[0].type, i), case)
                with builder.goto_block(case):
                    context.get_function(function, signature)(builder, given)
                    builder.branch(after)
            builder.position_at_end(after)
            return context.get_dummy_value()

        return types.void(types.int64, arguments), generate

    return call
