"""Writing a packed directory so that it is either there and complete, or not there.

The new directory grows under a hidden name beside its target and is renamed when everything in it has reached
the disk. Space is reserved for the weight file before the first byte is written where the system can do that,
so a disk that is too small is found out in the first second, not after an hour. An exception, whichever,
removes the hidden directory.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.quant import TILE_ROWS, QuantizedTensor

from .errors import StorageError
from .file_kind import PACKED_FILE
from .files import exchange, reason, staging_directory
from .packed import SIDE_FILES, FileLayout

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_directory(target: Path, needed: int, *, overwrite: bool) -> Iterator[Path]:
    """Gives an empty directory to fill, which becomes `target` when the block ends without an exception.

    `needed` is the number of bytes that will be written. With `overwrite`, a `target` that holds nothing but
    a packed model is replaced; any other content is refused, because replacing a directory deletes what is in
    it. Raises StorageError for everything that the operating system objects to.
    """
    check_target(target, overwrite)
    try:
        with staging_directory(target) as partial:
            free = shutil.disk_usage(target.parent).free
            if free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield partial
            _take_place(partial, target)
    except OSError as error:
        raise _storage_error(target, needed, error) from error


def check_target(target: Path, overwrite: bool) -> None:
    """StorageError unless a packed model may be written at `target`."""
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise StorageError(f"{target} is a file; name a directory to write the packed model to")
    try:
        names = set(os.listdir(target))
    except OSError as error:
        raise StorageError(f"{target} cannot be read: {error.strerror}") from error
    others = sorted(names - {PACKED_FILE, *SIDE_FILES})
    if others or (names and PACKED_FILE not in names):
        raise StorageError(
            f"{target} holds {(others or sorted(names))[0]}, which is not part of a packed model; "
            "choose a new or an empty directory"
        )
    if names and not overwrite:
        raise StorageError(f"{target} is a packed model already; use overwrite (--force) to replace it")


def _take_place(partial: Path, target: Path) -> None:
    """Rename; a model that stood there goes only when the new one stands."""
    if not target.exists():
        os.rename(partial, target)
        return
    if exchange(partial, target):  # what stood there is the staging directory now, and goes with it
        return
    old = partial.with_suffix(".old")
    os.rename(target, old)
    try:
        os.rename(partial, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _storage_error(target: Path, needed: int, error: OSError) -> StorageError:
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    try:
        free = f"{shutil.disk_usage(folder).free:,} bytes are free there"
    except OSError:
        free = "the free space there is unknown"
    advice = "free some space or choose another disk" if error.errno in _NO_SPACE else "check the folder's permissions"
    return StorageError(
        f"{target} could not be written: {reason(error)}. It needs {needed:,} bytes and {free}; {advice}. "
        "Nothing half-written was left"
    )


def write_file(path: Path, content: bytes) -> None:
    """A whole file, on the disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class WeightFile:
    """A packed weight file under construction, filled at any place in any order. A context manager.

    Leaving the block without an exception waits until the content is on the disk.
    """

    def __init__(self, path: Path, layout: FileLayout) -> None:
        self._layout = layout
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def __enter__(self) -> WeightFile:
        try:
            if hasattr(os, "posix_fallocate"):
                self._reserve()
            os.ftruncate(self._descriptor, self._layout.size)
            self._write(0, self._layout.header)
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def _reserve(self) -> None:
        try:
            os.posix_fallocate(self._descriptor, 0, self._layout.size)
        except OSError as error:
            # Not every file system can reserve; the writes then find out themselves.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def put(self, name: str, start: int, rows: QuantizedTensor | NDArray[np.float32]) -> int:
        """Write rows of tensor `name` from row `start` (a multiple of 16 for quantized ones); returns the bytes."""
        if isinstance(rows, np.ndarray):
            return self._put_array(name, start, rows)
        base, tile = name.removesuffix(".weight"), start // TILE_ROWS
        return sum(self._put_array(f"{base}.{part}", tile, array) for part, array in rows.arrays.items())

    def _put_array(self, array: str, first: int, values: NDArray) -> int:
        row_bytes = values.nbytes // len(values)
        self._write(self._layout.offsets[array] + first * row_bytes, values.data.cast("B"))
        return values.nbytes

    def _write(self, offset: int, content: bytes | memoryview) -> None:
        view = memoryview(content)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written
