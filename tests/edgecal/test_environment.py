"""`edgecal env`: on machines that tell everything, and on those that tell nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from edgecal import machine
from edgecal.environment import advice, environment
from edgecal_kernels import cpu
from tests.cli.shell import SOURCES, edgecal

PI = "".join(f"processor : {i}\nCPU implementer : 0x41\nCPU part : 0xd0b\n\n" for i in range(4)) + "Model : Pi 5\n"
PHONE = (
    "CPU implementer : 0x41\nCPU part : 0xd46\nCPU implementer : 0x41\nCPU part : 0xd46\n"
    "CPU implementer : 0x51\nCPU part : 0x001\nCPU part\nHardware\n"
)


@pytest.mark.parametrize(
    ("cpuinfo", "kinds"),
    [
        (PI, "4 x Cortex-A76"),
        (PHONE, "2 x Cortex-A510 + 1 x 0x51/0x001"),
        ("flags : avx2\n", None),
        ("", None),
    ],
)
def test_kinds_of_cores(tmp_path: Path, cpuinfo: str, kinds: str | None) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    assert machine.core_kinds(tmp_path) == kinds


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Android hides much of /proc and /sys, and Python may lack what Linux has."""

    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "getloadavg", forbidden)
    monkeypatch.setattr(os, "sched_getaffinity", forbidden)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setattr(sys, "platform", "android")
    monkeypatch.setattr(sys, "getandroidapilevel", lambda: 24, raising=False)
    monkeypatch.setenv("TERMUX_VERSION", "0.118.3")
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGECAL_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("EDGECAL_BACKEND", "numpy")
    monkeypatch.setenv("EDGECAL_TOKEN", "secret")
    found = environment(tmp_path)
    assert found.machine["android"] == "API level 24 (of the build)" and found.machine["termux"] == "0.118.3"
    assert found.machine["cores"] == 1 and found.machine["shared_memory"] is False
    assert not {"load_average", "governor", "degrees", "memory_bytes", "core_kinds"} & set(found.machine)
    assert found.used["kernels"] == "numpy" and found.used["writable"] is False
    assert "secret" not in json.dumps(found.used)
    said = " ".join(found.advice)
    assert "docs/termux.md" in said and "termux-wake-lock" in said and "cannot be written" in said
    assert cpu.usable_cores() >= 1 and cpu.physical_cores() == 1


@pytest.mark.parametrize(
    ("facts", "used", "said"),
    [
        ({"governor": "ondemand"}, {}, "the governor is ondemand"),
        ({"throttling": ["throttled now", "under-voltage now"]}, {}, "the board reports throttled now, under-voltage"),
        ({"cores": 4, "cpu_quota": 1.5}, {}, "grants 1.5 of 4 cores"),
        ({"load_average": 2.25, "cores": 4}, {}, "load 2.2, cores 4"),
        ({"memory_bytes": 1 << 30}, {}, "there is no swap"),
        ({"granted_bytes": 300 << 20, "granted_by": "are free"}, {}, "300 MiB are free:"),
        ({"word": "32 bit"}, {"kernels": "numpy"}, "take a 64 bit system"),
        ({}, {"kernels": "numpy"}, "NumPy computes"),
        ({}, {"kernels": "numba"}, "edgecal warmup does it now"),
        ({}, {"error": "unknown back end 'x'"}, "no kernels serve: unknown back end 'x'"),
    ],
)
def test_advice(facts: dict[str, object], used: dict[str, object], said: str) -> None:
    assert any(said in text for text in advice(facts, used, {"tokenizers": "1"}))


def test_nothing_to_advise() -> None:
    used = {"kernels": "ready", "writable": True, "tuned": True}
    assert advice({"cores": 4, "load_average": 0.1, "granted_bytes": 1 << 33}, used, {"tokenizers": "1"}) == []


def test_at_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules.update(dict.fromkeys(['numba', 'tokenizers']))")
    variables = {"PYTHONPATH": f"{tmp_path}:{SOURCES}", "EDGECAL_BACKEND": "", "HOME": str(tmp_path)}
    shown = edgecal("env", home=tmp_path / "home", **variables)
    assert shown.returncode == 0 and shown.stderr == ""
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert " MiB are free " in shown.stdout and "cache folder: " in shown.stdout
    assert "tokenizer: plain Python" in shown.stdout and str(tmp_path) not in shown.stdout
    told = json.loads(edgecal("env", "--json", home=tmp_path / "home", **variables).stdout)
    assert set(told) == {"machine", "used", "packages", "advice"} and told["used"]["tokenizer"] == "plain Python"
    assert told["machine"]["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_back_end_that_is_none(tmp_path: Path) -> None:
    done = edgecal("env", home=tmp_path, EDGECAL_BACKEND="cuda")
    assert done.returncode == 0 and "no kernels serve: unknown back end 'cuda'" in done.stdout
