"""The numbers of threads that `tune` found best, per machine and model: what `Engine.load` takes where none is given.

One JSON file in the cache folder. An entry belongs to a processor, its usable cores and instruction set, and to a model
by its shapes and number formats, so another machine with the same home folder, or another file of the same model,
finds its own or none.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from edgecal_kernels import cpu
from edgecal_kernels.paths import cache_directory
from edgecal_kernels.quant import QuantizedTensor
from edgecal_weights.files import write_json

from .errors import StorageError
from .model import Model
from .threads import Threads

_LARGEST_FILE = 1 << 20


def tuned_file() -> Path:
    """Where the entries are; it need not exist."""
    return cache_directory() / "threads.json"


def key_of(model: Model) -> str:
    """Names this machine together with this model, in 32 hexadecimal digits."""
    kinds = Counter(
        f"{weight.format} {weight.group_size}" if isinstance(weight, QuantizedTensor) else "float32"
        for weight in model.arrays.values()
    )
    c = model.config
    shape = c.n_layers, c.hidden_size, c.intermediate_size, c.n_heads, c.n_kv_heads, c.vocab_size
    machine = cpu.cpu_model(), cpu.usable_cores(), cpu.physical_cores(), model.ops.INSTRUCTIONS
    facts = json.dumps([machine, shape, sorted(kinds.items())])
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def recall(model: Model) -> Threads | None:
    """What was found for this machine and model, if anything; None on NumPy, which has no threads to set."""
    if model.ops.NAME == "numpy":
        return None
    found = _entries().get(key_of(model))
    numbers = [found.get(name) for name in ("decode", "prefill")] if isinstance(found, dict) else []
    most = cpu.usable_cores()
    if not numbers or not all(type(n) is int and 1 <= n <= most for n in numbers):
        return None
    return Threads(*numbers)


def remember(model: Model, threads: Threads) -> Path:
    """Keep `threads` for this machine and model; the file. StorageError where it cannot be written."""
    entries = _entries()
    entries[key_of(model)] = {"decode": threads.decode, "prefill": threads.prefill}
    return _write(entries)


def forget(model: Model) -> bool:
    """Remove what was found for this machine and model; whether there was anything."""
    entries = _entries()
    known = entries.pop(key_of(model), None) is not None
    if known:
        _write(entries)
    return known


def _write(entries: dict[str, Any]) -> Path:
    path = tuned_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{path.parent} cannot be made: {error.strerror}; set EDGECAL_CACHE to another folder"
        raise StorageError(why) from error
    write_json(path, {"schema_version": 1, "threads": entries})
    return path


def _entries() -> dict[str, Any]:
    """All of them; none where the file is missing or is not what `remember` writes: it can be made again."""
    try:
        with tuned_file().open("rb") as file:
            found = json.loads(file.read(_LARGEST_FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    entries = found.get("threads") if isinstance(found, dict) else None
    return entries if isinstance(entries, dict) else {}
