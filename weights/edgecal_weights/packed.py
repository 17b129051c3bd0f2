"""The project's own form on disk: a directory whose weights are used where they lie.

    edgecal-packed.safetensors     the weights, in the layout of `edgecal_kernels.quant`
    config.json generation_config.json tokenizer.json tokenizer_config.json      as Hugging Face spells them

The weight file is an ordinary safetensors file. A quantized matrix `x.weight` is stored as `x.codes`,
`x.scale` and, as its format has them, `x.minimum`, `x.row_scale` or `x.super_scale`; everything else (norms,
biases) keeps its name and is float32. The file's metadata says what each tensor is:

    format         "edgecal-packed"
    version        "2"
    tensors        JSON {"x.weight": {"format": "int4", "group_size": 32, "shape": [d, k]}, ...}
    quantization   JSON, what was asked for and what came of it
    source         JSON, what it was made from

Opening it costs nothing: the file is memory-mapped, `packed()` gives views of the map, and the operating
system reads a page when a kernel first touches it. Every array starts at a multiple of 64 bytes, the width of
the widest vector load. safetensors allows no holes, so the header is padded with spaces, and behind an array
that ends off the grid lies a filler tensor `padding.N`.

A mapped file must not be changed by others while it is in use: mapped_file has what is done about it.
`edgecal quantize` never writes into an existing file: it renames a new directory into the old one's place, and
whoever has the old file open keeps it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.errors import QuantizationError
from edgecal_kernels.quant import (
    FORMATS,
    STEP,
    TILE_ROWS,
    QuantizedTensor,
    dequantize,
    packed_shapes,
)

from .binary_file import check_rows
from .checkpoint import Checkpoint, Fidelity
from .errors import FileFormatError, UnsupportedModelError
from .file_kind import PACKED_FILE
from .files import parse_json, reason
from .hf_config import normalize_config, read_json
from .mapped_file import MappedFile, Watch
from .safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    from .tokenizer_backend import Tokenizer

PACKED_FORMAT = "edgecal-packed"
PACKED_VERSION = "2"  # 1: int4 was what is int4_f16 now
SIDE_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
FLOAT = "fp32"
ALIGNMENT = 64
_FILLER = "padding."
_NAMES = ((np.uint8, "U8"), (np.int8, "I8"), (np.float16, "F16"), (np.float32, "F32"))
_DTYPES = {np.dtype(kind): name for kind, name in _NAMES}


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is in a packed file: one of the quantized formats (two dimensions), or "fp32"."""

    format: str
    shape: tuple[int, ...]
    group_size: int = STEP

    def arrays(self, name: str) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """dtype and shape of each stored array, by its name in the file. `name` is the Hugging Face name."""
        if self.format == FLOAT:
            return {name: (np.dtype(np.float32), self.shape)}
        d, k = self.shape
        parts = packed_shapes(self.format, (d, k), self.group_size)
        return {f"{name.removesuffix('.weight')}.{part}": array for part, array in parts.items()}

    def nbytes(self, name: str) -> int:
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.arrays(name).values())


@dataclass(frozen=True)
class FileLayout:
    """The first bytes of a packed file, the offset of every array from its start, and its size."""

    header: bytes
    offsets: dict[str, int]
    size: int


