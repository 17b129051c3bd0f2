"""What counts, cycles and published bandwidths allow: tokens per second of devices that nobody here has measured.

    compute = (sum over formats of weights / 128 * cycles + other instructions / IPC) / (clock * threads)
    decode  = 1 / max(compute, bytes of weights / bandwidth)        every weight once per token, cycles of one token
    prefill = 1 / compute                                           without the head, cycles of many tokens

Cycles are llvm-mca's, whose caches never miss; "other instructions" are those counted per token outside of the loops
of products (attention, norms, rounding, Python). Nothing in it is fitted to a measurement, and a real device is slower:
the ends of loops, misses of the caches, barriers and heat are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IPC = 2.0  # of the instructions outside of products


@dataclass(frozen=True)
class Device:
    name: str
    isa: str
    core: str  # llvm-mca's model
    clock: float  # GHz
    bandwidth: Mapping[int, float]  # GB/s that reads reach, by threads
    source: str


PI_4 = "STREAM copy of a Pi 4, 5.5 GB/s, https://www.sci-pi.org.uk/bench/stream.html"
PI_5 = "Arm learning path llm-decode-roofline: reads of a Pi 5"
PHONE = "a Galaxy S24 Ultra decodes Qwen2.5-1.5B in int8 (1.5 GB) at 23 tokens/s, so it reads at least that"
DEVICES = (
    Device("Raspberry Pi 4", "neon", "cortex-a72", 1.5, {1: 5.5, 4: 5.5}, PI_4),
    Device("Raspberry Pi 5", "neon_dotprod", "neoverse-n1", 2.4, {1: 13.8, 4: 10.7}, PI_5),
    Device("phone, one large core", "neon_i8mm", "neoverse-v2", 3.0, {1: 35.0}, PHONE),
)


@dataclass(frozen=True)
class Work:
    """A model: weights by format, `head` the ones that a prompt's tokens need not, bytes that a token reads."""

    layers: Mapping[str, int]
    head: Mapping[str, int]
    bytes: float


def cycles(weights: Mapping[str, int], kind: str, loops: Mapping[str, Any], figure: str = "cycles") -> float:
    return sum(n / 128 * loops[f"{format} {kind}"][figure] for format, n in weights.items())


def others(work: Work, counted: Mapping[str, Any], loops: Mapping[str, Any]) -> dict[str, float]:
    """Instructions per token outside of the products' loops, from a count on the instruction set of `loops`."""
    total = {part: sum(counted[part].values()) for part in ("prefill", "decode")}
    decode = cycles(work.layers, "one", loops, "instructions") + cycles(work.head, "one", loops, "instructions")
    prefill = cycles(work.layers, "many", loops, "instructions")
    return {"decode": max(total["decode"] - decode, 0.0), "prefill": max(total["prefill"] - prefill, 0.0)}


def predict(device: Device, work: Work, loops: Mapping[str, Any], rest: Mapping[str, float]) -> list[dict[str, Any]]:
    """Rows with threads, decode and prefill in tokens/s, and whether memory or arithmetic limits decoding."""
    rows = []
    for threads, bandwidth in device.bandwidth.items():
        of_decode = cycles(work.layers, "one", loops) + cycles(work.head, "one", loops) + rest["decode"] / IPC
        of_prefill = cycles(work.layers, "many", loops) + rest["prefill"] / IPC
        speed = device.clock * 1e9 * threads
        reading, computing = work.bytes / (bandwidth * 1e9), of_decode / speed
        rows.append(
            {
                "device": device.name,
                "threads": threads,
                "decode": 1 / max(reading, computing),
                "limit": "memory" if reading >= computing else "arithmetic",
                "prefill": speed / of_prefill,
            }
        )
    return rows


_LAYERS, _HEAD = 106_168_320, 28_311_552
MODELS = {  # SmolLM2-135M as its file has it, both with a head of Q8_0
    "q4_1": Work({"int4_affine": _LAYERS}, {"int8": _HEAD}, _LAYERS * 5 / 8 + _HEAD * 8.5 / 8),
    "q4_0": Work({"int4_f16": _LAYERS}, {"int8": _HEAD}, _LAYERS * 4.5 / 8 + _HEAD * 8.5 / 8),
    "int4": Work({"int4": _LAYERS}, {"int6": _HEAD}, _LAYERS * 4.25 / 8 + _HEAD * 6.5 / 8),
}
