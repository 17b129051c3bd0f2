"""Diagnosis: the measures are those of the dense matrices, and whatever does nothing or does not fit is said."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from edgecal.adapters import CompiledPair, LoraAdapter, LoraPair
from edgecal.adapters.gram import Factors, cosine
from edgecal.inspection.diagnosis import Diagnosis, diagnose, weight_norm
from edgecal_weights.opening import open_checkpoint
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf

PAIR = ("summary", "formal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("diagnosis")
    write_tiny_hf(root / "model")
    write_tiny_hf(root / "qwen", "qwen2", hidden_size=32)
    for seed, name in enumerate(PAIR, 1):
        write_tiny_adapter(root / name, root / "model", seed=seed, rank=2 + seed)
    write_tiny_adapter(root / "attention", root / "model", components=("q_proj", "v_proj"))
    return root


def look(folder: Path, adapters: dict[str, Path], calibration: Path | None = None, model: str = "model") -> Diagnosis:
    with open_checkpoint(folder / model) as checkpoint:
        return diagnose(checkpoint, adapters, calibration, model=model)


def edit(adapter: Path, target: Path, change) -> Path:
    """A copy whose tensors went through `change(name, tensor)`; None leaves one out."""
    shutil.copytree(adapter, target)
    tensors = {n: change(n, t) for n, t in load_file(target / "adapter_model.safetensors").items()}
    save_file({n: t for n, t in tensors.items() if t is not None}, target / "adapter_model.safetensors")
    return target


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.floats(-3, 3), st.integers(0, 9))
def test_factors_measure_what_the_dense_matrix_has(rank, other_rank, d, k, scaling, seed):
    rng = np.random.default_rng(seed)
    first = LoraPair(rng.standard_normal((rank, k), np.float32), rng.standard_normal((d, rank), np.float32), scaling)
    second = CompiledPair(
        rng.standard_normal((other_rank, k), np.float32), rng.standard_normal((d, other_rank), np.float32)
    )
    dense = scaling * first.b.astype(float) @ first.a, second.b.astype(float) @ second.a
    ours, theirs = Factors.of(first), Factors.of(second)
    assert ours.norm() == pytest.approx(np.linalg.norm(dense[0]), rel=1e-9, abs=1e-6)
    assert ours.inner(theirs) == pytest.approx(np.sum(dense[0] * dense[1]), rel=1e-9, abs=1e-6)
    np.testing.assert_allclose(ours.rows(0, d, 2), dense[0][::2], atol=1e-12)


def test_cosine():
    assert cosine(2, 1, 2) == 1 and cosine(-2.0000001, 1, 2) == -1
    assert math.isnan(cosine(0, 0, 1))


def test_healthy_adapters(folder):
    report = look(folder, {name: folder / name for name in PAIR})
    assert report.healthy and report.problems == [] and report.n_modules == 14
    model = load_file(folder / "model" / "model.safetensors")
    loaded = [LoraAdapter.load(folder / name) for name in PAIR]
    for adapter, diagnosis in zip(loaded, report.adapters, strict=True):
        assert {change.module for change in diagnosis.changes} == set(adapter.shapes)
        for change in diagnosis.changes:
            delta = np.linalg.norm(adapter.pairs[change.module].delta())
            assert change.norm == pytest.approx(delta, rel=1e-5)
            assert change.ratio == pytest.approx(delta / np.linalg.norm(model[f"{change.module}.weight"]), rel=1e-5)
            assert change.scaling == 2 and change.rank == adapter.shapes[change.module].rank
            assert change.layer == int(change.module.split(".")[2])
    for overlap in report.overlaps:
        deltas = [
            np.concatenate([a.pairs[m].delta().ravel() for m in a.shapes if m.endswith(overlap.component)])
            for a in loaded
        ]
        expected = np.dot(*deltas) / np.prod([np.linalg.norm(x) for x in deltas])
        assert overlap.modules == 2 and overlap.cosine == pytest.approx(expected, abs=1e-5)
    assert len(report.overlaps) == 7
    assert json.loads(json.dumps(report.to_dict()))["healthy"] is True


def test_an_adapter_and_its_opposite(folder, tmp_path):
    opposite = edit(folder / "summary", tmp_path / "opposite", lambda n, t: -t if "lora_B" in n else t)
    report = look(folder, {"a": folder / "summary", "b": opposite})
    assert all(overlap.cosine == pytest.approx(-1) for overlap in report.overlaps)


def test_what_an_adapter_leaves_alone(folder):
    report = look(folder, {"attention": folder / "attention"})
    assert report.healthy and len(report.adapters[0].changes) == 4 and len(report.adapters[0].untouched) == 10
    assert "leaves 10 modules of the model alone: down_proj" in report.notes[-1]


def test_zeros_have_no_effect(folder, tmp_path):
    dead = edit(folder / "summary", tmp_path / "dead", lambda n, t: 0 * t if "lora_B" in n else t)
    report = look(folder, {"dead": dead, "formal": folder / "formal"})
    assert not report.healthy and "adapter dead has no effect at all: its factors are zero" in report.problems[0]
    assert all(math.isnan(overlap.cosine) for overlap in report.overlaps)
    assert "NaN" not in json.dumps(report.to_dict())
    partly = edit(folder / "summary", tmp_path / "partly", lambda n, t: 0 * t if "1.mlp.up_proj.lora_A" in n else t)
    report = look(folder, {"partly": partly})
    assert report.problems == ["adapter partly has no effect on model.layers.1.mlp.up_proj: dW is zero there"]
    assert report.to_dict()["adapters"][0]["without_effect"] == ["model.layers.1.mlp.up_proj"]


def test_an_adapter_stronger_than_the_base(folder, tmp_path):
    loud = edit(folder / "attention", tmp_path / "loud", lambda n, t: 1000 * t)
    assert any("stronger than the base" in note for note in look(folder, {"loud": loud}).notes)


def test_adapters_of_another_model(folder):
    report = look(folder, {"summary": folder / "summary"}, model="qwen")
    assert not report.healthy and "is for another base" in report.problems[0]
    assert len(report.adapters[0].misshapen) == 14 and report.adapters[0].changes == []


def test_an_incomplete_adapter(folder, tmp_path):
    part = edit(folder / "summary", tmp_path / "part", lambda n, t: None if "layers.1.mlp.up" in n else t)
    report = look(folder, {"part": part})
    assert report.adapters[0].absent == ["model.layers.1.mlp.up_proj"]
    assert "the file is incomplete" in report.problems[0]


def test_what_the_loader_refuses_is_a_finding(folder, tmp_path):
    dora = shutil.copytree(folder / "summary", tmp_path / "dora")
    config = json.loads((dora / "adapter_config.json").read_text())
    (dora / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    report = look(folder, {"dora": dora, "nowhere": tmp_path / "nowhere", "formal": folder / "formal"})
    assert len(report.problems) == 2 and "use_dora" in report.problems[0] and "no such path" in report.problems[1]
    assert report.adapters[2].changes and not report.adapters[0].changes


@pytest.mark.parametrize("method", ["learnable_calibration", "learnable_calibration_pp", "projection_merge"])
def test_calibrations(folder, tmp_path, method):
    adapters = {name: write_tiny_adapter(tmp_path / name, folder / "model", seed=i) for i, name in enumerate(PAIR)}
    path = write_tiny_calibration(tmp_path / "c.safetensors", folder / "model", adapters, method)
    report = look(folder, adapters, path)
    assert report.healthy and report.calibration is not None and report.calibration.method == method
    tensors = load_file(path)
    for group, term in report.calibration.terms.items():
        if method == "learnable_calibration":
            k = 96 if group == "down_proj" else 64
            dense = np.repeat(tensors[f"{group}.p"][:, None], k, axis=1)
        else:
            dense = tensors[f"{group}.P2"] @ tensors[f"{group}.P1"]
        assert term.norm == pytest.approx(np.linalg.norm(dense), rel=1e-5)
        assert math.isnan(term.ratio) == (method == "projection_merge")
    swapped = look(folder, dict(reversed(adapters.items())), path)
    assert "Swap them" in swapped.problems[0]
    other = look(folder, {"summary": folder / "summary", "formal": adapters["formal"]}, path)
    assert "was trained for other weights" in other.problems[0]
    assert "model_type is 'llama'" in look(folder, adapters, path, "qwen").problems[-1]


def test_a_calibration_of_zeros(folder, tmp_path):
    adapters = {name: write_tiny_adapter(tmp_path / name, folder / "model", seed=i) for i, name in enumerate(PAIR)}
    for method, message in {
        "learnable_calibration_pp": "it adds nothing there",
        "projection_merge": "the merged change is zero there",
    }.items():
        path = write_tiny_calibration(tmp_path / "c.safetensors", folder / "model", adapters, method)
        with safe_open(path, "np") as file:
            metadata = file.metadata()
        save_file({n: 0 * t if "P2" in n else t for n, t in load_file(path).items()}, path, metadata)
        assert message in look(folder, adapters, path).problems[0]


def test_another_file_in_the_place_of_a_calibration(folder, tmp_path):
    pickle = tmp_path / "c.pt"
    pickle.write_bytes(b"PK\x03\x04" + bytes(64))
    for path, message in {
        folder / "summary" / "adapter_model.safetensors": "this is a PEFT adapter's weights",
        folder / "model" / "model.safetensors": "this is weights of a model",
        pickle: "it is a pickle. Loading",
    }.items():
        report = look(folder, {"summary": folder / "summary"}, path)
        assert message in report.problems[0] and report.calibration is not None and report.calibration.method is None


def test_weight_norm_reads_in_blocks(folder, monkeypatch):
    monkeypatch.setattr("edgecal.inspection.diagnosis._BLOCK", 100)
    weight = load_file(folder / "model" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    with open_checkpoint(folder / "model") as checkpoint:
        norm = weight_norm(checkpoint, "model.layers.0.mlp.up_proj.weight")
    assert norm == pytest.approx(np.linalg.norm(weight.astype(float)), rel=1e-12)
