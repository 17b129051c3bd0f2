"""What makes one library serve any C library, its loader included: nothing of Python's, nothing of glibc's."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys

import pytest

from edgecal_kernels import ready_file
from tests.cli.shell import ROOT, SOURCES

_NEEDED, _TEXTREL = 1, 22  # entries of the dynamic section, <elf.h>
_LOAD, _DYNAMIC, _STACK, _SHT_DYNAMIC = 1, 2, 0x6474E551, 6


@pytest.mark.parametrize(("compiler", "from_where"), [("cc", "a C compiler"), ("musl-gcc", "Debian's musl-tools")])
def test_kernels_called_from_c(compiler, from_where, ready_folder, ready_isa, tmp_path):
    """By a program of this system's C library, and by one of musl: the bits of this back end in Python."""
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} ({from_where})")
    program, source = tmp_path / "caller", ROOT / "tests/foreign/caller.c"
    subprocess.run([compiler, "-O1", "-o", program, source, "-ldl", "-lpthread"], check=True)
    command = [sys.executable, "-m", "tests.foreign.job", ready_file.library_path(ready_isa, ready_folder), program]
    environment = {**os.environ, "PYTHONPATH": SOURCES, "EDGECAL_READY": str(ready_folder), "EDGECAL_ISA": ready_isa}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "the bits of this process" in done.stdout


def headers(data: bytes, at: int, layout: str, size: int, n: int) -> list[tuple[int, ...]]:
    return [struct.unpack_from("<" + layout, data, at + i * size) for i in range(n)]


def test_what_loaders_of_other_systems_refuse_is_not_in_it(ready_folder, ready_isa):
    """Android's (bionic's linker) goes through the section headers, too, and takes no code that is written into; pages
    have 4, 16 or 64 KiB. No name is left to look up elsewhere."""
    data = ready_file.library_path(ready_isa, ready_folder).read_bytes()
    segments_at, sections_at = struct.unpack_from("<QQ", data, 32)
    segment_size, n_segments, section_size, n_sections, names = struct.unpack_from("<5H", data, 54)
    assert data[:7] == b"\x7fELF\x02\x01\x01" and segment_size == 56 and section_size == 64 and names > 0
    segments = headers(data, segments_at, "IIQQQQQQ", segment_size, n_segments)
    sections = headers(data, sections_at, "IIQQQQIIQQ", section_size, n_sections)
    for kind, flags, *_, alignment in segments:
        if kind == _LOAD:
            assert alignment == 1 << 16 and flags & 3 != 3, "written into or run, not both"
        assert kind != _STACK or not flags & 1
    [(_, _, at, _, _, size, _, _)] = [segment for segment in segments if segment[0] == _DYNAMIC]
    [(_, _, _, _, found_at, found_size, _, _, _, _)] = [one for one in sections if one[1] == _SHT_DYNAMIC]
    assert (at, size) == (found_at, found_size)
    tags = {tag for tag, _ in headers(data, at, "qQ", 16, size // 16)}
    assert not tags & {_NEEDED, _TEXTREL} and {4, 5, 6, 14, 0x6FFFFEF5} <= tags, "both hashes, symbols and a name"
    [symbols] = [one for one in sections if one[1] == 11]
    undefined = [one for one in headers(data, symbols[4], "IBBHQQ", 24, symbols[5] // 24)[1:] if one[3] == 0]
    assert not undefined
