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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter

from edgecal_kernels.clock import PARTS, Clock

from ..model import Model
from ..observer import Forward

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

    `kind`, `tokens`, `depth` and `rows` are as in `Forward`; with several rows `sample_s` is choosing a token for each.
    `before_s` is what passed since the step before ended, and what keeping this one took. `parts` is empty where the
    kernels' clock was off.
    """

    kind: str
    start_s: float
    forward_s: float
    before_s: float
    tokens: int
    depth: int
    rows: int = 1
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
    """Observes a model and keeps a step of every forward; see `marked`. `clock` None: the kernels' clock stays off.

    A step begins where the one before ended, `ended`. Set it where something else than the step before ends a wait.
    """

    def __init__(self, clock: Clock | None) -> None:
        self.clock, self.steps = clock, list[TimedStep]()
        self.ended = self._began = self._kept = perf_counter()
        self._forward = Forward("decode", 0, 0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The kernels' clock runs in the block."""
        self.ended = perf_counter()
        if self.clock is not None:
            self.clock.running = True
        try:
            yield
        finally:
            if self.clock is not None:
                self.clock.running = False

    def forward_began(self, forward: Forward) -> None:
        self._forward = forward
        if self.clock is not None:
            self.clock.reset()
        self._began = perf_counter()

    def forward_ended(self) -> None:
        end, began, f = perf_counter(), self._began, self._forward
        parts = {} if self.clock is None else self.clock.seconds()
        step = TimedStep(f.kind, began, end - began, began - self.ended, f.tokens, f.depth, f.rows, parts=parts)
        self.steps.append(step)
        self.ended, self._kept = end, perf_counter()

    def sampled(self) -> None:
        """A token was chosen from the last forward's logits, just now. What keeping the step took is no sampling."""
        now, last = perf_counter(), self.steps[-1]
        kept = self._kept - last.start_s - last.forward_s
        self.steps[-1] = replace(last, sample_s=now - self._kept, before_s=last.before_s + kept)
        self.ended = now

    def sampled_in(self, seconds: float) -> None:
        """Choosing a token from the last forward's logits took so long, says who chose it; for each of its rows."""
        last = self.steps[-1]
        self.steps[-1] = replace(last, sample_s=last.sample_s + seconds)
        self.ended = self.steps[-1].end_s


@contextmanager
def marked(model: Model) -> Iterator[Marks]:
    """Marks of every forward in the block, the kernels' clock running. OptionError: the model is observed already."""
    marks = Marks(model.clock)
    with model.observed(marks), marks.running():
        yield marks
