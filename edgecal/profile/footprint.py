"""Bytes: what a model's weights take, what a step reads of them, and how much of that is resident.

Sizes are those of the arrays, so they can be checked against the files. What is resident is asked of the kernel: a
mapped file counts as far as its pages were touched, so before the first token a packed model takes next to nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np

from edgecal_kernels.quant import QuantizedTensor

from ..adapters.compiled import RunningAdapter, RunningPair
from ..cache import position_bytes
from ..engine import Engine
from ..memory import resident
from ..model import Model
from .results import ModelFacts


def model_facts(engine: Engine, source: str) -> ModelFacts:
    """Everything about the base that a profile needs, without running it."""
    model, c = engine.model, engine.model.config
    formats: Counter[str] = Counter()
    for weight in model.arrays.values():
        formats[weight.format if isinstance(weight, QuantizedTensor) else "fp32"] += weight.nbytes
    table = 0 if c.tie_word_embeddings else model.embed_tokens.nbytes  # a step reads one row of it
    products = sum(d * k for d, k in (*model.linear_shapes.values(), model.lm_head.shape))
    return ModelFacts(
        source=source,
        family=c.family,
        n_layers=c.n_layers,
        hidden_size=c.hidden_size,
        vocab_size=c.vocab_size,
        context=c.max_position_embeddings,
        formats=dict(formats.most_common()),
        weight_bytes=model.weight_bytes,
        read_bytes=model.weight_bytes - table,
        operations=2 * products,
        position_bytes=position_bytes(c, engine.cache_dtype),
        # scores and mixture: q k^T and p v, each a multiplication and an addition per element of a head
        position_operations=4 * c.n_layers * c.n_heads * c.head_dim,
        cache_dtype=engine.cache_dtype,
        backend=model.ops.NAME,
    )


def adapter_operations(adapter: RunningAdapter | None) -> int:
    """Of the pairs, per token."""
    if adapter is None:
        return 0
    return sum(_pair_operations(pair) for pair in adapter.pairs.values())


def _pair_operations(pair: RunningPair) -> int:
    return 0 if pair.a is None or pair.b is None else 2 * pair.rank * (int(pair.a.shape[1]) + int(pair.b.shape[0]))


def weights_resident(model: Model) -> int:
    """Bytes of the weights in memory now: mapped ones as far as the kernel has their pages, others whole."""
    ranges, owned = [], 0
    for weight in model.arrays.values():
        for array in weight.arrays.values() if isinstance(weight, QuantizedTensor) else [weight]:
            if _is_mapped(array):
                start = array.ctypes.data
                ranges.append((start, start + array.nbytes))
            else:
                owned += array.nbytes
    return min(owned + _resident_within(ranges), model.weight_bytes)


def memory_now(model: Model) -> tuple[int, int]:
    """(resident bytes of this process, those of them that are weights)."""
    return resident(), weights_resident(model)


def _is_mapped(array: np.ndarray[Any, Any]) -> bool:
    """Whether the array's memory comes from a buffer that is not NumPy's."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.base is None:
            return False
        base = base.base
    return True


def _resident_within(ranges: list[tuple[int, int]]) -> int:
    """Bytes of these address ranges that are in memory, by /proc/self/pagemap; all of them where it cannot be read.

    A mapping may be resident beyond the arrays (its header, the padding between tensors), so smaps is too coarse.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            for start, end in _merged(ranges):
                first, last = start // page, -(-end // page)
                file.seek(8 * first)
                entries = np.frombuffer(file.read(8 * (last - first)), np.uint64)
                total += int((entries >> np.uint64(63)).sum()) * page
    except OSError:
        return sum(end - start for start, end in ranges)
    return total


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Without overlaps, and without gaps below a page, so that no page counts twice."""
    page = os.sysconf("SC_PAGE_SIZE")
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start // page <= -(-merged[-1][1] // page):
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
