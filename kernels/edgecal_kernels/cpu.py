"""What this machine can do, and which instruction set the kernels are compiled for.

Numba decides what it compiles for (NUMBA_CPU_NAME and NUMBA_CPU_FEATURES change it, llvmlite's host detection
does not see them), so Numba is asked and not the host. Trap: on aarch64 Linux under emulation, or with an LLVM older
than the core, Numba reports a "generic" CPU without features; the kernel's own list in /proc/cpuinfo is read then.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from .errors import BackendError

ISA_ENV = "EDGECAL_ISA"


@lru_cache(maxsize=1)
def compile_target() -> tuple[str, str, frozenset[str]]:
    """(triple, cpu name, enabled features) that Numba compiles for."""
    from numba.core.registry import cpu_target

    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    return triple, name, frozenset(f[1:] for f in features.split(",") if f.startswith("+"))


def _kernel_flags() -> frozenset[str]:
    """Feature words of /proc/cpuinfo: "flags" on x86, "Features" on ARM; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


@lru_cache(maxsize=1)
def cpu_model() -> str:
    """The marketing name of the processor, for reports."""
    import platform

    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "Hardware"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def known_isas() -> tuple[str, ...]:
    return ("avx512vnni", "avxvnni", "avx2", "portable")


def detect_isa() -> str:
    """The best instruction set that the compile target has; EDGECAL_ISA overrides.

    Raises BackendError when the override is unknown or the target lacks it.
    """
    triple, _, features = compile_target()
    has = {
        "avx512vnni": {"avx512vnni", "avx512bw", "avx512vl"} <= features,
        "avxvnni": "avxvnni" in features,
        "avx2": {"avx2", "fma", "f16c"} <= features,
        "portable": True,
    }
    override = os.environ.get(ISA_ENV, "")
    if override:
        if override not in has:
            raise BackendError(f"{ISA_ENV}={override} is not known; choose one of {', '.join(known_isas())}")
        if not has[override]:
            raise BackendError(f"{ISA_ENV}={override}, but Numba compiles for {triple} without it; unset {ISA_ENV}")
        return override
    return next(name for name in known_isas() if has[name])


def physical_cores() -> int:
    """Physical cores open to this process; the biggest cluster's where /sys tells sizes apart (big.LITTLE)."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
    cores: dict[str, int] = {}
    for cpu in allowed:
        base = Path(f"/sys/devices/system/cpu/cpu{cpu}")
        try:
            siblings = (base / "topology/thread_siblings_list").read_text().strip()
        except OSError:
            siblings = str(cpu)
        try:
            cores[siblings] = int((base / "cpu_capacity").read_text())
        except (OSError, ValueError):
            cores[siblings] = 0
    biggest = max(cores.values())
    return sum(capacity * 2 > biggest or biggest == 0 for capacity in cores.values())
