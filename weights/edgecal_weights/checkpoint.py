"""What every kind of model source gives the engine, and the one function that opens any of them.

The engine speaks one language: Hugging Face tensor names ("model.layers.0.self_attn.q_proj.weight"),
Hugging Face config keys in one spelling, float32 arrays or `QuantizedTensor`s. A `Checkpoint` translates
one kind of source into it. Nothing is read before it is asked for, and nothing that was read stays: a
caller that takes tensors one by one needs the memory of its own copies, whatever the size of the file.

`config` is normalised (see hf_config): `rope_theta` and `rope_scaling` stand at the top level with the key
`rope_type`, as in transformers 4, whichever version wrote the file.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.quant import QuantizedTensor

from .errors import FileFormatError, ModelNotFoundError, UnsupportedModelError, WeightsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Fidelity = Literal["exact", "near"]
"""How a stored block becomes a packed one: every value unchanged, or changed by a stated rounding."""

Self = TypeVar("Self", bound="Checkpoint")
PACKED_FILE = "edgecal-packed.safetensors"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?")


class Checkpoint(ABC):
    """A model's files. Use as a context manager, or call `close()`.

    Names that the checkpoint does not have raise FileFormatError naming file and tensor.
    """

    kind: ClassVar[Literal["huggingface", "gguf", "packed"]]
    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    """generation_config.json, or what the source knows of it; may be empty."""

    @abstractmethod
    def names(self) -> list[str]:
        """Hugging Face tensor names. A tied head has none of its own."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """(out_features, in_features) for a matrix."""

    @abstractmethod
    def stored_type(self, name: str) -> str:
        """The number format in the file: "F32", "BF16", "Q4_K", "int4_affine" ..."""

    @abstractmethod
    def read(self, name: str) -> NDArray[np.float32]:
        """The whole tensor as float32, C-contiguous and owned by the caller."""

    @abstractmethod
    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """float32 rows [start, stop) of the first dimension; only these are read from disk."""

    def counterpart(self, name: str) -> tuple[str, Fidelity] | None:
        """(format, fidelity) that `packed(name)` converts the stored blocks to; None for float storage."""
        self.shape(name)
        return None

    def packed(self, name: str) -> QuantizedTensor:
        """The tensor in its counterpart format; WeightsError when `counterpart(name)` is None."""
        raise WeightsError(
            f"{self.path}: {name} is stored as {self.stored_type(name)}, which has no packed counterpart; "
            "read() and quantize it"
        )

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back; ModelNotFoundError or FileFormatError when it cannot be had."""

    @abstractmethod
    def tokenizer_config(self) -> dict[str, Any]:
        """Hugging Face spelling: chat_template, bos_token, eos_token, ... as plain strings, add_bos_token."""

    @abstractmethod
    def tensor_bytes(self) -> int:
        """Bytes of all tensors as stored."""

    @abstractmethod
    def close(self) -> None:
        """Give the files back. Reading afterwards raises ValueError."""

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_rows(path: Path, name: str, shape: tuple[int, ...], start: int, stop: int) -> None:
    """ValueError unless [start, stop) are rows of a tensor of this shape: a mistake of the caller."""
    if not shape or not 0 <= start <= stop <= shape[0]:
        raise ValueError(f"{path}: rows {start} to {stop} of {name}, which has shape {shape}")


def open_checkpoint(
    path: str | Path, *, revision: str | None = None, offline: bool | None = None, progress: Any = None
) -> Checkpoint:
    """Open a .gguf file, a Hugging Face directory, a directory of `edgecal quantize`, or a hub id.

    A hub id is "org/name" or "org/name:QUANT" (a GGUF of that quantization), tried only when no such path
    exists; `revision`, `offline` and `progress` are handed to `edgecal_weights.hub.download` and mean
    nothing otherwise. Raises ModelNotFoundError, FileFormatError, UnsupportedModelError or HubError.
    """
    try:
        local = Path(path).expanduser()
        is_local = local.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a home that nobody has
        raise ModelNotFoundError(f"{path} cannot be opened: {error}") from error
    if not is_local:
        text = str(path)
        if not _HUB_ID.fullmatch(text) or text.endswith((".gguf", ".safetensors")):
            raise ModelNotFoundError(
                f"{path}: no such file or directory, and not a hub id of the form org/name or org/name:QUANT"
            )
        from .hub import download

        local = download(text, revision=revision, offline=offline, progress=progress)
    return _open_directory(local) if local.is_dir() else _open_file(local)


def _open_file(path: Path) -> Checkpoint:
    from .gguf_checkpoint import GGUFCheckpoint

    if path.suffix.lower() == ".gguf":
        return GGUFCheckpoint(path)
    if path.suffix == ".safetensors":
        raise UnsupportedModelError(
            f"{path} is one file of a model; give the directory that holds its config.json and tokenizer too"
        )
    raise UnsupportedModelError(f"{path} is not a model: expected a .gguf file or a directory")


def _open_directory(path: Path) -> Checkpoint:
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be listed: {error.strerror}") from error
    if PACKED_FILE in names:
        from .packed import PackedCheckpoint

        return PackedCheckpoint(path)
    tensors = [n for n in names if n.endswith(".safetensors") and n != "adapter_model.safetensors"]
    if "config.json" in names and (tensors or "model.safetensors.index.json" in names):
        from .huggingface import HFCheckpoint

        return HFCheckpoint(path)
    ggufs = [n for n in names if n.lower().endswith(".gguf")]
    if ggufs:
        return _open_file(path / _only_gguf(path, ggufs))
    if "adapter_config.json" in names:
        kind = "an MLX" if "adapters.safetensors" in names else "a PEFT"
        raise UnsupportedModelError(f"{path} is {kind} adapter, not a model; give it with its base model")
    if any(n.startswith("pytorch_model") and n.endswith(".bin") for n in names):
        raise UnsupportedModelError(
            f"{path} has its weights in pytorch_model.bin only. Loading a pickle runs whatever code is in "
            "it, so edgecal does not; convert once with transformers: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)"
        )
    missing = "*.safetensors" if "config.json" in names else "config.json"
    raise ModelNotFoundError(
        f"{path} holds no model: expected config.json with *.safetensors, {PACKED_FILE}, or one .gguf; "
        f"{missing} is not there"
    )


def _only_gguf(path: Path, names: Sequence[str]) -> str:
    from .gguf_checkpoint import PART_NAME

    parts = [PART_NAME.fullmatch(name) for name in names]
    models = {part[1] if part else name for part, name in zip(parts, names, strict=True)}
    if len(models) > 1:
        raise FileFormatError(f"{path} holds several GGUF files, name one of them: {', '.join(names)}")
    return names[0]
