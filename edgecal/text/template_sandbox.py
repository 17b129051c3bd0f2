"""A Jinja sandbox that a hostile template can neither hang nor fill the memory with.

Chat templates arrive inside model files, which makes them foreign code. Jinja's sandbox keeps them away from
Python's internals, but not from `{% for a in range(99999) %}{% for b in range(99999) %}` or from doubling a
string forty times. Here every template pays for what it does out of one budget (template_budget):

* one step per turn of a loop. The syntax tree is rewritten before compilation: what `for` iterates over, what
  is written out, what `~` joins and what a literal builds each pass through a private filter that counts;
* the weight of each value that an operator, a call or a filter makes, or that a comparison or a filter reads.

Filters outside the list below do not exist: those that build HTML or wrap text have no use in a prompt, and
several of them take quadratic time.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

from jinja2 import Template, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .template_budget import (
    FILTER_CHECKS,
    MAX_BITS,
    MAX_CHARS,
    BudgetExceeded,
    charge,
    check_format,
    check_numbers,
    check_text_method,
    too_large,
    weigh,
)

_CALL_STEPS = 10  # a call, above all of a macro, takes as long as ten turns of a loop

# fmt: off
_ALLOWED_FILTERS = frozenset(
    (
        "abs", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape",
        "first", "float", "format", "groupby", "indent", "int", "items", "join", "last", "length",
        "list", "lower", "map", "max", "min", "random", "reject", "rejectattr", "replace", "reverse",
        "round", "safe", "select", "selectattr", "slice", "sort", "string", "sum", "title", "trim",
        "truncate", "unique", "upper", "urlencode", "wordcount",
    )
)
# These look at one element or at a stored length, and templates ask for them in every turn of a loop.
_FREE_FILTERS = frozenset(("count", "d", "default", "first", "last", "length"))
_COMPARING_TESTS = frozenset(
    (
        "==", "!=", "<", "<=", ">", ">=", "eq", "equalto", "ne", "lt", "lessthan", "le", "gt",
        "greaterthan", "ge", "in", "lower", "upper",
    )
)
# fmt: on


def metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, paying for what it reads and makes."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0
    check = FILTER_CHECKS.get(name)

    @wraps(function)
    def pay(*args: Any, **kwargs: Any) -> Any:
        if name in _FREE_FILTERS:
            charge(1)
            return function(*args, **kwargs)
        if name == "join" and not hasattr(args[first], "__len__"):
            args = (*args[:first], list(args[first]), *args[first + 1 :])
        charge(weigh(*args[first:], *kwargs.values()))
        check_numbers([*args[first + 1 :], *kwargs.values()])
        if check is not None:
            check(*args[first:], **kwargs)
        result = function(*args, **kwargs)
        charge(weigh(result))
        return result

    return pay


def _metered_test(function: Callable[..., Any]) -> Callable[..., Any]:
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def pay(*args: Any) -> Any:
        charge(weigh(*args[first:]))
        return function(*args)

    return pay


# The three private filters take the context only because that keeps Jinja from evaluating them while it
# compiles.
@pass_context
def _each(_: Context, iterable: Iterable[Any]) -> Iterator[Any]:
    for item in iterable:
        charge(1)
        yield item


@pass_context
def _touch(_: Context, value: Any) -> Any:
    charge(weigh(value))
    return value


@pass_context
def _write(_: Context, value: Any) -> str:
    charge(weigh(value))
    return str(value)


@pass_context
def _concat(_: Context, values: list[Any]) -> str:
    charge(weigh(values))
    return "".join(map(str, values))


class _Metering(NodeTransformer):
    """Route loops, output, joins, literals, slices and comparisons through the private filters."""

    def _through(self, name: str, node: Any) -> nodes.Filter:
        wrapped = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
        wrapped.set_environment(node.environment)
        return wrapped

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._through("_each", node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [self._through("_write", child) for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        parts.environment = node.environment
        return self._through("_concat", parts)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._through("_touch", node.expr)
        for operand in node.ops:
            operand.expr = self._through("_touch", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._through("_touch", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return self._through("_touch", node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return self._through("_touch", node) if node.ctx == "load" else node


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, in which templates pay for their work; compile with `compile_template`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, **options)
        self.filters = {
            name: metered_filter(name, function) for name, function in self.filters.items() if name in _ALLOWED_FILTERS
        }
        self.filters.update({"_each": _each, "_touch": _touch, "_write": _write, "_concat": _concat})
        for name in _COMPARING_TESTS & self.tests.keys():
            test: Any = self.tests[name]  # Jinja annotates these as bare functions
            self.tests[name] = _metered_test(test)
        del self.globals["lipsum"]

    def compile_template(self, source: str) -> Template:
        tree = _Metering().visit(self.parse(source))
        return Template.from_code(self, self.compile(tree), self.make_globals(None))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            check_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            if len(left) + len(right) > MAX_CHARS:
                raise too_large("adding")
        elif operator == "*":
            if isinstance(left, int) and not isinstance(right, (int, float)):
                left, right = right, left
            if isinstance(right, int) and hasattr(left, "__len__") and len(left) * right > MAX_CHARS:
                raise too_large("repeating")
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * abs(right)
            if bits > MAX_BITS:
                raise BudgetExceeded(f"it computes a number of more than {MAX_BITS} bits")
        result = super().call_binop(context, operator, left, right)
        charge(weigh(result))
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # Jinja passes the variables of enclosing loops along under these two names; they are not the
        # template's.
        given = [value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")]
        method = getattr(__obj, "__wrapped__", __obj)  # str.format comes wrapped by the sandbox
        if isinstance(method, (types.BuiltinMethodType, types.MethodType)):
            owner = method.__self__
            if isinstance(owner, (str, bytes)) and method.__name__ == "join" and args:
                args = (list(args[0]), *args[1:])
            if isinstance(owner, (str, bytes, list, tuple)):
                given.append(owner)
            check_numbers([*args, *given])
            if isinstance(owner, (str, bytes)):
                check_text_method(method.__name__, owner, args, kwargs)
        charge(_CALL_STEPS + weigh(*args, *given))
        result = super().call(__context, __obj, *args, **kwargs)
        charge(weigh(result))
        return result
