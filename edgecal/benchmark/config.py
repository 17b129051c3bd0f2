"""What `edgecal eval` is asked to do, as a YAML or JSON file.

    model: demo
    adapters: {summarize: demo:summarize, professional: demo:professional, french: demo:translate_fr}
    calibrations: [demo:learnable_calibration, demo:learnable_calibration_pp]
    tasks: [summarize+professional, summarize+french]          # a group (summarize+tone) or all, too
    data: mini                                                 # or {summarize+french: "dialogsumx:FOLDER", ...}

Everything else has a default: see `EvalConfig`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgecal_weights.files import expand
from edgecal_weights.nearest import did_you_mean

from .. import demo
from ..adapters.merge import find_method
from ..adapters.recipe_file import read_recipe
from ..errors import BenchmarkError, RecipeError
from .datasets import DATASETS
from .methods import OWN, PAPER, MethodSpec
from .prompts import load_prompts
from .tasks import Task, parse_tasks

MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class EvalConfig:
    """`adapters` by part of a task (`summarize`, `professional`, `french`), `joint` experts by a task's name, `data`
    by a task's name or kind, "" for the others. `methods` as in `methods.PAPER`, or mappings with name, method,
    weights, options, shots. `limit`: examples of each task. `train`: where in-context examples come from, as in `data`.
    `about`: numbers that tell this run from others, for `trend`; they change no answer.
    Raises BenchmarkError naming the key.
    """

    model: str
    tasks: tuple[Task, ...]
    data: Mapping[str, str]
    adapters: Mapping[str, str] = field(default_factory=dict)
    joint: Mapping[str, str] = field(default_factory=dict)
    calibrations: tuple[str, ...] = ()
    methods: tuple[MethodSpec, ...] = tuple(MethodSpec(name, name) for name in PAPER)
    train: Mapping[str, str] = field(default_factory=dict)
    prompts: str = "paper1"
    split: str = "test"
    limit: int | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    weights: str = "auto"
    cache_dtype: str = "fp16"
    batch: int = 8
    seed: int = 0
    stemmer: bool = False
    about: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_file(cls, path: str | Path) -> EvalConfig:
        """Relative paths are those of the file's folder. BenchmarkError names the file and the key."""
        path = expand(path, BenchmarkError)
        try:
            values = read_recipe(path)
        except RecipeError as error:
            raise BenchmarkError(str(error)) from error
        try:
            return cls.from_dict(values, path.parent)
        except BenchmarkError as error:
            raise BenchmarkError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], folder: Path | None = None) -> EvalConfig:
        """From what a file holds, or from `to_dict`. BenchmarkError names the key."""
        known = {f.name for f in fields(cls)}
        if unknown := [key for key in values if key not in known]:
            hint = did_you_mean(unknown[0], known)
            raise BenchmarkError(f"unknown key {unknown[0]!r}{hint}; there are {', '.join(sorted(known))}")
        for key in ("model", "tasks", "data"):
            if key not in values:
                raise BenchmarkError(f"the key {key!r} is missing")
        made: dict[str, Any] = {}
        for key, value in values.items():
            made[key] = _READERS[key](key, value, folder)
        return cls(**made)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = asdict(self)
        values["tasks"] = [task.name for task in self.tasks]
        values["methods"] = [_plain(spec) for spec in self.methods]
        values["calibrations"] = list(self.calibrations)
        return values

    @property
    def digest(self) -> str:
        """16 hex digits of what makes an answer what it is; not of which tasks, methods and examples are run."""
        every = self.to_dict()
        chosen = {key: every[key] for key in _MAKING} | {"prompts": load_prompts(self.prompts).digest}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]

    def data_of(self, task: Task) -> str:
        """The source of its examples; BenchmarkError where none is named."""
        for key in (task.name, task.kind, ""):
            if key in self.data:
                return self.data[key]
        raise BenchmarkError(f"'data' names no source for {task.name}")

    def train_of(self, task: Task) -> str | None:
        """The source of in-context examples, where one of its own is named."""
        return next((self.train[key] for key in (task.name, task.kind, "") if key in self.train), None)


_MAKING = ("model", "weights", "cache_dtype", "max_new_tokens", "split", "seed")


def _plain(spec: MethodSpec) -> Any:
    return {key: value for key, value in asdict(spec).items() if value not in (None, {})}


def _text(key: str, value: Any, folder: Path | None) -> str:
    if not isinstance(value, str) or not value:
        raise BenchmarkError(f"{key!r} is {value!r}, expected a text")
    return value


