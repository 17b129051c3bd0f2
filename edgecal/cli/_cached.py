"""What edgecal and the hub's client keep on this machine: models, converted files, compiled kernels."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgecal_kernels.paths import cache_directory, private_temporary_directory
from edgecal_weights.demo_model import demo_folder
from edgecal_weights.errors import EdgecalError, StorageError
from edgecal_weights.file_kind import PACKED_FILE
from edgecal_weights.hub_cache import cached_models, remove_cached_model

from ._inspect_tables import size
from ._output import screen
from ._tables import plain, show_table

Kind = Literal["demo", "converted", "hub", "kernels", "old kernels", "other"]


@dataclass(frozen=True)
class Kept:
    """`name` is what commands call it; bytes; `used_s` is when it was last read or written, seconds since 1970."""

    name: str
    kind: Kind
    path: str
    bytes: int
    used_s: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def age(self) -> str:
        days = (time.time() - self.used_s) / 86400
        return "today" if days < 1 else f"{days:.0f} days"


def models() -> list[Kept]:
    """Everything that `edgecal generate` could be given by name, and what files were converted to."""
    demo, root = demo_folder(), cache_directory()
    found = [_kept("demo", "demo", demo)] if demo.is_dir() else []
    for file in sorted(root.glob(f"**/{PACKED_FILE}")):
        if demo not in file.parents:
            found.append(_kept(file.parent.relative_to(root).as_posix(), "converted", file.parent))
    return found + [Kept(repo.name, "hub", repo.path, repo.nbytes, repo.used_s) for repo in cached_models()]


def everything() -> list[Kept]:
    """The models, and what else lies in edgecal's own folder."""
    found, root = models(), cache_directory()
    current = _current_kernels()
    known = [Path(kept.path) for kept in found]
    for place in (root, private_temporary_directory()):  # the second where the first cannot be written
        if place is not None:
            for folder in sorted((place / "kernels").glob("*")):
                kind: Kind = "kernels" if folder == current or current is None else "old kernels"
                name = f"kernels/{folder.name}"
                found.append(_kept(name if place == root else str(folder), kind, folder))
    for path in sorted(root.glob("*")):
        inside = [kept for kept in known if path == kept or path in kept.parents]
        if path.name != "kernels" and not inside and not (path.is_dir() and not any(path.iterdir())):
            found.append(_kept(path.name, "other", path))
    return found


def remove(kept: Kept) -> None:
    """From the disk; StorageError when it cannot be removed."""
    try:
        if kept.kind == "hub":
            remove_cached_model(kept.name)
        elif Path(kept.path).is_dir():
            shutil.rmtree(kept.path)
        else:
            Path(kept.path).unlink()
    except OSError as error:
        raise StorageError(f"{kept.path} could not be removed: {error.strerror or error}") from error


def show_kept(kept: Sequence[Kept]) -> None:
    """A table; where a name, which other commands take, would not fit on its line, two lines for each."""
    rows = [(entry.name, str(entry.kind), size(entry.bytes), entry.age) for entry in kept]
    console, widest = screen(), max(len(name) for name, *_ in rows)
    if widest + 36 <= console.width or not (console.is_terminal or "COLUMNS" in os.environ):
        console.width = max(console.width, widest + 36)
        show_table(console, ("name", "kind", "size", "last used"), rows, left=("name", "kind"))
        return
    for name, *facts in rows:
        console.print(plain(name), soft_wrap=True)
        console.print("    " + ", ".join(facts), soft_wrap=True)


def _current_kernels() -> Path | None:
    """The folder of this installation on this machine; None where nothing can be compiled."""
    try:
        from edgecal_kernels.jit import kernel_cache

        return kernel_cache()
    except (ImportError, EdgecalError):
        return None


def _kept(name: str, kind: Kind, path: Path) -> Kept:
    sizes, times = [0], []
    for file in _files(path):
        try:
            facts = file.stat()
        except OSError:  # another process has just removed it
            continue
        sizes.append(facts.st_size)
        times.append(max(facts.st_mtime, facts.st_atime))
    return Kept(name, kind, str(path), sum(sizes), max(times, default=path.stat().st_mtime))


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from (file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
