"""What is this file? Facts about models, adapters, calibrations and reference files, without loading any weights.

    report = inspect("model/")              # ModelReport
    report = inspect("adapters/summarize", against="model/")    # AdapterReport, with `match`
    report.to_dict()                        # plain JSON values

Reports are plain data; a model that edgecal cannot run gets one too, with the reason in `refusal`. Only headers and
metadata are read (of an adapter every number, because a NaN in it is worth knowing), so a file whose weights are
damaged looks healthy here as long as its sizes are right.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from edgecal_weights.checkpoint import PACKED_FILE, open_checkpoint
from edgecal_weights.errors import ModelNotFoundError, UnsupportedModelError
from edgecal_weights.gguf_adapter import is_gguf_adapter
from edgecal_weights.hf_config import read_json
from edgecal_weights.hub import download, download_adapter
from edgecal_weights.peft_adapter import CONFIG_FILE, WEIGHTS_FILE
from edgecal_weights.safetensors_file import SafetensorsFile

from ..adapters.parameter_counts import LORA_RANK, RANK
from ..config import ModelConfig
from ..errors import OptionError
from .adapter import AdapterReport, inspect_adapter
from .calibration import CalibrationReport, inspect_calibration
from .model import ModelReport, inspect_model
from .tensors import ReferenceReport, TensorsReport, inspect_reference, inspect_tensors

Report = ModelReport | AdapterReport | CalibrationReport | ReferenceReport | TensorsReport
Progress = Callable[[int, int, str], None]

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?")
_CALIBRATION, _REFERENCE, _PACKED = "edgecal-calibration", "edgecal-reference", "edgecal-packed"


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
    local = _locate(path, revision, offline, progress)
    kind = _kind(local)
    if against is not None and kind not in ("adapter", "calibration"):
        raise OptionError(f"{path} is a {kind}: only an adapter or a calibration can be compared with a model")
    config = None
    if against is not None:
        with open_checkpoint(against, offline=offline, progress=progress) as checkpoint:
            config = ModelConfig.from_dict(checkpoint.config)
    if kind == "adapter":
        return inspect_adapter(local, config, str(against))
    if kind == "calibration":
        return inspect_calibration(local, config, str(against))
    if kind == "reference":
        return inspect_reference(local)
    if kind == "tensors":
        return inspect_tensors(local)
    return inspect_model(local.parent if local.suffix == ".safetensors" else local, (rank, lora_rank))


def _locate(path: str | Path, revision: str | None, offline: bool | None, progress: Progress | None) -> Path:
    try:
        local = Path(path).expanduser()
        if local.exists():
            return local
    except (OSError, RuntimeError, ValueError) as error:  # too long, a home that nobody has, a NUL
        raise ModelNotFoundError(f"{path} cannot be opened: {error}") from error
    text = str(path)
    if not _HUB_ID.fullmatch(text) or text.endswith((".gguf", ".safetensors")):
        raise ModelNotFoundError(f"{path}: no such file or directory, and not a hub id of the form org/name")
    try:
        return download(text, revision=revision, offline=offline, progress=progress)
    except ModelNotFoundError as error:
        try:
            return download_adapter(text, revision=revision, offline=offline, progress=progress)
        except ModelNotFoundError:
            raise error from None


def _kind(path: Path) -> str:
    """ "model", "adapter", "calibration", "reference" or "tensors" (a safetensors file of nothing in particular)."""
    if path.is_dir():
        return _directory_kind(path)
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return "adapter" if is_gguf_adapter(path) else "model"
    if suffix == ".json" and "model_type" in read_json(path):
        return "model"
    if suffix in (".bin", ".pt", ".pth", ".pkl"):
        raise UnsupportedModelError(
            f"{path} is a pickle by its name. Looking into one runs whatever code is in it, so edgecal does not"
        )
    if suffix != ".safetensors":
        raise UnsupportedModelError(
            f"{path} is nothing that edgecal knows: expected a directory or a .gguf of a model or an adapter, or a "
            ".safetensors file"
        )
    with SafetensorsFile(path) as file:
        names = file.names()
        known = {_CALIBRATION: "calibration", _REFERENCE: "reference", _PACKED: "model"}
        kind = known.get(file.metadata.get("format", ""))
    if kind is not None:
        return kind
    return "adapter" if any(name.endswith((".lora_A.weight", ".lora_a")) for name in names) else "tensors"


def _directory_kind(path: Path) -> str:
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be listed: {error.strerror}") from error
    has_weights = any(name.endswith(".safetensors") and name != WEIGHTS_FILE for name in names)
    is_model = (
        PACKED_FILE in names
        or ("config.json" in names and has_weights)
        or any(name.lower().endswith(".gguf") for name in names)
    )
    if not is_model and names & {CONFIG_FILE, WEIGHTS_FILE}:
        return "adapter"
    if not is_model and not names & {"config.json", "pytorch_model.bin", "pytorch_model.bin.index.json"}:
        raise ModelNotFoundError(
            f"{path} holds nothing that edgecal knows: expected config.json with *.safetensors, {PACKED_FILE}, one "
            f".gguf, or {CONFIG_FILE} with {WEIGHTS_FILE}"
        )
    return "model"
