"""The build back end of edgecal: setuptools, and the ready-made kernels into the wheel.

One wheel serves all systems, for the libraries of all instruction sets take little room. They are compiled while it is
built, with Numba and a linker as requirements of the build, and kept in the cache folder, so that building again takes
no time. What a build makes:

    pip wheel . -C kernels=all     a library for each instruction set, or an error that says what is missing
    pip wheel . -C kernels=own     the one for this processor, or an error
    pip wheel . -C kernels=none    none: Numba (extra `jit`) compiles where it is installed, or NumPy serves
    pip wheel .                    all on Linux, where they can be made; else none, and one line says why

An editable install has none: `make kernels` puts them beside the sources.
"""

from __future__ import annotations

import base64
import hashlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = dict[str, Any] | None
_CHOICES = ("all", "own", "none")
_FOLDER = "edgecal_kernels/ready"  # in the wheel


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    found = build_meta.get_requires_for_build_wheel(config_settings)
    if _asked(config_settings) == "none" or (_asked(config_settings) is None and _unserved() is not None):
        return found
    return [*found, "numba>=0.61", *([] if shutil.which("ld.lld") else ["ziglang>=0.13"])]


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        libraries = _libraries(_asked(config_settings), Path(temporary))
        name = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
        _put(libraries, Path(wheel_directory) / name)
    return name


def _asked(config_settings: Settings) -> str | None:
    choice = (config_settings or {}).get("kernels")
    if choice is not None and choice not in _CHOICES:
        raise SystemExit(f"error: kernels={choice} is none of {', '.join(_CHOICES)}")
    return choice


def _unserved() -> str | None:
    """Why libraries are not made here unless they are asked for; None where they are."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return f"they are for Linux on x86-64 and 64-bit ARM, and this is {sys.platform} on {platform.machine()}"
    if platform.libc_ver()[0] != "glibc":
        return "Numba, which compiles them, has no wheels for this C library"
    return None


def _libraries(choice: str | None, folder: Path) -> list[Path]:
    from edgecal_kernels import cpu
    from edgecal_kernels.build import build_all, own_isas
    from edgecal_kernels.errors import BackendError

    reason = None if choice else _unserved()
    if choice == "none" or reason is not None:
        print(f"no ready-made kernels: {reason or 'kernels=none'}", file=sys.stderr)
        return []
    try:
        return list(build_all(own_isas() if choice == "own" else cpu.READY_ISAS, folder))
    except BackendError as error:
        if choice:
            raise SystemExit(f"error: {error}") from error
        print(f"no ready-made kernels: {error}", file=sys.stderr)
        return []


def _put(libraries: Iterable[Path], wheel: Path) -> None:
    """Files into a wheel, and their digests into its list of files."""
    complete = wheel.with_suffix(".complete")
    with ZipFile(wheel) as old, ZipFile(complete, "w", ZIP_DEFLATED) as new:
        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        lines = old.read(record).decode()
        for item in old.infolist():
            if item.filename != record:
                new.writestr(item, old.read(item))
        for library in libraries:
            data, name = library.read_bytes(), f"{_FOLDER}/{library.name}"
            new.writestr(_entry(name), data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines += f"{name},sha256={digest},{len(data)}\n"
        new.writestr(_entry(record), lines)
    complete.replace(wheel)


def _entry(name: str) -> ZipInfo:
    """Without the time, so that the same files make the same wheel."""
    entry = ZipInfo(name)
    entry.external_attr, entry.compress_type = 0o100644 << 16, ZIP_DEFLATED
    return entry
