"""Whether a model runs within a limit of memory: converted, loaded, a long prompt read, an answer written.

    python -m bench.memory demo --limit 512M --tokens 1000
    python -m bench.memory --shape llama-3.2-1b --tokenizer MODEL.gguf --limit 1.5G --tokens 2000
    python -m bench.memory --shape qwen2.5-1.5b --tokenizer MODEL.gguf --limit 4G --calibrate --layers 2

Every step runs in a process of its own under the limit, which is a control group's where one can be made (root, version
1 or 2), else the address space of the process (ulimit -v), which counts more than memory. A group does not count pages
of files that others have read before, so the resident size is what to look at: it is measured and counts them. Kernels
are compiled beforehand, as `edgecal warmup` does it: Numba and LLVM alone take 600 MiB while they compile. `--shape`
makes a model of random weights, as bench.peers does, and rounds it to int4 under the limit; with --calibrate for the
text that ships. --layers: so many, and all else as the shape has it. A calibration takes minutes a layer at that size,
and runs of few layers show whether more would take more memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edgecal.cli.options import compile_kernels
from edgecal_weights.sizes import mebibytes, read_size

from .machine import facts
from .peers.models import SHAPES, write_random

_QUANTIZE = """
import json, sys; from edgecal.memory import peak_resident
from edgecal_weights.opening import open_checkpoint; from edgecal_weights.quantizer import quantize_checkpoint
with open_checkpoint(sys.argv[1]) as checkpoint: quantize_checkpoint(checkpoint, sys.argv[2], format="int4")
print(json.dumps({"peak_bytes": peak_resident()}))
"""
_CALIBRATE = """
import json, sys; from edgecal.memory import peak_resident
from edgecal_weights.opening import open_checkpoint; from edgecal.quantization import quantize_calibrated
with open_checkpoint(sys.argv[1]) as checkpoint: quantize_calibrated(checkpoint, sys.argv[2], format="int4")
print(json.dumps({"peak_bytes": peak_resident()}))
"""
_ANSWER = """
import json, sys; from edgecal import Engine, Settings; from edgecal.memory import peak_resident, resident, room
granted = room(); engine = Engine.load(sys.argv[1]); loaded, n = resident(), int(sys.argv[2])
pieces = list(engine.stream_ids([5 + i % 1000 for i in range(n)], settings=Settings(max_tokens=40)))
tokens = sum(piece.token is not None for piece in pieces)
print(json.dumps({"peak_bytes": peak_resident(), "loaded_bytes": loaded, "new_tokens": tokens,
    "granted_bytes": granted and granted.nbytes, "granted": granted and granted.where,
    "weight_bytes": engine.model.weight_bytes, "context": engine.model.config.max_position_embeddings,
    "back_end": engine.model.ops.NAME, "note": engine.note}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="as for edgecal generate, converted already")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--tokenizer", type=Path, help="a GGUF whose tokenizer the shape gets")
    parser.add_argument("--limit", required=True, help="512M, 1.5G ...")
    parser.add_argument("--tokens", type=int, default=1000, help="of the prompt")
    parser.add_argument("--calibrate", action="store_true", help="the shape, for the text that ships")
    parser.add_argument("--layers", type=int, help="of the shape; all unless given")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "edgecal-memory")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    limit = read_size(given.limit)
    if limit is None or (given.model is None) == (given.shape is None):
        parser.error("give a size such as 512M, and either a model or --shape")
    if given.shape is None and (given.calibrate or given.layers):
        parser.error("--calibrate and --layers are for --shape")
    compile_kernels()
    report: dict[str, Any] = {"machine": facts(), "limit_bytes": limit}
    model = given.model
    if given.shape is not None:
        layers = given.layers or SHAPES[given.shape]["num_hidden_layers"]
        name = f"{given.shape}-{layers}-layers"
        source, model = given.work / f"{name}.gguf", str(given.work / f"{name}{'-calibrated' * given.calibrate}-int4")
        given.work.mkdir(parents=True, exist_ok=True)
        report["shape"] = {"name": given.shape, "layers": layers, "calibrated": given.calibrate}
        if not source.exists():
            write_random(source, {**SHAPES[given.shape], "num_hidden_layers": layers}, "Q4_0", given.tokenizer)
        if not Path(model).exists():
            report["quantize"] = _run(_CALIBRATE if given.calibrate else _QUANTIZE, [str(source), model], limit)
            print(f"{layers} layers rounded to int4: {_told(report['quantize'])}", flush=True)
    report["answer"] = found = _run(_ANSWER, [model, str(given.tokens)], limit)
    print(f"{given.tokens} tokens read, {found['new_tokens']} written: {_told(found)}")
    print(f"weights {mebibytes(found['weight_bytes'])}, a context of {found['context']:,}, {found['back_end']} kernels")
    if given.json is not None:
        given.json.write_text(json.dumps(report))


def _told(found: dict[str, Any]) -> str:
    return f"{mebibytes(found['peak_bytes'])} resident at most, under {found['limit']}"


def _run(code: str, arguments: list[str], limit: int) -> dict[str, Any]:
    with _group(limit) as group:

        def enter() -> None:
            if group is None:
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            else:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, preexec_fn=enter
        )
    if done.returncode:
        raise SystemExit(f"under {mebibytes(limit)} it ended with {done.returncode}")
    found = json.loads(done.stdout)
    if found["peak_bytes"] > limit:
        raise SystemExit(f"it took {mebibytes(found['peak_bytes'])}, more than {mebibytes(limit)}")
    kind = "address space (ulimit -v)" if group is None else "memory in a control group"
    return {**found, "limit": f"{mebibytes(limit)} of {kind}"}


@contextmanager
def _group(limit: int) -> Iterator[Path | None]:
    """A control group with this limit; None where none can be made."""
    groups = Path("/sys/fs/cgroup")
    for parent, name in ((groups / "memory", "memory.limit_in_bytes"), (groups, "memory.max")):
        group = parent / f"edgecal-{os.getpid()}"
        if not (parent / "cgroup.procs").exists():
            continue
        try:
            group.mkdir()
            (group / name).write_text(str(limit))
        except OSError:
            with suppress(OSError):
                group.rmdir()
            continue
        try:
            yield group
        finally:
            with suppress(OSError):
                group.rmdir()
        return
    yield None


if __name__ == "__main__":
    main()
