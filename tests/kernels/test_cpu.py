"""How much of the machine a process may use, from what the system writes down."""

from __future__ import annotations

import pytest

from edgecal_kernels import cpu, ready_threads, threads
from tests.edgecal.test_machine import put

CGROUP, V2, V1 = "proc/self/cgroup", "sys/fs/cgroup", "sys/fs/cgroup/cpu"
QUOTAS = {
    "nothing told": ({}, None),
    "version 2, in a container": ({CGROUP: "0::/\n", f"{V2}/cpu.max": "150000 100000\n"}, 1.5),
    "version 2, no limit": ({CGROUP: "0::/\n", f"{V2}/cpu.max": "max 100000\n"}, None),
    "version 2, a group of the host": (
        {CGROUP: "0::/system.slice/a.service\n", f"{V2}/system.slice/a.service/cpu.max": "200000 100000\n"},
        2.0,
    ),
    "version 2, the group above has less": (
        {
            CGROUP: "0::/user.slice/job\n",
            f"{V2}/user.slice/cpu.max": "50000 100000",
            f"{V2}/user.slice/job/cpu.max": "300000 100000",
        },
        0.5,
    ),
    "version 1": (
        {CGROUP: "5:cpu,cpuacct:/\n", f"{V1}/cpu.cfs_quota_us": "250000\n", f"{V1}/cpu.cfs_period_us": "100000\n"},
        2.5,
    ),
    "version 1, the host's path in a container": (
        {
            CGROUP: "4:memory:/docker/abc\n3:cpuacct,cpu:/docker/abc\n",
            f"{V1}/cpu.cfs_quota_us": "100000",
            f"{V1}/cpu.cfs_period_us": "100000",
        },
        1.0,
    ),
    "version 1, a folder of both controllers": (
        {
            CGROUP: "3:cpu,cpuacct:/job\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "50000",
        },
        2.0,
    ),
    "version 1, no limit": (
        {CGROUP: "5:cpu:/\n", f"{V1}/cpu.cfs_quota_us": "-1\n", f"{V1}/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "another group's": ({CGROUP: "4:memory:/job\n", f"{V1}/job/cpu.cfs_quota_us": "1", f"{V1}/job/x": ""}, None),
    "nonsense": ({CGROUP: "0\n::\n5:cpu\n0::/../..\n", f"{V2}/cpu.max": "0 0\n", "cpu.max": "1 1"}, None),
    "no text": ({CGROUP: "0::/\0\n", f"{V2}/cpu.max": "1e5 1e5\n"}, None),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_a_quota_of_time(tmp_path, name):
    files, expected = QUOTAS[name]
    assert cpu.cpu_quota(put(tmp_path, files)) == expected


@pytest.mark.parametrize(("quota", "expected"), [(None, 64), (0.2, 1), (1.0, 1), (1.5, 2), (2.0, 2), (100.0, 64)])
def test_threads_follow_it(monkeypatch, quota, expected):
    """`docker --cpus 2` on 64 cores: two threads, not 64."""
    monkeypatch.setattr(cpu, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cpu, "physical_cores", lambda: 64)
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(threads.numba.config, "NUMBA_NUM_THREADS", 64)
    monkeypatch.setattr(ready_threads, "most_threads", lambda: 64)
    assert cpu.usable_cores() == threads.number_of_threads() == ready_threads.number_of_threads() == expected
