"""Adapters and calibrations on rounded bases: what becomes of a task's loss.

    python -m bench.adapted SMOLLM2 --examples dialogsum_professional/test.jsonl --work FOLDER [--formats int4]
        [--calibrated int4] [--limit 50] [--json FILE]

The demo's adapters and calibrations were trained on SmolLM2 in fp32 (SMOLLM2: a Hugging Face directory). Here they run
on that, and on the same weights rounded plainly and rounded for the text that ships. Loss is the mean over examples of
the nats of a token of the wanted answer (`edgecal.search.losses`). Lines of the examples have `dialogue`, `summary` and
`target`, which is the summary in a professional tone. Differences to fp32 are paired by example, with their standard
errors.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from edgecal import Engine, Recipe, demo
from edgecal.quantization.calibrate import DEFAULT_TEXT
from edgecal.search.losses import Example, example_losses
from edgecal.text.tasks import instruction, user_message

from .machine import facts
from .quality import calibrated, names


def tasks(lines: list[dict[str, str]]) -> dict[str, tuple[list[Example], dict[str, Recipe]]]:
    """By name: examples, and the recipes that do the task."""
    all_recipes, summarize = demo.recipes(), instruction("summarize")
    alone = {name: all_recipes[name] for name in ("zero_shot", "single (summarize)")}
    composed = {name: all_recipes[name] for name in ("zero_shot", "linear", *demo.CALIBRATIONS)}
    summaries = [Example(user_message(summarize, line["dialogue"]), line["summary"]) for line in lines]
    in_tone = [Example(user_message(demo.TASK, line["dialogue"]), line["target"]) for line in lines]
    return {"summarize": (summaries, alone), "summarize, professional": (in_tone, composed)}


def losses(engine: Engine, lines: list[dict[str, str]]) -> dict[tuple[str, str], np.ndarray]:
    """Of each example, by task and recipe."""
    for name in demo.PAIR:
        engine.add_adapter(f"demo:{name}")
    found = {}
    for task, (examples, recipes) in tasks(lines).items():
        for name, recipe in recipes.items():
            found[task, name] = example_losses(engine, examples, engine.compile(recipe)[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--examples", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="where what is made is kept")
    parser.add_argument("--formats", type=names, default=("int4",))
    parser.add_argument("--calibrated", type=names, default=("int4",))
    parser.add_argument("--limit", type=int, default=50, help="of the examples")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    lines = [json.loads(line) for line in given.examples.read_text("utf-8").splitlines()][: given.limit]
    given.work.mkdir(parents=True, exist_ok=True)
    exact = losses(Engine.load(given.model, weights="fp32", backend="numpy"), lines)  # whose BLAS is fastest there
    bases = {name: losses(Engine.load(given.model, weights=name), lines) for name in given.formats}
    for name in given.calibrated:
        made = calibrated(given.model, name, DEFAULT_TEXT, given.work)
        bases[f"{name} calibrated"] = losses(Engine.load(made), lines)
    print(f"| {len(lines)} examples | fp32 | {' | '.join(bases)} |\n|---|---|{'---|' * len(bases)}")
    rows: list[dict[str, Any]] = []
    for (task, recipe), values in exact.items():
        row: dict[str, Any] = {"task": task, "recipe": recipe, "fp32": float(values.mean())}
        for base, found in bases.items():
            difference = found[task, recipe] - values
            row[base] = {"more": float(difference.mean()), "error": float(difference.std(ddof=1) / len(lines) ** 0.5)}
        told = " | ".join(f"{row[base]['more']:+.4f} +- {row[base]['error']:.4f}" for base in bases)
        print(f"| {task}: {recipe} | {row['fp32']:.4f} | {told} |", flush=True)
        rows.append(row)
    if given.json is not None:
        result = {"machine": facts(), "examples": len(lines), "rows": rows}
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
