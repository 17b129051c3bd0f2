"""The folder of compiled kernels belongs to one installation: "warm" must mean that nothing is left to compile."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgecal_kernels import jit, warmup
from edgecal_kernels.errors import BackendError
from tests.cli.shell import SOURCES

pytestmark = pytest.mark.numba
ANSWERING = """
import sys
import numba
from edgecal import Engine, Recipe, Settings
from edgecal_kernels import warmup

def known():
    modules = [m for name, m in sys.modules.items() if name.startswith("edgecal_kernels.")]
    kernels = {k for m in modules for k in vars(m).values() if isinstance(k, numba.core.dispatcher.Dispatcher)}
    return {(k.py_func.__qualname__, str(s)) for k in kernels for s in k.signatures}

warmup.compile_all()
before = known()
pair = {"summarize": sys.argv[2], "professional": sys.argv[3]}
engine = Engine.load(sys.argv[1], adapters=pair)
calibrated = Recipe("learnable_calibration_pp", tuple(pair), calibration=sys.argv[4])
for recipe in (None, calibrated, Recipe("linear", tuple(pair))):
    for n in (3, 600):
        list(engine.stream_ids(list(range(7, 7 + n)), recipe=recipe, settings=Settings(max_tokens=6)))
engine.generate_batch(["Good morning", "Good night"], recipes=recipe, settings=Settings(max_tokens=4))
print(sorted(known() - before))
"""


def test_nothing_is_left_to_compile(smollm2_gguf, export):
    """What a request compiles or loads beyond the warm-up costs the first one seconds and 30 MiB."""
    files = [str(export / name) for name in ("summarize", "professional", "learnable_calibration_pp.safetensors")]
    command = [sys.executable, "-c", ANSWERING, str(smollm2_gguf), *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def copy_of_the_kernels(folder: Path) -> Path:
    return Path(shutil.copytree(Path(jit.__file__).parent, folder)) / "jit.py"


def test_every_installation_has_a_folder_of_its_own(tmp_path, monkeypatch):
    """Numba goes by path and time of change; kernels of an equal checkout elsewhere would not be found."""
    folders = []
    for name in ("a", "b"):
        monkeypatch.setattr(jit, "__file__", str(copy_of_the_kernels(tmp_path / name)))
        folders.append(jit.kernel_cache_directory("portable"))
    os.utime(tmp_path / "b" / "simd.py", (1, 1))
    folders.append(jit.kernel_cache_directory("portable"))
    (tmp_path / "b" / "isa" / "portable.py").write_text("INT8_OFFSET = 1")
    folders += [jit.kernel_cache_directory("portable"), jit.kernel_cache_directory("avx2")]
    assert len(set(folders)) == 5


FOUND = """
import numpy as np
from edgecal_kernels import cpu, jit, warmup

@jit.kernel
def double(x):
    for i in range(len(x)):
        x[i] *= 2

warm = warmup.is_warm()
x = np.ones(64, np.float32)
double(x)
assert (x == 2).all()
(jit.kernel_cache() / warmup._MARKER).write_text(warmup._machine())  # as if it had been all of them
print(cpu.compile_target()[1], warm, len(double.stats.cache_hits), jit.kernel_cache())
"""


def test_kernels_of_another_machine_are_not_taken(tmp_path):
    """A home folder may serve several machines, whose instruction set is the same and whose processors are not: code
    for one may have instructions that end the process on another. Each finds its own again."""
    (tmp_path / "found.py").write_text(FOUND)
    usual = os.environ | {"EDGECAL_CACHE": str(tmp_path / "cache"), "EDGECAL_ISA": "portable", "PYTHONPATH": SOURCES}
    usual = {name: value for name, value in usual.items() if not name.startswith("NUMBA_CPU")}

    def found(**other):
        command = [sys.executable, str(tmp_path / "found.py")]
        done = subprocess.run(command, env=usual | other, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        name, *what, folder = done.stdout.split()
        folders.add(folder)
        return name, what

    folders: set[str] = set()
    new = ["False", "0"]
    own, what = found()
    assert what == new
    generic, features = ("generic", "+neon") if platform.machine() in ("aarch64", "arm64") else ("x86-64", "+sse2")
    assert found(NUMBA_CPU_NAME=generic, NUMBA_CPU_FEATURES=features) == (generic, new)
    assert found(NUMBA_CPU_NAME=own, NUMBA_CPU_FEATURES=features) == (own, new)  # a system may switch features off
    assert found()[1] == ["False", "1"]  # the mark is of the last machine, the kernels are there
    assert len(folders) == 1


WHERE = """
from edgecal_kernels import jit
print(jit.can_keep(), jit.kernel_cache().parent)
"""


def where(tmp_path, cache, temporary):
    variables = {"EDGECAL_CACHE": str(cache), "TMPDIR": str(temporary), "PYTHONPATH": SOURCES}
    command = [sys.executable, "-c", WHERE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr
    kept, _, folder = done.stdout.strip().partition(" ")
    return kept == "True", Path(folder)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="users of POSIX")
def test_where_the_cache_cannot_be_written(tmp_path):
    """A private folder for temporary files takes its place, and nothing does where that is another's."""
    (tmp_path / "file").touch()
    cache, temporary = tmp_path / "file" / "cache", tmp_path / "temporary"
    temporary.mkdir()
    private = temporary / f"edgecal-{os.getuid()}"
    assert where(tmp_path, tmp_path / "cache", temporary) == (True, tmp_path / "cache" / "kernels")
    assert not private.exists()
    assert where(tmp_path, cache, temporary) == (True, private) and private.stat().st_mode & 0o777 == 0o700
    private.chmod(0o777)  # anybody may have put code there
    assert where(tmp_path, cache, temporary) == (False, cache / "kernels")
    shutil.rmtree(private)
    private.symlink_to(tmp_path)
    assert where(tmp_path, cache, temporary) == (False, cache / "kernels")


@pytest.mark.parametrize(("most", "numbers"), [(8, [1, 2]), (1, [1])])
def test_kernels_for_several_threads_are_compiled_on_one_core_too(monkeypatch, most, numbers):
    """The next process may have more cores, and would compile them without a word."""
    used = []

    def number_of_threads(wanted: int) -> int:
        if wanted > most:
            raise BackendError("too many")
        return wanted

    def use_threads(number: int) -> AbstractContextManager[None]:
        used.append(number)
        return nullcontext()

    ops = SimpleNamespace(merging=None, number_of_threads=number_of_threads, use_threads=use_threads)
    monkeypatch.setattr(warmup, "backend", lambda name: ops)
    monkeypatch.setattr(warmup, "_call_all", lambda ops: None)
    monkeypatch.setattr(warmup, "_merge", lambda merging: None)
    monkeypatch.setattr(jit, "can_keep", lambda: False)
    warmup.compile_all()
    assert used == numbers


def test_nothing_writable_is_said(monkeypatch):
    monkeypatch.setattr(jit, "can_keep", lambda: False)
    monkeypatch.setattr(warmup, "is_warm", lambda: False)
    with pytest.raises(BackendError, match=r"cannot be kept in .*neither it nor .*; set EDGECAL_CACHE"):
        warmup.warm_up()
