"""What a template may spend: a count of steps, and a limit on the size of any one value.

A clock would stop the same template at different places on different machines; a count does not. Costs follow
the work: the weight of a string is an eighth of its length, that of a container the sum over its contents
*with repetition*, so `[x, x]` weighs twice x. Without that, forty nestings would make a list whose repr has
2**40 parts while every single step looks harmless.

The checks bound operations whose result can be far larger than their operands (padding, replace, join,
format) before they run, because afterwards is too late.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any

from jinja2.exceptions import SecurityError

MAX_STEPS = 3_000_000  # one or two seconds of the most expensive steps
MAX_CHARS = 4_000_000  # of one value, and of the whole output; a context of 128k tokens holds half a million
MAX_WEIGHT = MAX_CHARS // 8
_MAX_DEPTH = 200  # hashing nested tuples recurses in C without a check
MAX_BITS = 4096

_EMPTY: dict[Any, Any] = {}
_VIEWS = (type(_EMPTY.keys()), type(_EMPTY.values()), type(_EMPTY.items()))
_CONTAINERS = (dict, list, tuple, set, frozenset, *_VIEWS)


class BudgetExceeded(SecurityError):
    """The template wants more steps, or a larger value, than any prompt needs."""


class _Meter:
    """What one rendering has left."""

    def __init__(self) -> None:
        self.steps = MAX_STEPS

    def charge(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise BudgetExceeded(f"it takes more than {MAX_STEPS:,} steps")


_meter: ContextVar[_Meter | None] = ContextVar("edgecal_template_meter", default=None)


@contextmanager
def metered() -> Iterator[None]:
    """Give everything rendered or compiled inside one fresh budget."""
    token = _meter.set(_Meter())
    try:
        yield
    finally:
        _meter.reset(token)


def charge(steps: int) -> None:
    """Take steps from the budget of the rendering under way."""
    meter = _meter.get()
    if meter is not None:
        meter.charge(steps)


def too_large(what: str) -> BudgetExceeded:
    return BudgetExceeded(f"{what} would make a value of more than {MAX_CHARS:,} characters")


def weigh(*values: Any) -> int:
    """What touching all of the values costs: characters / 8 plus elements, shared ones counted every time."""
    total = 0
    levels: list[tuple[Any, int]] = [(values, 0)]  # containers still to look into, with their depth
    while levels:
        container, depth = levels.pop()
        if depth > _MAX_DEPTH:
            raise BudgetExceeded(f"it nests values more than {_MAX_DEPTH} deep")
        total += len(container)
        if total <= MAX_WEIGHT:
            items = chain(container, container.values()) if isinstance(container, dict) else container
            for item in items:
                if isinstance(item, (str, bytes)):
                    total += len(item) >> 3
                elif isinstance(item, _CONTAINERS):
                    levels.append((item, depth + 1))
        if total + len(levels) > MAX_WEIGHT:
            raise BudgetExceeded(f"it handles a value of more than {MAX_CHARS:,} characters or {MAX_WEIGHT:,} elements")
    return total


def check_numbers(values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > MAX_CHARS for value in values):
        raise BudgetExceeded(f"it passes a number above {MAX_CHARS:,} to a function of texts or lists")


def check_format(template: str, values: Iterable[Any]) -> None:
    """Bound what `template % values` or `template.format(values)` can become."""
    if re.search(r"%[^a-zA-Z%]*\*|\{[^{}:]*:[^{}]*\{|\d{8}", template):
        raise BudgetExceeded("it formats with a width of its own computing")
    fields = template.count("%") + template.count("{")
    width = max((int(number) for number in re.findall(r"\d+", template)), default=0)
    if len(template) + fields * (width + 8 * weigh(*values)) > MAX_CHARS:
        raise too_large("formatting")


def _check_replace(text: Any, old: Any, new: Any) -> None:
    if len(text) + text.count(old) * len(new) > MAX_CHARS:
        raise too_large("replacing")


def _check_join(separator: Any, items: Any) -> None:
    if len(str(separator)) * len(items) > MAX_CHARS:
        raise too_large("joining")


def _check_sum(_: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, (int, float)):
        raise SecurityError("sum() adds numbers only")


def _check_indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    if (str(text).count("\n") + 1) * (width if isinstance(width, int) else len(str(width))) > MAX_CHARS:
        raise too_large("indenting")


def _check_groups(_: Any, count: Any, *__: Any, **___: Any) -> None:
    if isinstance(count, int) and abs(count) > MAX_WEIGHT:
        raise too_large("grouping")


FILTER_CHECKS: dict[str, Callable[..., None]] = {
    "format": lambda template, *args, **kwargs: check_format(str(template), [*args, *kwargs.values()]),
    "replace": lambda s, old, new, count=None: _check_replace(str(s), str(old), str(new)),
    "join": lambda items, d="", attribute=None: _check_join(d, items),
    "sum": _check_sum,
    "indent": _check_indent,
    "batch": _check_groups,
    "slice": _check_groups,
}


def check_text_method(name: str, text: str | bytes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if name in ("translate", "striptags"):
        raise SecurityError(f"the method {name!r} is not available to chat templates")
    kind = str if isinstance(text, str) else bytes
    if name == "replace" and len(args) >= 2 and all(isinstance(arg, kind) for arg in args[:2]):
        _check_replace(text, *args[:2])
    elif name == "join" and args:
        _check_join(text, args[0])
    elif name in ("format", "format_map"):
        check_format(str(text), [*args, *kwargs.values()])
    elif name == "expandtabs":
        size = args[0] if args else kwargs.get("tabsize", 8)
        if isinstance(size, int) and size * len(text) > MAX_CHARS:
            raise too_large("expanding tabs")
