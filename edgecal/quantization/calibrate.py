"""Quantizing a model for what its modules see: the inputs that a text makes decide which errors matter.

    with open_checkpoint("model/") as checkpoint:
        report = quantize_calibrated(checkpoint, "model-int4", format="int4")

A pass over the text goes through the model layer by layer (`layerwise`), and every matrix is rounded when its inputs
are known (`rounding`). One layer of float32 weights is in memory at a time, with the hidden states of the text. The
packed form is that of `edgecal quantize`, so that nothing changes where the model runs. What is done is kept until all
is (`kept`), and nothing is drawn at random: on one machine, with one number of threads, the same bytes come twice.

Tensors that the packed form holds exactly are taken over as they are. All others are rounded from their float32
values. The embedding is rounded plainly, as a token's only description, and so is a head that is the embedding.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.quant import STEP, Array, QuantizedTensor, dequantize, quantize
from edgecal_weights.checkpoint import Checkpoint
from edgecal_weights.files import Progress, expand, file_sha256
from edgecal_weights.packed import FLOAT
from edgecal_weights.packed_writer import check_target
from edgecal_weights.quantize_report import OutputError, QuantizeReport
from edgecal_weights.quantizer import Decision, pack_tensor, plan, quantize_checkpoint

from ..architecture import check_tensors, outer_parts
from ..config import ModelConfig
from ..errors import FileFormatError, OptionError, QuantizationError, StorageError
from ..text.corpus import read_documents, windows
from ..text.tokenizer import Tokenizer
from .kept import KeptLayers
from .layerwise import Layerwise
from .rounding import Diagonal, Feedback, Metric, rounding_errors

CONTEXT = 512
TOKENS = 36_864
DAMPING = 0.2  # on other text than the calibrating one 0.1 to 0.5 hardly differ, and 0.01 is worse
DEFAULT_TEXT = Path(__file__).with_name("default_text.jsonl")
_METHOD = 4  # counts changes of what is computed, so that nothing goes on behind layers of another method
_ROWS = 4096  # of an embedding, read at a time


def quantize_calibrated(
    checkpoint: Checkpoint,
    out_dir: str | Path,
    *,
    documents: Sequence[str] | None = None,
    tokens: int = TOKENS,
    feedback: bool = True,
    importances: Mapping[str, NDArray[np.float32]] | None = None,
    format: str = "auto",
    group_size: int = STEP,
    embedding_format: str = "auto",
    progress: Progress | None = None,
    overwrite: bool = False,
    measure_errors: bool = False,
) -> QuantizeReport:
    """Write `checkpoint` as a packed directory, calibrated on `documents` (the text that ships with edgecal if None).

    Windows of 512 tokens, about `tokens` in all, are taken evenly from the documents. With `feedback` columns make good
    what others lose (GPTQ); without, scales alone are searched for these inputs. `importances`, mean squares of inputs
    (k,) by tensor name, take the place of any text; they know nothing that feedback could use. `format` "auto" means
    int4. The other arguments and errors are those of `edgecal_weights.quantizer.quantize_checkpoint`; besides
    QuantizationError where there is nothing to calibrate, OptionError for too few tokens, PromptError for no text.
    """
    began = time.perf_counter()
    target = Path(os.path.realpath(expand(out_dir, StorageError)))
    check_target(target, overwrite)
    if format == "keep":
        raise QuantizationError("keep rounds nothing, so there is nothing to calibrate; choose a format, such as int4")
    asked = {"format": "int4" if format == "auto" else format, "group_size": group_size}
    asked["embedding_format"] = embedding_format
    config = ModelConfig.of(checkpoint)
    check_tensors(checkpoint, config)
    decisions = {decision.name: decision for decision in plan(checkpoint, **asked)}  # type: ignore[arg-type]
    outer = outer_parts(config)
    plain = [f"{outer['embedding'].name}.weight"]
    rounded = {d.name: d for d in decisions.values() if d.fidelity == "rounded" and d.spec.format != FLOAT}
    rounded = {name: decision for name, decision in rounded.items() if name not in plain}
    if not rounded:
        raise QuantizationError(f"{checkpoint.path}: every matrix is {asked['format']} already, or stays as it is")
    writing = {**asked, "overwrite": overwrite, "measure_errors": measure_errors}
    if importances is not None:
        searched = _Searched(checkpoint, rounded, importances)
        notes = {"calibration": {"method": "importance", "tensors": len(searched.names)}}
        report = quantize_checkpoint(checkpoint, target, made=searched, source_notes=notes, **writing)  # type: ignore[arg-type]
        return replace(report, output_errors=searched.errors, seconds=time.perf_counter() - began)
    chosen = _windows(checkpoint, documents, tokens, config)
    begun = {"method": _METHOD, "feedback": feedback, **asked, **_digests(checkpoint, chosen)}
    kept = KeptLayers(target, begun, {name: decision.spec for name, decision in decisions.items()})
    _Calibration(checkpoint, config, decisions, rounded, feedback, kept, progress).run(chosen)
    errors = kept.errors()
    if progress is not None:
        progress(0, 0, "writing")
    notes = {"calibration": {"method": "feedback" if feedback else "importance", "tokens": sum(map(len, chosen))}}
    report = quantize_checkpoint(checkpoint, target, made=kept.tensor, source_notes=notes, **writing)  # type: ignore[arg-type]
    kept.remove()
    found = {name: OutputError(*error) for name, error in errors.items()}
    return replace(report, output_errors=found, seconds=time.perf_counter() - began)


def rounded_before(checkpoint: Checkpoint) -> str | None:
    """The number format of `checkpoint`'s matrices if they are rounded already, the most frequent one; else None."""
    stored = [checkpoint.stored_type(name) for name in checkpoint.names() if checkpoint.counterpart(name)]
    return max(set(stored), key=stored.count) if stored else None


