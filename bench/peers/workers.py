"""One engine in a process of its own: `python -m bench.peers.workers`, requests and answers as JSON lines.

Between requests the process waits in a read of stdin and does nothing; every answer says how much processor time it
used while waiting, so that a spinning thread pool shows. What an engine is asked is in engines/worker.py.

The tokens that decode runs are given (the prompt's own), not sampled: all engines do the same work, and none gains by
guessing its own output. Choosing the next token (argmax) is part of every step. Two engines give no logits and decode
what they chose, timed by their own clocks: OpenVINO, and mistral.rs, which takes and returns text, in milliseconds.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from time import perf_counter
from typing import Any

from .engines import engine
from .engines.worker import BASE, Worker, status


def answer(worker: Worker, call: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if call == "load":
        worker.imports()
        imported = status("VmRSS")
        started = perf_counter()
        worker.load()
        seconds = perf_counter() - started
        return {"seconds": seconds, "variants": worker.variants, "imported": imported, "loaded": status("VmRSS")}
    worker.use(arguments.pop("variant", BASE))
    if call == "facts":
        return worker.facts()
    if call == "memory":
        return {"peak": status("VmHWM"), "now": status("VmRSS")}
    gc.collect()
    value = getattr(worker, call)(**arguments)
    return value if isinstance(value, dict) else {"value": value}


def main() -> None:
    # Libraries that print must not print into the answers
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker: Worker | None = None
    waiting = time.process_time(), perf_counter()
    for line in sys.stdin:
        idle = time.process_time() - waiting[0], perf_counter() - waiting[1]
        request = json.loads(line)
        try:
            if worker is None:
                worker = engine(request["engine"])(request)
                result: dict[str, Any] = {}
            else:
                result = answer(worker, request.pop("call"), request)
        except ImportError as error:
            how = f": {worker.install}" if worker is not None and worker.install else ""
            result = {"error": f"not installed ({error.name or error}){how}"}
        except Exception as error:  # whatever an engine raises becomes its row's remark, and the others go on
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps({**result, "idle_cpu": idle[0], "idle": idle[1]}) + "\n")
        waiting = time.process_time(), perf_counter()
    # llama.cpp and mistral.rs free their threads in destructors that may wait for each other
    os._exit(0)


if __name__ == "__main__":
    main()
