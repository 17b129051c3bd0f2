"""The build back end: what a wheel gets, what a build asks for, and what it says where kernels cannot be made."""

from __future__ import annotations

import base64
import hashlib
import platform
import shutil
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import wheel_backend
from edgecal_kernels import build, cpu
from edgecal_kernels.errors import BackendError

RECORD = "edgecal-1.dist-info/RECORD"


@pytest.fixture
def setuptools(monkeypatch):
    """In the place of setuptools' own wheel, which takes seconds: one of two files."""

    def build_wheel(folder: str, *_: object) -> str:
        with ZipFile(Path(folder) / "edgecal-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("edgecal_kernels/cpu.py", "x = 1\n")
            wheel.writestr(RECORD, f"edgecal_kernels/cpu.py,sha256=abc,6\n{RECORD},,\n")
        return "edgecal-1-py3-none-any.whl"

    monkeypatch.setattr(wheel_backend.build_meta, "build_wheel", build_wheel)
    monkeypatch.setattr(wheel_backend.build_meta, "get_requires_for_build_wheel", lambda settings: [])


@pytest.fixture
def linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))


def make(isa_name: str, folder: Path) -> Path:
    path = folder / f"{isa_name}.so"
    path.write_bytes(isa_name.encode() * 100)
    return path


def test_every_library_is_in_the_wheel_and_in_its_list_of_files(tmp_path, monkeypatch, setuptools, linux):
    monkeypatch.setattr(build, "build", make)
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        wheel = tmp_path / name / wheel_backend.build_wheel(str(tmp_path / name))
        contents.append(wheel.read_bytes())
        with ZipFile(wheel) as archive:
            assert len(archive.namelist()) == len(set(archive.namelist())) == 2 + len(cpu.READY_ISAS)
            lines = archive.read(RECORD).decode().splitlines()
            assert lines[:2] == ["edgecal_kernels/cpu.py,sha256=abc,6", f"{RECORD},,"]
            for isa, line in zip(cpu.READY_ISAS, lines[2:], strict=True):
                data = archive.read(f"edgecal_kernels/ready/{isa}.so")
                digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                assert data == isa.encode() * 100
                assert line == f"edgecal_kernels/ready/{isa}.so,sha256={digest},{len(data)}"
        assert list(wheel.parent.iterdir()) == [wheel]


def test_the_best_one_only_and_none(tmp_path, monkeypatch, capsys, setuptools):
    monkeypatch.setattr(build, "build", make)
    monkeypatch.setattr(cpu, "processor_isas", lambda: ["avx2", "portable"])
    for choice, expected in (("own", ["edgecal_kernels/ready/avx2.so"]), ("none", [])):
        with ZipFile(tmp_path / wheel_backend.build_wheel(str(tmp_path), {"kernels": choice})) as archive:
            assert [name for name in archive.namelist() if "ready" in name] == expected
    assert capsys.readouterr().err == "no ready-made kernels: kernels=none\n"
    with pytest.raises(SystemExit, match="kernels=some is none of all, own, none"):
        wheel_backend.build_wheel(str(tmp_path), {"kernels": "some"})
    with pytest.raises(SystemExit, match="kernels=some"):
        wheel_backend.get_requires_for_build_wheel({"kernels": "some"})


def test_where_they_cannot_be_made_the_wheel_has_none_and_one_line_says_why(
    tmp_path, monkeypatch, capsys, setuptools, linux
):
    def fail(isa_name: str, folder: Path) -> Path:
        raise BackendError("no linker for aarch64 was found")

    monkeypatch.setattr(build, "build", fail)
    with ZipFile(tmp_path / wheel_backend.build_wheel(str(tmp_path))) as archive:
        assert not [name for name in archive.namelist() if "ready" in name]
    assert capsys.readouterr().err == "no ready-made kernels: no linker for aarch64 was found\n"
    for choice in ("all", "own"):  # asked for by name: an error
        monkeypatch.setattr(cpu, "processor_isas", lambda: ["avx2"])
        with pytest.raises(SystemExit, match="error: no linker"):
            wheel_backend.build_wheel(str(tmp_path), {"kernels": choice})
    monkeypatch.setattr(cpu, "processor_isas", list)
    with pytest.raises(SystemExit, match="no instruction set of this processor"):
        wheel_backend.build_wheel(str(tmp_path), {"kernels": "own"})


def test_what_a_build_asks_for(monkeypatch, setuptools, linux):
    ask = wheel_backend.get_requires_for_build_wheel
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/ld.lld" if name == "ld.lld" else None)
    assert ask() == ask({"kernels": "all"}) == ["numba>=0.61"] and ask({"kernels": "none"}) == []
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert ask({}) == ["numba>=0.61", "ziglang>=0.13"]
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))  # musl, Android: no wheels of Numba's
    assert ask() == [] and ask({"kernels": "all"}) != []
    monkeypatch.setattr(sys, "platform", "darwin")
    assert ask() == []
    own = wheel_backend.build_meta.get_requires_for_build_editable  # not run here, where others use setuptools
    assert wheel_backend.get_requires_for_build_editable == own
