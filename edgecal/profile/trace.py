"""A run as Chrome trace events, which https://ui.perfetto.dev and chrome://tracing open.

One track (thread) per method. A token is a slice, its forward and its sampling are slices within, and the operations
are slices within the forward. Trap: the kernels' clock adds an operation up over all layers, so the operations of a
token are drawn one behind the other in a fixed order, each as long as its sum; the real ones interleave layer by layer.
Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU ("X" complete events, "M"
metadata, times in microseconds).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .split import ALL_PARTS, CALL, LABELS, TimedStep

PROCESS = 1


@dataclass
class Span:
    """A phase: load, compile, a prompt, an answer. `track` is the method's name; times as `perf_counter` gives them."""

    name: str
    start_s: float
    seconds: float
    track: str
    args: dict[str, Any] = field(default_factory=dict)
    steps: Sequence[TimedStep] = ()


def trace(spans: Sequence[Span], *, title: str = "edgecal profile") -> dict[str, Any]:
    """The trace as JSON-ready data; times count from the first span."""
    origin = min((span.start_s for span in spans), default=0.0)
    tracks = {name: i for i, name in enumerate(dict.fromkeys(span.track for span in spans), 1)}
    events: list[dict[str, Any]] = [_metadata("process_name", 0, title)]
    for name, number in tracks.items():
        events.append(_metadata("thread_name", number, name))
        events.append({**_metadata("thread_sort_index", number, ""), "args": {"sort_index": number}})
    for span in sorted(spans, key=lambda s: s.start_s):
        events += _slices(span, tracks[span.track], origin)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"operations": __doc__ or ""}}


def _metadata(kind: str, track: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": PROCESS, "tid": track, "ts": 0, "args": {"name": name}}


def _slice(
    name: str, category: str, start_s: float, seconds: float, track: int, args: dict[str, Any] | None = None
) -> dict[str, Any]:
    event = {"name": name, "cat": category, "ph": "X", "pid": PROCESS, "tid": track}
    return {**event, "ts": round(1e6 * start_s, 3), "dur": round(1e6 * max(seconds, 0.0), 3), "args": args or {}}


def _slices(span: Span, track: int, origin: float) -> Iterator[dict[str, Any]]:
    yield _slice(span.name, "phase", span.start_s - origin, span.seconds, track, span.args)
    for index, step in enumerate(span.steps):
        start = step.start_s - origin
        drafted = f" + {step.tokens - 1} drafted" if step.tokens > step.rows else ""
        name = f"token {index}{drafted}" if step.rows == 1 else f"{step.rows} tokens"
        if step.kind == "prefill":
            name = f"prefill {step.tokens}"
        facts = {"depth": step.depth, "tokens": step.tokens, "rows": step.rows}
        yield _slice(name, "token", start, step.forward_s + step.sample_s, track, facts)
        yield _slice("forward", "forward", start, step.forward_s, track)
        at, left = start, step.forward_s
        for part in ALL_PARTS:
            seconds = min(step.parts.get(part, 0.0), left)  # slices must not leave the one that they lie in
            if seconds > 0:
                yield _slice(LABELS[part], "operation", at, seconds, track)
                at, left = at + seconds, left - seconds
        if step.parts and left > 0:
            yield _slice(LABELS[CALL], "operation", at, left, track)
        if step.sample_s:
            yield _slice("sampling", "operation", start + step.forward_s, step.sample_s, track)
