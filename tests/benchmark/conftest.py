"""A tiny model with adapters and calibrations for two tasks, examples, and the configuration of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from edgecal.benchmark import EvalConfig
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf

PARTS = ("summarize", "professional", "french")


def write_folder(root: Path) -> Path:
    write_tiny_hf(root / "model")
    for seed, name in enumerate(PARTS):
        write_tiny_adapter(root / name, root / "model", seed=seed)
    pair = {name: root / name for name in PARTS[:2]}
    for method in ("learnable_calibration", "learnable_calibration_pp"):
        write_tiny_calibration(root / f"{method}.safetensors", root / "model", pair, method)
    rows = [{"id": f"e{i}", "input": f"Ann: text {i}\nBob: yes", "reference": f"Ann says {i}."} for i in range(7)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": "model",
        "adapters": {name: name for name in PARTS},
        "calibrations": ["learnable_calibration.safetensors", "learnable_calibration_pp.safetensors"],
        "tasks": ["summarize+professional", "summarize+french"],
        "data": "rows.jsonl",
        "methods": ["zero_shot", "in_context", "linear", "learnable_calibration_pp", "multi_step"],
        "max_new_tokens": 6,
        "batch": 2,
    }
    (root / "eval.yaml").write_text(yaml.safe_dump(values))
    return root


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("eval"))


@pytest.fixture(scope="session")
def config(folder) -> EvalConfig:
    return EvalConfig.from_file(folder / "eval.yaml")
