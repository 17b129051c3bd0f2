"""What `write_peft` writes, loaded by PEFT into transformers: the logits are those of edgecal with the recipe itself.

fp32 on both sides, every position of a prompt, 2e-4 absolute.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from edgecal.adapters import Recipe
from edgecal.adapters.export import write_peft
from edgecal.cache import KVCache
from edgecal.decoding.generate import prefill
from edgecal.engine import Engine
from edgecal_weights.calibration_file import read_calibration, write_calibration
from tests.tiny import COMPONENTS, write_tiny_adapter, write_tiny_calibration, write_tiny_hf

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning")]

PAIR = ("one", "two")
IDS = [5, 90, 33, 271, 8, 120, 64, 7, 7, 200]
CALIBRATED = ("learnable_calibration", "learnable_calibration_pp", "projection_merge", "dam")
RECIPES: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("single", ("small",), {}),
    ("concat", (*PAIR, "small"), {"weights": (0.5, 0.3, 0.2)}),
    ("linear", PAIR, {}),
    ("peft_linear", PAIR, {"weights": (0.3, -0.2)}),
    ("ties", PAIR, {"options": (("density", 0.5),)}),
    ("dare_ties", PAIR, {"options": (("density", 0.7), ("seed", 3))}),
    ("slerp", PAIR, {"options": (("t", 0.3),)}),
    ("svd", (*PAIR, "small"), {"options": (("svd_rank", 3),)}),
    ("ties_svd", (*PAIR, "small"), {}),
    ("lm_cocktail", PAIR, {"options": (("losses", (1.0, 2.0)),)}),
    *((method, PAIR, {}) for method in CALIBRATED),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ "small" has another rank in one component and leaves out some modules."""
    root = tmp_path_factory.mktemp("merged")
    write_tiny_hf(root / "model", "qwen2")
    for seed, name in enumerate(PAIR):
        write_tiny_adapter(root / name, root / "model", rank=4, seed=seed, lora_alpha=1.5)
    write_tiny_adapter(
        root / "small", root / "model", rank=2, seed=7, lora_alpha=0.5, components=[*COMPONENTS[:2], "down_proj"]
    )
    for method in CALIBRATED[:3]:
        write_tiny_calibration(root / f"{method}.safetensors", root / "model", {n: root / n for n in PAIR}, method)
    made = read_calibration(root / "learnable_calibration_pp.safetensors")
    rng = np.random.default_rng(5)
    scales = {
        component: {m: rng.normal(size=members["P1"].shape[1]).astype(np.float32) for m in ("m1", "m2")}
        for component, members in made.groups.items()
    }
    dam = dataclasses.replace(made, method="dam", weights=(1.0, 1.0), groups=scales, rank=None)
    write_calibration(root / "dam.safetensors", dam)
    return root


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    paths = {name: folder / name for name in (*PAIR, "small")}
    return Engine.load(folder / "model", weights="fp32", adapters=paths, backend="numpy", cache_dtype="fp32")


@pytest.mark.parametrize(("method", "names", "values"), RECIPES, ids=[row[0] for row in RECIPES])
def test_logits(
    folder: Path, engine: Engine, tmp_path: Path, method: str, names: tuple[str, ...], values: dict[str, Any]
) -> None:
    calibration = str(folder / f"{method}.safetensors") if method in CALIBRATED else None
    (compiled,) = engine.merge(Recipe(method, names, calibration=calibration, **values))
    assert compiled is not None
    write_peft(compiled, tmp_path / "out", base_model_name=str(folder / "model"), shapes=engine.model.linear_shapes)
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    with torch.no_grad():
        wanted = theirs(torch.tensor([IDS])).logits[0].numpy()
    found = logits(engine, engine.model.run_form(compiled))
    assert np.abs(found - logits(engine, None)).max() > 0.05  # the adapter does something
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)


def logits(engine: Engine, adapter: Any) -> np.ndarray:
    """Of the last position after each prefix, float32 (T, V)."""
    rows = []
    for stop in range(1, len(IDS) + 1):
        cache = KVCache(engine.model.config, "fp32")
        rows.append(prefill(engine.model, IDS[:stop], cache, adapter).copy())
    return np.stack(rows)
