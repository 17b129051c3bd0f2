"""What can be wrong with files: each class answers "what should the user do next" differently."""

from __future__ import annotations

from edgecal_kernels.errors import EdgecalError, as_message


class WeightsError(EdgecalError):
    """Base of everything about model files."""


class ModelNotFoundError(WeightsError):
    """A path, hub id or needed file is not there."""


class FileFormatError(WeightsError):
    """A file is truncated, corrupt, or not what its name promises."""


class UnsupportedModelError(WeightsError):
    """A well-formed model that edgecal does not serve: an architecture, an option, a quantization type."""


class StorageError(WeightsError):
    """A result could not be written (disk full, no permission); nothing half-written was left."""


class HubError(WeightsError):
    """The model hub could not give the files: network, offline mode, authorization, revision."""


class AdapterError(EdgecalError):
    """A LoRA adapter is broken, unsupported, or does not fit the model."""


class CalibrationError(AdapterError):
    """A calibration file is broken, or was made for other adapters or another base."""


class EdgecalWarning(UserWarning):
    """What a person should know about a model that is served all the same. The command line shows one line each."""

    def __init__(self, message: object = "") -> None:
        super().__init__(as_message(message))
