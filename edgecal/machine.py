"""The machine: what it is, and what may have disturbed what ran on it.

Everything is read from the files in which Linux tells it (and `vcgencmd` on a Raspberry Pi); what a system does not
tell is left out, never guessed. `root` stands in for / in tests. `Watch` looks before and after a run: a clock that
was throttled, a temperature, processor time that went to others. On a virtual machine most of this is hidden, and
"steal" is what is left to see.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from edgecal_kernels import cpu
from edgecal_kernels.control_groups import lines
from edgecal_kernels.errors import BackendError

ROOT = Path("/")
_TELLING_S = 0.25  # the system counts in hundredths of a second
# Of all the features that a processor has, those that these kernels or LLVM use for them
_X86 = ("avx512vnni", "avx512bf16", "avx512bw", "avx512vl", "avxvnni", "avx2", "fma", "f16c", "sse4.2")
TELLING = (*_X86, "dotprod", "i8mm", "fullfp16", "sve", "sve2", "neon")
# vcgencmd get_throttled, https://www.raspberrypi.com/documentation/computers/os.html
_PI_BITS = {
    0: "under-voltage now",
    1: "frequency capped now",
    2: "throttled now",
    3: "soft temperature limit now",
    16: "under-voltage has occurred",
    17: "frequency was capped",
    18: "throttling has occurred",
    19: "soft temperature limit has occurred",
}


def facts(root: Path = ROOT) -> dict[str, Any]:
    """What does not change during a run."""
    from edgecal_kernels import dispatch

    found: dict[str, Any] = {
        "cpu": cpu.cpu_model(),
        "board": _text(root / "proc/device-tree/model") or _text(root / "sys/class/dmi/id/product_name"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(cpu.allowed_cores()),
        "core_kinds": core_kinds(root),
        "physical_cores": cpu.physical_cores(),
        "memory_bytes": _meminfo(root, "MemTotal"),
        "swap_bytes": _meminfo(root, "SwapTotal"),
        "governor": _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "max_mhz": _mhz(root, "cpuinfo_max_freq"),
        "container": container(root),
        "virtual_machine": virtual_machine(root),
        "cpu_quota": cpu.cpu_quota(root),
        "python": platform.python_version(),
        "versions": _versions(),
    }
    try:
        ops = dispatch.backend()
        found["back_end"] = dispatch.serving()
    except BackendError as error:  # it was asked for, and is none
        found["back_end"] = f"none: {error}"
        return _told(found)
    if ops.NAME == "ready":
        found["instructions"] = ops.library.isa
    elif ops.NAME == "numba":
        _, target, features = cpu.compile_target()
        found["instructions"] = cpu.detect_isa()
        found["compile_target"] = target
        found["features"] = [name for name in TELLING if name in features]
    else:
        found["instructions"] = ops.INSTRUCTIONS
    return _told(found)


def _told(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value not in (None, "", [])}


# "CPU part" of /proc/cpuinfo, of implementer 0x41 (ARM)
_ARM_PARTS = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1", "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510", "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2", "0xd49": "Neoverse-N2", "0xd4d": "Cortex-A715", "0xd4e": "Cortex-X3", "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520", "0xd81": "Cortex-A720", "0xd82": "Cortex-X4", "0xd85": "Cortex-X925",
}  # fmt: skip


def core_kinds(root: Path = ROOT) -> str | None:
    """ "4 x Cortex-A76 + 4 x Cortex-A55" where ARM's /proc/cpuinfo says which cores there are; None elsewhere."""
    pairs = [(key.strip(), value.strip()) for key, _, value in (x.partition(":") for x in lines(root / "proc/cpuinfo"))]
    maker, counts = "", dict[str, int]()
    for key, value in pairs:
        if key == "CPU implementer":
            maker = value
        elif key == "CPU part" and value:
            name = _ARM_PARTS.get(value, value) if maker == "0x41" else f"{maker}/{value}"
            counts[name] = counts.get(name, 0) + 1
    return " + ".join(f"{count} x {name}" for name, count in counts.items()) or None


