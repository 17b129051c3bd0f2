"""Where the time of a step goes, and what makes sure that it adds up.

Three clocks are read. The outer one goes around everything that is repeated. Within it every step has its marks: the
model's forward begins, it ends, the token is chosen. Inside the forward the kernels' own clock (`model.clock`) adds up
the time of each operation, as thread 0 sees it. So

    step = python + forward + sampling             python: from one step's end to the next one's begin
    forward = sum of the operations + call         call: the way from Python into the kernels and back

"call" is a remainder, of two clocks that do not know each other: were the kernels' clock to count something twice, it
would become negative. It is cut off at 0 then, so `closure`, the sum of all parts by the outer clock's whole, is above
1; where a mark misses something, closure is below 1. The tests hold it within 3 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from edgecal_kernels.clock import PARTS

from ..adapters.compiled import RunningAdapter
from ..cache import KVCache
from ..errors import OptionError
from ..model import Model

SAMPLING, CALL, PYTHON = "sampling", "call", "python"
ALL_PARTS = (*PARTS, SAMPLING, CALL, PYTHON)
LABELS = {
    "embed": "embedding",
    "norm": "norms",
    "qkv": "Q, K, V",
    "rope": "rope, cache",
    "attention": "attention",
    "output": "attention out",
    "gate_up": "gate, up",
    "down": "down",
    "head": "head",
    "lora": "LoRA",
    SAMPLING: "sampling",
    CALL: "call overhead",
    PYTHON: "Python loop",
}


@dataclass
class Split:
    """Mean seconds of a step by part. `whole_s` is the outer clock's; `steps` how many were averaged (0: none).

    A step is one token of a decode, or one whole prompt.
    """

    parts: dict[str, float] = field(default_factory=dict)
    whole_s: float = 0.0
    steps: int = 0

    @property
    def closure(self) -> float:
        """Sum of the parts by the whole; 1 when nothing is missing and nothing counted twice."""
        return sum(self.parts.values()) / self.whole_s if self.whole_s else 1.0

    def plus(self, other: Split) -> Split:
        """The mean over the steps of both."""
        steps = self.steps + other.steps
        if not steps:
            return Split()

        def mean(a: float, b: float) -> float:
            return (a * self.steps + b * other.steps) / steps

        names = {**self.parts, **other.parts}
        parts = {name: mean(self.parts.get(name, 0.0), other.parts.get(name, 0.0)) for name in names}
        return Split(parts, mean(self.whole_s, other.whole_s), steps)


@dataclass(frozen=True)
class TimedStep:
    """One forward and what followed it; seconds. `start_s` counts from the same moment for all steps of a trace.

    `kind`: "prefill" (a chunk of a prompt) or "decode" (a token, with what was drafted behind it). `before_s` is
    what passed since the step before ended, and what keeping this one took. `parts` is empty where the kernels'
    clock was off.
    """

    kind: str
    start_s: float
    forward_s: float
    before_s: float
    tokens: int
    depth: int  # positions in the cache before it
    sample_s: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def end_s(self) -> float:
        return self.start_s + self.forward_s + self.sample_s


def split_of(steps: Sequence[TimedStep], whole_s: float, n: int) -> Split:
    """The mean of `n` steps whose forwards are `steps` and which took `whole_s` in all by an outer clock."""
    if not steps or n < 1:
        return Split()
    names = [name for name in PARTS if any(step.parts.get(name) for step in steps)]
    parts = {name: sum(step.parts.get(name, 0.0) for step in steps) for name in names}
    parts[CALL] = max(0.0, sum(step.forward_s for step in steps) - sum(parts.values()))
    parts[SAMPLING] = sum(step.sample_s for step in steps)
    parts[PYTHON] = sum(step.before_s for step in steps)
    return Split({name: parts[name] / n for name in ALL_PARTS if name in parts}, whole_s / n, n)


class Marks:
    """Stands in front of a model's forward while it is watched and keeps a TimedStep of every call.

        with Marks(model) as marks: ...

    The kernels' clock runs meanwhile, unless `operations` is False.
    """

    def __init__(self, model: Model, *, operations: bool = True) -> None:
        self.model, self.operations, self.steps = model, operations, list[TimedStep]()
        self.ended = self._returned = perf_counter()

    def __enter__(self) -> Marks:
        if "forward" in vars(self.model):
            raise OptionError("this model is being profiled already: one profile at a time")
        self._forward = self.model.forward
        self.model.forward = self.forward  # type: ignore[method-assign]
        self.model.clock.running = self.operations
        self.ended = perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        del self.model.forward
        self.model.clock.running = False

    def forward(self, ids: Any, cache: KVCache, adapter: RunningAdapter | None = None, **options: Any) -> Any:
        """As `Model.forward`."""
        clock, depth = self.model.clock, cache.length
        clock.reset()
        start = perf_counter()
        logits = self._forward(ids, cache, adapter, **options)
        end = perf_counter()
        parts = clock.seconds() if self.operations else {}
        kind = "decode" if len(ids) == 1 or options.get("all_logits") else "prefill"
        self.steps.append(TimedStep(kind, start, end - start, start - self.ended, len(ids), depth, parts=parts))
        self.ended, self._returned = end, perf_counter()
        return logits

    def sampled(self) -> None:
        """A token was chosen from the last forward's logits, just now. What keeping the step took is no sampling."""
        now, last = perf_counter(), self.steps[-1]
        kept = self._returned - last.start_s - last.forward_s
        self.steps[-1] = replace(last, sample_s=now - self._returned, before_s=last.before_s + kept)
        self.ended = now
