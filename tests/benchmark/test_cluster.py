"""Several worker processes give the lines that one does, whoever dies meanwhile."""

from __future__ import annotations

import json

import psutil
import pytest

from edgecal.benchmark import Evaluation
from edgecal.benchmark.cluster import run_on_cluster
from edgecal.benchmark.results import ResultFolder
from edgecal.errors import BenchmarkError

pytestmark = pytest.mark.filterwarnings("ignore")  # of sockets and loops that a killed process leaves behind


def texts(out) -> dict:
    lines = list(ResultFolder(out).answers())
    found = {(x["task"], x["method"], x["id"]): (x["text"], json.dumps(x["scores"])) for x in lines}
    assert len(found) == len(lines), "no line twice"
    return found


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    Evaluation(config, out).run()
    return texts(out)


def test_two_workers_of_which_one_is_killed(config, alone, tmp_path):
    before, killed = {p.pid for p in psutil.Process().children(recursive=True)}, []

    def progress(done: int, total: int, what: str) -> None:
        if killed:
            return
        new = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        workers = [p for p in new if "spawn_main" in " ".join(p.cmdline())]
        killed.append(workers[-1].pid)
        workers[-1].kill()

    run_on_cluster(Evaluation(config, tmp_path / "out"), workers=2, progress=progress)
    assert killed and texts(tmp_path / "out") == alone


def test_a_chunk_whose_workers_die(config, alone, tmp_path):
    """Refused with what may help; the same command goes on with what is left."""
    import dask

    before, killed = {p.pid for p in psutil.Process().children(recursive=True)}, []

    def progress(done: int, total: int, what: str) -> None:
        for process in psutil.Process().children(recursive=True):
            if not killed and process.pid not in before and "spawn_main" in " ".join(process.cmdline()):
                process.kill()
        killed.append(done)

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        pytest.raises(BenchmarkError, match="several workers died while they answered the same chunk"),
    ):
        run_on_cluster(Evaluation(config, tmp_path / "out"), workers=1, progress=progress)
    kept = texts(tmp_path / "out")
    assert 0 < len(kept) < len(alone)
    Evaluation(config, tmp_path / "out").run()
    assert texts(tmp_path / "out") == alone


def test_a_scheduler_that_is_not_there(config, tmp_path, monkeypatch):
    monkeypatch.setattr("edgecal.benchmark.cluster.TIMEOUT", 1)
    with pytest.raises(BenchmarkError, match=r"the scheduler tcp://127.0.0.1:9 does not answer"):
        run_on_cluster(Evaluation(config, tmp_path / "out"), scheduler="tcp://127.0.0.1:9")
