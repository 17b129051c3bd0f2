"""Models that had to be converted to be run, kept in packed form for the next time.

Repacking the blocks of a GGUF, or rounding float weights, is the longest part of a start, and gives the same bytes
every time. So the first load writes them as `edgecal quantize` would, into the cache folder, and runs from there; the
next one maps the file. What is kept is found by content: the digests of the weight files, what becomes of every tensor,
and the code that does it. A file that was seen before, at the same place with the same size and time, is not read for
its digest again; a copy under another name is recognised.

    <cache>/converted/<name>-<key>/     a packed directory, and origins.json: the files that it was seen to be made of

All of them together take at most $EDGECAL_CONVERTED bytes (4 GiB; 0: nothing is kept or looked for), those used
longest ago go first, and half of what is free on the disk stays free. Where nothing can be kept, weights are converted
in memory, as ever.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecal_kernels import quant
from edgecal_kernels.paths import cache_directory

from . import gguf_blocks, packed, quantizer
from .checkpoint import Checkpoint
from .errors import StorageError, WeightsError
from .file_kind import PACKED_FILE
from .files import Progress, file_sha256, read_object, reason, write_json
from .packed import FLOAT, PackedCheckpoint
from .quantizer import Decision, plan, quantize_checkpoint
from .sizes import read_size

LIMIT_ENV = "EDGECAL_CONVERTED"
LIMIT = 4 << 30
ORIGINS = "origins.json"
_SMALLEST = 16 << 20  # bytes of weights below which converting is not felt
_MOST_ORIGINS, _ORIGINS_BYTES = 8, 1 << 16
# What decides about the bytes; another version of it makes others
_CODE = [Path(str(module.__file__)) for module in (quant, gguf_blocks, quantizer, packed)]
_CODE += [_CODE[0].with_name(name) for name in ("formats.py", "layout.py", "code_search.py")]


@dataclass(frozen=True)
class RunForm:
    """What to load a model from. `note` is for the person who waits: what was kept, or why it could not be; or ""."""

    checkpoint: Checkpoint
    note: str = ""


def converted_folder() -> Path:
    """Where they lie; it need not exist."""
    return cache_directory() / "converted"


def limit() -> int:
    """The most bytes that they may take, of EDGECAL_CONVERTED ("0", "500M", "8G"); StorageError for another text."""
    text = os.environ.get(LIMIT_ENV, "").strip()
    if not text:
        return LIMIT
    most = read_size(text)
    if most is None:
        raise StorageError(f"{LIMIT_ENV} is {text!r}, expected a number of bytes such as 0, 500M or 8G")
    return most


@contextmanager
def run_form(
    checkpoint: Checkpoint, format: str, group_size: int, progress: Progress | None = None
) -> Iterator[RunForm]:
    """`checkpoint` with its weights in the form that `format` and `group_size` ask for (see `quantizer.plan`).

    That is a packed checkpoint from the cache, made first where it is not there, or `checkpoint` itself: of weights
    that are packed already, that stay float ("fp32"), that are few, or that cannot be kept. Arrays that were taken from
    it stay valid after the block. Raises what `quantize_checkpoint` raises about the weights.
    """
    most = limit()
    decisions = plan(checkpoint, format, group_size) if format != "fp32" else []
    ready_made = checkpoint.kind == "packed" and all(d.keep or d.spec.format == FLOAT for d in decisions)
    if not decisions or ready_made or checkpoint.tensor_bytes() < _SMALLEST or not most:
        yield RunForm(checkpoint)
        return
    note = ""
    try:
        kept, new = _find_or_make(checkpoint, decisions, format, group_size, most, progress)
    except (StorageError, OSError) as error:
        kept, new = None, False
        note = f"the converted weights could not be kept for the next start: {reason(error)}"
    if kept is None:
        yield RunForm(checkpoint, note)
        return
    if new:
        size = sum(file.stat().st_size for file in kept.iterdir()) / (1 << 20)
        name = kept.relative_to(cache_directory()).as_posix()
        note = f"kept in its packed form for the next start ({size:,.1f} MiB; edgecal rm {name})"
    with PackedCheckpoint(kept) as ready:
        yield RunForm(ready, note)


def _find_or_make(
    checkpoint: Checkpoint,
    decisions: list[Decision],
    format: str,
    group_size: int,
    most: int,
    progress: Progress | None,
) -> tuple[Path | None, bool]:
    """The kept directory, and whether it was made just now; None where it is larger than what may be kept."""
    size = sum(decision.spec.nbytes(decision.name) for decision in decisions)
    folder, form = converted_folder(), _digest(_form(decisions))
    origin = [_facts(path) for path in checkpoint.weight_files()]
    for kept in _kept(folder):
        if {"form": form, "files": origin} in _origins(kept) and _is_whole(kept):
            _used(kept)
            _make_room(folder, most)
            return kept, False
    if size > most:
        return None, False
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise StorageError(f"{folder} cannot be written")
    contents = [file_sha256(path) for path in checkpoint.weight_files()]
    key = _digest([form, contents])[:12]
    there = [path for path in folder.glob(f"[!.]*-{key}") if _is_whole(path)]
    kept, new = there[0] if there else folder / f"{_name(checkpoint.path, decisions)}-{key}", not there
    if new:
        if shutil.disk_usage(folder).free < 2 * size:
            raise StorageError(f"{folder} has too little room for {size:,} bytes more")
        _make_room(folder, most - size)
        try:
            quantize_checkpoint(checkpoint, kept, format=format, group_size=group_size, progress=progress)
        except StorageError:
            if not _is_whole(kept):  # else another process was faster
                raise
    write_json(kept / ORIGINS, {"origins": [{"form": form, "files": origin}, *_origins(kept)][:_MOST_ORIGINS]})
    _used(kept)
    return kept, new


def _form(decisions: list[Decision]) -> list[Any]:
    code = [file_sha256(path) for path in _CODE]
    return [code, [[d.name, d.keep, d.spec.format, d.spec.group_size, list(d.spec.shape)] for d in decisions]]


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _facts(path: Path) -> list[Any]:
    """What changes when a file does."""
    facts = path.stat()
    return [str(path.absolute()), facts.st_size, facts.st_mtime_ns, facts.st_ino]


def _name(path: Path, decisions: list[Decision]) -> str:
    """For people: the file's, and the format that most of its weights have."""
    weights: Counter[str] = Counter()
    for decision in decisions:
        weights[decision.spec.format] += decision.n_weights
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", path.name.removesuffix(".gguf"))[:32].strip(".-") or "model"
    return f"{plain}-{weights.most_common(1)[0][0]}"


