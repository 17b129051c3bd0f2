"""What a target is, and where the targets are."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from edgecal_kernels.errors import EdgecalError

Mutator = Callable[[bytes, random.Random], bytes]
_HERE = Path(__file__).parent
CORPUS = _HERE / "corpus"


def all_of(reads: Iterable[Callable[[], object]]) -> None:
    """Call all of them; the last refusal comes out where none of them took the input."""
    accepted, refused = False, None
    for read in reads:
        try:
            read()
            accepted = True
        except EdgecalError as error:
            refused = error
    if refused is not None and not accepted:
        raise refused


@dataclass(frozen=True)
class Target:
    """`run(data, folder)` gives one input to a reader; `folder` is the target's own, kept from input to input.

    `prepare(folder)` puts into it what stands around the input, and returns good inputs to begin with. `seconds` of
    processor time and `megabytes` of memory are what one input may take.
    """

    run: Callable[[bytes, Path], object]
    prepare: Callable[[Path], list[bytes]]
    mutate: Mutator
    seconds: float = 2.0
    megabytes: int = 64


def names() -> list[str]:
    return sorted(path.stem for path in (_HERE / "targets").glob("*.py") if not path.stem.startswith("_"))


def find(name: str) -> Target:
    target: Target = import_module(f"tests.fuzz.targets.{name}").TARGET
    return target


def corpus(name: str) -> list[Path]:
    """The inputs that are kept for a target."""
    return sorted((CORPUS / name).glob("*"))
