"""What this machine can do, and which instruction set the kernels are compiled for.

Numba decides what it compiles for (NUMBA_CPU_NAME and NUMBA_CPU_FEATURES change it, llvmlite's host detection
does not see them), so Numba is asked and not the host. Trap: on an ARM core that LLVM does not know, or under
emulation, Numba sees a "generic" CPU without features and would refuse to emit sdot; the operating system is asked
then, by getauxval, because /proc/cpuinfo shows the emulator's host, and Numba is told before it compiles anything.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import BackendError

ISA_ENV = "EDGECAL_ISA"
_AT_HWCAP, _HWCAP_ASIMDDP = 16, 1 << 20  # <sys/auxv.h>, <asm/hwcap.h>


@lru_cache(maxsize=1)
def compile_target() -> tuple[str, str, frozenset[str]]:
    """(triple, cpu name, enabled features) that Numba compiles for."""
    from numba.core.registry import cpu_target

    _name_hidden_features()
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    return triple, name, frozenset(f[1:] for f in features.split(",") if f.startswith("+"))


def _name_hidden_features() -> None:
    """Let Numba use the dot product of an ARM core whose features LLVM did not find; the user's settings come first.

    Numba fixes its target when it first compiles. In a process that has compiled before, this comes too late, and the
    kernels make do with plain NEON.
    """
    import numba
    from numba.core.codegen import get_host_cpu_features

    settings: Any = numba.config
    if settings.CPU_NAME is not None or settings.CPU_FEATURES is not None or not _system_has_dotprod():
        return
    found = get_host_cpu_features()
    if "+dotprod" not in found.split(","):
        settings.CPU_FEATURES = ",".join(filter(None, (found, "+neon", "+dotprod")))


def _system_has_dotprod() -> bool:
    """Whether Linux on ARM reports the dot-product extension to this process."""
    if sys.platform != "linux" or platform.machine() != "aarch64":
        return False
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return bool(getauxval(_AT_HWCAP) & _HWCAP_ASIMDDP)


@lru_cache(maxsize=1)
def cpu_model() -> str:
    """The marketing name of the processor, for reports."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "Hardware"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def known_isas() -> tuple[str, ...]:
    """The instruction sets of this kind of processor, best first; its generation may lack some."""
    return tuple(available_isas())


def available_isas() -> dict[str, bool]:
    """Instruction set -> whether the compile target has it, best first."""
    triple, name, features = compile_target()
    family = triple.split("-")[0]
    if family in ("aarch64", "arm64"):
        return {
            "neon_dotprod": "dotprod" in features or name.startswith("apple-m"),
            "neon": True,
            "portable": True,
        }
    if family == "x86_64":
        return {
            "avx512vnni": {"avx512vnni", "avx512bw", "avx512vl"} <= features,
            "avxvnni": "avxvnni" in features,
            "avx2": {"avx2", "fma", "f16c"} <= features,
            "portable": True,
        }
    return {"portable": True}


def detect_isa() -> str:
    """The best instruction set that the compile target has; EDGECAL_ISA overrides.

    Raises BackendError when the override is unknown or the target lacks it.
    """
    has = available_isas()
    override = os.environ.get(ISA_ENV, "")
    if override:
        if override not in has:
            raise BackendError(f"{ISA_ENV}={override} is not known here; choose one of {', '.join(has)}")
        if not has[override]:
            triple, name, _ = compile_target()
            raise BackendError(
                f"{ISA_ENV}={override}, but Numba compiles for {triple} ({name}) without it; unset {ISA_ENV}"
            )
        return override
    return next(name for name in has if has[name])


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
