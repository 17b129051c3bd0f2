"""Where edgecal runs: what the machine has, what is used of it and why, and what would make it faster.

Made for the places that nobody has at hand: a phone under Termux, a board, a container. Whatever a system does not
tell is left out, and nothing here may fail for it.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgecal_kernels import dispatch
from edgecal_kernels.errors import BackendError
from edgecal_kernels.paths import cache_directory
from edgecal_weights.tokenizer_backend import PLAIN

from . import machine
from .memory import meminfo, room
from .threads import choose_threads
from .tuned import tuned_file

PACKAGES: tuple[str, ...] = ("edgecal", "numpy", "numba", "llvmlite", "tokenizers", "huggingface-hub", "jinja2")
PACKAGES += ("click", "rich", "pyyaml", "starlette", "uvicorn", "matplotlib", "nevergrad", "rouge-score")
PACKAGES += ("py3langid", "dask")
_LITTLE = 1 << 30
_SLOW_GOVERNORS = ("powersave", "conservative", "ondemand", "schedutil")


@dataclass(frozen=True)
class Environment:
    """`machine` and `used` by name; `packages` have None where one is not installed; `advice` in sentences."""

    machine: dict[str, Any]
    used: dict[str, Any]
    packages: dict[str, str | None]
    advice: list[str]


def environment(root: Path = machine.ROOT) -> Environment:
    """`root` stands in for / in tests."""
    facts = machine.facts(root)
    used = {name: facts.pop(name, None) for name in ("back_end", "instructions", "compile_target", "features")}
    facts.pop("versions", None)
    free = meminfo(root)
    granted = room(root)
    facts |= {
        "android": android(),
        "termux": os.environ.get("TERMUX_VERSION") or ("com.termux" in os.environ.get("PREFIX", "") or None),
        "word": f"{sys.maxsize.bit_length() + 1} bit",
        "available_bytes": free.get("MemAvailable"),
        "granted_bytes": granted and granted.nbytes,
        "granted_by": granted and granted.where,
        "free_swap_bytes": free.get("SwapFree"),
        "load_average": machine.load_average(),
        "degrees": machine.temperatures(root) or None,
        "throttling": machine.throttling(root) or None,
        "shared_memory": (root / "dev/shm").is_dir(),
    }
    used |= _used()
    packages = {name: _version(name) for name in PACKAGES}
    kept = {name: value for name, value in facts.items() if value not in (None, "")}
    said = {name: value for name, value in used.items() if value not in (None, "", [])}
    return Environment(kept, said, packages, advice(kept, said, packages))


def android() -> str | None:
    """ "API level 24" and the like on Android, under whatever name Python knows it there; None elsewhere."""
    level = getattr(sys, "getandroidapilevel", None)
    if level is not None:
        return f"API level {level()} (of the build)"
    return "yes" if sys.platform == "android" or "ANDROID_ROOT" in os.environ else None


def _used() -> dict[str, Any]:
    found: dict[str, Any] = {"tokenizer": "plain Python" if PLAIN else "the tokenizers library"}
    folder = cache_directory()
    found["path"] = str(folder)
    there = next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))
    found["writable"] = there.is_dir() and os.access(there, os.W_OK)
    with suppress(OSError):
        found["free_disk_bytes"] = shutil.disk_usage(there).free
    found["settings"] = {name: value for name, value in sorted(os.environ.items()) if _is_setting(name)}
    try:
        ops = dispatch.backend()
        threads = choose_threads(ops.NAME)
        found |= {"kernels": ops.NAME, "threads": threads.decode, "tuned": tuned_file().is_file()}
        if ops.NAME == "numba":
            from edgecal_kernels.warmup import is_warm

            found["compiled"] = is_warm()
    except BackendError as error:
        found["error"] = str(error)
    return found


def _is_setting(name: str) -> bool:
    known = ("NUMBA_NUM_THREADS", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    return name in known or (name.startswith("EDGECAL_") and not name.endswith(("TOKEN", "KEY")))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def advice(facts: dict[str, Any], used: dict[str, Any], packages: dict[str, str | None]) -> list[str]:
    """What to do for more speed, what matters most first."""
    return [*_of_kernels(facts, used, packages), *_of_memory(facts), *_of_the_processor(facts)]


def _of_kernels(facts: dict[str, Any], used: dict[str, Any], packages: dict[str, str | None]) -> list[str]:
    said = []
    if used.get("error"):
        said.append(f"no kernels serve: {used['error']}")
    if facts.get("word") == "32 bit":
        said.append(f"Python is a 32 bit program ({platform.machine()}) and has no fast kernels: take a 64 bit system")
    elif used.get("kernels") == "numpy":
        how = "docs/termux.md says how" if facts.get("android") else "pip install 'edgecal[jit]', or ready-made kernels"
        said.append(f"NumPy computes, many times slower than compiled kernels would: {how}")
    if used.get("kernels") == "numba" and not used.get("compiled"):
        said.append("the kernels are not compiled yet: edgecal warmup does it now, else the first answer waits for it")
    if used.get("kernels") == "numba":
        said.append("ready-made kernels start a process sooner: `make kernels` in a checkout, or a wheel")
    if not used.get("writable"):
        said.append(f"{used.get('path')} cannot be written: kernels compile anew in every process (EDGECAL_CACHE)")
    if used.get("kernels") in ("numba", "ready") and not used.get("tuned"):
        said.append("edgecal tune MODEL finds out whether other numbers of threads are faster here")
    if packages.get("tokenizers") is None:
        said.append("without the package tokenizers long prompts take some milliseconds more; nothing else changes")
    return said


def _of_memory(facts: dict[str, Any]) -> list[str]:
    said = []
    granted, installed = facts.get("granted_bytes"), facts.get("memory_bytes")
    if granted is not None and granted < _LITTLE:
        said.append(
            f"{granted >> 20:,} MiB {facts.get('granted_by')}: a model of 1 billion weights needs some 1,100, in int4 "
            "with 2,048 tokens of context; end other programs, or take a smaller one"
        )
    if installed is not None and installed < 2 * _LITTLE and not facts.get("swap_bytes") and not facts.get("android"):
        said.append("there is no swap: compiling kernels takes 600 MiB for a moment; zram helps (docs/raspberry-pi.md)")
    return said


def _of_the_processor(facts: dict[str, Any]) -> list[str]:
    said = []
    if facts.get("throttling"):
        said.append("the board reports " + ", ".join(facts["throttling"]) + ": better cooling or power supply")
    if facts.get("governor") in _SLOW_GOVERNORS:
        said.append(
            f"the governor is {facts['governor']}, which is slow to raise the clock: echo performance | sudo tee "
            "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        )
    cores, load, quota = facts.get("cores", 1), facts.get("load_average"), facts.get("cpu_quota")
    if load is not None and load > 0.5:
        said.append(
            f"other programs are running (load {load:.1f}, cores {cores}): threads wait for one another, so one that "
            "shares its core holds up all"
        )
    if quota is not None and quota < cores:
        said.append(f"the control group grants {quota:g} of {cores} cores' time")
    if facts.get("android"):
        said.append("Android slows programs in the background: keep Termux in front, termux-wake-lock helps")
    return said
