"""The calibration file: a round trip, and a message with the key or tensor for everything that is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from edgecal_weights.calibration_file import (
    METHODS,
    AdapterReference,
    BaseModelFacts,
    CalibrationFile,
    read_calibration,
    write_calibration,
)
from edgecal_weights.errors import CalibrationError, FileFormatError, ModelNotFoundError, StorageError

SHAPES = {"q_proj": (12, 8), "down_proj": (8, 20)}
BASE = BaseModelFacts("some/base", "llama", 8, 2, 100)
ADAPTERS = (AdapterReference("one", "a" * 64), AdapterReference("two", "b" * 64))


def make(method: str, rng: np.random.Generator, rank: int = 3, **changes: Any) -> CalibrationFile:
    def array(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    groups: dict[str, dict[str, np.ndarray]] = {}
    for component, (d, k) in SHAPES.items():
        if method.removesuffix("_only") == "learnable_calibration":
            groups[component] = {"p": array(d)}
        elif method.removesuffix("_only") == "learnable_calibration_pp":
            groups[component] = {"P1": array(rank, k), "P2": array(d, rank)}
        elif method == "dam":
            groups[f"model.layers.0.{component}"] = {"m1": array(k), "m2": array(k)}
        else:
            groups[f"{k}x{d}"] = {"P1": array(rank, d), "P2": array(d, rank)}
    adapters = () if method.endswith("_only") else ADAPTERS
    weights = {"dam": (1.0, 1.0)}.get(method, (0.5, 0.5)[: len(adapters)])
    has_rank = any("P1" in members for members in groups.values())
    made = CalibrationFile(method, adapters, weights, BASE, groups, rank=rank if has_rank else None)
    return dataclasses.replace(made, **changes)


@pytest.fixture
def written(tmp_path: Path, rng: np.random.Generator) -> Path:
    write_calibration(tmp_path / "c.safetensors", make("learnable_calibration_pp", rng))
    return tmp_path / "c.safetensors"


def rewrite(path: Path, tensors: dict[str, np.ndarray] | None = None, **metadata: str | None) -> None:
    """Change the file: metadata None removes a key, tensors replace or (None) keep."""
    with safe_open(path, framework="np") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values = dict(file.metadata())
    for key, value in metadata.items():
        values.pop(key, None)
        if value is not None:
            values[key] = value
    save_file(kept | (tensors or {}), path, values)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scaling", [1.0, -0.25])
def test_round_trip(tmp_path: Path, rng: np.random.Generator, method: str, scaling: float) -> None:
    changes: dict[str, Any] = {} if method == "dam" else {"calibration_scaling": scaling}
    if method == "projection_merge":
        changes["weights"] = (0.75, -0.5)
    if method.removesuffix("_only") == "learnable_calibration":
        changes["bias_mode"] = "output"
    if not method.endswith("_only"):
        changes["shared_with"] = (ADAPTERS[::-1], (AdapterReference("three", "c" * 64), ADAPTERS[0]))
    before = make(method, rng, **changes)
    write_calibration(tmp_path / "c.safetensors", before)
    after = read_calibration(tmp_path / "c.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "c.safetensors"]
    fields = ("method", "adapters", "shared_with", "weights", "base_model", "rank", "calibration_scaling", "bias_mode")
    for field in fields:
        assert getattr(after, field) == getattr(before, field)
    assert after.groups.keys() == before.groups.keys()
    for group, members in before.groups.items():
        for name, array in members.items():
            np.testing.assert_array_equal(after.groups[group][name], array)
    assert after.n_parameters == before.n_parameters == after.nbytes / 4


def test_reads_the_shipped_files(export: Path) -> None:
    for method, parameters, rank in (
        ("learnable_calibration", 5_184, None),
        ("learnable_calibration_pp", 40_704, 4),
        ("projection_merge", 23_040, 4),
    ):
        calibration = read_calibration(export / f"{method}.safetensors")
        assert (calibration.method, calibration.n_parameters, calibration.rank) == (method, parameters, rank)
        assert [reference.name for reference in calibration.adapters] == ["summarize", "professional"]
        assert calibration.base_model.hidden_size == 576
        assert calibration.weights == (0.5, 0.5)


def test_defaults_of_absent_keys(written: Path) -> None:
    rewrite(written, calibration_scaling=None, weights=None)
    calibration = read_calibration(written)
    assert calibration.calibration_scaling == 1.0
    assert calibration.weights == (0.5, 0.5)


FACTS = {"name": "b", "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 100}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", None),
        ("format", "pt"),
        ("version", "2"),
        ("version", None),
        ("method", "calibration_9000"),
        ("method", None),
        ("adapters", None),
        ("adapters", "[]"),
        ("adapters", "{"),
        ("adapters", '["summarize"]'),
        ("adapters", '[{"name": "one", "sha256": "xyz"}]'),
        ("adapters", '[{"name": "one", "name": "two", "sha256": "' + "a" * 64 + '"}]'),
        ("adapters", '[{"name": "one", "sha256": "' + "a" * 64 + '", "path": "x"}]'),
        ("weights", "[1.0]"),
        ("weights", "[NaN, 0.5]"),
        ("weights", "[1e999, 0.5]"),
        ("weights", "[" + "9" * 400 + ", 0.5]"),
        ("weights", '["a", "b"]'),
        ("weights", "[0.7, 0.3]"),
        ("rank", None),
        ("rank", "0"),
        ("rank", "-1"),
        ("rank", "1000000000"),
        ("rank", "4.0"),
        ("calibration_scaling", "one"),
        ("calibration_scaling", "inf"),
        ("bias_mode", "columns"),
        ("base_model", None),
        ("base_model", "[1]"),
        ("base_model", json.dumps({**FACTS, "hidden_size": "8"})),
        ("base_model", json.dumps({**FACTS, "vocab_size": 0})),
        ("base_model", json.dumps({k: v for k, v in FACTS.items() if k != "model_type"})),
        ("base_model", json.dumps({**FACTS, "colour": "blue"})),
        ("trained_by", "somebody"),
        ("shared_with", "[]"),
        ("shared_with", "{}"),
        ("shared_with", "[[]]"),
        ("shared_with", '[[{"name": "one", "sha256": "' + "a" * 64 + '"}]]'),
    ],
)
def test_wrong_metadata_is_named(written: Path, key: str, value: str | None) -> None:
    rewrite(written, **{key: value})
    with pytest.raises(CalibrationError, match=f"'{key}'") as caught:
        read_calibration(written)
    assert str(written) in str(caught.value)


def test_bias_mode_is_one_of_two(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "c.safetensors"
    write_calibration(path, make("learnable_calibration", rng))
    for key, value in (("bias_mode", "rows"), ("rank", "3")):
        rewrite(path, bias_mode=None)
        rewrite(path, **{key: value})
        with pytest.raises(CalibrationError, match=f"'{key}'"):
            read_calibration(path)


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({"q_proj.P3": np.zeros((3, 8), np.float32)}, "q_proj.P3"),
        ({"query.P1": np.zeros((3, 8), np.float32)}, "query.P1"),
        (
            {"q_proj.P1": np.zeros((4, 8), np.float32)},
            r"q_proj\.P1' has shape \(4, 8\), expected \(3, columns\)",
        ),
        ({"q_proj.P2": np.zeros((3,), np.float32)}, "q_proj.P2"),
        ({"q_proj.P2": np.zeros((12, 3), np.float16)}, "q_proj.P2.*F16"),
        ({"q_proj.P2": np.full((12, 3), np.nan, np.float32)}, r"q_proj\.P2' is nan at index \(0, 0\)"),
        ({"o_proj.P1": np.zeros((3, 8), np.float32)}, r"o_proj\.P2' is missing"),
    ],
)
def test_wrong_tensors_are_named(written: Path, tensors: dict[str, np.ndarray], word: str) -> None:
    rewrite(written, tensors)
    with pytest.raises(CalibrationError, match=word):
        read_calibration(written)


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("learnable_calibration_only", "adapters", '[{"name": "one", "sha256": "' + "a" * 64 + '"}]'),
        ("learnable_calibration_only", "weights", "[]"),
        ("learnable_calibration_only", "rank", "3"),
        ("learnable_calibration_pp_only", "bias_mode", "columns"),
        ("learnable_calibration_pp_only", "shared_with", "[[]]"),
        ("dam", "weights", "[0.5, 0.5]"),
        ("dam", "calibration_scaling", "1.0"),
        ("dam", "rank", "1"),
        ("dam", "bias_mode", "columns"),
    ],
)
def test_keys_of_one_method(tmp_path: Path, rng: np.random.Generator, method: str, key: str, value: str) -> None:
    path = tmp_path / "c.safetensors"
    write_calibration(path, make(method, rng))
    rewrite(path, **{key: value})
    with pytest.raises(CalibrationError, match=f"'{key}'"):
        read_calibration(path)


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({"model.layers.0.q_proj.m3": np.zeros(8, np.float32)}, r"q_proj\.m3' is for an adapter beyond the 2"),
        ({"model.layers.1.q_proj.m1": np.zeros(8, np.float32)}, r"layers\.1\.q_proj\.m2' is missing"),
        ({"model.layers.0.q_proj.m0": np.zeros(8, np.float32)}, r"m0' is not one of dam"),
        ({"model.layers.0.lm_head.m1": np.zeros(8, np.float32)}, r"lm_head\.m1' is not one of dam"),
        ({"model.layers.0.q_proj.m1": np.zeros((8, 1), np.float32)}, r"m1' has shape \(8, 1\), expected \(k,\)"),
        ({"v_proj.m1": np.zeros(8, np.float32), "v_proj.m2": np.zeros(8, np.float32)}, "component v_proj and.*one way"),
    ],
)
def test_scales_of_dam(tmp_path: Path, rng: np.random.Generator, tensors: dict[str, np.ndarray], word: str) -> None:
    path = tmp_path / "c.safetensors"
    write_calibration(path, make("dam", rng))
    assert read_calibration(path).weights == (1.0, 1.0)
    rewrite(path, tensors)
    with pytest.raises(CalibrationError, match=word):
        read_calibration(path)


def test_projection_shapes_follow_their_name(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "c.safetensors"
    write_calibration(path, make("projection_merge", rng))
    rewrite(path, {"8x12.P1": np.zeros((3, 8), np.float32)})
    with pytest.raises(CalibrationError, match=r"8x12\.P1.*expected \(3, 12\)"):
        read_calibration(path)


def test_not_a_calibration(tmp_path: Path, written: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        read_calibration(tmp_path / "nowhere.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(CalibrationError, match="'format'"):
        read_calibration(tmp_path / "empty.safetensors")
    written.write_bytes(written.read_bytes()[:-20])
    with pytest.raises(FileFormatError, match="truncated"):
        read_calibration(written)


def test_nothing_half_written_stays(
    tmp_path: Path, written: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        write_calibration(written, make("learnable_calibration", rng))
    assert list(tmp_path.iterdir()) == [written]
    assert written.read_bytes() == before


def test_content_is_checked_before_writing(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(CalibrationError, match="'weights'"):
        write_calibration(tmp_path / "c.safetensors", make("learnable_calibration", rng, weights=(0.9, 0.1)))
    with pytest.raises(StorageError, match="nowhere"):
        write_calibration(tmp_path / "nowhere" / "c.safetensors", make("learnable_calibration", rng))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "metadata", "kind"),
    [
        ("base_model.model.x.lora_A.weight", {"format": "pt"}, "a PEFT adapter's weights"),
        ("model.layers.0.mlp.up_proj.weight", None, "weights of a model"),
        ("delta/x", {"format": "edgecal-reference"}, "a reference file"),
        ("q_proj.P1", None, "a safetensors file"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, metadata: Any, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: np.zeros((2, 2), np.float16)}, path, metadata)
    with pytest.raises(CalibrationError, match=f"'format': expected edgecal-calibration .this is {kind}"):
        read_calibration(path)


def test_what_is_no_safetensors_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(b"PK\x03\x04" + bytes(64))
    with pytest.raises(FileFormatError, match="it is a pickle. Loading a pickle runs"):
        read_calibration(tmp_path / "c.pt")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(FileFormatError, match="it is a damaged GGUF file"):
        read_calibration(tmp_path / "m.gguf")
