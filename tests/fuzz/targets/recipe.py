"""A recipe, as YAML and as JSON, in both spellings; and what else is written like one: evaluations, prompt sets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from edgecal.adapters import Recipe
from edgecal.benchmark import EvalConfig
from edgecal.benchmark.prompts import load_prompts

from ..mutate import words
from ..target import Target, all_of

_SEEDS = (
    "method: ties\nadapters: [{path: adapters/a, weight: 0.6}, {name: b, weight: 0.4}]\noptions: {density: 0.5}\n",
    "merge_method: task_arithmetic\nbase_model: org/base\nparameters: {lambda: 0.5, normalize: true}\nmodels:\n"
    "  - {model: adapters/a, parameters: {weight: 0.6}}\n  - {model: org/base+adapters/b, parameters: {weight: 1}}\n",
    "method: multi_step\nsteps:\n  - {adapter: a, instruction: Shorten}\n  - {adapter: null, instruction: 'Polish'}\n",
    "method: in_context\nshots: [{input: 'x', output: \"y\"}]\n",
    "method: learnable_calibration_pp\nadapters: [a, b]\ncalibration: pair.safetensors\n",
    '{"method": "linear", "adapters": ["a", "b"], "weights": [0.5, 0.5]}',
    "model: demo\ntasks: [summarize+professional]\ndata: mini\nadapters: {summarize: a}\nmethods: [linear, {name: x, "
    "method: ties, weights: [1, 2], options: {density: 0.5}, shots: 2}]\nabout: {size: 1e3}\nlimit: 3\n",
    "layout: user\nsummarize: 'Summarize this {tone} {{text}}'\n",
)
_WORDS = (
    "method: ", "adapters: ", "weights: ", "options: ", "density: 0.5", "seed: ", "models: ", "parameters: ", "t: ",
    "merge_method: ", "slerp", "dare_ties", "concat", "linear", "base_model: ", "calibration: ", "steps: ", "shots: ",
    "- ", "\n", "  ", "{", "}", "[", "]", ", ", ": ", "? ", "&a ", "*a", "!!python/object:os.system ", "!!binary ",
    "<<: ", "|", ">", "'", '"', "\\", "~", "null", "true", ".nan", "-.inf", "1e999", "9" * 400, "9" * 5000, "0x1",
    "---", "%YAML 1.1\n", "#", "\t", "\0", "\x1b[2J", "\u2028", "\ufeff", "[" * 300, "{a: " * 200, "x" * 700,
    "{tone!r:>9}", "../", "~nobody/", "/dev/zero", "demo:summarize", "normalize: false", "lambda: ", "rescale: true",
    "name: ", "path: ",
)  # fmt: skip


def prepare(folder: Path) -> list[bytes]:
    return [seed.encode() for seed in _SEEDS]


def run(data: bytes, folder: Path) -> None:
    reads: list[Callable[[], object]] = []
    for name in ("recipe.yaml", "recipe.json"):
        path = folder / name
        path.write_bytes(data)
        reads += [partial(_recipe, path), partial(EvalConfig.from_file, path), partial(load_prompts, str(path))]
    all_of(reads)


def _recipe(path: Path) -> None:
    recipe = Recipe.from_file(path)
    again = Recipe.from_dict(recipe.to_dict())
    assert again.key == recipe.key


TARGET = Target(run, prepare, words(_WORDS), seconds=6.0)  # it is read six times
