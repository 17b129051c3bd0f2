"""What this machine can do, and which instruction set the kernels are compiled for.

Numba decides what it compiles for (NUMBA_CPU_NAME and NUMBA_CPU_FEATURES change it, llvmlite's host detection
does not see them), so Numba is asked and not the host. Trap: on an ARM core that LLVM does not know, or under
emulation, Numba sees a "generic" CPU without features and would refuse to emit sdot and smmla; the operating system
is asked then, by getauxval, because /proc/cpuinfo shows the emulator's host, and Numba is told before it compiles
anything.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from .control_groups import lines, places
from .errors import BackendError

ISA_ENV = "EDGECAL_ISA"
# LLVM's name of an extension -> where Linux on ARM reports it: entry of the auxiliary vector (AT_HWCAP, AT_HWCAP2 of
# <sys/auxv.h>) and bit (HWCAP_ASIMDDP, HWCAP2_I8MM of <asm/hwcap.h>).
_ARM_EXTENSIONS = {"dotprod": (16, 1 << 20), "i8mm": (26, 1 << 13)}


@lru_cache(maxsize=1)
def compile_target() -> tuple[str, str, frozenset[str]]:
    """(triple, cpu name, enabled features) that Numba compiles for."""
    from numba.core.registry import cpu_target

    _name_hidden_features()
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    return triple, name, frozenset(f[1:] for f in features.split(",") if f.startswith("+"))


def _name_hidden_features() -> None:
    """Let Numba use what an ARM core has and LLVM did not find; the user's settings come first.

    Numba fixes its target when it first compiles. In a process that has compiled before, this comes too late, and the
    kernels make do with plain NEON.
    """
    import numba
    from numba.core.codegen import get_host_cpu_features

    settings: Any = numba.config
    reported = _reported_extensions()
    if settings.CPU_NAME is not None or settings.CPU_FEATURES is not None or not reported:
        return
    found = get_host_cpu_features()
    hidden = [f"+{name}" for name in reported if f"+{name}" not in found.split(",")]
    if hidden:
        settings.CPU_FEATURES = ",".join(filter(None, (found, "+neon", *hidden)))


def _reported_extensions() -> list[str]:
    """Those of _ARM_EXTENSIONS that Linux on ARM reports to this process."""
    if sys.platform != "linux" or platform.machine() != "aarch64":
        return []
    return [name for name, (entry, bit) in _ARM_EXTENSIONS.items() if _auxiliary(entry) & bit]


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


# Of each instruction set with ready-made kernels, best first, what Linux calls all that LLVM may use for it
_AVX2 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"})
_X86_ISAS = {
    "avx512vnni": _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"},
    "avxvnni": _AVX2 | {"avx_vnni"},
    "avx2": _AVX2,
}
# ... on ARM as bits of AT_HWCAP (<asm/hwcap.h>: ASIMD, ATOMICS, ASIMDHP, ASIMDDP) and of AT_HWCAP2 (I8MM)
_V82 = 1 << 1 | 1 << 8 | 1 << 10 | 1 << 20
_ARM_ISAS = {"neon_i8mm": (_V82, 1 << 13), "neon_dotprod": (_V82, 0), "neon": (1 << 1, 0)}


def processor_isas() -> list[str]:
    """The instruction sets with ready-made kernels that this processor has, best first, as Linux tells; no Numba."""
    if sys.platform not in ("linux", "android"):
        return []
    if platform.machine() == "aarch64":
        first, second = _auxiliary(16), _auxiliary(26)
        return [name for name, (a, b) in _ARM_ISAS.items() if first & a == a and second & b == b]
    if platform.machine() == "x86_64":
        flags = next((line for line in lines(Path("/proc/cpuinfo")) if line.startswith("flags")), "").split()
        return [name for name, needed in _X86_ISAS.items() if needed <= set(flags)]
    return []


def _auxiliary(entry: int) -> int:
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return int(getauxval(entry))


def known_isas() -> tuple[str, ...]:
    """The instruction sets of this kind of processor, best first; its generation may lack some."""
    return tuple(available_isas())


def available_isas() -> dict[str, bool]:
    """Instruction set -> whether the compile target has it, best first."""
    triple, name, features = compile_target()
    family = triple.split("-")[0]
    if family in ("aarch64", "arm64"):
        apple = name.startswith("apple-m")
        return {
            "neon_i8mm": "i8mm" in features or (apple and name != "apple-m1"),
            "neon_dotprod": "dotprod" in features or apple,
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


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that the control groups of this process grant it (docker --cpus), the least of a hierarchy.

    None where nothing limits it. Control groups of version 1 and 2; `root` is where proc and sys are.
    """
    grants = (_grant_v2(place) if version == 2 else _grant_v1(place) for place, version in places(root, "cpu"))
    return min((grant for grant in grants if grant is not None), default=None)


def _grant_v2(group: Path) -> float | None:
    words = " ".join(lines(group / "cpu.max")).split()
    if len(words) != 2 or not all(word.isdecimal() and int(word) for word in words):
        return None  # "max 100000" is no limit
    return int(words[0]) / int(words[1])


def _grant_v1(group: Path) -> float | None:
    quota, period = (" ".join(lines(group / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None  # a quota of -1 is no limit
    return int(quota) / int(period)


def allowed_cores() -> set[int]:
    """Numbers of the logical cores that this process may run on; all of them where the system does not tell."""
    try:
        return os.sched_getaffinity(0)
    except (AttributeError, OSError):  # macOS, Windows; a system call that a sandbox forbids
        return set(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Logical cores that this process can keep busy: those it may run on, and not more than it is granted time for."""
    cores, quota = len(allowed_cores()), cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def physical_cores() -> int:
    """Physical cores open to this process; the biggest cluster's where /sys tells sizes apart (big.LITTLE)."""
    cores: dict[str, int] = {}
    for cpu in allowed_cores():
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
