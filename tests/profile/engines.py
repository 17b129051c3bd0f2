"""A tiny engine with two adapters and a calibration, and a report of it that was measured in a moment."""

from __future__ import annotations

from pathlib import Path

from edgecal import Engine, Recipe, Step
from edgecal.profile import Plan, ProfileReport, ProfileRun
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf

PAIR = ("summary", "formal")
PLAN = Plan(prompts=(24,), new=(12,), depths=(0, 16), repeats=3)


def write_files(root: Path) -> Path:
    write_tiny_hf(root / "model")
    for seed, name in enumerate(PAIR):
        write_tiny_adapter(root / name, root / "model", seed=seed)
    write_tiny_calibration(root / "lcpp.safetensors", root / "model", {name: root / name for name in PAIR})
    return root


def tiny_engine(root: Path, **options) -> Engine:
    adapters = {name: root / name for name in PAIR}
    return Engine.load(root / "model", adapters=adapters, **{"weights": "int8", **options})


def recipes(root: Path) -> dict[str, Recipe | None]:
    return {
        "base": None,
        "linear": Recipe("linear", PAIR),
        "lcpp": Recipe("learnable_calibration_pp", PAIR, calibration=str(root / "lcpp.safetensors")),
        "two": Recipe("multi_step", steps=(Step("summary", "Shorten"), Step("formal", "Polish"))),
    }


def measured(engine: Engine, root: Path, plan: Plan = PLAN) -> tuple[ProfileRun, ProfileReport]:
    run = ProfileRun(engine, recipes(root), plan, source="tiny", load_s=0.5)
    return run, run.run()
