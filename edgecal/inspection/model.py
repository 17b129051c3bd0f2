"""A model: architecture, sizes, number formats, and what loading it would do and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgecal_weights.checkpoint import Checkpoint
from edgecal_weights.file_kind import MODEL_CONFIG, is_model_weights
from edgecal_weights.gguf_blocks import BLOCK_TYPES
from edgecal_weights.gguf_file import GGUFFile
from edgecal_weights.hf_config import normalize_config, read_json
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.packed import PackedCheckpoint, TensorSpec
from edgecal_weights.quantize_report import FormatTotal, format_totals
from edgecal_weights.quantizer import Decision, plan
from edgecal_weights.safetensors_file import SafetensorsFile

from ..adapters.parameter_counts import ParameterCounts, parameter_counts
from ..architecture import check_tensors, expected_shapes
from ..config import ModelConfig
from ..errors import EdgecalError, FileFormatError, ModelNotFoundError, UnsupportedModelError
from ..text.tokenizer import Tokenizer
from .tensors import TensorFacts, file_tensors, totals

MEMORY_CONTEXT = 1024
# Interpreter, libraries, compiled kernels and scratch of a forward pass: resident beside weights and KV cache,
# measured on SmolLM2-135M and Qwen2.5-0.5B (x86-64, Python 3.11)
RUNTIME_BYTES = 200 << 20
_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_GGUF_TYPES = {kind.name: kind for kind in BLOCK_TYPES.values()}


@dataclass(frozen=True)
class Conversion:
    """Tensors that become the same on loading: "exact" (no value changes), "near" (the stored codes, or re-rounded
    from them once), "rounded" (quantized from floats). `bytes` are those in memory."""

    stored: str
    becomes: str
    fidelity: str
    tensors: int
    weights: int
    bytes: int


@dataclass(frozen=True)
class LoadPlan:
    """What `Engine.load(path)` would do, with its default of `weights="auto"`. Bytes in memory."""

    conversions: list[Conversion]
    weight_bytes: int
    kv_bytes_per_token: int
    context: int
    kv_bytes: int
    memory_bytes: int


@dataclass(frozen=True)
class ModelReport:
    """`sizes` holds what the configuration says, by the names of ModelConfig; of a model that is refused only what
    could be read. `refusal` is why edgecal cannot run it, None if it can. `load` is None where there is a refusal.
    `counts` are the papers' parameter counts, None where the layers are not known to be Llama's. Of a configuration
    alone (`kind` "config") `parameters` are those that its sizes ask for."""

    path: str
    kind: str
    architecture: str
    sizes: dict[str, Any]
    parameters: int
    nbytes: int
    formats: dict[str, FormatTotal]
    tokenizer_entries: int | None
    chat_template: bool
    refusal: str | None
    load: LoadPlan | None
    counts: ParameterCounts | None
    tensors: list[TensorFacts] = field(repr=False)
    what: str = "model"

    @property
    def bits_per_weight(self) -> float:
        """Over all tensors as stored."""
        weights = sum(total.weights for total in self.formats.values())
        return 8 * self.nbytes / weights if weights else 0.0

    def to_dict(self) -> dict[str, Any]:
        derived = {"runnable": self.refusal is None, "bits_per_weight": self.bits_per_weight}
        counts = self.counts.to_dict() if self.counts is not None else None
        return {"what": self.what, **derived, **asdict(self), "counts": counts}


def inspect_model(path: Path, ranks: tuple[int, int]) -> ModelReport:
    """`path` may be a config.json alone, `ranks` are those of the calibrations and of the LoRA that are counted.

    Raises ModelNotFoundError or FileFormatError; a model that is merely not served gets a report.
    """
    if path.suffix == ".json":
        return _refused(path, "a configuration alone, without weights", ranks)
    try:
        checkpoint = open_checkpoint(path)
    except UnsupportedModelError as error:
        return _refused(path, str(error), ranks)
    except ModelNotFoundError as error:
        if "model_type" not in read_json(path / MODEL_CONFIG, optional=True):
            raise
        return _refused(path, str(error), ranks)
    with checkpoint:
        return _report(checkpoint, ranks)


def _counts(config: Mapping[str, Any], ranks: tuple[int, int]) -> ParameterCounts | None:
    try:
        return parameter_counts(config, *ranks)
    except (UnsupportedModelError, FileFormatError):
        return None


def _report(checkpoint: Checkpoint, ranks: tuple[int, int]) -> ModelReport:
    tensors = [_facts(checkpoint, name) for name in checkpoint.names()]
    config, load, entries, refusal, has_template = None, None, None, None, False
    try:
        has_template = bool(checkpoint.tokenizer_config().get("chat_template"))
        config = ModelConfig.from_dict(checkpoint.config)
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
        entries, has_template = tokenizer.vocab_size, bool(tokenizer.template_names)
        check_tensors(checkpoint, config)
        load = _load_plan(plan(checkpoint), config)
    except EdgecalError as error:
        refusal = str(error)
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    return ModelReport(
        path=str(checkpoint.path),
        kind=checkpoint.kind,
        architecture=str(checkpoint.config.get("model_type", "unknown")),
        sizes=_sizes(config) if config is not None else _claimed_sizes(checkpoint.config),
        parameters=sum(t.weights for t in tensors if not (tied and t.name == "lm_head.weight")),
        nbytes=checkpoint.tensor_bytes(),
        formats=totals(tensors),
        tokenizer_entries=entries,
        chat_template=has_template,
        refusal=refusal,
        load=load,
        counts=_counts(checkpoint.config, ranks),
        tensors=tensors,
    )


def _facts(checkpoint: Checkpoint, name: str) -> TensorFacts:
    shape, stored = checkpoint.shape(name), checkpoint.stored_type(name)
    n = math.prod(shape)
    if stored in _FLOAT_BYTES:
        nbytes = n * _FLOAT_BYTES[stored]
    elif isinstance(checkpoint, PackedCheckpoint):
        nbytes = TensorSpec(stored, shape, checkpoint.group_size(name)).nbytes(name)
    elif stored in _GGUF_TYPES:
        nbytes = n // _GGUF_TYPES[stored].block * _GGUF_TYPES[stored].nbytes
    else:  # an integer type of safetensors, such as I64 or U8: its name says its bits
        nbytes = n * int(stored.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ").partition("_")[0] or 8) // 8
    return TensorFacts(name, shape, stored, nbytes)


def _sizes(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else {k: v for k, v in asdict(scaling).items() if k != "factors"},
        "rotary_dim": config.rotary_dim,
        "norm": "LayerNorm" if config.layer_norm else "RMSNorm",
        "options": sorted(config.options - {"layer_norm"}),
        "sliding_window": max(config.windows) or None,
        "qkv_bias": config.qkv_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def _load_plan(decisions: list[Decision], config: ModelConfig) -> LoadPlan:
    grouped: dict[tuple[str, str, str], list[Decision]] = {}
    for decision in decisions:
        key = decision.stored_type, decision.spec.format, decision.fidelity
        grouped.setdefault(key, []).append(decision)
    conversions = []
    for (stored, becomes, fidelity), members in sorted(grouped.items()):
        nbytes = sum(d.spec.nbytes(d.name) for d in members)
        conversions.append(
            Conversion(stored, becomes, fidelity, len(members), sum(d.n_weights for d in members), nbytes)
        )
    weight_bytes = sum(c.bytes for c in conversions)
    width = -(-config.head_dim // 16) * 16  # as in KVCache
    per_token = 2 * 2 * config.n_layers * config.n_kv_heads * width
    context = min(MEMORY_CONTEXT, config.max_position_embeddings)
    return LoadPlan(
        conversions=conversions,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=per_token,
        context=context,
        kv_bytes=context * per_token,
        memory_bytes=weight_bytes + context * per_token + RUNTIME_BYTES,
    )


# ------------------------------------------------------------------------------------- models that are not served

_CLAIMS = {
    "hidden_size": ("hidden_size", "embedding_length"),
    "intermediate_size": ("intermediate_size", "feed_forward_length"),
    "n_layers": ("num_hidden_layers", "block_count"),
    "n_heads": ("num_attention_heads", "attention.head_count"),
    "n_kv_heads": ("num_key_value_heads", "attention.head_count_kv"),
    "head_dim": ("head_dim", "attention.key_length"),
    "vocab_size": ("vocab_size", "vocab_size"),
    "max_position_embeddings": ("max_position_embeddings", "context_length"),
    "rope_theta": ("rope_theta", "rope.freq_base"),
}


def _claimed_sizes(values: Mapping[str, Any], prefix: str | None = None) -> dict[str, Any]:
    """The plain numbers among the usual keys of a config.json, or with `prefix` of a GGUF's metadata."""
    found = {}
    for size, (hf, gguf) in _CLAIMS.items():
        value = values.get(hf if prefix is None else f"{prefix}.{gguf}")
        if isinstance(value, (int, float)):
            found[size] = value
    return found


