"""The file of a ready-made library: a shared library of Linux, and after it a table that says what it is.

    the library | JSON | CRC-32 of all before | length of the JSON | MAGIC

The system's loader does not look at what comes after a library. The table is read, and everything checked, before any
of it is loaded: a file that was cut short would end the process by a signal.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import BackendError

FOLDER = Path(__file__).parent / "ready"
VERSION = 2  # of the table, and of how kernels are called
_MAGIC = b"edgecal\x01"
_TAIL = struct.Struct("<II8s")


def sources_digest(names: Iterable[str]) -> str:
    """Of sources of this package, paths inside it: a library that was made from others may not do what the Python
    around expects. What has no such name here counts as empty."""
    here = Path(__file__).parent
    sources = {path.relative_to(here).as_posix(): path for path in here.rglob("*.py")}
    digest = hashlib.sha256()
    for name in names:
        content = sources[name].read_bytes() if name in sources else b""
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:32]


def library_path(isa_name: str, folder: Path = FOLDER) -> Path:
    return folder / f"{isa_name}.so"


def with_table(library: bytes, table: dict[str, Any]) -> bytes:
    """The whole file."""
    text = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
    return library + text + _TAIL.pack(zlib.crc32(library + text), len(text), _MAGIC)


def read_table(path: Path) -> dict[str, Any]:
    """Raises BackendError for a file that is not there, is none of these, or is damaged; of another version, or made
    from other sources."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror or error}") from error
    if len(data) < _TAIL.size or data[-8:] != _MAGIC:
        raise BackendError(f"{path}: cut short, or no library of edgecal's; make it anew (`make kernels`)")
    crc, length, _ = _TAIL.unpack(data[-_TAIL.size :])
    end = len(data) - _TAIL.size
    damaged = BackendError(f"{path}: damaged; make it anew (`make kernels`)")
    if length > end or zlib.crc32(memoryview(data)[:end]) != crc:
        raise damaged
    try:
        table: dict[str, Any] = json.loads(data[end - length : end])
        fits = table["version"] == VERSION and table["digest"] == sources_digest(table["sources"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged from error
    if not fits:
        raise BackendError(f"{path}: made from other sources than those beside it; make it anew (`make kernels`)")
    return table