def _kept(folder: Path) -> list[Path]:
    """Those that are there, the one used last first."""
    found = []
    for file in folder.glob(f"[!.]*/{PACKED_FILE}"):
        with suppress(OSError):
            found.append((file.stat().st_atime_ns, file.parent))
    return [path for _, path in sorted(found, reverse=True)]


def _origins(kept: Path) -> list[Any]:
    try:
        found = read_object(kept / ORIGINS, _ORIGINS_BYTES).get("origins")
    except WeightsError:
        return []
    return found if isinstance(found, list) else []


def _is_whole(kept: Path) -> bool:
    """Opens; what does not is removed, and made again."""
    try:
        with PackedCheckpoint(kept):
            return True
    except WeightsError:
        shutil.rmtree(kept, ignore_errors=True)
        return False


def _used(kept: Path) -> None:
    """By the time of access alone: whoever has mapped the file takes another time of change for another content."""
    file = kept / PACKED_FILE
    with suppress(OSError):
        os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))


def _make_room(folder: Path, most: int) -> None:
    """Remove those used longest ago until the others take at most `most` bytes. Processes that run one keep it."""
    total = 0
    for kept in _kept(folder):
        with suppress(OSError):  # another process removes it, too
            total += sum(file.stat().st_size for file in kept.iterdir())
        if total > most:
            shutil.rmtree(kept, ignore_errors=True)

