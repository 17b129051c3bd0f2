"""The demo adapters against what PyTorch computed with them, method by method.

The committed reference files (tests/golden/reference, written by tests/golden/make_reference.py) hold a sample of the
rows of dW and of the vocabulary. EDGECAL_REFERENCE names a folder of further files of that format, whole or sampled,
for the same adapters; they go through the same tests.

Tolerances, in fp32: dW max |error| / max |reference| <= 1e-6; logits at the last four prompt positions within 2e-4
absolute; ids of the prompt and of the greedy answer equal. `pytest -rP` shows the figures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from edgecal import Engine, Recipe
from edgecal.adapters import Calibration, LoraAdapter, RunningAdapter, compile_recipe
from edgecal.cache import KVCache
from edgecal.decoding.generate import prefill
from edgecal.demo import ADAPTERS
from edgecal.engine import Settings
from edgecal.text.tasks import user_message

DELTA = 1e-6
LOGITS = 2e-4
COMMITTED = Path(__file__).parents[1] / "golden" / "reference"
METHODS = {
    *("zero_shot", "summarize", "professional", "linear", "concat"),
    *("learnable_calibration", "learnable_calibration_pp", "projection_merge"),
}
ON_NUMPY = ("linear", "learnable_calibration_pp")  # the same compiled pairs: two methods say all that there is to say


@dataclass(frozen=True)
class Reference:
    """One reference file: a method on a few cases. `step`: every how many rows and ids are stored."""

    path: Path

    @cached_property
    def metadata(self) -> dict[str, Any]:
        with safe_open(self.path, framework="np") as file:
            found = dict(file.metadata())
        assert (found["format"], found["version"]) == ("edgecal-reference", "1"), self.path
        return found | {key: json.loads(found[key]) for key in ("adapters", "base_model", "cases")}

    @property
    def step(self) -> int:
        return int(self.metadata.get("thin", "1"))

    def tensors(self, kind: str) -> dict[str, np.ndarray]:
        with safe_open(self.path, framework="np") as file:
            names = [name for name in file.keys() if name.startswith(f"{kind}/")]  # noqa: SIM118 (not a mapping)
            return {name.removeprefix(f"{kind}/"): file.get_tensor(name) for name in names}

    def recipe(self, export: Path) -> Recipe:
        method, calibration = self.metadata["method"], self.metadata["calibration"]
        return Recipe(
            "single" if method in ADAPTERS else method,
            tuple(entry["name"] for entry in self.metadata["adapters"]),
            calibration=str(export / calibration) if calibration else None,
        )


def collect() -> Iterator[Any]:
    folders = {"": COMMITTED}
    if os.environ.get("EDGECAL_REFERENCE"):
        folders["given-"] = Path(os.environ["EDGECAL_REFERENCE"])
    for prefix, folder in folders.items():
        files = sorted(folder.glob("*.safetensors"))
        assert files, f"no reference files in {folder}"
        yield from (pytest.param(Reference(path), id=prefix + path.stem) for path in files)


REFERENCES = list(collect())


@pytest.fixture(scope="module")
def adapters(export: Path) -> dict[str, LoraAdapter]:
    return {name: LoraAdapter.load(export / name) for name in ADAPTERS}


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, smollm2_hf: Path, export: Path) -> Engine:
    """The base in fp32 on one back end."""
    paths = {name: export / name for name in ADAPTERS}
    return Engine.load(smollm2_hf, weights="fp32", cache_dtype="fp32", backend=request.param, adapters=paths)


def test_all_methods_are_committed() -> None:
    assert {path.stem for path in COMMITTED.glob("*.safetensors")} == METHODS


@pytest.mark.parametrize("reference", REFERENCES)
def test_delta(reference: Reference, adapters: dict[str, LoraAdapter], export: Path) -> None:
    for entry in reference.metadata["adapters"]:
        assert adapters[entry["name"]].sha256 == entry["sha256"]
    recipe, wanted = reference.recipe(export), reference.tensors("delta")
    calibration = Calibration.load(recipe.calibration) if recipe.calibration else None
    shapes = {module: (shape.d, shape.k) for module, shape in adapters["summarize"].shapes.items()}
    compiled = compile_recipe(recipe, adapters, calibration, shapes, reference.metadata["base_model"])
    if compiled is None:
        assert recipe.method == "zero_shot" and not wanted
        return
    assert len(wanted) >= 3
    for module, delta in wanted.items():
        found = compiled.pairs[module].delta()[:: reference.step]
        assert found.shape == delta.shape
        error = np.abs(found - delta).max() / np.abs(delta).max()
        print(f"dW of {module}: {error:.2e}")
        assert error <= DELTA, f"{module}: {error:.2e}"


def read_prompt(engine: Engine, ids: list[int], adapter: RunningAdapter | None, cache: KVCache) -> np.ndarray:
    """Logits (4, V) at the last four positions of `ids`, which `cache` holds afterwards."""
    prefill(engine.model, ids[:-4], cache, adapter)
    return engine.model.forward(np.array(ids[-4:]), cache, adapter, all_logits=True)


def check_answer(engine: Engine, reference: Reference, export: Path) -> None:
    recipe = reference.recipe(export)
    (adapter,) = engine.compile(recipe)
    prompts, logits, answers = (reference.tensors(kind) for kind in ("input_ids", "logits_last4", "greedy_ids"))
    assert len(reference.metadata["cases"]) >= 2
    for name, case in reference.metadata["cases"].items():
        ids = engine.encode(user_message(case["instruction"], case["text"]))
        assert ids == prompts[name].tolist(), name

        cache = KVCache(engine.model.config, "fp32")
        found = read_prompt(engine, ids, adapter, cache)[:, :: reference.step]
        assert found.shape == logits[name].shape
        error = np.abs(found - logits[name]).max()
        print(f"logits of {name}: {error:.2e}")
        assert error <= LOGITS, f"{name}: {error:.2e}"

        wanted = answers[name].tolist()
        assert len(wanted) == case["n_new_tokens"]
        pieces = engine.stream_ids(ids, recipe=recipe, settings=Settings(max_tokens=len(wanted)), cache=cache)
        assert [piece.token.id for piece in pieces] == wanted, name


@pytest.mark.parametrize("engine", ["numba"], indirect=True)
@pytest.mark.parametrize("reference", REFERENCES)
def test_answer(engine: Engine, reference: Reference, export: Path) -> None:
    check_answer(engine, reference, export)


@pytest.mark.parametrize("engine", ["numpy"], indirect=True)
@pytest.mark.parametrize("reference", [r for r in REFERENCES if r.values[0].path.stem in ON_NUMPY])
def test_answer_of_the_numpy_back_end(engine: Engine, reference: Reference, export: Path) -> None:
    check_answer(engine, reference, export)
