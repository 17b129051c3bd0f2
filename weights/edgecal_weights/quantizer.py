"""The streaming quantizer: any checkpoint in, a packed directory out, in the memory of a few rows.

The size of a packed tensor follows from its shape alone, so the file's header and every offset are known
before the first weight is read. Then each matrix passes through in blocks of rows (multiples of 16, because a
tile of the layout depends on its own 16 rows only): read, quantize, write at its place, forget.

Tensors that are quantized already take a shorter way under the format "keep": a GGUF tensor whose blocks have
a counterpart among the packed formats is converted code by code, without a detour over float32 weights that
would round it a second time. "auto" means keep for sources that have such tensors, int4 for float ones.

The embedding and the head are worth more bits than the rest (each row is one token's only description): beside
4-bit weights they default to int6 in groups of 64, whose rounding is not seen there, beside int8 to int8. Vectors
(norms, biases) stay float32. A tied head is not stored.

The directory appears when it is complete (see packed_writer); after a failure or Ctrl-C nothing stays.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.errors import QuantizationError
from edgecal_kernels.quant import (
    FORMATS,
    SPECS,
    STEP,
    TILE_ROWS,
    QuantizedTensor,
    dequantize,
    find_format,
    packed_shapes,
    quantize,
)

from .checkpoint import Checkpoint
from .errors import FileFormatError, StorageError, WeightsError
from .file_kind import PACKED_FILE
from .files import Progress, expand
from .packed import FLOAT, PackedCheckpoint, TensorSpec, lay_out, tile_rows
from .packed_writer import WeightFile, check_target, new_directory, write_file
from .quantize_report import ErrorSum, LossKind, QuantizeReport, TensorError, format_totals, source_name

QUANTIZE_FORMATS = ("auto", "keep", *FORMATS)
EMBEDDING_FORMATS = ("auto", *FORMATS, FLOAT)
_BLOCK_WEIGHTS = 1 << 16  # quantized at once; larger blocks fall out of the processor's cache and are slower
_DEFAULT, _NOTHING_LIKE_IT, _HEAD = "int4", "int8", "int6"  # of floats, of kept tensors without counterpart, of heads
_HEAD_GROUP = 64  # a scale for 32 would cost a quarter of a bit, of 6, for a hundredth of the error of the layers
_HEADS = ("model.embed_tokens.weight", "lm_head.weight")


Made = Callable[[str], "QuantizedTensor | None"]
"""A tensor that was rounded elsewhere, by its name; None for one that was not."""


@dataclass(frozen=True)
class Decision:
    """What becomes of one tensor. `keep`: its stored codes are taken over instead of its float32 values."""

    name: str
    stored_type: str
    spec: TensorSpec
    fidelity: LossKind
    keep: bool = False

    @property
    def n_weights(self) -> int:
        return math.prod(self.spec.shape)


def plan(
    checkpoint: Checkpoint, format: str = "auto", group_size: int = STEP, embedding_format: str = "auto"
) -> list[Decision]:
    """The form that each tensor of `checkpoint` gets, without reading any.

    `format` is one of QUANTIZE_FORMATS, `embedding_format` (embedding and head) one of EMBEDDING_FORMATS; its
    "auto" is the stored form where that is kept, int8 where the rest is int8 too, else int6 in groups of 64 or more.
    `group_size` does not touch tensors that are kept. Under "keep", matrices that have no counterpart become int8;
    under the others, a tensor that already has the wanted form exactly is kept too. Raises QuantizationError for an
    unknown option, FileFormatError for an empty tensor.
    """
    if format not in QUANTIZE_FORMATS:
        raise QuantizationError(f"unknown weight format {format!r}; known: {', '.join(QUANTIZE_FORMATS)}")
    if embedding_format not in EMBEDDING_FORMATS:
        raise QuantizationError(f"unknown embedding format {embedding_format!r}; known: {', '.join(EMBEDDING_FORMATS)}")
    for asked in (format, embedding_format):
        find_format(asked if asked in FORMATS else _DEFAULT, group_size)
    names = checkpoint.names()
    if checkpoint.config.get("tie_word_embeddings"):
        names = [name for name in names if name != "lm_head.weight"]
    if format == "auto":
        format = "keep" if any(checkpoint.counterpart(name) for name in names) else _DEFAULT
    return [_decide(checkpoint, name, format, group_size, embedding_format) for name in names]


def _decide(checkpoint: Checkpoint, name: str, format: str, group_size: int, embedding_format: str) -> Decision:
    shape, stored = checkpoint.shape(name), checkpoint.stored_type(name)
    if not shape or 0 in shape:
        raise FileFormatError(f"{checkpoint.path}: {name} has shape {shape}")
    if len(shape) != 2 or not name.endswith(".weight"):
        return Decision(name, stored, TensorSpec(FLOAT, shape), _float_fidelity(stored))
    wanted = embedding_format if name in _HEADS else format
    groups = [group_size]  # the last is what is made
    if wanted == "auto":
        wanted = "keep" if format == "keep" else max(_HEAD, format, key=lambda name: SPECS[name].bits)
        if wanted == _HEAD and group_size < _HEAD_GROUP and shape[1] % _HEAD_GROUP == 0:
            groups.append(_HEAD_GROUP)
    counterpart = checkpoint.counterpart(name)
    if counterpart:
        stored_group = checkpoint.group_size(name) if isinstance(checkpoint, PackedCheckpoint) else STEP
        same = wanted == counterpart[0] and stored_group in groups and counterpart[1] == "exact"
        if wanted == "keep" or same:
            spec = TensorSpec(counterpart[0], shape, stored_group)
            return Decision(name, stored, spec, counterpart[1], keep=True)
    if wanted == FLOAT:
        return Decision(name, stored, TensorSpec(FLOAT, shape), "exact" if counterpart else _float_fidelity(stored))
    if wanted == "keep":
        wanted = _NOTHING_LIKE_IT
    return Decision(name, stored, TensorSpec(wanted, shape, groups[-1]), "rounded")


def _float_fidelity(stored: str) -> LossKind:
    return "rounded" if stored == "F64" else "exact"


def pack_tensor(checkpoint: Checkpoint, decision: Decision) -> QuantizedTensor | NDArray[np.float32]:
    """One tensor in the form that `plan` gave it, in memory: what an engine loads without a packed file between.

    Kept tensors of a packed checkpoint are views of its memory map. Errors as for `quantize_checkpoint`.
    """
    spec = decision.spec
    if decision.keep:
        return _kept(checkpoint, decision)
    if spec.format == FLOAT:
        return _converted(checkpoint, decision, checkpoint.read(decision.name), 0)
    d, k = spec.shape
    layout = packed_shapes(spec.format, (d, k), spec.group_size)
    arrays = {part: np.empty(shape, dtype) for part, (dtype, shape) in layout.items()}
    for start, block in _blocks(checkpoint, decision):
        tiles = slice(start // TILE_ROWS, -(-(start + block.shape[0]) // TILE_ROWS))
        for part, array in arrays.items():
            array[tiles] = getattr(block, part)
    return QuantizedTensor(spec.format, (d, k), spec.group_size, **arrays)


def quantize_checkpoint(
    checkpoint: Checkpoint,
    out_dir: str | Path,
    *,
    format: str = "auto",
    group_size: int = STEP,
    embedding_format: str = "auto",
    progress: Progress | None = None,
    overwrite: bool = False,
    measure_errors: bool = False,
    source_notes: Mapping[str, Any] | None = None,
    made: Made | None = None,
) -> QuantizeReport:
    """Write `checkpoint` as a packed directory; see `plan` for the formats. The checkpoint stays open.

    `measure_errors` compares every packed block with its source and fills `QuantizeReport.errors`, for about
    half as much time again. `source_notes` are added to the file's account of its source. `made` gives tensors that are
    rounded already, in the form of `plan`, by somebody who knows more than their weights. Raises StorageError
    (cannot write, or `out_dir` is there and `overwrite` was not asked for), FileFormatError (NaN or infinite
    weights, a corrupt source), QuantizationError (unknown option, weights beyond the scales' float16 range),
    and whatever the checkpoint's tokenizer raises.
    """
    started = time.perf_counter()
    target = Path(os.path.realpath(expand(out_dir, StorageError)))
    check_target(target, overwrite)
    decisions = plan(checkpoint, format, group_size, embedding_format)
    side_files = _side_files(checkpoint)
    specs = {decision.name: decision.spec for decision in decisions}
    fidelity: dict[str, int] = dict(Counter(decision.fidelity for decision in decisions))
    source = {
        "kind": checkpoint.kind,
        "name": source_name(checkpoint.path),
        "bytes": checkpoint.tensor_bytes(),
    }
    quantization = {"format": format, "group_size": group_size, "fidelity": fidelity}
    layout = lay_out(
        specs,
        {"quantization": json.dumps(quantization), "source": json.dumps({**source, **(source_notes or {})})},
    )
    needed = layout.size + sum(len(content) for content in side_files.values())
    with new_directory(target, needed, overwrite=overwrite) as folder:
        for file, content in side_files.items():
            write_file(folder / file, content)
        with WeightFile(folder / PACKED_FILE, layout) as output:
            errors = _write_weights(checkpoint, decisions, output, progress, measure_errors, made)
    return QuantizeReport(
        path=target,
        source=source_name(checkpoint.path),
        source_bytes=checkpoint.tensor_bytes(),
        packed_bytes=sum(spec.nbytes(name) for name, spec in specs.items()),
        n_weights=sum(decision.n_weights for decision in decisions),
        formats=format_totals((d.spec.format, d.n_weights, d.spec.nbytes(d.name)) for d in decisions),
        fidelity=fidelity,
        seconds=time.perf_counter() - started,
        errors=errors,
    )


def _side_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Made before anything is written: a source without a tokenizer fails at once, not after minutes."""
    return {
        "config.json": _json(checkpoint.config),
        "generation_config.json": _json(checkpoint.generation_config),
        "tokenizer.json": checkpoint.tokenizer().to_str().encode(),
        "tokenizer_config.json": _json(checkpoint.tokenizer_config()),
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _write_weights(
    checkpoint: Checkpoint,
    decisions: list[Decision],
    output: WeightFile,
    progress: Progress | None,
    measure_errors: bool,
    made: Made | None,
) -> dict[str, TensorError]:
    errors = {}
    total, done = sum(d.spec.nbytes(d.name) for d in decisions), 0
    for decision in decisions:
        measure = ErrorSum() if measure_errors else None
        whole = None if made is None else made(decision.name)
        for written in _write_tensor(checkpoint, decision, output, measure, whole):
            done += written
            if progress is not None:
                progress(done, total, decision.name)
        if measure is not None:
            errors[decision.name] = measure.result()
    return errors


def _write_tensor(
    checkpoint: Checkpoint,
    decision: Decision,
    output: WeightFile,
    measure: ErrorSum | None,
    whole: QuantizedTensor | None,
) -> Iterator[int]:
    """Yields the bytes written after every block. `whole`: the tensor, where it is rounded already."""
    for start, part in _blocks(checkpoint, decision, whole):
        yield output.put(decision.name, start, part)
        if measure is not None:
            n = part.shape[0]
            values = part if isinstance(part, np.ndarray) else dequantize(part)
            measure.add(checkpoint.read_rows(decision.name, start, start + n), values)


def _blocks(
    checkpoint: Checkpoint, decision: Decision, whole: QuantizedTensor | None = None
) -> Iterator[tuple[int, QuantizedTensor | NDArray[np.float32]]]:
    """The rows of a tensor in their packed form, each block with its first row."""
    name, spec = decision.name, decision.spec
    kept = _kept(checkpoint, decision) if decision.keep else whole
    step = max(TILE_ROWS, _BLOCK_WEIGHTS // math.prod(spec.shape[1:]) // TILE_ROWS * TILE_ROWS)
    for start in range(0, spec.shape[0], step):
        stop = min(start + step, spec.shape[0])
        if kept is not None:
            yield start, tile_rows(kept, start, stop)
        else:
            yield start, _converted(checkpoint, decision, checkpoint.read_rows(name, start, stop), start)


def _kept(checkpoint: Checkpoint, decision: Decision) -> QuantizedTensor:
    name, spec = decision.name, decision.spec
    packed = checkpoint.packed(name)
    found = packed.format, packed.shape, packed.group_size
    if found != (spec.format, spec.shape, spec.group_size):
        raise WeightsError(f"{checkpoint.path}: {name} was converted to {found}, expected {spec}")
    for part, array in packed.arrays.items():
        if part != "codes" and not np.isfinite(array).all():
            raise FileFormatError(f"{checkpoint.path}: {name} has scales that are NaN or infinite; the file is corrupt")
    return packed


def _converted(
    checkpoint: Checkpoint, decision: Decision, block: NDArray[np.float32], start: int
) -> QuantizedTensor | NDArray[np.float32]:
    if not np.isfinite(block).all():
        place = np.argwhere(~np.isfinite(block))[0]
        value = block[tuple(place)]
        place[0] += start
        raise FileFormatError(
            f"{checkpoint.path}: {decision.name} is {value} at {place.tolist()}; the checkpoint is corrupt, "
            "fetch it again"
        )
    if decision.spec.format == FLOAT:
        return block
    try:
        return quantize(block, decision.spec.format, decision.spec.group_size)
    except QuantizationError as error:
        raise QuantizationError(f"{checkpoint.path}: {decision.name}, rows from {start}: {error}") from error
