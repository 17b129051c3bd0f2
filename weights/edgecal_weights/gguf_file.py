"""A GGUF file (versions 2 and 3): metadata, and where its tensors lie.

The layout: magic, version, counts; key-value pairs; a record per tensor (name, dimensions fastest first,
type, offset); padding; the tensors, each aligned. The `gguf` package of llama.cpp reads the same, but keeps
a NumPy view per string: on the vocabulary of Qwen2.5 (151,936 tokens and as many merges) opening takes it
7 s and 490 MB of memory, this parser 0.03 s and 2 MB. A small device would not recover from the former, so
it is only the reference of the tests.

Two habits keep it small. Arrays and strings are measured when the file is opened (a walk over their
lengths) and read when asked for. And a file is a stranger: every length is checked against the file and
against a limit before anything is allocated, so that a hostile header costs a second and a few megabytes at
most, and always ends in FileFormatError.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .binary_file import BinaryFile
from .errors import FileFormatError
from .gguf_blocks import BLOCK_TYPES

_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
}
_SCALARS[12] = "<f8"
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")

# Far above every real file: the 151,936 tokens of Qwen2.5 with their merges make a header of 6 MB.
_MAX_HEADER = 64 << 20
_MAX_COUNT = 1 << 16  # keys, tensors
_MAX_ELEMENTS = 1 << 21
_MAX_STRING = 4 << 20
_MAX_NAME = 1 << 10
_MAX_ALIGNMENT = 1 << 20
_WINDOW = 1 << 20


@dataclass(frozen=True)
class GGUFTensor:
    """`shape` in the order of Hugging Face (rows first), `offset` from the start of the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, that is of the last dimension."""
        return self.nbytes // math.prod(self.shape[:-1])


class GGUFFile:
    """Open with the path; raises ModelNotFoundError or FileFormatError, quickly and whatever the bytes
    are."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = BinaryFile(path)
        try:
            cursor = _Cursor(self._file)
            self.version = _version(cursor)
            n_tensors = cursor.count("the number of tensors", _MAX_COUNT)
            n_keys = cursor.count("the number of metadata keys", _MAX_COUNT)
            self.metadata = Metadata(self._file, cursor, n_keys)
            self.alignment = self._alignment()
            records = [_read_record(cursor) for _ in range(n_tensors)]
            self.data_offset = -(-cursor.position // self.alignment) * self.alignment
            self.tensors = self._place(records)
        except BaseException:
            self._file.close()
            raise

    def _alignment(self) -> int:
        value = self.metadata.get("general.alignment", 32)
        if type(value) is not int or not 1 <= value <= _MAX_ALIGNMENT or value & (value - 1):
            raise FileFormatError(f"{self.path}: general.alignment is {value!r}, expected a power of two")
        return value

    def _place(self, records: list[tuple[str, tuple[int, ...], int, int]]) -> dict[str, GGUFTensor]:
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, type_id, offset in records:
            if name in tensors:
                raise FileFormatError(f"{self.path} has two tensors named {name!r}")
            kind = BLOCK_TYPES.get(type_id)
            if kind is None:
                raise FileFormatError(f"{self.path}: {name!r} has the unknown tensor type {type_id}")
            if shape[-1] % kind.block:
                raise FileFormatError(
                    f"{self.path}: rows of {name!r} have {shape[-1]} weights, no multiple of the "
                    f"{kind.block} of a {kind.name} block"
                )
            nbytes = math.prod(shape) // kind.block * kind.nbytes
            start = self.data_offset + offset
            if offset % self.alignment:
                raise FileFormatError(f"{self.path}: {name!r} is not aligned to {self.alignment} bytes")
            if start + nbytes > self._file.size:
                raise FileFormatError(
                    f"{self.path} is truncated: {name!r} ends at byte {start + nbytes}, the file has "
                    f"{self._file.size}; fetch it again"
                )
            tensors[name] = GGUFTensor(name, kind.name, shape, start, nbytes)
        by_place = sorted(tensors.values(), key=lambda tensor: tensor.offset)
        for before, after in itertools.pairwise(by_place):
            if before.offset + before.nbytes > after.offset:
                raise FileFormatError(f"{self.path}: {before.name!r} and {after.name!r} overlap")
        return tensors

    def tensor(self, name: str) -> GGUFTensor:
        """FileFormatError when there is none of that name."""
        try:
            return self.tensors[name]
        except KeyError:
            raise FileFormatError(f"{self.path} has no tensor {name!r}") from None

    def raw_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """uint8 (stop - start, bytes per row), the stored bytes; a row is the last dimension."""
        tensor = self.tensor(name)
        step = tensor.row_bytes
        return self._file.read(tensor.offset + start * step, (stop - start) * step, name).reshape(-1, step)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def general_type(path: str | Path) -> str | None:
    """The metadata `general.type` ("model", "adapter" ...), None where the file does not say. Errors as for GGUFFile.

    Reads up to the tokenizer's keys, a few milliseconds before the rest of a header: only models have them.
    """
    with BinaryFile(path) as file:
        cursor = _Cursor(file)
        _version(cursor)
        cursor.count("the number of tensors", _MAX_COUNT)
        n_keys = cursor.count("the number of metadata keys", _MAX_COUNT)
        value = Metadata(file, cursor, n_keys, until="tokenizer.").get("general.type")
        return value if isinstance(value, str) else None


def _version(cursor: _Cursor) -> int:
    path = cursor.file.path
    if cursor.file.size < 4 or cursor.take(4, "the magic").tobytes() != b"GGUF":
        raise FileFormatError(f"{path} is not a GGUF file: it does not start with the letters GGUF")
    version = cursor.u32("the version")
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0:
        raise FileFormatError(f"{path} is a big-endian GGUF file; edgecal reads little-endian ones")
    raise FileFormatError(f"{path} has GGUF version {version}; edgecal reads versions 2 and 3")


class _Cursor:
    """Reads a header front to back through a window, and refuses to go past the file or the limit."""

    def __init__(self, file: BinaryFile) -> None:
        self.file = file
        self._window = np.empty(0, np.uint8)
        self._start = 0  # of the window
        self.position = 0

    def _check(self, end: int, what: str) -> None:
        if end > self.file.size:
            raise FileFormatError(
                f"{self.file.path} is truncated or corrupt: {what} ends at byte {end}, the file has "
                f"{self.file.size}"
            )
        if end > _MAX_HEADER:
            raise FileFormatError(f"{self.file.path}: {what} lies beyond {_MAX_HEADER} bytes of header")

    def _at(self, n: int, what: str) -> int:
        """Index into the window of the current position, with at least `n` bytes behind it."""
        self._check(self.position + n, what)
        if not self._start <= self.position <= self._start + len(self._window) - n:
            self._start = self.position
            self._window = self.file.read(
                self._start, min(max(n, _WINDOW), self.file.size - self._start), what
            )
        return self.position - self._start

    def take(self, n: int, what: str) -> NDArray[np.uint8]:
        begin = self._at(n, what)
        self.position += n
        return self._window[begin : begin + n]

    def skip(self, n: int, what: str) -> None:
        self._check(self.position + n, what)
        self.position += n

    def u32(self, what: str) -> int:
        return int(self.take(4, what).view("<u4")[0])

    def count(self, what: str, limit: int) -> int:
        value = int(self.take(8, what).view("<u8")[0])
        if value > limit:
            raise FileFormatError(f"{self.file.path} is corrupt: {what} is {value}, the limit is {limit}")
        return value

    def name(self, what: str) -> str:
        raw = self.take(self.count(f"the length of {what}", _MAX_NAME), what)
        return decode_text(raw.tobytes(), f"{self.file.path}: {what}")

    def skip_strings(self, count: int, what: str) -> None:
        """Walk over an array of strings. A vocabulary has 150,000, so the inner loop touches the window
        only."""
        length = _LENGTH.unpack_from
        while count:
            at = self._at(8, what)
            window = self._window.data
            last = len(window) - 8
            while count and at <= last:
                (n,) = length(window, at)
                if n > _MAX_STRING:
                    raise FileFormatError(f"{self.file.path} is corrupt: a string of {what} has {n} bytes")
                at += 8 + n
                count -= 1
            self.skip(self._start + at - self.position, what)


@dataclass(frozen=True)
class _Stored:
    """A value that was measured and left in the file. `count` is None for a single string."""

    element: int
    count: int | None
    offset: int
    nbytes: int


class Metadata(Mapping[str, Any]):
    """The key-value pairs. Numbers are at hand; strings and arrays (as lists) are read from the file at
    each access, so keep what you use more than once. Raises FileFormatError for text that is not UTF-8, and
    after a read error. Of the keys from the first on that begins with `until`, nothing is known.
    """

    def __init__(self, file: BinaryFile, cursor: _Cursor, n_keys: int, until: str | None = None) -> None:
        self._file = file
        self._values: dict[str, Any] = {}
        for _ in range(n_keys):
            key = cursor.name("a metadata key")
            if until is not None and key.startswith(until):
                return
            if key in self._values:
                raise FileFormatError(f"{file.path} has the metadata key {key!r} twice")
            self._values[key] = self._measure(cursor, key)

    def _measure(self, cursor: _Cursor, key: str) -> Any:
        kind = cursor.u32(f"the type of {key}")
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            return cursor.take(dtype.itemsize, key).view(dtype)[0].item()
        count = None
        if kind == _ARRAY:
            kind = cursor.u32(f"the element type of {key}")
            count = cursor.count(f"the length of {key}", _MAX_ELEMENTS)
        start = cursor.position
        if kind == _STRING:
            cursor.skip_strings(1 if count is None else count, key)
        elif kind in _SCALARS and count is not None:
            cursor.skip(count * np.dtype(_SCALARS[kind]).itemsize, key)
        else:
            raise FileFormatError(f"{self._file.path}: {key} has the unknown metadata type {kind}")
        return _Stored(kind, count, start, cursor.position - start)

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        return self._load(key, value) if isinstance(value, _Stored) else value

    def _load(self, key: str, stored: _Stored) -> Any:
        raw = self._file.read(stored.offset, stored.nbytes, key)
        if stored.element != _STRING:
            return raw.view(_SCALARS[stored.element]).tolist()
        where = f"{self._file.path}: {key}"
        data = raw.tobytes()
        strings = []
        at = 0
        for _ in range(1 if stored.count is None else stored.count):
            end = at + 8 + _LENGTH.unpack_from(data, at)[0]
            strings.append(decode_text(data[at + 8 : end], where))
            at = end
        return strings[0] if stored.count is None else strings

    def __contains__(self, key: object) -> bool:
        return key in self._values  # the inherited one would read the value

    def length(self, key: str) -> int | None:
        """Number of elements of an array, without reading it; None for a single value."""
        value = self._values[key]
        return value.count if isinstance(value, _Stored) else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def decode_text(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{where} is not UTF-8 text: {error}") from error


def _read_record(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.name("a tensor name")
    n_dims = cursor.u32(f"the dimensions of {name!r}")
    if not 1 <= n_dims <= 4:
        raise FileFormatError(f"{cursor.file.path} is corrupt: {name!r} has {n_dims} dimensions")
    dims = cursor.take(8 * n_dims, f"the shape of {name!r}").view("<u8").tolist()
    if 0 in dims:
        raise FileFormatError(f"{cursor.file.path} is corrupt: {name!r} has the shape {dims}")
    type_id = cursor.u32(f"the type of {name!r}")
    offset = int(cursor.take(8, f"the place of {name!r}").view("<u8")[0])
    return name, tuple(reversed(dims)), type_id, offset
