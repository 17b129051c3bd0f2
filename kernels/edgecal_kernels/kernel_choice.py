"""One of several kernels, chosen by a number at run time: a `switch` in the generated code.

In Numba's Python a choice is an `if` with one branch per kernel, written out in the source. Here the kernels come from
a table, and each is still called directly, so that LLVM may inline it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from .sync import intrinsic


def one_of(kernels: Sequence[Any]) -> Any:
    """For kernels that take the same arguments and return nothing: an intrinsic that calls one of them from another
    kernel.

    It takes the index of a kernel in `kernels` and the arguments as a tuple. An index out of range calls nothing.
    """

    @intrinsic
    def call(context: Any, index: Any, arguments: Any) -> Any:
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
