"""What a data set is to the benchmark: rows that become examples of the tasks that it serves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgecal_weights.files import kind_of

from ..tasks import Task


@dataclass(frozen=True)
class Example:
    """`text` is what the task is about, `references` are good answers; without one there is no ROUGE."""

    id: str
    text: str
    references: tuple[str, ...] = ()


Values = Mapping[str, Any]


@dataclass(frozen=True)
class Dataset:
    """`examples(values, task)` makes the examples of one row; it raises ValueError with the reason where it cannot.

    `serves` says for which tasks there are references. `files` name the file of each split within a folder, `hub` the
    repository of the same files. `take`, where given, draws from all examples of a split by a seed, as the papers did.
    """

    name: str
    about: str
    licence: str
    serves: Callable[[Task], bool]
    examples: Callable[[Values, Task], Iterable[Example]]
    files: Mapping[str, str] = field(default_factory=dict)
    hub: str | None = None
    take: Callable[[Sequence[Example], str, int], list[Example]] | None = None


def text_of(values: Values, *names: str) -> str:
    """The first of these columns that is there; ValueError where none is, or it is no text or empty."""
    for name in names:
        if name in values:
            value = values[name]
            if not isinstance(value, str):
                raise ValueError(f"column {name!r} is {kind_of(value)}, expected a text")
            if not value.strip():
                raise ValueError(f"column {name!r} is empty")
            return value.strip()
    wanted = " or ".join(map(repr, names))
    raise ValueError(f"no column {wanted}; its columns: {', '.join(map(repr, list(values)[:10])) or 'none'}")


def identity(values: Values, *names: str, default: str = "") -> str:
    """The example's own name, where the row has one."""
    return next((str(values[name]) for name in names if isinstance(values.get(name), (str, int))), default)