def lay_out(tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> FileLayout:
    """Place the arrays of `tensors` one behind the other, in the order in which a forward pass meets them."""
    entries: dict[str, Any] = {}
    places: dict[str, int] = {}
    end = 0
    for name in sorted(tensors, key=_reading_order):
        for array, (dtype, shape) in tensors[name].arrays(name).items():
            places[array] = end
            end += _add(entries, array, dtype, shape, end)
            gap = -end % ALIGNMENT
            if gap:
                end += _add(entries, f"{_FILLER}{end}", np.dtype(np.uint8), (gap,), end)
    described = {
        name: {"format": spec.format, "group_size": spec.group_size, "shape": list(spec.shape)}
        for name, spec in tensors.items()
    }
    head = {"format": PACKED_FORMAT, "version": PACKED_VERSION, "tensors": json.dumps(described), **metadata}
    text = json.dumps({"__metadata__": head, **entries}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    start = 8 + len(text)
    return FileLayout(
        header=len(text).to_bytes(8, "little") + text,
        offsets={array: start + offset for array, offset in places.items()},
        size=start + end,
    )


def _add(entries: dict[str, Any], name: str, dtype: np.dtype, shape: tuple[int, ...], begin: int) -> int:
    nbytes = dtype.itemsize * math.prod(shape)
    entries[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, begin + nbytes]}
    return nbytes


def _reading_order(name: str) -> tuple[Any, ...]:
    """Embedding, layers by number, final norm, head."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if layer:
        return 1, int(layer[1]), name
    return (0 if "embed" in name else 3 if name.startswith("lm_head") else 2), 0, name


class PackedCheckpoint(Checkpoint):
    """A directory written by `edgecal quantize`. `quantization` and `source` are the file's own account of itself.

    Raises ModelNotFoundError, FileFormatError, or UnsupportedModelError for a version that this edgecal does
    not know. Arrays of `packed()` are views of the file's pages, valid even after `close()`; writing into
    one (do not) changes memory, never the file.
    """

    kind = "packed"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file_path = self.path / PACKED_FILE
        config_path = self.path / "config.json"
        self.config = normalize_config(read_json(config_path), config_path)
        self.generation_config = read_json(self.path / "generation_config.json", optional=True)
        with SafetensorsFile(self.file_path) as file:
            self._check_version(file.metadata)
            self._specs = self._read_specs(file.metadata)
            self.quantization = self._json(file.metadata, "quantization")
            self.source = self._json(file.metadata, "source")
            self._end = 0
            self._offsets = self._locate(file)
            self._tensor_bytes = sum(spec.nbytes(name) for name, spec in self._specs.items())
        self._map: MappedFile | None = self._open_map()

    def _check_version(self, metadata: Mapping[str, str]) -> None:
        if metadata.get("format") != PACKED_FORMAT:
            raise FileFormatError(
                f"{self.file_path}: metadata format is {metadata.get('format')!r}, expected "
                f"{PACKED_FORMAT!r}; write the file with edgecal quantize"
            )
        if metadata.get("version") != PACKED_VERSION:
            raise UnsupportedModelError(
                f"{self.file_path} has version {metadata.get('version')!r} of the packed form, this edgecal "
                f"reads {PACKED_VERSION!r}; quantize the model again, or upgrade edgecal"
            )

    def _json(self, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
        try:
            value = parse_json(metadata.get(key, "{}"))
        except ValueError as error:
            raise FileFormatError(f"{self.file_path}: metadata {key} is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise FileFormatError(f"{self.file_path}: metadata {key} is not a JSON object")
        return value

    def _read_specs(self, metadata: Mapping[str, str]) -> dict[str, TensorSpec]:
        specs = {name: self._read_spec(name, fields) for name, fields in self._json(metadata, "tensors").items()}
        if not specs:
            raise FileFormatError(f"{self.file_path}: metadata lists no tensors")
        return specs

    def _read_spec(self, name: str, fields: Any) -> TensorSpec:
        where = f"{self.file_path}: metadata of {name}"
        if not isinstance(fields, dict):
            raise FileFormatError(f"{where} is not a JSON object")
        format, group_size, shape = fields.get("format"), fields.get("group_size", STEP), fields.get("shape")
        if not isinstance(shape, list) or not shape or not all(type(n) is int and n > 0 for n in shape):
            raise FileFormatError(f"{where}: shape is {shape!r}, expected a list of positive whole numbers")
        if not isinstance(format, str) or type(group_size) is not int:
            raise FileFormatError(f"{where}: format {format!r}, group_size {group_size!r}")
        spec = TensorSpec(format, tuple(shape), group_size)
        if format != FLOAT:
            if len(shape) != 2 or not name.endswith(".weight"):
                raise FileFormatError(f"{where}: only matrices are quantized, found {format} {shape}")
            try:
                spec.arrays(name)
            except QuantizationError as error:
                raise FileFormatError(f"{where}: {error}") from error
        return spec

    def _locate(self, file: SafetensorsFile) -> dict[str, int]:
        """Offset of every array from the start of the file, each checked against what the metadata
        promises."""
        offsets: dict[str, int] = {}
        for name, spec in self._specs.items():
            for array, (dtype, shape) in spec.arrays(name).items():
                if array not in file:
                    raise FileFormatError(f"{self.file_path}: {name} is {spec.format}, but there is no {array}")
                if array in offsets:
                    raise FileFormatError(f"{self.file_path}: {array} belongs to two tensors")
                entry = file.entry(array)
                expected = _DTYPES[dtype], shape, dtype.itemsize * math.prod(shape)
                if (entry.dtype, entry.shape, entry.nbytes) != expected:
                    raise FileFormatError(
                        f"{self.file_path}: {array} is {entry.dtype} {entry.shape} of {entry.nbytes} bytes; "
                        f"{spec.format} of shape {spec.shape} needs {expected[0]} {shape} of {expected[2]}"
                    )
                if entry.offset % ALIGNMENT:
                    raise FileFormatError(
                        f"{self.file_path}: {array} starts at byte {entry.offset}, which is not a multiple "
                        f"of {ALIGNMENT}"
                    )
                offsets[array] = entry.offset
                self._end = max(self._end, entry.offset + entry.nbytes)
        strangers = [array for array in file if array not in offsets and not array.startswith(_FILLER)]
        if strangers:
            raise FileFormatError(f"{self.file_path}: {strangers[0]} is not listed in the metadata")
        return offsets

    def _open_map(self) -> MappedFile:
        try:
            mapped = MappedFile(self.file_path)
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{self.file_path} cannot be memory-mapped: {reason(error)}") from error
        if len(mapped) < self._end:
            raise FileFormatError(f"{self.file_path} changed while it was opened")
        return mapped

    def _spec(self, name: str) -> TensorSpec:
        try:
            return self._specs[name]
        except KeyError:
            raise FileFormatError(f"{self.file_path} has no tensor {name}") from None

    def _views(self, name: str) -> Iterator[NDArray[Any]]:
        if self._map is None:
            raise ValueError(f"{self.path} was closed")
        for array, (dtype, shape) in self._spec(name).arrays(name).items():
            offset = self._offsets[array]
            yield np.frombuffer(self._map, dtype, math.prod(shape), offset).reshape(shape)

    def weight_files(self) -> list[Path]:
        return [self.file_path]

    def names(self) -> list[str]:
        return list(self._specs)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._spec(name).shape

    def stored_type(self, name: str) -> str:
        """One of the quantized formats, or "F32"."""
        format = self._spec(name).format
        return "F32" if format == FLOAT else format

    def group_size(self, name: str) -> int:
        """Columns per scale; meaningless for float32 tensors."""
        return self._spec(name).group_size

    def counterpart(self, name: str) -> tuple[str, Fidelity] | None:
        spec = self._spec(name)
        return None if spec.format == FLOAT else (spec.format, "exact")

    def packed(self, name: str) -> QuantizedTensor:
        spec = self._spec(name)
        if spec.format not in FORMATS:
            return super().packed(name)
        d, k = spec.shape
        parts = packed_shapes(spec.format, (d, k), spec.group_size)
        return QuantizedTensor(spec.format, (d, k), spec.group_size, **dict(zip(parts, self._views(name), strict=True)))

    def read(self, name: str) -> NDArray[np.float32]:
        return self.read_rows(name, 0, self.shape(name)[0])

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        spec = self._spec(name)
        check_rows(self.path, name, spec.shape, start, stop)
        if spec.format == FLOAT:
            (values,) = self._views(name)
            return values[start:stop].copy()
        if start == stop:
            return np.empty((0, spec.shape[1]), np.float32)
        first = start // TILE_ROWS
        values = dequantize(tile_rows(self.packed(name), first * TILE_ROWS, stop))
        skip = start - first * TILE_ROWS
        return values[skip:].copy() if skip else values

    def tensor_bytes(self) -> int:
        return self._tensor_bytes

    def tokenizer(self) -> Tokenizer:
        from .hf_tokenizer import read_tokenizer

        advice = "quantize the model again, or copy it from the source"
        return read_tokenizer(self.path, self.config.get("vocab_size"), advice)

    def tokenizer_config(self) -> dict[str, Any]:
        from .hf_tokenizer import tokenizer_config

        return tokenizer_config(self.path)

    def watch(self) -> Watch:
        if self._map is None:
            raise ValueError(f"{self.path} was closed")
        return self._map.check

    def close(self) -> None:
        """Forget the map; it goes when the last view of it does."""
        self._map = None


def tile_rows(t: QuantizedTensor, start: int, stop: int) -> QuantizedTensor:
    """Rows [start, stop) of `t` as views; `start` is a multiple of 16."""
    tiles = slice(start // TILE_ROWS, -(-stop // TILE_ROWS))
    arrays = {part: array[tiles] for part, array in t.arrays.items()}
    return QuantizedTensor(t.format, (stop - start, t.shape[1]), t.group_size, **arrays)
