"""Names that commands take for models and adapters: demo, demo:NAME, a path, a hub id. A near miss gets a hint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgecal_weights.errors import AdapterError, CalibrationError, ModelNotFoundError
from edgecal_weights.nearest import did_you_mean


@contextmanager
def model_named(name: str) -> Iterator[str]:
    """The path or hub id that `name` means; if the block does not find it, the message asks whether demo was meant."""
    from ..demo import find

    try:
        yield find(name)
    except ModelNotFoundError as error:
        if name == "demo" or name.startswith("demo:") or _exists(name):
            raise
        raise ModelNotFoundError(f"{error}{did_you_mean(name, ('demo',))}") from error


def adapter_path(name: str) -> str:
    """Where it is; AdapterError when it is not there, before any model is loaded."""
    from edgecal_weights.files import path_hint

    from ..demo import find

    path = find(name)
    if not _exists(path):
        raise AdapterError(
            f"{path}: no such path{path_hint(Path(path))}; an adapter is a directory of PEFT or mlx-lm, a GGUF, or "
            "demo:NAME, and `edgecal pull ORG/NAME --adapter` fetches one of the hub"
        )
    return path


def calibration_path(name: str) -> str:
    """Where it is; CalibrationError when it is not there, or for a file of another kind, which is named."""
    from edgecal_weights.file_kind import Kind, describe
    from edgecal_weights.files import path_hint

    from ..demo import find

    path = find(name)
    if not _exists(path):
        raise CalibrationError(f"{path}: no such file{path_hint(Path(path))}")
    kind = describe(path)
    if kind not in (None, Kind.CALIBRATION.value):
        raise CalibrationError(f"{path} is no calibration: this is {kind}")
    return path


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False
