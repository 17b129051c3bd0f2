"""A file as memory, and what happens when somebody cuts it off while it is in use.

A page of a mapped file is read when it is first touched. If the file has become shorter by then there is nothing to
read, and the system ends the process (SIGBUS): in the middle of an answer, without a word. Three things are done
against it. `edgecal` itself never writes into a file that is there, it renames a new one into its place. `check`
compares the file with what was mapped, and the model calls it before and behind every pass, so that a changed file
(longer, shorter, or written over: its time is another) is an error. And for what happens during a pass a handler of
SIGBUS puts zeros where the file has ended, so that the pass comes to its end and `check` can say what happened.

The handler is the C library's, called by ctypes: one of Python's own would only be noted, and the load repeated for
ever. It may run Python code because the signal comes from a plain load in a kernel, which never holds the interpreter's
lock for others, or from NumPy, whose thread has it. A page that cannot be read for another reason (a broken disk) still
ends the process, but with a line that says so. Where there is no such call, nothing is installed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import FileFormatError

_MAP_FIXED = 0x10  # of Linux and macOS; Python's mmap does not have it
Watch = Callable[[], None]
"""Raises FileFormatError once a file that is in use was changed."""
_maps: weakref.WeakSet[MappedFile] = weakref.WeakSet()
_installed: list[Any] = []  # the handler, which must not be collected, and what was there before


class MappedFile(mmap.mmap):
    """The pages of a file, shared with it until somebody writes into them. Arrays made of it keep it alive.

    Raises OSError when it cannot be opened or mapped, ValueError when it is empty.
    """

    path: Path
    _descriptor: int
    _known: tuple[int, int]  # size and time
    _address: int
    _is_torn = False

    def __new__(cls, path: Path) -> MappedFile:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            # Copy-on-write: a read-only map gives read-only arrays, which Numba compiles every kernel for once more
            self = super().__new__(cls, descriptor, 0, access=mmap.ACCESS_COPY)
        except BaseException:
            os.close(descriptor)
            raise
        weakref.finalize(self, os.close, descriptor)
        self.path, self._descriptor, self._known = path, descriptor, _state(descriptor)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self))
        _maps.add(self)
        _install()
        return self

    def check(self) -> None:
        """FileFormatError unless the file is what it was when it was mapped."""
        found = _state(self._descriptor)
        if self._is_torn or found != self._known:
            before, now = self._known[0], found[0]
            how = f"it had {before} bytes and has {now}" if before != now else "it was written over"
            raise FileFormatError(
                f"{self.path} was changed while it is in use: {how}. Load the model again; to put another file in its "
                "place, write that under a name of its own and rename it"
            )

    def mend(self) -> bool:
        """Put zeros where the file has ended; False where it has not."""
        end = -(-_state(self._descriptor)[0] // mmap.PAGESIZE) * mmap.PAGESIZE
        missing = len(self) - end
        if missing <= 0:
            return False
        self._is_torn = True
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        place = self._address + end
        return bool(_libc().mmap(place, missing, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == place)


def nothing_to_watch() -> None:
    """The `Watch` of those who have mapped no file."""


def _state(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    return libc


def _install() -> None:
    """Once for the process, when a file is first mapped."""
    if _installed or not hasattr(signal, "SIGBUS"):
        return
    try:
        libc = _libc()
    except (AttributeError, OSError, TypeError):  # no C library of this kind
        return
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_on_sigbus)
    address = ctypes.cast(handler, ctypes.c_void_p)
    _installed.extend((handler, libc.signal(signal.SIGBUS, address)))


def _on_sigbus(number: int) -> None:
    """The load that failed is repeated when this returns."""
    mended = [mapped.mend() for mapped in list(_maps)]
    if not any(mended):
        if mended:
            message = "edgecal: a page of a mapped file could not be read; if it is a model's, its disk may be broken\n"
            os.write(2, message.encode())
        _libc().signal(number, _installed[1])


