"""Ready-made kernels: the bits of Numba's, no Numba, and what happens where a library does not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgecal_kernels import cpu, dispatch, ready_file
from edgecal_kernels.errors import BackendError
from edgecal_kernels.ready_library import find_library
from tests.cli.shell import SOURCES
from tests.kernels.answers_probe import answers
from tests.kernels.operations_probe import digests
from tests.tiny import write_tiny_adapter, write_tiny_hf

pytestmark = pytest.mark.skipif(not cpu.processor_isas(), reason="no ready-made kernels for this processor")


def run(place: Path, *arguments: str, **variables: str) -> str:
    own = {"PYTHONPATH": SOURCES, "EDGECAL_READY": str(place), "EDGECAL_BACKEND": ""}
    environment = {**os.environ, **own, **variables}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.numba
def test_every_operation_has_the_bits_of_numba(ready_folder):
    expected = digests(dispatch.backend("numba"), 1)
    for n_threads in (1, 2):
        found, imported = json.loads(run(ready_folder, "-m", "tests.kernels.operations_probe", "ready", str(n_threads)))
        assert not imported
        assert {name for name in expected if found[name] != expected[name]} == set()


def test_an_object_file_is_the_same_twice(tmp_path):
    """On any machine, for any processor: a few kernels stand for all."""
    code = "import sys, pathlib as p; from edgecal_kernels.build import compile_object as c; "
    code += "c('neon', p.Path(sys.argv[1]), ('gate', 'rotate'))"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(tmp_path, "-c", code, str(tmp_path / name), EDGECAL_ISA="neon", PYTHONHASHSEED="0")
    for file in ("kernels.o", "table.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.numba
def test_an_engine_answers_the_same_without_numba(ready_folder, tmp_path):
    model = write_tiny_hf(tmp_path / "model")
    lora = write_tiny_adapter(tmp_path / "lora", model)
    found = run(ready_folder, "-m", "tests.kernels.answers_probe", "ready", str(model), str(lora))
    assert json.loads(found) == [answers("numba", model, lora), False]


def test_a_merge_without_numba(ready_folder, tmp_path):
    """By the library's kernels, with the bytes that NumPy's have."""
    model = write_tiny_hf(tmp_path / "model")
    pair = [f"--adapter={write_tiny_adapter(tmp_path / name, model, seed=seed)}" for seed, name in enumerate("ab")]
    code = "import sys; sys.modules['numba'] = None; from edgecal.cli import main; main()"
    for backend in ("ready", "numpy"):
        merge = ["merge", *pair, "--method", "ties", "--out", str(tmp_path / backend)]
        run(ready_folder, "-c", code, *merge, EDGECAL_BACKEND=backend)
    files = [(tmp_path / backend / "adapter_model.safetensors").read_bytes() for backend in ("ready", "numpy")]
    assert files[0] == files[1]


_THREADS = """
import multiprocessing, os, sys, time
import numpy as np
from pathlib import Path
from edgecal_kernels.ready_ops import OPERATIONS as ops
from edgecal_kernels.quant import quantize

weight = quantize(np.ones((4096, 64), np.float32), "int8")

def product(number):
    with ops.use_threads(2):
        return round(float(ops.matmul(ops.Activations(np.ones((4, 64), np.float32)), weight).sum()))

def asleep():
    states = [Path(f"/proc/self/task/{task}/stat").read_text().rsplit(")")[1].split()[0]
              for task in os.listdir("/proc/self/task") if int(task) != os.getpid()]
    return len(states) >= 1 and set(states) == {"S"}

first = product(0)
while not asleep():
    time.sleep(0.01)
