"""Several processes at one place, a clock that jumps, memory that runs out, threads and processes that die, a fork."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgecal import AsyncEngine, Engine
from edgecal.errors import EdgecalError
from edgecal_kernels import dispatch
from edgecal_weights.opening import open_checkpoint
from tests.tiny import write_tiny_hf

from .children import environment, hidden, python


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_hf(tmp_path_factory.mktemp("processes") / "model", max_position_embeddings=1 << 17)


@pytest.mark.slow
def test_several_processes_quantize_to_one_place(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from edgecal_weights.opening import open_checkpoint; from edgecal_weights.quantizer import "
        "quantize_checkpoint; from edgecal.errors import StorageError\n"
        "for i in range(20):\n"
        "    with open_checkpoint(sys.argv[1]) as source:\n"
        "        quantize_checkpoint(source, sys.argv[2], format=sys.argv[3], overwrite=True)\n"
    )
    command = [sys.executable, "-c", code, str(model), str(tmp_path / "packed")]
    options: dict[str, Any] = {"env": environment(), "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen([*command, format], **options) for format in ("int4", "int6", "int8")]
    for child in children:
        _, said = child.communicate(timeout=120)
        assert child.returncode == 0, said
    with open_checkpoint(tmp_path / "packed") as found:
        assert found.stored_type("model.layers.0.mlp.up_proj.weight") in ("int4", "int6", "int8")
        for name in found.names():
            found.read(name)
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("years", [-1, 1])
def test_a_clock_that_jumps(model: Path, monkeypatch: pytest.MonkeyPatch, years: int) -> None:
    """Time of day jumps a year between any two looks; what is measured comes from clocks that cannot."""
    engine = Engine.load(model, backend="numpy")
    before = engine.generate("Hello", max_tokens=4)
    now = [time.time()]

    def jumping() -> float:
        now[0] += years * 365 * 86400
        return now[0]

    monkeypatch.setattr(time, "time", jumping)
    after = engine.generate("Hello", max_tokens=4)
    assert after.text == before.text and 0 <= after.first_token_s <= after.total_s < 60


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_memory_that_runs_out_in_the_middle(model: Path, backend: str) -> None:
    """The request is refused, and the next one is answered as before."""
    done = python(
        """
        import resource, sys
        from edgecal import Engine
        engine = Engine.load(sys.argv[1], backend=sys.argv[2], prefix_cache=0)
        before = engine.generate("Hello", max_tokens=8).text
        size = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (size + (24 << 20), resource.RLIM_INFINITY))
        try:
            engine.generate("Hello there " * 8000, max_tokens=8, raw=True)
        except MemoryError:
            print("no memory")
        assert engine.generate("Hello", max_tokens=8).text == before
        print("as before")
        """,
        model,
        dispatch.backend(backend).NAME,
    )
    assert (done.returncode, done.stdout) == (0, "no memory\nas before\n"), done.stderr


@pytest.mark.parametrize("where", ["step", "add"])
def test_an_engine_outlives_what_breaks_in_its_thread(model: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    engine = Engine.load(model, backend="numpy")
    alone = engine.generate("Hello", max_tokens=4).text

    async def body() -> str:
        async with AsyncEngine(engine) as served:
            with monkeypatch.context() as patch:

                def broken(*arguments: object, **options: object) -> object:
                    raise MemoryError

                patch.setattr(served.scheduler, where, broken)
                with pytest.raises(MemoryError):
                    await asyncio.wait_for(served.generate("Hello", max_tokens=4), 20)
            assert served.n_running == 0
            return (await asyncio.wait_for(served.generate("Hello", max_tokens=4), 20)).text

    assert asyncio.run(body()) == alone


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_fork_after_use(model: Path, backend: str) -> None:
    """The child answers as well, or says why it cannot; the parent goes on. Never a process that hangs."""
    done = python(
        """
        import os, sys
        from edgecal import Engine
        from edgecal.errors import BackendError
        engine = Engine.load(sys.argv[1], backend=sys.argv[2])
        before = engine.generate("Hello", max_tokens=4).text
        child = os.fork()
        if child == 0:
            try:
                assert engine.generate("Hello", max_tokens=4).text == before
            except BackendError as error:
                assert "threads do not survive" in str(error) and sys.argv[2] == "numba"
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0 and engine.generate("Hello", max_tokens=4).text == before
        print("as before")
        """,
        model,
        dispatch.backend(backend).NAME,
    )
    assert (done.returncode, done.stdout) == (0, "as before\n"), done.stderr


@pytest.mark.slow
def test_a_worker_that_dies(tmp_path: Path) -> None:
    """A worker of `eval --workers` is killed: its chunk goes to another, and every answer is there once."""
    pytest.importorskip("distributed")
    from edgecal.benchmark import EvalConfig, Evaluation
    from edgecal.benchmark.cluster import run_on_cluster
    from tests.benchmark.conftest import write_folder

    folder = write_folder(tmp_path / "made")
    config = EvalConfig.from_file(folder / "eval.yaml")
    killed: list[int] = []
    totals: list[int] = []

    def progress(done: int, total: int, name: str) -> None:
        totals.append(total)
        if not killed and done:
            killed.append(_kill_a_worker())

    evaluation = Evaluation(config, tmp_path / "results")
    try:
        run_on_cluster(evaluation, workers=2, progress=progress)
    except EdgecalError as error:
        pytest.fail(str(error))
    lines = list(evaluation.folder.answers())
    assert killed and len({(x["task"], x["method"], x["id"]) for x in lines}) == len(lines) == totals[-1]


def _kill_a_worker() -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes()
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == os.getpid() and b"spawn_main" in words:
                os.kill(int(entry.name), signal.SIGKILL)
                return int(entry.name)
    raise AssertionError("no worker was found")
