"""Every error that edgecal raises on purpose, in one family.

    EdgecalError
    ├── QuantizationError            a tensor does not fit the asked number format        (edgecal_kernels)
    ├── BackendError                 an unknown or unusable back end                      (edgecal_kernels)
    ├── WeightsError                 a model file                                         (edgecal_weights)
    │   ├── ModelNotFoundError       path, hub id or needed file is not there
    │   ├── FileFormatError          truncated, corrupt, not what its name promises
    │   ├── UnsupportedModelError    architecture, option or quantization that is not served
    │   ├── StorageError             the result could not be written
    │   └── HubError                 network, offline mode, authorization, revision
    ├── AdapterError                 a LoRA adapter is broken, unsupported or does not fit (edgecal_weights)
    │   └── CalibrationError         a calibration for other adapters or another base
    ├── RecipeError                  an unknown method, or one that lacks what it needs
    ├── BenchmarkError               configuration, data or results of an evaluation
    ├── VerificationError            a reference made for other adapters, another base or recipe
    ├── OptionError                  a setting outside its range
    ├── MemoryLimitError             a model that does not fit into the memory that is free, or granted
    ├── BusyError                    too many requests are waiting, or the engine is being stopped
    └── PromptError                  nothing to answer, or a chat template that refuses
        └── ContextLengthError       the prompt and the answer do not fit the context

What a person should know although it stops nothing is a warning: `edgecal_weights.errors.EdgecalWarning`.
"""

from __future__ import annotations

from edgecal_kernels.errors import BackendError, EdgecalError, QuantizationError
from edgecal_weights.errors import (
    AdapterError,
    CalibrationError,
    FileFormatError,
    HubError,
    ModelNotFoundError,
    StorageError,
    UnsupportedModelError,
    WeightsError,
)

__all__ = [
    "AdapterError",
    "BackendError",
    "BenchmarkError",
    "BusyError",
    "CalibrationError",
    "ContextLengthError",
    "EdgecalError",
    "FileFormatError",
    "HubError",
    "MemoryLimitError",
    "ModelNotFoundError",
    "OptionError",
    "PromptError",
    "QuantizationError",
    "RecipeError",
    "StorageError",
    "UnsupportedModelError",
    "VerificationError",
    "WeightsError",
]


class RecipeError(EdgecalError):
    """An unknown composition method, or a recipe that lacks what its method needs."""


class BenchmarkError(EdgecalError):
    """A benchmark's configuration, data or results cannot be used as they are."""


class VerificationError(EdgecalError):
    """A reference file cannot be compared with: it was made with other adapters, on another base, by another recipe."""


class OptionError(EdgecalError, ValueError):
    """A setting (sampling, chunk size, threads ...) outside its range."""


class MemoryLimitError(EdgecalError):
    """A model does not fit into the memory that is free, or that it was granted; the message says what would."""


class BusyError(EdgecalError):
    """A running engine lets no further request in, now or for good."""


class PromptError(EdgecalError):
    """There is nothing to answer, or the chat template refuses the messages."""


class ContextLengthError(PromptError):
    """Prompt and answer do not fit the model's context of `limit` tokens. `n_tokens` are the prompt's, where known."""

    def __init__(self, message: str, n_tokens: int | None = None, limit: int | None = None) -> None:
        super().__init__(message)
        self.n_tokens, self.limit = n_tokens, limit
