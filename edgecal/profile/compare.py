"""Two profiles side by side: what changed, and whether that is more than noise.

Every figure is compared by the ratio of its medians over the repeats (after by before; all are times or bytes, so
above 1 is worse), with a bootstrap interval of 99 %. A regression is a ratio beyond the threshold whose interval lies
above 1. The interval knows the noise within each run only: what differed between the runs (another load, another
temperature) looks like a change. So the plain reads of memory are compared as well; where they differ, the machine
did, and it is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import OptionError
from ..machine import same_machine
from ..text.counted import counted
from .results import MethodResult, ProfileReport
from .statistics import FEWEST, Ratio, median, ratio_of_medians

_MACHINE_CHANGED = 0.1  # difference of the plain reads beyond which the machine is said to have changed


@dataclass(frozen=True)
class Change:
    """One figure of both. `unit` "s" or "B".

    `verdict`: "worse", "better", "same", or "unsure" (a change within the noise, or too few repeats to tell).
    """

    method: str
    figure: str
    unit: str
    before: float
    after: float
    ratio: Ratio
    verdict: str


@dataclass
class ProfileComparison:
    """`notes` say what makes the two hard to compare. `regressions` are the changes to the worse."""

    before: str
    after: str
    threshold: float
    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def regressions(self) -> list[Change]:
        return [change for change in self.changes if change.verdict == "worse"]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "schema": "edgecal-profile-comparison",
            "schema_version": 1,
            "regressed": bool(self.regressions),
            **asdict(self),
        }


def compare(
    before: ProfileReport, after: ProfileReport, *, threshold: float = 0.05, names: tuple[str, str] = ("A", "B")
) -> ProfileComparison:
    """OptionError when the two are about different models, or have no measurement in common."""
    if not 0 <= threshold < 10:
        raise OptionError(f"the threshold is a share such as 0.05, found {threshold}")
    _refuse_other_model(before, after, names)
    result = ProfileComparison(*names, threshold)
    theirs = {method.name: method for method in after.methods}
    several = len({c.threads for report in (before, after) for m in report.methods for c in m.decodes}) > 1
    for method in before.methods:
        if method.name in theirs:
            if method.recipe != theirs[method.name].recipe:
                result.notes.append(f"{method.name} is another recipe in {names[1]}")
            for figure, unit, a, b in _pairs(method, theirs[method.name], several):
                if median(a) > 0 and median(b) > 0:  # a clock that did not move says nothing
                    result.changes.append(_change(method.name, figure, unit, a, b, threshold))
    if not result.changes:
        raise OptionError(
            f"{names[0]} and {names[1]} have no measurement in common: their methods are "
            f"{_names(before)} and {_names(after)}, their lengths {_lengths(before)} and {_lengths(after)}"
        )
    result.notes += _notes(before, after, names)
    if any(change.unit == "s" and change.ratio.low is None for change in result.changes):
        result.notes.append(f"fewer than {FEWEST} repeats say nothing about noise: such figures are not judged (-r)")
    return result


def _refuse_other_model(before: ProfileReport, after: ProfileReport, names: tuple[str, str]) -> None:
    keys = ("family", "n_layers", "hidden_size", "vocab_size")
    a, b = ({key: getattr(report.model, key) for key in keys} for report in (before, after))
    if a != b:
        raise OptionError(
            f"{names[0]} is about {before.model.source} and {names[1]} about {after.model.source}: "
            + ", ".join(f"{key} {a[key]} and {b[key]}" for key in keys if a[key] != b[key])
        )


def _names(report: ProfileReport) -> str:
    return ", ".join(method.name for method in report.methods) or "none"


def _lengths(report: ProfileReport) -> str:
    cases = {p.label for m in report.methods for p in m.prompts} | {d.label for m in report.methods for d in m.decodes}
    return ", ".join(sorted(cases)) or "none"


def _pairs(a: MethodResult, b: MethodResult, several: bool) -> Iterator[tuple[str, str, list[float], list[float]]]:
    """(figure, unit, before, after) of what both measured; `several`: the number of threads tells cases apart."""
    decodes = {(c.threads, c.new, c.depth): c for c in b.decodes}
    for decode in a.decodes:
        other = decodes.get((decode.threads, decode.new, decode.depth))
        if other is None or not decode.runs or not other.runs:
            continue
        label = decode.label + (f", {counted(decode.threads, 'thread')}" if several else "")
        yield label, "s", [s / decode.new for s in decode.write_s], [s / other.new for s in other.write_s]
        yield f"{label}: p95", "s", [_tail(run) for run in decode.runs], [_tail(run) for run in other.runs]
    prompts = {(c.threads, c.prompt, c.depth, c.tokens_read): c for c in b.prompts}
    for prompt in a.prompts:
        theirs = prompts.get((prompt.threads, prompt.prompt, prompt.depth, prompt.tokens_read))
        if theirs is not None and prompt.first_token_s and theirs.first_token_s:
            label = prompt.label + (f", {counted(prompt.threads, 'thread')}" if several else "")
            yield f"{label}: first token", "s", prompt.first_token_s, theirs.first_token_s
    if a.compile_s and b.compile_s and a.adapter_bytes and b.adapter_bytes:
        yield "compile", "s", a.compile_s, b.compile_s
    if a.memory and b.memory and a.memory.context == b.memory.context:
        yield f"peak memory, context {a.memory.context}", "B", [float(a.memory.peak)], [float(b.memory.peak)]


def _tail(run: list[float]) -> float:
    from numpy import percentile

    return float(percentile(run, 95))


def _change(method: str, figure: str, unit: str, a: list[float], b: list[float], threshold: float) -> Change:
    ratio = ratio_of_medians(a, b)
    if unit == "B":  # one count of bytes each: nothing to draw again, and next to no noise
        low, high = ratio.value, ratio.value
    elif ratio.low is None or ratio.high is None:
        return Change(method, figure, unit, median(a), median(b), ratio, "unsure")
    else:
        low, high = ratio.low, ratio.high
    verdict = "same"
    if ratio.value > 1 + threshold:
        verdict = "worse" if low > 1 else "unsure"
    elif ratio.value < 1 / (1 + threshold):
        verdict = "better" if high < 1 else "unsure"
    return Change(method, figure, unit, median(a), median(b), ratio, verdict)


def _notes(before: ProfileReport, after: ProfileReport, names: tuple[str, str]) -> list[str]:
    notes = []
    differing = same_machine(before.machine, after.machine)
    if differing:
        notes.append("different machines or software: " + "; ".join(differing))
    if before.model.formats != after.model.formats:
        notes.append(f"different weights: {_formats(before)} and {_formats(after)}")
    for report, name in ((before, names[0]), (after, names[1])):
        if report.interrupted:
            notes.append(f"{name} was interrupted")
    only = [
        f"{name} only in {where}"
        for report, other, where in ((before, after, names[0]), (after, before, names[1]))
        for name in [m.name for m in report.methods]
        if name not in {m.name for m in other.methods}
    ]
    if only:
        notes.append("not compared: " + ", ".join(only))
    if _lengths(before) != _lengths(after):
        notes.append(f"different lengths, compared where both have them: {_lengths(before)} and {_lengths(after)}")
    for threads in sorted({read.threads for read in before.reads} & {read.threads for read in after.reads}):
        a, b = before.bandwidth(threads), after.bandwidth(threads)
        if a and b and abs(b / a - 1) > _MACHINE_CHANGED:
            notes.append(
                f"the plain read of memory ({counted(threads, 'thread')}) went from {a / 1e9:.1f} to {b / 1e9:.1f} "
                "GB/s: the machine or its load changed, not only edgecal"
            )
    return notes


def _formats(report: ProfileReport) -> str:
    return " + ".join(report.model.formats)
