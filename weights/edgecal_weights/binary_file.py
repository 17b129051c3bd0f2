"""A file addressed by position, and the float types that lie in it.

Every reader of this package goes through plain positioned reads into memory that it owns, never through a
memory map. A map of a 500 MB checkpoint makes every page that was ever touched count as resident, so that
converting a model would look (to the user's task manager, and to the limits of a small device) as if it had
been loaded twice; and a file that shrinks while it is mapped kills the process with SIGBUS instead of
raising. The packed form, which the engine does map, is the one exception and has its own module.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from .errors import FileFormatError, ModelNotFoundError

FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_LARGEST_READ = 1 << 30  # Linux serves at most 2 GiB - 4 KiB per call


class BinaryFile:
    """A read-only regular file. Reads are complete or raise FileFormatError; several threads may share it.

    Raises ModelNotFoundError when there is no such file or it may not be read, FileFormatError for what is
    not a regular file (opening a named pipe would wait forever).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            raise ModelNotFoundError(f"{self.path}: no such file") from None
        except OSError as error:
            raise ModelNotFoundError(f"{self.path} cannot be opened: {error.strerror}") from error
        self._close = weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            self._close()
            raise FileFormatError(f"{self.path} is not a regular file")
        self.size = status.st_size

    def read_into(self, offset: int, target: NDArray[np.uint8], what: str) -> None:
        """Fill the contiguous `target` with the bytes from `offset` on; `what` names them in an error."""
        if not self._close.alive:
            raise ValueError(f"{self.path} was closed")
        view = target.reshape(-1).data
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self._descriptor, [view[done : done + _LARGEST_READ]], offset + done)
            except OSError as error:
                raise FileFormatError(f"{self.path}: reading {what} failed: {error.strerror}") from error
            if got == 0:
                raise FileFormatError(
                    f"{self.path} is truncated: {what} needs bytes {offset} to {offset + len(view)}, "
                    f"the file has {self.size}; fetch it again"
                )
            done += got

    def read(self, offset: int, n_bytes: int, what: str) -> NDArray[np.uint8]:
        """uint8 (n_bytes,). The size is checked against the file before anything is allocated."""
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.size:
            raise FileFormatError(
                f"{self.path} is truncated: {what} needs bytes {offset} to {offset + n_bytes}, "
                f"the file has {self.size}; fetch it again"
            )
        target = np.empty(n_bytes, np.uint8)
        self.read_into(offset, target, what)
        return target

    def close(self) -> None:
        self._close()

    def __enter__(self) -> BinaryFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_rows(path: Path, name: str, shape: tuple[int, ...], start: int, stop: int) -> None:
    """ValueError unless [start, stop) are rows of a tensor of this shape: a mistake of the caller."""
    if not shape or not 0 <= start <= stop <= shape[0]:
        raise ValueError(f"{path}: rows {start} to {stop} of {name}, which has shape {shape}")


Decode = Callable[[NDArray[np.uint8], str, NDArray[np.float32]], None]
"""(little-endian bytes, "F32" "F16" ..., where the numbers go), as `decode_floats`."""


def decode_floats(raw: NDArray[np.uint8], dtype: str, out: NDArray[np.float32]) -> None:
    """Little-endian `dtype` bytes to float32: exact for F32, F16 and BF16, rounded for F64.

    `raw` is contiguous uint8, `out` a contiguous float32 array of as many numbers.
    """
    flat = out.reshape(-1)
    if dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        bits = flat.view(np.uint32)
        bits[...] = raw.view("<u2")
        bits <<= 16
        return
    if dtype == "F16":
        for start in range(0, flat.size, _BLOCK):
            _decode_half(raw[2 * start : 2 * (start + _BLOCK)].view("<u2"), flat[start : start + _BLOCK])
        return
    with np.errstate(invalid="ignore", over="ignore"):
        flat[...] = raw.view({"F64": "<f8", "F32": "<f4"}[dtype])


_BLOCK = 32_768  # numbers that stay in the cache through all steps
_SMALLEST_NORMAL = np.float32(2.0**-14)
_REBIAS = np.uint32((127 - 15) << 23)


def _decode_half(raw: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """float16 bits to float32 with whole-array integer steps: NumPy's own cast goes number by number, 2.5 times slower.

    Exponent and mantissa move to their places in a float32. A number below 2^-14 has no hidden bit, so the result f is
    half of it plus 2^-15: adding f - 2^-14 repairs that, exactly.
    """
    magnitude = raw & np.uint16(0x7FFF)
    if magnitude.size and magnitude.max() >= 0x7C00:  # infinities and NaNs, which no healthy file has
        with np.errstate(invalid="ignore"):  # NumPy warns of a signaling NaN on ARM
            out[...] = raw.view(np.float16)
        return
    bits = out.view(np.uint32)
    bits[...] = magnitude
    bits <<= np.uint32(13)
    bits += _REBIAS
    correction = out - _SMALLEST_NORMAL
    below = correction.view(np.int32) >> 31  # all ones where it is negative: a third of the cost of np.minimum
    below &= correction.view(np.int32)
    out += below.view(np.float32)
    sign = (raw & np.uint16(0x8000)).astype(np.uint32)
    sign <<= np.uint32(16)
    bits |= sign
