"""Kernels out of a ready-made library, as functions of Python that take what Numba's take."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import cpu, ready_file
from .errors import BackendError
from .ready_threads import Team, threads
from .records import data_address

FOLDER_ENV = "EDGECAL_READY"
_LIBC = ("malloc", "free", "sched_yield", "clock_gettime", "syscall")  # as `build_runtime` has them


class Library:
    """A library that fits the sources and this processor, loaded. BackendError says why one does not."""

    def __init__(self, path: Path, table: dict[str, Any]) -> None:
        self.path, self.tiles, self.isa = path, int(table["tiles"]), str(table["isa"])
        try:
            self._library = ctypes.CDLL(str(path), mode=getattr(os, "RTLD_LOCAL", 0) | getattr(os, "RTLD_NOW", 0))
        except OSError as error:
            raise BackendError(f"{path}: the system does not load it ({error})") from error
        self._initialize()
        work, run = self._library.edgecal_work, self._library.edgecal_run
        long = ctypes.c_int64
        work.argtypes, work.restype = [long] * 3, long
        run.argtypes, run.restype = [long, ctypes.c_void_p, ctypes.c_char_p, long, long], long
        self._team = Team(work, run)
        self._kernels = {name: self._kernel(name, **entry) for name, entry in table["kernels"].items()}
        merging = {name.split(".")[1]: kernel for name, kernel in self._kernels.items() if "." in name}
        self.merging = SimpleNamespace(**merging)

    def _initialize(self) -> None:
        libc = ctypes.CDLL(None)
        places = (ctypes.c_void_p * len(_LIBC))()
        for i, name in enumerate(_LIBC):
            places[i] = ctypes.cast(getattr(libc, name), ctypes.c_void_p)
        self._library.edgecal_initialize(places)

    def kernel(self, name: str) -> Callable[..., Any]:
        """The kernel called `name`, in the calling thread."""
        return self._kernels[name]

    def shared(self, name: str) -> Callable[..., None]:
        """The kernel called `name` as `operations.Kernels` has it: the number of shares is its last argument."""
        kernel, team = self._kernels[name], self._team
        pack, function, code = kernel.slots, kernel.function, kernel.code

        def run(*arguments: Any) -> None:
            shares, slots = arguments[-1], pack(*arguments)
            failed = function(slots, 0, 1) if shares == 1 else team.run(code, slots, shares, min(shares, threads()))
            if failed:
                raise MemoryError(f"there is no memory for {name}")

        return run

    def _kernel(self, name: str, symbol: str, arguments: Sequence[str], results: str) -> Kernel:
        return Kernel(name, getattr(self._library, symbol), arguments, results)


class Kernel:
    """A function of the library; called with the arguments of the kernel that it was made from."""

    def __init__(self, name: str, function: Any, arguments: Sequence[str], results: str) -> None:
        self.name, self.function = name, function
        self.code = ctypes.cast(function, ctypes.c_void_p).value or 0
        function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64]
        self._results = struct.Struct("=" + results)
        self.slots = _packing(name, arguments)

    def __call__(self, *arguments: Any) -> Any:
        given, size = self.slots(*arguments), self._results.size
        slots: Any = ctypes.create_string_buffer(given, len(given) + size) if size else given
        if self.function(slots, 0, 1):
            raise MemoryError(f"there is no memory for {self.name}")
        if not size:
            return None
        results = self._results.unpack_from(slots, len(given))
        return results[0] if len(results) == 1 else results


def _packing(name: str, arguments: Sequence[str]) -> Callable[..., bytes]:
    """A function that puts a kernel's arguments into slots, and refuses an array that it was not made for; one more
    argument is left out.

    Written out for each kernel: going through a list of kinds takes as long as a small kernel.
    """
    letters, items, checks = "", [], []
    scope: dict[str, Any] = {"address": data_address}
    for i, kind in enumerate(arguments):
        if ":" in kind:
            dtype, shape = kind.split(":")
            ndim, order = int(shape[:-1]), shape[-1]
            scope[f"d{i}"] = np.dtype(dtype)
            checks.append(f"a{i}.dtype == d{i} and a{i}.ndim == {ndim} and a{i}.flags.{order.lower()}_contiguous")
            items.append(f"address(a{i}), *a{i}.shape")
            letters += "q" * (1 + ndim)
        else:
            items.append(f"*a{i}" if kind.startswith("(") else f"a{i}")
            letters += kind.strip("()")
    scope["pack"] = struct.Struct("=" + letters).pack
    names = ", ".join(f"a{i}" for i in range(len(arguments)))
    source = f"def slots({names}, _=None):\n"
    if checks:
        refusal = f"{name} takes {', '.join(arguments)}"
        source += f"    if not ({' and '.join(checks)}):\n        raise TypeError({refusal!r})\n"
    exec(source + f"    return pack({', '.join(items)})\n", scope)
    function: Callable[..., bytes] = scope["slots"]
    return function


def find_library() -> Library:
    """The library of the best instruction set that this processor has, or of EDGECAL_ISA; beside these sources, or in
    the folder that EDGECAL_READY names.

    Raises BackendError where there is none that fits, and says why.
    """
    if sys.platform not in ("linux", "android"):
        raise BackendError(f"there are no ready-made kernels for {sys.platform}")
    folder = Path(os.environ.get(FOLDER_ENV) or ready_file.FOLDER)
    if not folder.is_dir() or not any(folder.glob("*.so")):
        raise BackendError("no ready-made kernels are here (`python -m edgecal_kernels.build` makes them)")
    served = cpu.processor_isas()
    if wanted := os.environ.get(cpu.ISA_ENV):
        served = [name for name in served if name == wanted]
        if not served:
            raise BackendError(f"{cpu.ISA_ENV}={wanted}: this processor has no ready-made kernels of that name")
    for name in served:
        path = ready_file.library_path(name, folder)
        if path.exists():
            table = ready_file.read_table(path)
            if table["isa"] != name:
                raise BackendError(f"{path}: made for {table['isa']}; make it anew (`make kernels`)")
            return Library(path, table)
    raise BackendError(f"no ready-made kernels in {folder} are for this processor ({', '.join(served) or 'unknown'})")