again = product(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(first, again, *pool.map(product, range(3)), product(0))
"""


def test_threads_sleep_wake_and_outlive_a_fork(ready_folder):
    """A child of a process whose threads it does not have makes its own."""
    assert set(run(ready_folder, "-W", "ignore", "-c", _THREADS).split()) == {"1048512"}  # 2^20 but for float16's scale


def damaged(path: Path, isa: str, how: str) -> Path:
    """A folder whose library for `isa` is not what it should be."""
    data = bytearray(ready_file.library_path(isa, path).read_bytes())
    table = ready_file.read_table(ready_file.library_path(isa, path))
    if how == "cut short":
        data = data[: len(data) // 2]
    elif how == "damaged":
        data[5000] ^= 1
    elif how == "no table of ours":
        data = bytearray(ready_file.with_table(bytes(data), []))
    else:
        changes = {"other sources": {"digest": "0"}, "other version": {"version": 1}, "made for": {"isa": "neon"}}
        change = changes.get(how, {})
        data = bytearray(ready_file.with_table(b"no library at all", {**table, **change}))
    return data


_FAULTS = ["cut short", "damaged", "no table of ours", "other version", "other sources", "made for", "does not load it"]
_SAID = {"no table of ours": "damaged", "other version": "made from other sources", "other sources": "made from other"}


@pytest.mark.parametrize("how", _FAULTS)
def test_a_library_that_does_not_fit_is_named(ready_folder, ready_isa, tmp_path, monkeypatch, how):
    path = ready_file.library_path(ready_isa, tmp_path)
    path.write_bytes(damaged(ready_folder, ready_isa, how))
    monkeypatch.setenv("EDGECAL_READY", str(tmp_path))
    with pytest.raises(BackendError, match=_SAID.get(how, how)) as caught:
        find_library()
    assert str(path) in str(caught.value)


_SERVING = "import sys; from edgecal_kernels.dispatch import serving; print(serving())"
_SERVING_IN_EACH = """
import os, sys
sys.modules["numba"] = None
from edgecal_kernels import dispatch
for os.environ["EDGECAL_READY"] in sys.argv[1:]:
    dispatch.why_not_ready.cache_clear()
    print(dispatch.serving())
"""


def test_the_next_back_end_serves_and_says_why(ready_folder, ready_isa, tmp_path):
    """Without Numba NumPy, whatever is wrong; with it Numba."""
    expected = []
    for number, how in enumerate(_FAULTS):
        path = ready_file.library_path(ready_isa, tmp_path / str(number))
        path.parent.mkdir()
        path.write_bytes(damaged(ready_folder, ready_isa, how))
        expected.append(f"numpy: {path}: {_SAID.get(how, how)}")
    other = ready_file.library_path("of_another_processor", tmp_path / "other")
    other.parent.mkdir()
    shutil.copy(ready_file.library_path(ready_isa, ready_folder), other)
    folders = [*(tmp_path / str(number) for number in range(len(_FAULTS))), other.parent, tmp_path / "none"]
    expected.append(f"numpy: no ready-made kernels in {other.parent} are for this processor")
    expected.append("numpy: no ready-made kernels are here")
    found = run(tmp_path, "-c", _SERVING_IN_EACH, *map(str, folders), EDGECAL_ISA="").splitlines()
    for line, beginning in zip(found, expected, strict=True):
        assert line.replace("the system does not", "does not").startswith(beginning)
        assert line.endswith("Numba, which would compile them, is not there (extra jit)")
    path = ready_file.library_path(ready_isa, tmp_path / "0")
    assert run(path.parent, "-c", _SERVING).startswith(f"numba: {path}: cut short")


def test_env_says_which_serves_and_why(ready_folder, ready_isa, tmp_path):
    path = ready_file.library_path(ready_isa, tmp_path)
    path.write_bytes(damaged(ready_folder, ready_isa, "damaged"))
    command = "import sys; sys.modules['numba'] = None; from edgecal.cli import main; main()"
    for place, serving in ((ready_folder, f"ready ({ready_isa})"), (tmp_path, f"numpy: {path}: damaged")):
        found = json.loads(run(place, "-c", command, "env", "--json"))
        assert found["used"]["back_end"].startswith(serving)


def mounted(options: str, ready_folder: Path, ready_isa: str, place: Path) -> str:
    """Which back end serves where the library is on a file system of its own, mounted for this alone, where that is
    allowed."""
    if shutil.which("unshare") is None or not shutil.which("mount"):
        pytest.skip("no unshare")
    place.mkdir()
    library = ready_file.library_path(ready_isa, ready_folder)
    code = f"import sys; sys.modules['numba'] = None; {_SERVING}"
    script = f"mount -t tmpfs none {place} && cp {library} {place}/ && mount -o remount,{options} {place}"
    environment = {**os.environ, "PYTHONPATH": SOURCES, "EDGECAL_READY": str(place), "EDGECAL_BACKEND": ""}
    command = ["unshare", "--mount", "sh", "-c", f'{script} && exec "$0" -c "{code}"', sys.executable]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode != 0 and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip("mounting is not allowed")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_file_system_that_runs_no_code(ready_folder, ready_isa, tmp_path):
    place = tmp_path / "noexec"
    path = ready_file.library_path(ready_isa, place)
    said = mounted("noexec", ready_folder, ready_isa, place)
    assert said.startswith(f"numpy: {path}: the system does not load it")


def test_a_file_system_that_nobody_writes_to(ready_folder, ready_isa, tmp_path):
    assert mounted("ro", ready_folder, ready_isa, tmp_path / "ro").startswith(f"ready ({ready_isa})")


def test_one_that_is_asked_for_by_name_is_refused_with_the_reason(tmp_path):
    code = "from edgecal_kernels import dispatch, errors\ntry:\n    dispatch.backend('ready')\n"
    said = run(tmp_path, "-c", f"{code}except errors.BackendError as error:\n    print(error)")
    assert said.startswith("the ready back end does not serve: no ready-made kernels are here")


def test_other_instruction_sets(ready_folder, monkeypatch):
    monkeypatch.setenv("EDGECAL_READY", str(ready_folder))
    monkeypatch.delenv("EDGECAL_ISA", raising=False)
    monkeypatch.setattr(cpu, "processor_isas", lambda: ["other"])
    with pytest.raises(BackendError, match=r"are for this processor \(other\)"):
        find_library()
    monkeypatch.setenv("EDGECAL_ISA", "mmx")
    with pytest.raises(BackendError, match="EDGECAL_ISA=mmx"):
        find_library()
