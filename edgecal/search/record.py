"""The evaluations of a search, in memory and in a file: what makes a search resumable.

An evaluation costs seconds, everything else about a search costs nothing. So the file holds the evaluations alone,
and a later run asks its optimiser from the start: as long as the optimiser proposes what it proposed before, which it
does, being deterministic, the answers come out of the file and the search is where it was within milliseconds. No
state of an optimiser is ever written down.

What a loss depends on (the `setup`: model, adapters, examples, method) is in the file too, and a file of another setup
is refused: its losses would silently be those of something else. Budget and seed are not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecal_weights.files import expand, is_number, read_json, write_json

from ..errors import RecipeError

_FORMAT = "edgecal-search"
_VERSION = 1
_LARGEST_FILE = 64 << 20


@dataclass(frozen=True)
class Evaluation:
    """The mean loss (nats per token; inf where it overflowed) with these weights, and the seconds that it took."""

    weights: tuple[float, ...]
    loss: float
    seconds: float = 0.0


class SearchRecord:
    """All evaluations, in order. With a `path` every new one is written at once, and those in the file are read first.

    Raises RecipeError for a file that is no record, or one of another setup; StorageError if it cannot be written,
    which is tried at the start.
    """

    def __init__(self, setup: Mapping[str, str] | None = None, path: str | Path | None = None) -> None:
        self.setup = dict(setup or {})
        self.path = expand(path, RecipeError) if path is not None else None
        self._known: dict[tuple[float, ...], Evaluation] = {}
        if self.path is not None:
            if self.path.exists():
                self._read(self.path)
            self.save()

    @property
    def evaluations(self) -> list[Evaluation]:
        return list(self._known.values())

    def find(self, weights: tuple[float, ...]) -> Evaluation | None:
        return self._known.get(weights)

    def add(self, evaluation: Evaluation) -> None:
        self._known[evaluation.weights] = evaluation
        self.save()

    def save(self) -> None:
        """Write the file, complete or not at all. Does nothing without a path."""
        if self.path is None:
            return
        evaluations = [
            {"weights": list(e.weights), "loss": e.loss if math.isfinite(e.loss) else None, "seconds": e.seconds}
            for e in self._known.values()
        ]
        values = {"format": _FORMAT, "version": _VERSION, "setup": self.setup, "evaluations": evaluations}
        write_json(self.path, values, indent=1)

    def _read(self, path: Path) -> None:
        values = read_json(path, _LARGEST_FILE, error=RecipeError)
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise RecipeError(f"{path} is not the state of a search; give another file to --state")
        if values.get("version") != _VERSION:
            raise RecipeError(f"{path} has version {values.get('version')!r} of the state, expected {_VERSION}")
        setup, evaluations = values.get("setup"), values.get("evaluations")
        if not isinstance(setup, dict) or not isinstance(evaluations, list):
            raise RecipeError(f"{path}: expected an object 'setup' and a list 'evaluations'")
        for key in sorted({*setup, *self.setup}):
            if setup.get(key) != self.setup.get(key):
                raise RecipeError(
                    f"{path} is the state of another search: {key} is {setup.get(key)!r} there and "
                    f"{self.setup.get(key)!r} now; give another file to --state, or delete it"
                )
        for number, value in enumerate(evaluations, 1):
            evaluation = _evaluation(value)
            if evaluation is None:
                raise RecipeError(f"{path}: evaluation {number} is not {{weights, loss, seconds}} of numbers")
            self._known[evaluation.weights] = evaluation


def _evaluation(value: Any) -> Evaluation | None:
    if not isinstance(value, dict) or not isinstance(value.get("weights"), list):
        return None
    loss = math.inf if value.get("loss") is None else value["loss"]
    numbers = [*value["weights"], loss, value.get("seconds", 0.0)]
    if not all(x == math.inf or is_number(x) for x in numbers) or math.inf in value["weights"]:
        return None
    return Evaluation(tuple(map(float, value["weights"])), float(loss), float(value.get("seconds", 0.0)))
