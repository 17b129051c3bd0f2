"""Data sets, one small file each; `load_examples` brings the examples of a split for a task.

A source is written `mini`, `dialogsum:FOLDER`, `dialogsum:FILE`, `dialogsum:hub:ORG/NAME`, or as the path of a file of
one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgecal_weights.nearest import did_you_mean

from ...errors import BenchmarkError
from ..tasks import LANGUAGES, Task
from .dataset import Dataset, Example
from .dialogsum import DIALOGSUM
from .dialogsumx import DIALOGSUMX
from .fetch import fetch_file
from .mini import FOLDER as MINI_FOLDER
from .mini import MINI
from .own import OWN
from .parallel import PARALLEL
from .persona_chat import PERSONA_CHAT
from .records import LeftOut, read_rows
from .samsum import SAMSUM
from .tones import TONES

DATASETS = {d.name: d for d in (MINI, DIALOGSUM, SAMSUM, PERSONA_CHAT, PARALLEL, TONES, DIALOGSUMX, OWN)}

__all__ = ["DATASETS", "Dataset", "Example", "Examples", "LeftOut", "load_examples"]


@dataclass(frozen=True)
class Examples:
    """Of one source, split and task, ids unique. `left_out` are the rows that gave none."""

    source: str
    examples: Sequence[Example]
    left_out: Sequence[LeftOut]


def load_examples(source: str, task: Task, split: str = "test", *, seed: int = 0, limit: int | None = None) -> Examples:
    """No more than `limit`. BenchmarkError for an unknown set, a task that it has no references for, a
    file that cannot be read, or one without any example."""
    dataset, path = _find(source, split, task)
    found: list[Example] = []
    left_out: list[LeftOut] = []
    seen: set[str] = set()
    for row in read_rows(path):
        if isinstance(row, LeftOut):
            left_out.append(row)
            continue
        try:
            made = list(dataset.examples(row.values, task))
        except (ValueError, KeyError, TypeError, BenchmarkError) as error:
            left_out.append(LeftOut(row.place, str(error)[:300]))
            continue
        for example in made:
            name = example.id or str(row.number)
            if dataset.take is not None:  # several of a row
                name = f"{row.number}.{name}"
            if name in seen:
                left_out.append(LeftOut(row.place, f"a second example with the id {name!r}"))
                continue
            seen.add(name)
            found.append(replace(example, id=name))
    if dataset.take is not None:
        found = dataset.take(found, split, seed)
    if not found:
        reasons = f"; the first: {left_out[0].place}: {left_out[0].reason}" if left_out else ""
        raise BenchmarkError(f"{path} has no example for {task.name}: {len(left_out)} rows were left out{reasons}")
    return Examples(source, found[:limit], left_out)


def _find(source: str, split: str, task: Task) -> tuple[Dataset, Path]:
    name, _, place = source.partition(":")
    if name not in DATASETS or (not place and name != "mini"):
        path = Path(source).expanduser()
        if path.is_file():
            return OWN, path
        known = ", ".join(DATASETS)
        advice = f"; {name} needs a place: {name}:FOLDER or {name}:hub:ORG/NAME" if name in DATASETS else ""
        hint = did_you_mean(name, DATASETS) if name not in DATASETS else ""
        raise BenchmarkError(f"there is no data set or file {source!r}{hint}{advice}; sets: {known}")
    dataset = DATASETS[name]
    if not dataset.serves(task):
        raise BenchmarkError(f"{name} has no references for {task.name}; see `edgecal eval --list`")
    if name == "mini":
        split = "test"
    file = dataset.files.get(split, "").format(code=LANGUAGES.get(task.language or "", ""))
    if place.startswith("hub:"):
        if not file:
            raise BenchmarkError(f"{name} has no split {split!r}; its splits: {', '.join(dataset.files) or 'none'}")
        return dataset, fetch_file(place.removeprefix("hub:"), file)
    path = MINI_FOLDER if name == "mini" else Path(place).expanduser()
    if path.is_dir():
        if not file:
            raise BenchmarkError(f"{name} has no split {split!r}; its splits: {', '.join(dataset.files) or 'none'}")
        path = path / file
    if not path.is_file():
        raise BenchmarkError(f"{path}: no such file; {name} expects a folder with {file or 'its files'}, or a file")
    return dataset, path
