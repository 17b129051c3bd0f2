"""From a path or a hub id to a checkpoint: the one function that opens any kind of model.

A path that exists is a path. Anything else may be the id of a repository on the hub, which is also what a mistyped path
looks like; `locate` says how the two are told apart.

A directory may hold a model and a PEFT adapter at once. transformers applies the adapter then, and an answer of the
bare base would be wrong without a word, so such a directory is refused with two ways out that say what is meant: its
config.json (or .gguf) names the model alone, and as an adapter it names the adapter.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .checkpoint import Checkpoint
from .errors import FileFormatError, HubError, ModelNotFoundError, UnsupportedModelError, WeightsError
from .file_kind import (
    ADAPTERS,
    MODEL_CONFIG,
    PACKED_FILE,
    PART_NAME,
    PICKLE_ENDINGS,
    PICKLE_RISK,
    Kind,
    ggufs,
    identify,
    identify_model,
)
from .files import Progress, expand, path_hint, reason
from .gguf_checkpoint import GGUFCheckpoint
from .hub import MODEL_ID, download
from .huggingface import HFCheckpoint
from .packed import PackedCheckpoint

# No repository is called like this, files are
_FILE_ENDINGS = (".gguf", ".safetensors", ".json", ".yaml", ".txt", *PICKLE_ENDINGS)


def open_checkpoint(
    path: str | Path,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Open a GGUF file, a Hugging Face directory, a directory of `edgecal quantize`, or a hub id.

    A hub id is "org/name" or "org/name:QUANT" (a GGUF of that quantization), tried only when no such path exists;
    `revision`, `offline` and `progress` are handed to `edgecal_weights.hub.download` and mean nothing otherwise. The
    config.json of a directory stands for the model in it, whatever else is there. Raises ModelNotFoundError,
    FileFormatError, UnsupportedModelError or HubError.
    """

    def fetch(model_id: str) -> Path:
        return download(model_id, revision=revision, offline=offline, progress=progress)

    local = locate(path, fetch, certain=revision is not None)
    kind = identify(local)
    if kind is Kind.MODEL_CONFIG and local.name == MODEL_CONFIG:
        local = local.parent
        kind = identify_model(local)
    if kind is Kind.HUGGINGFACE:
        return HFCheckpoint(local)
    if kind is Kind.PACKED:
        return PackedCheckpoint(local)
    if kind in (Kind.GGUF, Kind.DAMAGED_GGUF):
        return GGUFCheckpoint(local)
    if kind is Kind.GGUF_DIRECTORY:
        return GGUFCheckpoint(local / _only_gguf(local))
    raise _refusal(local, kind)


def locate(path: str | Path, fetch: Callable[[str], Path], *, certain: bool = False) -> Path:
    """`path` where it exists, else what `fetch` makes of it as a hub id ("org/name" or "org/name:QUANT").

    "models/llama" is such an id, too. Where there is a directory "models", or the name ends like a file's, it is taken
    for a path that is wrong, unless the caller is `certain` that the hub is meant. Raises ModelNotFoundError for a
    path, saying what is near it, and what `fetch` raises.
    """
    local, text = expand(path, ModelNotFoundError), str(path)
    try:
        if local.exists():
            return local
    except (OSError, ValueError) as error:  # a name too long, a NUL in it
        raise ModelNotFoundError(f"{path} cannot be opened: {reason(error)}") from error
    hint = path_hint(local.with_name(local.name.partition(":")[0] or local.name))  # without the hub's :QUANT
    if not MODEL_ID.fullmatch(text):
        raise ModelNotFoundError(
            f"{path}: no such file or directory, and not a hub id of the form org/name or org/name:QUANT{hint}"
        )
    if not certain and (text.endswith(_FILE_ENDINGS) or os.path.isdir(text.partition("/")[0])):
        raise ModelNotFoundError(
            f"{path}: no such file or directory{hint}. If {text} of the hub is meant, say so with a revision "
            "(--revision main)"
        )
    try:
        return fetch(text)
    except (ModelNotFoundError, HubError) as error:
        raise type(error)(f"{error}. Nor is there a file or directory {text} here") from error


def _only_gguf(directory: Path) -> str:
    names = ggufs(directory)
    parts = [PART_NAME.fullmatch(name) for name in names]
    models = {part[1] if part else name for part, name in zip(parts, names, strict=True)}
    if len(models) > 1:
        raise FileFormatError(f"{directory} holds several GGUF files, name one of them: {', '.join(names)}")
    return names[0]


def _refusal(path: Path, kind: Kind) -> WeightsError:
    """Why what is at `path` cannot be opened as a model, and what to give instead."""
    if kind in (Kind.WITHOUT_WEIGHTS, Kind.DIRECTORY):
        missing = "*.safetensors" if kind is Kind.WITHOUT_WEIGHTS else MODEL_CONFIG
        return ModelNotFoundError(
            f"{path} holds no model: expected {MODEL_CONFIG} with *.safetensors, {PACKED_FILE}, or one .gguf; "
            f"{missing} is not there"
        )
    return UnsupportedModelError(f"{path} is {kind.value}{_advice(path, kind)}")


def _advice(path: Path, kind: Kind) -> str:
    if kind is Kind.MODEL_AND_ADAPTER:
        of_model = "the .gguf in it" if identify_model(path) is Kind.GGUF_DIRECTORY else path / MODEL_CONFIG
        return (
            f"; transformers would apply the adapter, so the base is not silently run without it. Give {of_model} as "
            f"the model, and {path} as an adapter (--adapter) where it is to be applied"
        )
    if kind in (*ADAPTERS, Kind.ADAPTER_CONFIG, Kind.ADAPTER_WEIGHTS, Kind.MLX_WEIGHTS):
        return ", not a model; give it as an adapter (--adapter) with its base model"
    if kind in (Kind.MODEL_WEIGHTS, Kind.PACKED_WEIGHTS, Kind.TENSORS):
        return f"; give the directory that holds its {MODEL_CONFIG} and tokenizer too"
    if kind is Kind.PICKLED_MODEL:
        return (
            f" (pytorch_model.bin). {PICKLE_RISK}; convert once with transformers: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)"
        )
    if kind is Kind.PICKLE:
        return f", not a model. {PICKLE_RISK}"
    if kind is Kind.UNKNOWN:
        return ": expected a GGUF file, a directory with a model, or a hub id"
    return ", not a model: expected a GGUF file or a directory"
