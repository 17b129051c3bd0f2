"""Profiling: where every millisecond and every byte of a token goes, per composition method.

    report = measure(engine, {"linear": Recipe("linear", ("a", "b")), "base": None})
    report.methods[0].decodes[0].rate               # tokens per second
    report.methods[0].decodes[0].split.parts        # seconds per token: qkv, attention, lora, sampling ...

    with Profile(engine) as p:                       # one's own generations, watched
        engine.generate("Summarize ...", recipe=recipe)
    print(p.split().parts)

`docs/profile.md` says how every figure is measured and what its traps are. Nothing here is imported by the engine, and
nothing is measured, or slower, unless a profile is running.
"""

from __future__ import annotations

from .compare import ProfileComparison, compare
from .context import Profile
from .plan import Plan
from .results import DecodeCase, Memory, MethodResult, ProfileReport, PromptCase, load
from .run import ProfileRun, measure
from .split import Split, TimedStep
from .statistics import Summary

__all__ = [
    "DecodeCase",
    "Memory",
    "MethodResult",
    "Plan",
    "Profile",
    "ProfileComparison",
    "ProfileReport",
    "ProfileRun",
    "PromptCase",
    "Split",
    "Summary",
    "TimedStep",
    "compare",
    "load",
    "measure",
]
