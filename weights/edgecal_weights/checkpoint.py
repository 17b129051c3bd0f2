"""What every kind of model source gives the engine; `opening.open_checkpoint` opens any of them.

The engine speaks one language: Hugging Face tensor names ("model.layers.0.self_attn.q_proj.weight"),
Hugging Face config keys in one spelling, float32 arrays or `QuantizedTensor`s. A `Checkpoint` translates
one kind of source into it. Nothing is read before it is asked for, and nothing that was read stays: a
caller that takes tensors one by one needs the memory of its own copies, whatever the size of the file.

`config` is normalised (see hf_config): `rope_theta` and `rope_scaling` stand at the top level with the key
`rope_type`, as in transformers 4, whichever version wrote the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.quant import QuantizedTensor

from .errors import WeightsError
from .mapped_file import Watch, nothing_to_watch

if TYPE_CHECKING:
    from .tokenizer_backend import Tokenizer

Fidelity = Literal["exact", "near"]
"""How a stored block becomes a packed one: every value unchanged, or changed by a stated rounding."""

Self = TypeVar("Self", bound="Checkpoint")


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
    def weight_files(self) -> list[Path]:
        """The files that hold the tensors."""

    @abstractmethod
    def names(self) -> list[str]:
        """Hugging Face tensor names. Where the configuration ties the head, a copy of it may be stored all the same."""

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

    def watch(self) -> Watch:
        """What raises FileFormatError once files that arrays of `packed` lie in have been changed, `close` or not."""
        return nothing_to_watch

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
