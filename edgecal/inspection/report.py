"""What is this file? Facts about models, adapters, calibrations and reference files, without loading any weights.

    report = inspect("model/")              # ModelReport
    report = inspect("adapters/summarize", against="model/")    # AdapterReport, with `match`
    report.to_dict()                        # plain JSON values

Reports are plain data; a model that edgecal cannot run gets one too, with the reason in `refusal`. Only headers and
metadata are read (of an adapter every number, because a NaN in it is worth knowing), so a file whose weights are
damaged looks healthy here as long as its sizes are right.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgecal_weights.errors import ModelNotFoundError, UnsupportedModelError, WeightsError
from edgecal_weights.file_kind import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MODEL_CONFIG,
    PACKED_FILE,
    PICKLE_RISK,
    Kind,
    identify,
)
from edgecal_weights.files import Progress
from edgecal_weights.hub import download, download_adapter
from edgecal_weights.opening import locate, open_checkpoint

from ..adapters.parameter_counts import LORA_RANK, RANK
from ..config import ModelConfig
from ..errors import OptionError
from .adapter import AdapterReport, inspect_adapter
from .calibration import CalibrationReport, inspect_calibration
from .model import ModelReport, inspect_model
from .tensors import ReferenceReport, TensorsReport, inspect_reference, inspect_tensors

Report = ModelReport | AdapterReport | CalibrationReport | ReferenceReport | TensorsReport

_WHAT = {  # every other kind is a model, or part of one
    Kind.ADAPTER: "adapter",
    Kind.ADAPTER_CONFIG: "adapter",
    Kind.ADAPTER_WEIGHTS: "adapter",
    Kind.MLX_ADAPTER: "adapter",
    Kind.MLX_WEIGHTS: "adapter",
    Kind.GGUF_ADAPTER: "adapter",
    Kind.GGUF_ADAPTER_DIRECTORY: "adapter",
    Kind.CALIBRATION: "calibration",
    Kind.REFERENCE: "reference",
    Kind.MODEL_WEIGHTS: "tensors",
    Kind.TENSORS: "tensors",
    Kind.DIRECTORY: "nothing",
    Kind.PICKLE: "nothing",
    Kind.UNKNOWN: "nothing",
}


def inspect(
    path: str | Path,
    against: str | Path | None = None,
    *,
    rank: int = RANK,
    lora_rank: int = LORA_RANK,
    revision: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Report:
    """Facts about a model (directory, .gguf, packed directory, config.json), an adapter, a calibration, a reference
    file, or what a hub id names (it is downloaded to the hub's cache first).

    `rank` and `lora_rank` are those of the parameter counts of a model. `against` is a model to compare an adapter or a
    calibration with. Raises ModelNotFoundError, FileFormatError, AdapterError or HubError for what cannot be read,
    UnsupportedModelError for a file of another kind, OptionError when `against` has nothing to be compared with.
    """
    local = locate(path, _fetch(revision, offline, progress), certain=revision is not None)
    kind = identify(local)
    what = _WHAT.get(kind, "model")
    if against is not None and what not in ("adapter", "calibration"):
        raise OptionError(f"{path} is {kind.value}: only an adapter or a calibration can be compared with a model")
    config = None
    if against is not None:
        with open_checkpoint(against, offline=offline, progress=progress) as checkpoint:
            config = ModelConfig.of(checkpoint)
    if what == "adapter":
        return inspect_adapter(local.parent if kind is Kind.ADAPTER_CONFIG else local, config, str(against))
    if what == "calibration":
        return inspect_calibration(local, config, str(against))
    if what == "reference":
        return inspect_reference(local)
    if what == "tensors":
        return inspect_tensors(local)
    if what == "nothing":
        raise _refusal(local, kind)
    return inspect_model(local.parent if kind is Kind.PACKED_WEIGHTS else local, (rank, lora_rank))


def _fetch(revision: str | None, offline: bool | None, progress: Progress | None) -> Callable[[str], Path]:
    """Downloads a hub id, of a model or of an adapter."""

    def fetch(hub_id: str) -> Path:
        try:
            return download(hub_id, revision=revision, offline=offline, progress=progress)
        except ModelNotFoundError as error:
            try:
                return download_adapter(hub_id, revision=revision, offline=offline, progress=progress)
            except ModelNotFoundError:
                raise error from None

    return fetch


def _refusal(path: Path, kind: Kind) -> WeightsError:
    if kind is Kind.DIRECTORY:
        return ModelNotFoundError(
            f"{path} holds nothing that edgecal knows: expected {MODEL_CONFIG} with *.safetensors, {PACKED_FILE}, one "
            f".gguf, or {ADAPTER_CONFIG} with {ADAPTER_WEIGHTS}"
        )
    if kind is Kind.PICKLE:
        return UnsupportedModelError(f"{path} is a pickle, or called like one. {PICKLE_RISK}")
    return UnsupportedModelError(
        f"{path} is nothing that edgecal knows: expected a directory or a GGUF file of a model or an adapter, or a "
        ".safetensors file"
    )
