"""A compiled recipe as a PEFT adapter: adapter_config.json beside adapter_model.safetensors, loadable by PEFT itself.

Every method compiles to one low-rank pair per module, and a pair is a LoRA, so nothing is lost on the way: r is the
largest rank, `rank_pattern` has the others, and alpha equals the rank everywhere (`alpha_pattern`), so that the scaling
is 1 and the factors are written as they run. Two things have no place in PEFT's file: a bias on the output (Learnable
Calibration with bias_mode "output"), which is refused by name, and numbers beyond the range of fp16 in an fp16 file.

A new directory appears complete or not at all. In a directory that exists each of the two files is replaced in one
step, weights first, and anything else in it is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgecal_weights.file_kind import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from edgecal_weights.files import exchange, expand, reason, staging_directory, write_json
from edgecal_weights.peft_adapter import tensor_name
from edgecal_weights.safetensors_file import write_safetensors

from ..errors import AdapterError, StorageError
from .calibration import component
from .compiled import CompiledAdapter

DTYPES = {"fp32": np.float32, "fp16": np.float16}


def write_peft(
    compiled: CompiledAdapter,
    directory: str | Path,
    *,
    base_model_name: str | None = None,
    shapes: Mapping[str, tuple[int, int]] | None = None,
    dtype: Literal["fp32", "fp16"] = "fp32",
    force: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write `compiled` to `directory` and return that.

    `base_model_name` is noted in the configuration. With the base's `shapes` ({path: (d, k)}), target_modules names a
    component (q_proj) where all of its modules are changed; without them it lists every module. `metadata` goes into
    the header of the safetensors file. Raises AdapterError for what PEFT's file cannot express, StorageError when
    `directory` is not empty and `force` is not given, or when the disk does not take it.
    """
    directory = expand(directory, StorageError)
    tensors = _tensors(compiled, dtype)
    config = _config(compiled, base_model_name, shapes)
    try:
        occupied = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    except OSError as error:
        raise StorageError(f"{directory} could not be written: {reason(error)}") from error
    if occupied and not force:
        raise StorageError(f"{directory} exists already; --force replaces the adapter in it")
    if occupied and not directory.is_dir():
        raise StorageError(f"{directory} is not a directory")
    try:
        _write(directory, tensors, config, {"format": "pt", **(metadata or {})})
    except (OSError, StorageError) as error:  # the second names a file of the staging directory
        raise StorageError(f"{directory} could not be written: {reason(error.__cause__ or error)}") from error
    return directory


def _tensors(compiled: CompiledAdapter, dtype: str) -> dict[str, np.ndarray[Any, Any]]:
    if dtype not in DTYPES:
        raise AdapterError(f"dtype {dtype!r}: expected {' or '.join(DTYPES)}")
    tensors = {}
    for module, pair in compiled.pairs.items():
        if pair.bias is not None:
            raise AdapterError(
                f"{compiled.method} has a bias at {module} (the calibration's bias_mode is 'output'), which a LoRA of "
                "PEFT cannot express"
            )
        if pair.rank == 0:
            continue
        for factor, values in (("A", pair.a), ("B", pair.b)):
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(values, DTYPES[dtype])
            if not np.isfinite(stored).all():
                largest = float(np.abs(values).max())
                advice = f"the largest is {largest:g}, fp16 ends at 65504; write fp32" if np.isfinite(largest) else ""
                raise AdapterError(f"lora_{factor} of {module} has numbers that {dtype} cannot hold: {advice}")
            tensors[tensor_name(module, factor)] = stored
    if not tensors:
        raise AdapterError(f"{compiled.method} compiled to nothing that an adapter could hold")
    return tensors


def _config(
    compiled: CompiledAdapter, base_model_name: str | None, shapes: Mapping[str, tuple[int, int]] | None
) -> dict[str, Any]:
    ranks = {module: pair.rank for module, pair in compiled.pairs.items() if pair.rank}
    pattern = _rank_pattern(ranks)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name,
        "r": compiled.rank,
        "lora_alpha": compiled.rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": _targets(ranks, shapes),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _rank_pattern(ranks: Mapping[str, int]) -> dict[str, int]:
    """Modules below the largest rank: a component where all of its modules agree, else each by its path."""
    largest = max(ranks.values())
    by_component: dict[str, dict[str, int]] = {}
    for module, rank in ranks.items():
        by_component.setdefault(component(module), {})[module] = rank
    pattern: dict[str, int] = {}
    for name, members in by_component.items():
        different = {module: rank for module, rank in members.items() if rank != largest}
        if len(different) == len(members) and len(set(different.values())) == 1:
            pattern[name] = next(iter(different.values()))
        else:
            pattern.update(different)
    return pattern


def _targets(ranks: Mapping[str, int], shapes: Mapping[str, tuple[int, int]] | None) -> list[str]:
    if shapes is None:
        return list(ranks)
    partly = {component(module) for module in shapes if module not in ranks}
    return list(dict.fromkeys(module if component(module) in partly else component(module) for module in ranks))


def _write(
    directory: Path, tensors: dict[str, np.ndarray[Any, Any]], config: dict[str, Any], metadata: dict[str, str]
) -> None:
    with staging_directory(directory) as staged:
        write_safetensors(staged / ADAPTER_WEIGHTS, tensors, metadata)
        write_json(staged / ADAPTER_CONFIG, config, indent=2)
        if not directory.exists() or not any(directory.iterdir()):
            os.replace(staged, directory)  # POSIX lets an empty directory be replaced
        elif _holds_nothing_else(directory) and exchange(staged, directory):
            return  # the old ones go with the staging directory
        else:
            # Without a configuration in between: one that does not belong to the weights would be believed
            (directory / ADAPTER_CONFIG).unlink(missing_ok=True)
            os.replace(staged / ADAPTER_WEIGHTS, directory / ADAPTER_WEIGHTS)
            os.replace(staged / ADAPTER_CONFIG, directory / ADAPTER_CONFIG)


def _holds_nothing_else(directory: Path) -> bool:
    return {path.name for path in directory.iterdir()} <= {ADAPTER_WEIGHTS, ADAPTER_CONFIG}