def _place(key: str, value: Any, folder: Path | None) -> str:
    """A path beside the file, where there is one; else as it is: demo:NAME, a hub id, a set of the package."""
    text = _text(key, value, folder)
    name, _, place = text.partition(":")
    of_a_set = name in DATASETS and place
    place = place if of_a_set else text
    if folder is None or not (folder / place).exists():
        return text
    there = str((folder / place).absolute())
    return f"{name}:{there}" if of_a_set else there


def _places(key: str, value: Any, folder: Path | None) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise BenchmarkError(f"{key!r} is {value!r}, expected a mapping of names to places")
    return {str(name): _place(f"{key}.{name}", place, folder) for name, place in value.items()}


def _sources(key: str, value: Any, folder: Path | None) -> dict[str, str]:
    return {"": _place(key, value, folder)} if isinstance(value, str) else _places(key, value, folder)


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)) or not value:
        raise BenchmarkError(f"{key!r} is {value!r}, expected a list, and not an empty one")
    return list(value)


def _task_list(key: str, value: Any, folder: Path | None) -> tuple[Task, ...]:
    names = [value] if isinstance(value, str) else _list(key, value)
    return tuple(parse_tasks(_text(key, name, None) for name in names))


def _methods(key: str, value: Any, folder: Path | None) -> tuple[MethodSpec, ...]:
    specs = [_method(item) for item in _list(key, value)]
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BenchmarkError(f"'methods' names {twice!r} twice; give one of them another name")
    return tuple(specs)


def _method(value: Any) -> MethodSpec:
    values: Any = {"method": value} if isinstance(value, str) else value
    known = {f.name for f in fields(MethodSpec)}
    if not isinstance(values, Mapping) or not isinstance(values.get("method"), str) or values.keys() - known:
        raise BenchmarkError(f"a method is a name or {{{', '.join(sorted(known))}}}, found {value!r}")
    method = values["method"]
    try:
        entry = None if method in OWN else find_method(method)
        weights = values.get("weights")
        options = dict(values.get("options") or {})
        if entry is not None:
            entry.check_options(options, 2)
        return MethodSpec(
            str(values.get("name", method)),
            method,
            None if weights is None else tuple(float(w) for w in weights),
            options,
            _whole("shots", values.get("shots", 1), None),
        )
    except (RecipeError, TypeError, ValueError) as error:
        raise BenchmarkError(f"method {method!r}: {error}") from error


def _whole(key: str, value: Any, folder: Path | None) -> int:
    least = 0 if key == "seed" else 1
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BenchmarkError(f"{key!r} is {value!r}, expected a whole number of at least {least}")
    return value


def _whole_or_none(key: str, value: Any, folder: Path | None) -> int | None:
    return None if value is None else _whole(key, value, folder)


def _flag(key: str, value: Any, folder: Path | None) -> bool:
    if not isinstance(value, bool):
        raise BenchmarkError(f"{key!r} is {value!r}, expected true or false")
    return value


def _numbers(key: str, value: Any, folder: Path | None) -> dict[str, float]:
    if not isinstance(value, Mapping) or not all(
        isinstance(number, (int, float)) and not isinstance(number, bool) for number in value.values()
    ):
        raise BenchmarkError(f"{key!r} is {value!r}, expected a mapping of names to numbers")
    return {str(name): float(number) for name, number in value.items()}


_READERS: dict[str, Any] = {
    "model": _place,
    "tasks": _task_list,
    "data": _sources,
    "adapters": _places,
    "joint": _places,
    "calibrations": lambda key, value, folder: tuple(_place(key, item, folder) for item in value),
    "methods": _methods,
    "train": _sources,
    "prompts": _place,
    "split": _text,
    "limit": _whole_or_none,
    "max_new_tokens": _whole,
    "weights": _text,
    "cache_dtype": _text,
    "batch": _whole,
    "seed": _whole,
    "stemmer": _flag,
    "about": _numbers,
}


def quick() -> EvalConfig:
    """The demo's model, adapters and calibrations on the data set that ships."""
    adapters = dict(zip(("summarize", "professional", "french"), demo.ADAPTERS, strict=True))
    return EvalConfig(
        model="demo",
        tasks=(Task("summarize", tone="professional"), Task("summarize", language="french")),
        data={"": "mini"},
        adapters={part: f"demo:{name}" for part, name in adapters.items()},
        calibrations=tuple(f"demo:{name}" for name in demo.CALIBRATIONS),
        limit=10,
        max_new_tokens=64,
    )
