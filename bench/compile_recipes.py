"""Compile time of every method at the shapes of Llama-3.2-1B: rank 32, 7 components x 16 layers.

    python -m bench.compile_recipes [--adapters 2] [--repeats 7] [--svd] [--json FILE]

Random adapters, once in memory (float32, as a mapping of arrays) and once from fp16 files as PEFT writes them, read and
converted anew at each compile. Printed are the median and the best of `repeats`, the processor time of all threads (on
a busy machine the wall time says little, and half of this is what two free cores need), and the size of the result;
then the time to switch between compiled recipes, which is a lookup, and what a compiled recipe adds to the memory.
Bars of the project: under 60 ms to compile on 2 cores (all methods without an SVD), under 1 ms to switch.
"""

from __future__ import annotations

import argparse
import gc
import json
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
BAR_MS, SWITCH_BAR_MS = 60.0, 1.0


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


def measure(method: str, adapters: list[LoraAdapter], repeats: int) -> dict[str, Any]:
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
        compiled = compile_recipe(recipe, loaded, term, SHAPES, BASE)
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


def line(row: dict[str, Any]) -> str:
    memory, files = row["memory"], row["files"]
    numbers = [f"{source[key]:7.1f}" for source in (memory, files) for key in ("median_ms", "best_ms", "cpu_ms")]
    over = memory["median_ms"] >= BAR_MS and not row["method"].endswith("svd")
    flag = "  over the bar" if over else ""
    return f"{row['method']:30s} {memory['rank']:4d} {memory['mb']:6.1f} {''.join(numbers)}{flag}"


def measure_memory(adapters: list[LoraAdapter]) -> dict[str, float]:
    """What a compiled linear merge adds to the resident memory, beside its own arrays."""
    loaded = {adapter.name: adapter for adapter in adapters}
    recipe = Recipe("linear", tuple(loaded))
    compile_recipe(recipe, loaded, None, SHAPES, BASE)
    before = resident_mb()
    kept = [compile_recipe(recipe, loaded, None, SHAPES, BASE) for _ in range(3)]
    after = resident_mb()
    pairs = sum(compiled.nbytes for compiled in kept if compiled is not None) / 1e6
    return {"resident_mb_per_recipe": (after - before) / 3, "pairs_mb_per_recipe": pairs / 3}


def measure_switch(adapters: list[LoraAdapter]) -> float:
    """ms to get from a recipe, made anew each time, to its compiled adapter: what the engine does for a request."""
    loaded = {adapter.name: adapter for adapter in adapters}
    choices = [(method, tuple(loaded)) for method in ("linear", "peft_linear")]
    compiled = {}
    for method, names in choices:
        recipe = Recipe(method, names)
        compiled[recipe.key] = compile_recipe(recipe, loaded, None, SHAPES, BASE)
    rounds = 1000
    started = time.perf_counter()
    for i in range(rounds):
        assert compiled[Recipe(*choices[i % 2]).key] is not None
    return 1e3 * (time.perf_counter() - started) / rounds


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapters", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--methods", help="only these, between commas")
    parser.add_argument("--svd", action="store_true", help="the factored SVD forms too (svd, slerp_svd)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    backend("numba")
    wanted = arguments.methods.split(",") if arguments.methods else None
    dense = ("ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
    names = [
        m.name
        for m in methods()
        if m.merge is not None
        and m.name not in dense
        and (wanted is None or m.name in wanted)
        and (arguments.svd or not m.name.endswith("svd"))
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = [random_pairs(i) for i in range(arguments.adapters)]
        in_memory = [LoraAdapter(f"a{i}", p) for i, p in enumerate(pairs)]
        from_files = [write_fp16(Path(folder) / f"a{i}", p) for i, p in enumerate(pairs)]
        print(f"{'ms: median, best, CPU':30s} {'rank':>4s} {'MB':>6s} {'from memory':>22s} {'from fp16 files':>22s}")
        for name in names:
            row = {"method": name, "memory": measure(name, in_memory, arguments.repeats)}
            row["files"] = measure(name, from_files, arguments.repeats)
            rows.append(row)
            print(line(row), flush=True)
        memory_facts = measure_memory(in_memory)
        switch = measure_switch(in_memory)
    print(
        f"switch: {switch:.4f} ms; resident memory per compiled linear merge: "
        f"{memory_facts['resident_mb_per_recipe']:.1f} MB, its pairs {memory_facts['pairs_mb_per_recipe']:.1f} MB"
    )
    result = {"machine": facts(), "rows": rows, "switch_ms": switch, **memory_facts}
    result["bars"] = {"compile_ms": BAR_MS, "switch_ms": SWITCH_BAR_MS}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({"switch_ms": switch, "slowest_ms": max(row["memory"]["median_ms"] for row in rows)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