def _refused(path: Path, refusal: str, ranks: tuple[int, int]) -> ModelReport:
    """What can be said about a model that does not even open as one: from its headers alone."""
    config_path = path if path.suffix == ".json" else path / MODEL_CONFIG
    ggufs = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if ggufs and not config_path.exists():
        return _refused_gguf(ggufs[0], refusal)
    config = read_json(config_path, optional=True)
    with suppress(EdgecalError):  # its rope_parameters may be the very reason; sizes are read all the same
        config = normalize_config(config, config_path)
    tensors = []
    for file in sorted(file for file in path.glob("*.safetensors") if is_model_weights(file.name)):
        with SafetensorsFile(file) as opened:
            tensors += file_tensors(opened)
    return ModelReport(
        path=str(path),
        kind="huggingface" if tensors else "config",
        architecture=str(config.get("model_type", "unknown")),
        sizes=_claimed_sizes(config),
        parameters=sum(t.weights for t in tensors) if tensors else _asked_for(config),
        nbytes=sum(t.nbytes for t in tensors),
        formats=totals(tensors),
        tokenizer_entries=None,
        chat_template=(path / "chat_template.jinja").exists(),
        refusal=refusal,
        load=None,
        counts=_counts(config, ranks),
        tensors=tensors,
    )


def _asked_for(config: Mapping[str, Any]) -> int:
    """The parameters of a model of this configuration; 0 where edgecal cannot tell."""
    with suppress(EdgecalError):
        return sum(map(math.prod, expected_shapes(ModelConfig.from_dict(config)).values()))
    return 0


def _refused_gguf(path: Path, refusal: str) -> ModelReport:
    with GGUFFile(path) as file:
        tensors = [TensorFacts(t.name, t.shape, t.type, t.nbytes) for t in file.tensors.values()]
        metadata = file.metadata
        architecture = str(metadata.get("general.architecture", "unknown"))
        return ModelReport(
            path=str(path),
            kind="gguf",
            architecture=architecture,
            sizes=_claimed_sizes(metadata, architecture),
            parameters=sum(t.weights for t in tensors),
            nbytes=sum(t.nbytes for t in tensors),
            formats=format_totals((t.type, t.weights, t.nbytes) for t in tensors),
            tokenizer_entries=metadata.length("tokenizer.ggml.tokens") if "tokenizer.ggml.tokens" in metadata else None,
            chat_template="tokenizer.chat_template" in metadata,
            refusal=refusal,
            load=None,
            counts=None,
            tensors=tensors,
        )
