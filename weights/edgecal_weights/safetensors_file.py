"""One safetensors file: strict at the door, then plain reads of just the rows that are asked for.

The format is eight bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, and the
bytes of the tensors. The `safetensors` library is the judge of whether a file is valid (no overlaps, no
gaps, sizes that match shapes, nothing behind the end); its own readers are not used for the data, because
they map the file into memory and hand out whole tensors. Our header parse repeats the checks that reading
depends on, so that a message can name the tensor, and so that a file which changes between the two looks
cannot send a read out of bounds.

F32, F16, BF16 and F64 become float32. Anything else (int8, fp8 ...) needs a recipe that the file does not
contain, and is refused by name when it is read.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .binary_file import FLOAT_BYTES, BinaryFile, Decode, check_rows, decode_floats
from .errors import FileFormatError, UnsupportedModelError
from .files import atomic_write, parse_json

# The format allows 100 MB, which Python's JSON would turn into more than a gigabyte of objects; a header of a
# model with 10,000 tensors is about 1.5 MB.
_MAX_HEADER = 16 << 20
# Bytes converted at once. Small enough for the heap's free list: a larger buffer is mapped anew for each read, and the
# kernel clears its pages each time.
_CHUNK = 1 << 16


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: `offset` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """Open with the path; raises ModelNotFoundError, or FileFormatError naming the file and what is wrong
    in it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = BinaryFile(path)
        try:
            header = self._header()
            self.metadata: dict[str, str] = self._metadata(header.pop("__metadata__", {}))
            self._entries = {name: self._entry(name, fields) for name, fields in header.items()}
            self._judge()
        except BaseException:
            self._file.close()
            raise

    def _header(self) -> dict[str, Any]:
        size = self._file.size
        if size < 8:
            raise FileFormatError(f"{self.path}: {size} bytes are too few for a safetensors file")
        length = int(self._file.read(0, 8, "the header length").view("<u8")[0])
        if length > _MAX_HEADER or length > size - 8:
            raise FileFormatError(
                f"{self.path}: the header claims {length} bytes, the file has {size} (limit {_MAX_HEADER}): "
                "truncated, or not a safetensors file"
            )
        self._data_start = 8 + length
        try:
            header = parse_json(self._file.read(8, length, "the header").tobytes())
        except ValueError as error:
            raise FileFormatError(f"{self.path}: the safetensors header is not valid JSON: {error}") from error
        if not isinstance(header, dict):
            raise FileFormatError(f"{self.path}: the safetensors header is not a JSON object")
        return header

    def _metadata(self, fields: Any) -> dict[str, str]:
        if fields is None:  # some writers put null where there is nothing to say
            return {}
        if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
            raise FileFormatError(f"{self.path}: __metadata__ is not a map of strings to strings")
        return fields

    def _entry(self, name: str, fields: Any) -> TensorEntry:
        try:
            dtype, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
            whole = [begin, end, *shape]
        except (KeyError, TypeError, ValueError):
            raise FileFormatError(f"{self.path}: the header entry of {name!r} is malformed") from None
        if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in whole) or end < begin:
            raise FileFormatError(f"{self.path}: the header entry of {name!r} is malformed")
        if self._data_start + end > self._file.size:
            raise FileFormatError(
                f"{self.path} is truncated: {name} ends at byte {self._data_start + end}, the file has "
                f"{self._file.size}; fetch it again"
            )
        if dtype in FLOAT_BYTES and math.prod(shape) * FLOAT_BYTES[dtype] != end - begin:
            raise FileFormatError(f"{self.path}: {name} is {dtype} {shape} but occupies {end - begin} bytes")
        return TensorEntry(dtype, tuple(shape), self._data_start + begin, end - begin)

    def _judge(self) -> None:
        try:
            with safe_open(str(self.path), framework="np") as opened:
                same = set(opened.keys()) == set(self._entries)
        except (SafetensorError, OSError, ValueError) as error:
            raise FileFormatError(f"{self.path} is not a valid safetensors file: {error}") from error
        if not same:
            raise FileFormatError(f"{self.path} changed while it was opened")

    def names(self) -> list[str]:
        return list(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def entry(self, name: str) -> TensorEntry:
        """Type, shape and place of a tensor of any type; FileFormatError when there is none of that name."""
        try:
            return self._entries[name]
        except KeyError:
            raise FileFormatError(f"{self.path} has no tensor {name!r}") from None

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entry(name).shape

    def dtype(self, name: str) -> str:
        """As the format spells it: "F32", "BF16", "I64" ..."""
        return self.entry(name).dtype

    def tensor_bytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())

    def read(
        self,
        name: str,
        out: NDArray[np.float32] | None = None,
        buffer: NDArray[np.uint8] | None = None,
        decode: Decode = decode_floats,
    ) -> NDArray[np.float32]:
        """The whole tensor, float32, in `out` if that is given (C-contiguous, of its shape). The bytes pass through
        `buffer`, for callers who have one that is warm, and are converted by `decode`. UnsupportedModelError for types
        that are not floating point of 16+ bits."""
        entry = self.entry(name)
        return self._float32(name, entry, entry.shape, 0, out, buffer, decode)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """float32 rows [start, stop) of the first dimension; reads no other bytes."""
        entry = self.entry(name)
        check_rows(self.path, name, entry.shape, start, stop)
        inner = entry.shape[1:]
        first = start * math.prod(inner)
        return self._float32(name, entry, (stop - start, *inner), first)

    def _float32(
        self,
        name: str,
        entry: TensorEntry,
        shape: tuple[int, ...],
        first: int,
        out: NDArray[np.float32] | None = None,
        buffer: NDArray[np.uint8] | None = None,
        decode: Decode = decode_floats,
    ) -> NDArray[np.float32]:
        if entry.dtype not in FLOAT_BYTES:
            raise UnsupportedModelError(
                f"{self.path}: {name} has type {entry.dtype}; edgecal reads {', '.join(FLOAT_BYTES)}"
            )
        item = FLOAT_BYTES[entry.dtype]
        out = np.empty(shape, np.float32) if out is None else out
        flat = out.reshape(-1)
        if entry.dtype == "F32" and sys.byteorder == "little":
            self._file.read_into(entry.offset + first * item, flat.view(np.uint8), name)
            return out
        buffer = np.empty(min(_CHUNK, flat.size * item), np.uint8) if buffer is None else buffer
        step = max(buffer.size // item, 1)
        for begin in range(0, flat.size, step):
            part = flat[begin : begin + step]
            raw = buffer[: part.size * item]
            self._file.read_into(entry.offset + (first + begin) * item, raw, name)
            decode(raw, entry.dtype, part)
        return out

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_safetensors(
    path: str | Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write contiguous arrays of any type by name, complete or not at all. StorageError when the disk refuses."""
    with atomic_write(path) as partial:
        try:
            save_file(dict(tensors), partial, None if metadata is None else dict(metadata))
        except SafetensorError as error:  # an error of the operating system in the library's words
            raise OSError(str(error)) from error