def same_machine(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What differs between two machines' facts as far as timings depend on it, in words."""
    names = ("cpu", "cores", "physical_cores", "instructions", "system", "governor", "memory_bytes", "cpu_quota")
    differing = [f"{name}: {a.get(name)} and {b.get(name)}" for name in names if a.get(name) != b.get(name)]
    software = [
        f"{name} {x} and {y}"
        for name in sorted({*a.get("versions", {}), *b.get("versions", {})})
        if (x := a.get("versions", {}).get(name)) != (y := b.get("versions", {}).get(name))
    ]
    return differing + software


def container(root: Path = ROOT) -> str | None:
    """ "docker", "podman", ... where this process lives in one."""
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    groups = _text(root / "proc/1/cgroup") or ""
    return next((name for name in ("docker", "kubepods", "lxc", "containerd") if name in groups), None)


def virtual_machine(root: Path = ROOT) -> str | None:
    """The hypervisor's name where the system tells it, "yes" where it only shows that there is one."""
    named = _text(root / "sys/hypervisor/type")
    if named:
        return named
    flags = next((x for x in (_text(root / "proc/cpuinfo") or "").splitlines() if x.startswith("flags")), "")
    return "yes" if "hypervisor" in flags.split() else None


def temperatures(root: Path = ROOT) -> dict[str, float]:
    """Degrees Celsius by sensor."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        degrees = _number(zone / "temp")
        if degrees is not None and -50_000 < degrees < 200_000:
            found[f"{_text(zone / 'type') or 'sensor'} ({zone.name.removeprefix('thermal_zone')})"] = degrees / 1000
    return found


def throttling(root: Path = ROOT) -> list[str]:
    """What the system says about having been slowed down, in words."""
    found = []
    flags = _text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    tool = shutil.which("vcgencmd") if root == ROOT else None
    if flags is None and tool is not None:
        try:
            done = subprocess.run([tool, "get_throttled"], capture_output=True, text=True, timeout=5)
            flags = done.stdout.strip().removeprefix("throttled=")
        except (OSError, subprocess.TimeoutExpired):
            flags = None
    if flags:
        try:
            bits = int(flags, 16)
        except ValueError:
            bits = 0
        found += [text for bit, text in _PI_BITS.items() if bits >> bit & 1]
    return found


def throttle_events(root: Path = ROOT) -> int | None:
    """Times that cores were throttled since the machine started (x86); None where nobody counts."""
    counts = [
        count
        for cpu in (root / "sys/devices/system/cpu").glob("cpu[0-9]*")
        if (count := _number(cpu / "thermal_throttle/core_throttle_count")) is not None
    ]
    return int(sum(counts)) if counts else None


def load_average() -> float | None:
    """Processes that ran or waited, on average over the last minute; None where nobody counts (Android hides it)."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


class Watch:
    """Looks at the machine when it is made and again in `report`."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._start = self._look()

    def _look(self) -> dict[str, Any]:
        return {
            "clock": perf_counter(),
            "own": process_time(),
            "ticks": _ticks(self.root),
            "mhz": _mhz(self.root, "scaling_cur_freq"),
            "degrees": temperatures(self.root),
            "events": throttle_events(self.root),
            "load": load_average(),
        }

    def report(self) -> dict[str, Any]:
        """Facts of the time since: seconds, cores that others kept busy, share of time stolen by the host ..."""
        a, b = self._start, self._look()
        seconds = b["clock"] - a["clock"]
        found: dict[str, Any] = {"total_s": seconds, "load_average": [a["load"], b["load"]]}
        if a["ticks"] and b["ticks"] and seconds > 0:
            busy, total, steal = (y - x for x, y in zip(a["ticks"], b["ticks"], strict=True))
            hertz = os.sysconf("SC_CLK_TCK")
            own = b["own"] - a["own"]
            found["busy_cores_of_others"] = max(0.0, (busy / hertz - own) / seconds)
            found["stolen_share"] = steal / total if total > 0 else 0.0
        for key in ("mhz", "degrees"):
            if a[key] and b[key]:
                found[key] = [a[key], b[key]]
        if a["events"] is not None and b["events"] is not None:
            found["throttle_events"] = b["events"] - a["events"]
        found["throttling"] = throttling(self.root)
        return found


def crowded(report: dict[str, Any], threads: int | None) -> str | None:
    """In words, that other programs left no core of its own to each of `threads`; None where they did.

    Threads wait for each other in every product: one that shares its core holds up all.
    """
    others, cores = report.get("busy_cores_of_others", 0.0), cpu.usable_cores()
    if threads is None or threads < 2 or report["total_s"] < _TELLING_S or others + threads <= cores + 0.25:
        return None
    fewer = max(1, math.floor(cores - others + 0.25))
    return f"other programs kept {others:.1f} of {cores} cores busy: --threads {min(fewer, threads - 1)} may be faster"


def warnings(report: dict[str, Any], machine: dict[str, Any]) -> list[str]:
    """Sentences for a reader: what in the machine's state makes these figures doubtful."""
    said = []
    others, stolen = report.get("busy_cores_of_others", 0.0), report.get("stolen_share", 0.0)
    if others > 0.1:
        said.append(
            f"other processes kept {others:.1f} cores busy meanwhile: timings are higher than on a quiet machine"
        )
    if stolen > 0.02:
        said.append(f"{100 * stolen:.0f} % of the processor's time was taken by the host (steal)")
    if report.get("throttling"):
        said.append("the board reports: " + ", ".join(report["throttling"]))
    if report.get("throttle_events"):
        said.append(f"cores were throttled {report['throttle_events']} times meanwhile")
    if machine.get("governor") in ("powersave", "conservative", "ondemand", "schedutil"):
        said.append(f"the governor is {machine['governor']}: the first tokens may run at a lower frequency")
    if machine.get("virtual_machine") or machine.get("container"):
        where = " in ".join(
            text
            for text in (
                f"a container ({machine['container']})" if machine.get("container") else "",
                "a virtual machine" if machine.get("virtual_machine") else "",
            )
            if text
        )
        said.append(f"measured in {where}: other guests share caches and memory, unseen from here")
    return said


def _versions() -> dict[str, str]:
    found = {}
    for package in ("edgecal", "numpy", "numba", "llvmlite"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _text(file: Path) -> str | None:
    try:
        return file.read_text("utf-8", "replace").strip("\0 \n\t") or None
    except OSError:
        return None


def _number(file: Path) -> float | None:
    try:
        return float(_text(file) or "")
    except ValueError:
        return None


def _mhz(root: Path, name: str) -> float | None:
    """The highest of all cores."""
    found = [_number(file) for file in (root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/cpufreq/{name}")]
    known = [khz for khz in found if khz is not None]
    return max(known) / 1000 if known else None


def _meminfo(root: Path, name: str) -> int | None:
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        words = line.split()
        if words[:1] == [f"{name}:"] and len(words) > 1 and words[1].isdecimal():
            return int(words[1]) * 1024
    return None


def _ticks(root: Path) -> tuple[int, int, int] | None:
    """(busy, all, stolen) of all cores, in clock ticks."""
    first = (_text(root / "proc/stat") or "").splitlines()[:1]
    words = first[0].split()[1:9] if first else []
    if len(words) < 8 or not all(word.isdecimal() for word in words):
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, words)
    busy = user + nice + system + irq + softirq
    return busy, busy + idle + iowait + steal, steal
