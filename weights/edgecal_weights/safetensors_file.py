"""One safetensors file: strict at the door, then plain reads of just the rows that are asked for.

The format is eight bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, and the
bytes of the tensors. A file is valid by the rules of the `safetensors` library: known types, sizes that match
shapes, no overlaps, no gaps, nothing behind the end. They are written here, and the tests have the library as
the judge: it hands out whole tensors from a memory map, says less about what is wrong, and has no build for
Android.

F32, F16, BF16 and F64 become float32. Anything else (int8, fp8 ...) needs a recipe that the file does not
contain, and is refused by name when it is read.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .binary_file import FLOAT_BYTES, BinaryFile, Decode, check_rows, decode_floats
from .errors import FileFormatError, UnsupportedModelError
from .files import atomic_write, parse_json

# The format allows 100 MB, which Python's JSON would turn into more than a gigabyte of objects; a header of a
# model with 10,000 tensors is about 1.5 MB.
_MAX_HEADER = 16 << 20
# The format's types in its own order, with their bits: a writer puts the last of them first, so that every tensor
# begins where its numbers may lie.
_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8}
_BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32}
_BITS |= {"F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}
# NumPy's names of them
_NAMES = {"b1": "BOOL", "u1": "U8", "i1": "I8", "i2": "I16", "u2": "U16", "f2": "F16", "i4": "I32", "u4": "U32"}
_NAMES |= {"f4": "F32", "c8": "C64", "f8": "F64", "i8": "I64", "u8": "U64"}
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
            self._check_places()
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
        if dtype not in _BITS:
            raise FileFormatError(f"{self.path}: {name} has the type {dtype:.40}, which the format does not know")
        if math.prod(shape) * _BITS[dtype] != 8 * (end - begin):
            raise FileFormatError(f"{self.path}: {name} is {dtype} {shape} but occupies {end - begin} bytes")
        return TensorEntry(dtype, tuple(shape), self._data_start + begin, end - begin)

    def _check_places(self) -> None:
        """Every byte behind the header belongs to one tensor."""
        at = self._data_start
        for name, entry in sorted(self._entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
            if entry.offset != at:
                what = "overlaps another tensor" if entry.offset < at else "leaves a gap in front of it"
                raise FileFormatError(f"{self.path}: {name} begins at byte {entry.offset} and {what}")
            at += entry.nbytes
        if at != self._file.size:
            raise FileFormatError(f"{self.path}: {self._file.size - at} bytes at the end belong to no tensor")

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
    """Write arrays by name, complete or not at all. StorageError when the disk refuses.

    The bytes are those that the safetensors library writes.
    """
    arrays = {name: np.asarray(array, array.dtype.newbyteorder("<"), order="C") for name, array in tensors.items()}
    types = {name: _NAMES[array.dtype.str[1:]] for name, array in arrays.items()}
    ranks = {name: i for i, name in enumerate(_BITS)}
    order = sorted(arrays, key=lambda name: (-ranks[types[name]], name))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name in order:
        end = at + arrays[name].nbytes
        header[name] = {"dtype": types[name], "shape": list(arrays[name].shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as partial, open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(arrays[name].reshape(-1).view(np.uint8).data)