def _windows(
    checkpoint: Checkpoint, documents: Sequence[str] | None, tokens: int, config: ModelConfig
) -> list[NDArray[np.int64]]:
    length = min(CONTEXT, config.max_position_embeddings)
    if tokens < length:
        raise OptionError(f"calibrating takes {length} tokens or more, found {tokens}")
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    found = windows(tokenizer, list(documents or read_documents(DEFAULT_TEXT)), length)
    whole = [window for window in found if len(window) == length] or found
    places = np.linspace(0, len(whole) - 1, min(len(whole), tokens // length)).round().astype(int)
    return [whole[place] for place in places]


def _digests(checkpoint: Checkpoint, chosen: Iterable[NDArray[np.int64]]) -> dict[str, str]:
    text = hashlib.sha256()
    for window in chosen:
        text.update(len(window).to_bytes(8, "little") + window.astype("<i8").tobytes())
    files = " ".join(file_sha256(file) for file in checkpoint.weight_files())
    return {"source": files, "text": text.hexdigest()}


class _Calibration:
    """The pass through the layers. `kept` has what is finished, and is told of what gets so."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        decisions: Mapping[str, Decision],
        rounded: Mapping[str, Decision],
        feedback: bool,
        kept: KeptLayers,
        progress: Progress | None,
    ) -> None:
        self._checkpoint, self._config, self._decisions, self._rounded = checkpoint, config, decisions, rounded
        self._feedback, self._kept, self._progress = feedback, kept, progress
        self._tensors: dict[str, QuantizedTensor] = {}
        self._errors: dict[str, tuple[float, float]] = {}
        self._head = outer_parts(config).get("head")

    def run(self, chosen: Sequence[NDArray[np.int64]]) -> None:
        layers, hidden = self._config.n_layers, self._kept.hidden()
        if hidden is None:
            hidden = self._embedded(np.concatenate(chosen))
        ends = np.cumsum([len(window) for window in chosen])[:-1]
        layerwise = Layerwise(self._config, self._read, max(map(len, chosen)))
        clock, first = time.monotonic(), self._kept.next_layer
        for layer in range(first, layers):
            self._tell(layer, clock, layer - first)
            hidden = np.concatenate(layerwise.run(layer, np.split(hidden, ends), self._replace))
            self._finish(hidden)
        if self._kept.next_layer == layers:
            self._tell(layers, clock, layers - first)
            if self._head is not None and f"{self._head.name}.weight" in self._rounded:
                name = f"{self._head.name}.weight"
                self._replace({name: self._read(name)}, layerwise.head_inputs(np.split(hidden, ends)))
            self._finish(hidden[:0])

    def _tell(self, layer: int, began: float, done: int) -> None:
        if self._progress is None:
            return
        total = self._config.n_layers + 1
        left = (time.monotonic() - began) / done * (total - layer) if done else 0.0
        minutes = f", {left / 60:.0f} min left" if left >= 90 else f", {left:.0f} s left" if left else ""
        self._progress(layer, total, f"calibrating layer {min(layer + 1, total - 1)} of {total - 1}{minutes}")

    def _finish(self, hidden: Array) -> None:
        self._kept.finish(self._tensors, self._errors, hidden)
        self._tensors, self._errors = {}, {}

    def _replace(self, weights: Mapping[str, Array], gram: NDArray[np.float32]) -> dict[str, Array]:
        if not np.isfinite(gram).all():
            raise FileFormatError(f"{self._checkpoint.path}: the inputs of {next(iter(weights))} are not finite")
        metrics: dict[int, Metric] = {}
        made = dict(weights)
        for name in [name for name in weights if name in self._rounded]:
            spec = self._rounded[name].spec
            size = spec.group_size
            if size not in metrics:
                squares = np.diagonal(gram)
                metrics[size] = Feedback(gram, size, DAMPING) if self._feedback else Diagonal(squares, size)
            packed = metrics[size].round(weights[name], spec.format)
            self._tensors[name] = packed
            self._errors[name] = rounding_errors(metrics[size], weights[name], packed)
            made[name] = dequantize(packed)
        return made

    def _read(self, name: str) -> Array:
        """As the packed model will have it, but for what is to be rounded here."""
        decision = self._decisions[name]
        if name in self._rounded:
            return _finite(self._checkpoint, name)
        packed = pack_tensor(self._checkpoint, decision)
        return dequantize(packed) if isinstance(packed, QuantizedTensor) else packed

    def _embedded(self, ids: NDArray[np.int64]) -> Array:
        """The vectors (tokens, D) of ids, from the embedding as it will be packed: its rows are independent."""
        name = f"{outer_parts(self._config)['embedding'].name}.weight"
        decision = self._decisions[name]
        wanted, places = np.unique(ids, return_inverse=True)
        rows = np.empty((len(wanted), decision.spec.shape[1]), np.float32)
        for start in range(0, decision.spec.shape[0], _ROWS):
            stop = min(start + _ROWS, decision.spec.shape[0])
            here = (wanted >= start) & (wanted < stop)
            if here.any():
                rows[here] = self._checkpoint.read_rows(name, start, stop)[wanted[here] - start]
        if decision.spec.format != FLOAT and not decision.keep:
            rows = dequantize(quantize(rows, decision.spec.format, decision.spec.group_size))
        return rows[places] * np.float32(self._config.embedding_scale)


class _Searched:
    """Tensors whose scales are searched under given importances, made when they are asked for."""

    def __init__(
        self, checkpoint: Checkpoint, rounded: Mapping[str, Decision], importances: Mapping[str, NDArray[np.float32]]
    ) -> None:
        self._checkpoint, self._rounded, self._importances = checkpoint, rounded, importances
        self.names = rounded.keys() & importances.keys()
        self.errors: dict[str, OutputError] = {}
        if not self.names:
            raise QuantizationError(f"the importances name none of the matrices of {checkpoint.path} to be rounded")
        for name in self.names:
            k = rounded[name].spec.shape[1]
            if importances[name].shape != (k,):
                raise QuantizationError(
                    f"{name} has {k} columns, and importances for {importances[name].size}: they are another model's"
                )

    def __call__(self, name: str) -> QuantizedTensor | None:
        if name not in self.names:
            return None
        spec, w = self._rounded[name].spec, _finite(self._checkpoint, name)
        metric = Diagonal(self._importances[name], spec.group_size)
        packed = metric.round(w, spec.format)
        self.errors[name] = OutputError(*rounding_errors(metric, w, packed))
        return packed


def _finite(checkpoint: Checkpoint, name: str) -> Array:
    value = checkpoint.read(name)
    if not np.isfinite(value).all():
        place = np.argwhere(~np.isfinite(value))[0].tolist()
        raise FileFormatError(f"{checkpoint.path}: {name} is not finite at {place}; fetch the checkpoint again")
    return value
