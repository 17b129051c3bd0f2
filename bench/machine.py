"""Facts about the machine, for every result file."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def facts(*packages: str) -> dict[str, Any]:
    """Processor, cores, instruction set in use, Python, and the versions of `packages` (those installed)."""
    from edgecal_kernels import cpu

    versions = {}
    for package in ("edgecal", "numpy", "numba", "llvmlite", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": cpu.cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": cpu.detect_isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }
