"""The folder of compiled kernels belongs to one installation: "warm" must mean that nothing is left to compile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edgecal_kernels import dispatch


def copy_of_the_kernels(folder: Path) -> Path:
    return Path(shutil.copytree(Path(dispatch.__file__).parent, folder)) / "dispatch.py"


def test_every_installation_has_a_folder_of_its_own(tmp_path, monkeypatch):
    """Numba goes by path and time of change; kernels of an equal checkout elsewhere would not be found."""
    folders = []
    for name in ("a", "b"):
        monkeypatch.setattr(dispatch, "__file__", str(copy_of_the_kernels(tmp_path / name)))
        folders.append(dispatch.kernel_cache_directory("portable"))
    os.utime(tmp_path / "b" / "simd.py", (1, 1))
    folders.append(dispatch.kernel_cache_directory("portable"))
    (tmp_path / "b" / "isa" / "portable.py").write_text("INT8_OFFSET = 1")
    folders += [dispatch.kernel_cache_directory("portable"), dispatch.kernel_cache_directory("avx2")]
    assert len(set(folders)) == 5
