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
from .inventory import load_engine, load_inventory
from .prompts import PromptSet
from .run import Evaluation, Progress
from .work import Chunk, Line, answer_chunk

_INSTALL = "several processes need the extra: pip install 'edgecal[cluster]'"
TIMEOUT = 30  # seconds for a scheduler to answer
_PATIENCE = 4  # times as long without any worker
_loaded: dict[str, Any] = {}  # of a worker, by configuration: there is one


def run_on_cluster(
    evaluation: Evaluation,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    memory_limit: int | None = None,
    progress: Progress | None = None,
) -> None:
    """On `workers` processes of this machine, which share its cores, or on those of a `scheduler` (tcp://host:8786).

    Workers elsewhere need the same version of edgecal, and the files under the same paths. `memory_limit` is that of
    each worker, as in `Engine.load`. Raises BenchmarkError when
    the scheduler does not answer, and what a chunk raised.
    """
    inventory = load_inventory(evaluation.config)
    plan = evaluation.begin(inventory)
    if not plan.chunks:
        return
    threads = max(1, cpu.usable_cores() // workers) if workers else None
    loading = {"threads": threads, "memory_limit": memory_limit}
    values = evaluation.config.to_dict()
    with _client(workers, scheduler) as client:
        left = {client.submit(_answer, values, evaluation.prompts, chunk, loading, pure=False) for chunk in plan.chunks}
        while left:
            done = _next(client, left)
            left -= done
            for future in done:
                lines, cost = _result(future)
                evaluation.keep(plan, lines, cost)
                if progress is not None:
                    progress(plan.done, plan.total, f"{cost['task']}: {cost['method']}")


def _next(client: Any, left: set[Any]) -> set[Any]:
    """Those that are done, once there is one. BenchmarkError when no worker has been there for a while."""
    from dask.distributed import wait

    missing = 0
    while missing < _PATIENCE:
        try:
            return set(wait(left, timeout=TIMEOUT, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            missing = 0 if client.scheduler_info()["workers"] else missing + 1
    raise BenchmarkError(f"no worker is left: {len(left)} chunks are not answered; the same command goes on with them")


def _result(future: Any) -> tuple[list[Line], Line]:
    from dask.distributed import KilledWorker

    try:
        lines, cost = future.result()
    except KilledWorker as error:
        raise BenchmarkError(
            "several workers died while they answered the same chunk, which may be more than their memory holds: try "
            f"fewer workers or a smaller 'batch' ({str(error)[:120]}...)"
        ) from error
    return lines, cost


@contextmanager
def _client(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as error:
        raise BenchmarkError(_INSTALL) from error
    with ExitStack() as stack:
        try:
            if scheduler is None:
                local = LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None)
                scheduler = stack.enter_context(local).scheduler_address
            client = stack.enter_context(Client(scheduler, timeout=TIMEOUT, set_as_default=False))
        except (OSError, TimeoutError, ValueError) as error:
            raise BenchmarkError(f"the scheduler {scheduler} does not answer: {error}") from error
        stack.enter_context(client.as_current())
        yield client


def _answer(
    values: dict[str, Any], prompts: PromptSet, chunk: Chunk, loading: dict[str, int | None]
) -> tuple[list[Line], Line]:
    """On a worker."""
    config = EvalConfig.from_dict(values)
    if config.digest not in _loaded:
        _loaded.clear()
        _loaded[config.digest] = load_engine(config, **loading), load_inventory(config)
    engine, inventory = _loaded[config.digest]
    return answer_chunk(engine, inventory, config, prompts, chunk)
