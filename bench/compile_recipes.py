"""Compile time of every method at the shapes of Llama-3.2-1B: rank 32, 7 components x 16 layers.

    python -m bench.compile_recipes [--adapters 2] [--repeats 15] [--svd] [--json FILE]

Random adapters, once in memory (float32, as a mapping of arrays) and once from fp16 files as PEFT writes them (in the
page cache), read and converted anew at each compile. The compiled kernels are loaded first, as in a process that runs a
model. Printed are the median and the best of `repeats`, the processor time of all threads (on a busy machine the wall
time says little, and half of this is what two free cores need), and the size of the result; then the time to switch
between compiled recipes, which is a lookup, and what a compiled recipe adds to the memory. Bars of the project: under
60 ms to compile on 2 cores (all methods without an SVD), under 1 ms to switch.

`--svd` adds the SVD forms. Those of the exact sums (svd, slerp_svd) work on the factors. The others prune dW itself,
whose rank is then full: they form it module by module and diagonalize it, minutes for a whole model, so one layer is
compiled once and its time multiplied by the number of layers.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bench.machine import facts
from edgecal.adapters import Calibration, LoraAdapter, LoraPair, Recipe, compile_recipe
from edgecal.adapters.merge import methods
from edgecal_kernels.dispatch import backend
from edgecal_weights.calibration_file import AdapterReference, BaseModelFacts, CalibrationFile

HIDDEN, INTERMEDIATE, KV, LAYERS, RANK = 2048, 8192, 512, 16, 32
BLOCK = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
SHAPES = {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in BLOCK.items()}
BASE = {"model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "vocab_size": 128_256}
KERNELS = backend("numba").merging
BAR_MS, SWITCH_BAR_MS = 60.0, 1.0
DENSE = ("ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
MEMORY_METHODS = ("linear", "concat", "ties", "dare_ties")


def random_pairs(seed: int) -> dict[str, LoraPair]:
    rng = np.random.default_rng(seed)
    return {
        module: LoraPair(
            rng.standard_normal((RANK, k), np.float32) * np.float32(0.02),
            rng.standard_normal((d, RANK), np.float32) * np.float32(0.02),
            0.5,
        )
        for module, (d, k) in SHAPES.items()
    }


def write_fp16(folder: Path, pairs: dict[str, LoraPair]) -> LoraAdapter:
    folder.mkdir()
    tensors = {}
    for module, pair in pairs.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = pair.a.astype(np.float16)
        tensors[f"base_model.model.{module}.lora_B.weight"] = pair.b.astype(np.float16)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK / 2, "target_modules": list(SHAPES)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return LoraAdapter.load(folder)


def calibration(method: str, adapters: list[LoraAdapter]) -> Calibration:
    rng = np.random.default_rng(9)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape, np.float32)

    groups: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for module, (d, k) in SHAPES.items():
        component = module.rsplit(".", 1)[1]
        if method == "dam":
            groups[module] = {f"m{i + 1}": normal(k) for i in range(len(adapters))}
        elif method == "projection_merge":
            groups.setdefault(f"{k}x{d}", {"P1": normal(4, d), "P2": normal(d, 4)})
        elif "_pp" in method:
            groups.setdefault(component, {"P1": normal(4, k), "P2": normal(d, 4)})
        else:
            groups.setdefault(component, {"p": normal(d)})
    references = tuple(AdapterReference(adapter.name, adapter.sha256) for adapter in adapters)
    weights = (1.0 if method == "dam" else 1 / max(len(adapters), 1),) * len(adapters)
    base = BaseModelFacts("bench", "llama", HIDDEN, LAYERS, BASE["vocab_size"])  # type: ignore[arg-type]
    return Calibration(CalibrationFile(method, references, weights, base, groups, rank=4))


def resident_mb() -> float:
    """Resident memory of this process, after what can be freed is freed."""
    gc.collect()
    if sys.platform != "linux":
        return float("nan")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def measure(
    method: str, adapters: list[LoraAdapter], repeats: int, shapes: dict[str, tuple[int, int]] = SHAPES
) -> dict[str, Any]:
    entry = next(m for m in methods() if m.name == method)
    used = adapters if entry.max_adapters is None else adapters[: entry.max_adapters]
    term = calibration(method, used) if entry.needs_calibration else None
    weights = (1 / len(used),) * len(used) if entry.needs_weights else None
    options = {"losses": [1.0 + i for i in range(len(used))]} if method == "lm_cocktail" else {}
    names = tuple(adapter.name for adapter in used)
    recipe = Recipe(method, names, weights, "memory" if term else None, options=tuple(options.items()))
    loaded = {adapter.name: adapter for adapter in used}
    wall, processor, compiled = [], [], None
    for _ in range(repeats):
        compiled = None
        started, used_before = time.perf_counter(), time.process_time()
        compiled = compile_recipe(recipe, loaded, term, shapes, BASE, KERNELS)
        wall.append(1e3 * (time.perf_counter() - started))
        processor.append(1e3 * (time.process_time() - used_before))
    assert compiled is not None
    return {
        "median_ms": statistics.median(wall),
        "best_ms": min(wall),
        "cpu_ms": statistics.median(processor),
        "rank": compiled.rank,
        "mb": compiled.nbytes / 1e6,
    }


def measure_dense(method: str, pairs: list[dict[str, LoraPair]]) -> dict[str, Any]:
    """One layer, once; seconds of all layers."""
    layer = {module: shape for module, shape in SHAPES.items() if module.startswith("model.layers.0.")}
    adapters = [LoraAdapter(f"a{i}", {module: p[module] for module in layer}) for i, p in enumerate(pairs)]
    found = measure(method, adapters, 1, layer)
    return {"method": method, "layers_measured": 1, "seconds_of_all_layers": found["median_ms"] * LAYERS / 1e3}


def line(row: dict[str, Any]) -> str:
    memory, files = row["memory"], row["files"]
    numbers = [f"{source[key]:7.1f}" for source in (memory, files) for key in ("median_ms", "best_ms", "cpu_ms")]
    if row["method"].endswith("svd"):
        flag = ""
    else:
        over = [name for name in ("memory", "files") if row[name]["median_ms"] >= BAR_MS]
        flag = f"  over the bar from {' and '.join(over)}" if over else ""
    return f"{row['method']:30s} {memory['rank']:4d} {memory['mb']:6.1f} {''.join(numbers)}{flag}"


def measure_memory(method: str, adapters: list[LoraAdapter]) -> dict[str, Any]:
    """What a compiled recipe adds to the resident memory, beside its own arrays: three are kept."""
    loaded = {adapter.name: adapter for adapter in adapters}
    recipe = Recipe(method, tuple(loaded))
    compile_recipe(recipe, loaded, None, SHAPES, BASE, KERNELS)
    before = resident_mb()
    kept = [compile_recipe(recipe, loaded, None, SHAPES, BASE, KERNELS) for _ in range(3)]
    after = resident_mb()
    pairs = sum(compiled.nbytes for compiled in kept if compiled is not None) / 1e6
    return {"method": method, "resident_mb_per_recipe": (after - before) / 3, "pairs_mb_per_recipe": pairs / 3}


def measure_switch(adapters: list[LoraAdapter]) -> float:
    """ms to get from a recipe, made anew each time, to its compiled adapter: what the engine does for a request."""
    loaded = {adapter.name: adapter for adapter in adapters}
    choices = [(method, tuple(loaded)) for method in ("linear", "peft_linear")]
    compiled = {}
    for method, names in choices:
        recipe = Recipe(method, names)
        compiled[recipe.key] = compile_recipe(recipe, loaded, None, SHAPES, BASE, KERNELS)
    rounds = 1000
    started = time.perf_counter()
    for i in range(rounds):
        assert compiled[Recipe(*choices[i % 2]).key] is not None
    return 1e3 * (time.perf_counter() - started) / rounds


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapters", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--methods", help="only these, between commas")
    parser.add_argument("--svd", action="store_true", help="the SVD forms too; those of dW take half a minute each")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def chosen_methods(named: str | None, svd: bool) -> list[str]:
    """Those that merge: all, or `named` ones between commas; the SVD forms only where they are asked for."""
    return [
        m.name
        for m in methods()
        if m.merge is not None
        and (named is None or m.name in named.split(","))
        and (svd or not m.name.endswith("svd"))
    ]


def measure_factors(
    names: list[str], in_memory: list[LoraAdapter], from_files: list[LoraAdapter], repeats: int
) -> list[dict[str, Any]]:
    """A row for each method that works on the factors, printed as it comes."""
    print(f"{'ms: median, best, CPU':30s} {'rank':>4s} {'MB':>6s} {'from memory':>22s} {'from fp16 files':>22s}")
    rows = []
    for name in names:
        once_or_more = 1 if name.endswith("svd") else repeats  # seconds each
        row = {"method": name, "memory": measure(name, in_memory, once_or_more)}
        row["files"] = measure(name, from_files, once_or_more)
        rows.append(row)
        print(line(row), flush=True)
    return rows


def main() -> int:
    arguments = read_arguments()
    chosen = chosen_methods(arguments.methods, arguments.svd)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        pairs = [random_pairs(i) for i in range(arguments.adapters)]
        in_memory = [LoraAdapter(f"a{i}", p) for i, p in enumerate(pairs)]
        from_files = [write_fp16(Path(folder) / f"a{i}", p) for i, p in enumerate(pairs)]
        on_factors = [name for name in chosen if name not in DENSE]
        rows = measure_factors(on_factors, in_memory, from_files, arguments.repeats)
        memory = [measure_memory(name, in_memory) for name in MEMORY_METHODS if name in chosen]
        switch = measure_switch(in_memory)
    for facts_of in memory:
        print(
            f"{facts_of['method']}: {facts_of['resident_mb_per_recipe']:.1f} MB of resident memory per recipe, its "
            f"pairs {facts_of['pairs_mb_per_recipe']:.1f} MB"
        )
    print(f"switch: {switch:.4f} ms")
    dense = []
    for name in chosen:
        if name in DENSE:
            dense.append(measure_dense(name, pairs))
            print(f"{name}: {dense[-1]['seconds_of_all_layers']:.0f} s (one layer times {LAYERS})", flush=True)
    plain = [row for row in rows if not row["method"].endswith("svd")]
    slowest = {source: max((row[source]["median_ms"] for row in plain), default=None) for source in ("memory", "files")}
    result = {
        "machine": facts(),
        "settings": {"adapters": arguments.adapters, "rank": RANK, "repeats": arguments.repeats},
        "load_average": {"before": load_before[0], "after": os.getloadavg()[0]},
        "bars": {"compile_ms": BAR_MS, "switch_ms": SWITCH_BAR_MS},
        "slowest_ms": slowest,
        "switch_ms": switch,
        "memory": memory,
        "rows": rows,
        "dense": dense,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({"switch_ms": switch, "slowest_ms": slowest}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
