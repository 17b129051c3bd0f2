"""Names that commands take for models and adapters: demo, demo:NAME, a path, a hub id. A near miss gets a hint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgecal_weights.errors import AdapterError, CalibrationError, ModelNotFoundError

from ._nearest import did_you_mean

if TYPE_CHECKING:
    from edgecal_weights.checkpoint import Checkpoint

    from .options import ModelOptions


@contextmanager
def model_named(name: str) -> Iterator[str]:
    """The path or hub id that `name` means; if the block does not find it, the message says what was near."""
    from ..demo import find

    try:
        yield find(name)
    except ModelNotFoundError as error:
        if name == "demo" or name.startswith("demo:") or _exists(name):
            raise
        raise ModelNotFoundError(f"{error}{_hint(name, ('demo',))}") from error


@contextmanager
def open_model(name: str, loading: ModelOptions) -> Iterator[Checkpoint]:
    """Its files, for commands that read no weights or read them themselves."""
    from edgecal_weights.checkpoint import open_checkpoint

    from ._progress import progress

    with model_named(name) as path, progress(f"opening {Path(path).name}", unit="bytes") as report:
        checkpoint = open_checkpoint(path, revision=loading.revision, offline=loading.offline, progress=report)
    with checkpoint:
        yield checkpoint


def adapter_path(name: str) -> str:
    """Where it is; AdapterError with a hint for a path that is not there while another is nearly called so."""
    from ..demo import find

    path = find(name)
    if not _exists(path) and (hint := _hint(path, ())):
        raise AdapterError(f"{path}: no such path{hint}")
    return path


def calibration_path(name: str) -> str:
    """Where it is; CalibrationError for a file of another kind, which is named."""
    from edgecal_weights.file_kind import describe_file

    from ..demo import find

    path = find(name)
    kind = describe_file(path) if _exists(path) else None
    if kind not in (None, "a calibration"):
        raise CalibrationError(f"{path} is no calibration: this is {kind}")
    if kind is None and (hint := _hint(path, ())) and not _exists(path):
        raise CalibrationError(f"{path}: no such file{hint}")
    return path


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _hint(name: str, others: tuple[str, ...]) -> str:
    """What lies beside the path that was meant."""
    try:
        path = Path(name).expanduser()
        beside = [str(Path(name).parent / entry.name) for entry in path.parent.iterdir()]
    except (OSError, RuntimeError, ValueError):
        beside = []
    return did_you_mean(name, [*others, *beside[:10_000]])
