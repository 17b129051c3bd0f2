"""What a machine tells, with made-up /sys and /proc; and how fast it reads."""

from __future__ import annotations

import os

import numpy as np
import pytest

from edgecal import machine
from edgecal.memory import resident
from edgecal.profile import roofline
from edgecal.profile.roofline import LEAST, MOST, PlainRead, Point, buffer_bytes, last_level_cache


def put(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


STAT = "cpu  {user} 0 {system} {idle} 0 0 0 {steal} 0 0\ncpu0 1 2 3\n"


def test_a_raspberry_pi(tmp_path):
    root = put(
        tmp_path,
        {
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            "proc/meminfo": "MemTotal:  3884000 kB\nMemAvailable: 100000 kB\nSwapTotal: 102396 kB\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1500000\n",
            "sys/devices/system/cpu/cpu3/cpufreq/cpuinfo_max_freq": "1800000\n",
            "sys/class/thermal/thermal_zone0/temp": "61322\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        },
    )
    facts = machine.facts(root)
    assert facts["board"] == "Raspberry Pi 4 Model B Rev 1.4" and facts["governor"] == "ondemand"
    assert facts["max_mhz"] == 1800 and facts["memory_bytes"] == 3884000 * 1024
    assert "container" not in facts and "virtual_machine" not in facts and "cpu_quota" not in facts
    assert machine.temperatures(root) == {"cpu-thermal (0)": 61.322}
    said = machine.throttling(root)
    assert said == ["under-voltage now", "throttled now", "under-voltage has occurred", "throttling has occurred"]
    notes = machine.warnings({"throttling": said}, facts)
    assert any("under-voltage now" in note for note in notes) and any("governor is ondemand" in note for note in notes)


def test_a_container_on_a_virtual_machine(tmp_path):
    root = put(
        tmp_path,
        {
            ".dockerenv": "",
            "proc/cpuinfo": "processor: 0\nflags\t\t: fpu hypervisor sse\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "4\n",
            "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "3\n",
        },
    )
    facts = machine.facts(root)
    assert (facts["container"], facts["virtual_machine"], facts["cpu_quota"]) == ("docker", "yes", 1.5)
    assert machine.throttle_events(root) == 7
    assert any("container (docker) in a virtual machine" in note for note in machine.warnings({}, facts))


def test_nothing_told_is_nothing_said(tmp_path):
    facts = machine.facts(tmp_path)
    assert {"governor", "board", "container", "max_mhz"}.isdisjoint(facts) and facts["cores"] >= 1
    watch = machine.Watch(tmp_path).report()
    assert set(watch) == {"total_s", "load_average", "throttling"} and machine.warnings(watch, facts) == []
    assert machine.throttle_events(tmp_path) is None and machine.temperatures(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "nonsense", "cpu 1 2", "cpu a b c d e f g h"])
def test_files_that_make_no_sense(tmp_path, text):
    names = ("proc/stat", "proc/meminfo", "proc/cpuinfo", "sys/fs/cgroup/cpu.max")
    put(tmp_path, {**dict.fromkeys(names, text), "sys/class/thermal/thermal_zone0/temp": text})
    machine.facts(tmp_path)
    assert "stolen_share" not in machine.Watch(tmp_path).report()
    assert machine.temperatures(tmp_path) == {}


def test_time_that_others_took(tmp_path, monkeypatch):
    hertz = os.sysconf("SC_CLK_TCK")
    put(tmp_path, {"proc/stat": STAT.format(user=0, system=0, idle=0, steal=0)})
    times = iter([0.0, 10.0])
    monkeypatch.setattr(machine, "perf_counter", lambda: next(times))
    monkeypatch.setattr(machine, "process_time", lambda: 0.0)
    watch = machine.Watch(tmp_path)
    # ten seconds of two cores: 4 busy in user, 1 in system, 10 idle, 5 stolen
    put(tmp_path, {"proc/stat": STAT.format(user=4 * hertz, system=hertz, idle=10 * hertz, steal=5 * hertz)})
    found = watch.report()
    assert found["busy_cores_of_others"] == pytest.approx(0.5) and found["stolen_share"] == pytest.approx(0.25)
    notes = machine.warnings(found, {})
    assert any("0.5 cores busy" in note for note in notes) and any("25 %" in note for note in notes)


@pytest.mark.parametrize(
    ("others", "threads", "cores", "fewer"),
    [
        (1.0, 2, 2, 1),
        (0.9, 4, 4, 3),
        (2.2, 4, 4, 2),
        (7.0, 4, 4, 1),
        (0.2, 2, 2, None),
        (1.0, 2, 4, None),
        (2.0, 1, 2, None),
        (2.0, None, 2, None),
    ],
)
def test_threads_that_have_no_core_of_their_own(monkeypatch, others, threads, cores, fewer):
    monkeypatch.setattr(machine.cpu, "usable_cores", lambda: cores)
    said = machine.crowded({"total_s": 2.0, "busy_cores_of_others": others}, threads)
    expected = f"other programs kept {others:.1f} of {cores} cores busy: --threads {fewer} may be faster"
    assert said == (None if fewer is None else expected)
    assert machine.crowded({"total_s": 0.1, "busy_cores_of_others": others}, threads) is None
    assert machine.crowded({"total_s": 2.0}, 1) is None, "a system that does not tell"


def test_the_buffer_is_larger_than_the_caches(tmp_path):
    cache = "sys/devices/system/cpu/cpu0/cache/index3/size"
    assert last_level_cache(put(tmp_path / "a", {cache: "32768K\n"})) == 32 << 20
    assert buffer_bytes(tmp_path / "a") == 128 << 20
    assert buffer_bytes(put(tmp_path / "b", {cache: "1M\n"})) == LEAST
    assert buffer_bytes(put(tmp_path / "c", {cache: "1G\n"})) == MOST
    little = put(tmp_path / "d", {cache: "32M", "proc/meminfo": "MemAvailable: 102400 kB\n"})
    assert buffer_bytes(little) == 25 << 20
    assert last_level_cache(tmp_path / "none") == 32 << 20


def test_a_read_is_a_read_of_all_of_it():
    """The xor of every pass is NumPy's; the buffer is memory of its own, not one page of zeros mapped over and over."""
    before = resident()
    plain = PlainRead(32 << 20)
    assert resident() - before > 24 << 20
    for threads in (1, 2, 3):
        _, mixed = plain.timed(threads, passes=1)
        assert mixed == int(np.bitwise_xor.reduce(plain.words))
    assert plain.timed(2, passes=2)[1] == 0  # every word twice


@pytest.mark.parametrize("threads", [1, 3])
def test_every_pass_reads_the_whole_buffer(monkeypatch, threads):
    """And so many bytes are told. That none of it is dropped by the compiler is what the xor above says."""
    plain, read, sizes = PlainRead(1 << 20), roofline.plain_read(), []
    monkeypatch.setattr(roofline, "plain_read", lambda: lambda words: sizes.append(words.nbytes) or read(words))
    for passes in (1, 4):
        sizes.clear()
        assert plain(threads, passes).bytes == passes << 20
        assert sum(sizes) == threads * 64 + (passes << 20), "each thread begins with a few words, to have started"


def test_a_point_under_the_roof():
    point = Point(step_s=0.01, weight_bytes=100_000_000, bytes=120_000_000, operations=240_000_000, bandwidth=20e9)
    assert (point.intensity, point.rate, point.weight_rate, point.share) == (2, 12e9, 10e9, 0.5)
    assert Point(0.01, 1, 1, 1, None).share is None


def test_machines_that_differ_are_told_apart():
    a = {"cpu": "A", "cores": 4, "versions": {"numpy": "1"}}
    assert machine.same_machine(a, dict(a)) == []
    assert machine.same_machine(a, {**a, "cpu": "B", "versions": {"numpy": "2"}}) == ["cpu: A and B", "numpy 1 and 2"]
