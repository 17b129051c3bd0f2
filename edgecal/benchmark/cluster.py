"""The same evaluation on several processes or machines, through dask.distributed.

A worker loads the model once and keeps it. Chunks go to whoever is free; one whose worker has died goes to another.
Only the driver writes, so that an answer is in the file once, whatever dies and comes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from edgecal_kernels import cpu

from ..errors import BenchmarkError
from .config import EvalConfig
from .prompts import PromptSet
from .run import Evaluation, Progress
from .shelf import load_engine, load_shelf
from .work import Chunk, Line, answer_chunk

_INSTALL = "several processes need the extra: pip install 'edgecal[cluster]'"
TIMEOUT = 30  # seconds for a scheduler to answer
_loaded: dict[str, Any] = {}  # of a worker, by configuration: there is one


def run_on_cluster(
    evaluation: Evaluation,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> None:
    """On `workers` processes of this machine, which share its cores, or on those of a `scheduler` (tcp://host:8786).

    Workers elsewhere need the same version of edgecal, and the files under the same paths. Raises BenchmarkError when
    the scheduler does not answer, and what a chunk raised.
    """
    shelf = load_shelf(evaluation.config)
    plan = evaluation.begin(shelf)
    if not plan.chunks:
        return
    threads = max(1, cpu.usable_cores() // workers) if workers else None
    values = evaluation.config.to_dict()
    with _client(workers, scheduler) as (client, as_completed):
        futures = [
            client.submit(_answer, values, evaluation.prompts, chunk, threads, pure=False) for chunk in plan.chunks
        ]
        for future in as_completed(futures, loop=client.loop):
            lines, cost = future.result()
            evaluation.keep(plan, lines, cost)
            if progress is not None:
                progress(plan.done, plan.total, f"{cost['task']}: {cost['method']}")


@contextmanager
def _client(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    try:
        from dask.distributed import Client, LocalCluster, as_completed
    except ImportError as error:
        raise BenchmarkError(_INSTALL) from error
    with ExitStack() as stack:
        try:
            if scheduler is None:
                local = LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None)
                scheduler = stack.enter_context(local).scheduler_address
            client = stack.enter_context(Client(scheduler, timeout=TIMEOUT, set_as_default=False))
        except (OSError, TimeoutError, ValueError) as error:
            raise BenchmarkError(f"the scheduler {scheduler} does not answer: {error}"[:400]) from error
        yield client, as_completed


def _answer(values: dict[str, Any], prompts: PromptSet, chunk: Chunk, threads: int | None) -> tuple[list[Line], Line]:
    """On a worker."""
    config = EvalConfig.from_dict(values)
    if config.digest not in _loaded:
        _loaded.clear()
        _loaded[config.digest] = load_engine(config, threads), load_shelf(config)
    engine, shelf = _loaded[config.digest]
    return answer_chunk(engine, shelf, config, prompts, chunk)
