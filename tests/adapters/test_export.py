"""A compiled recipe as a PEFT directory, read back by our own reader; PEFT itself is in tests/parity."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecal.adapters import CompiledAdapter, CompiledPair, LoraAdapter
from edgecal.adapters.export import write_peft
from edgecal.errors import AdapterError, StorageError

SHAPES = {
    f"model.layers.{layer}.self_attn.{name}": shape
    for layer in range(12)
    for name, shape in {"q_proj": (12, 8), "v_proj": (6, 8)}.items()
}


def compiled(rank: Any = 3, modules: Any = SHAPES, scale: float = 1.0) -> CompiledAdapter:
    """`rank`: a number, or a function of the module's path."""
    rng = np.random.default_rng(1)
    pairs = {}
    for module in modules:
        d, k = SHAPES[module]
        r = rank(module) if callable(rank) else rank
        a, b = rng.normal(size=(r, k)) * scale, rng.normal(size=(d, r))
        pairs[module] = CompiledPair(a.astype(np.float32), b.astype(np.float32))
    return CompiledAdapter("concat", pairs, "key")


def same(found: LoraAdapter, wanted: CompiledAdapter, tolerance: float = 0.0) -> None:
    assert set(found.pairs) == {module for module, pair in wanted.pairs.items() if pair.rank}
    for module, pair in found.pairs.items():
        assert pair.scaling == 1
        np.testing.assert_allclose(pair.a, wanted.pairs[module].a, rtol=tolerance, atol=0)
        np.testing.assert_allclose(pair.b, wanted.pairs[module].b, rtol=tolerance, atol=0)


@pytest.mark.parametrize(
    ("rank", "pattern"),
    [
        (3, {}),
        (lambda m: 5 if m.endswith("q_proj") else 2, {"v_proj": 2}),
        (lambda m: 1 if ".1." in m and m.endswith("q_proj") else 4, {"model.layers.1.self_attn.q_proj": 1}),
        (lambda m: 2 + len(m) % 2 if m.endswith("v_proj") else 7, None),
    ],
)
def test_round_trip(tmp_path: Path, rank: Any, pattern: dict[str, int] | None) -> None:
    wanted = compiled(rank)
    assert write_peft(wanted, tmp_path / "out", base_model_name="org/base") == tmp_path / "out"
    adapter = LoraAdapter.load(tmp_path / "out")
    adapter.check_against(SHAPES)
    same(adapter, wanted)
    assert adapter.base_model_name == "org/base"
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == wanted.rank
    assert pattern is None or config["rank_pattern"] == config["alpha_pattern"] == pattern
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_target_modules(tmp_path: Path) -> None:
    some = [module for module in SHAPES if module.endswith("v_proj") or ".3." in module]
    write_peft(compiled(modules=some), tmp_path / "out", shapes=SHAPES)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["model.layers.3.self_attn.q_proj", "v_proj"]
    LoraAdapter.load(tmp_path / "out").check_against(SHAPES)
    write_peft(compiled(modules=some), tmp_path / "plain")
    assert json.loads((tmp_path / "plain/adapter_config.json").read_text())["target_modules"] == some
    LoraAdapter.load(tmp_path / "plain").check_against(SHAPES)


def test_half_precision(tmp_path: Path) -> None:
    wanted = compiled()
    write_peft(wanted, tmp_path / "out", dtype="fp16")
    same(LoraAdapter.load(tmp_path / "out"), wanted, 2**-10)
    with pytest.raises(AdapterError, match=r"lora_A of model\.layers\.0\.\S+ .*fp16 cannot hold.*65504; write fp32"):
        write_peft(compiled(scale=1e6), tmp_path / "big", dtype="fp16")
    write_peft(compiled(scale=1e6), tmp_path / "big")
    with pytest.raises(AdapterError, match="dtype 'int8'"):
        write_peft(wanted, tmp_path / "x", dtype="int8")  # type: ignore[arg-type]


def test_empty_pairs_are_left_out(tmp_path: Path) -> None:
    wanted = compiled(lambda m: 0 if m.endswith("v_proj") else 2)
    write_peft(wanted, tmp_path / "out")
    same(LoraAdapter.load(tmp_path / "out"), wanted)
    with pytest.raises(AdapterError, match="compiled to nothing"):
        write_peft(compiled(0), tmp_path / "none")


def test_a_bias_cannot_be_written(tmp_path: Path) -> None:
    pairs = dict(compiled().pairs)
    module = "model.layers.2.self_attn.q_proj"
    pairs[module] = CompiledPair(pairs[module].a, pairs[module].b, np.ones(12, np.float32))
    with pytest.raises(AdapterError, match=rf"learnable_calibration has a bias at {module}.*bias_mode is 'output'"):
        write_peft(CompiledAdapter("learnable_calibration", pairs, "key"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_broken_numbers_are_not_written(tmp_path: Path) -> None:
    broken = compiled()
    broken.pairs["model.layers.0.self_attn.q_proj"].a[0, 0] = np.nan
    with pytest.raises(AdapterError, match="lora_A of model.layers.0"):
        write_peft(broken, tmp_path / "out")


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_peft(compiled(), tmp_path / "out")  # an empty directory is as good as none
    before = (tmp_path / "out/adapter_model.safetensors").read_bytes()
    (tmp_path / "out/README.md").write_text("mine")
    with pytest.raises(StorageError, match="exists already; --force"):
        write_peft(compiled(2), tmp_path / "out")
    assert (tmp_path / "out/adapter_model.safetensors").read_bytes() == before
    write_peft(compiled(2), tmp_path / "out", force=True)
    same(LoraAdapter.load(tmp_path / "out"), compiled(2))
    assert (tmp_path / "out/README.md").read_text() == "mine"
    (tmp_path / "file").write_text("")
    for force, word in ((False, "exists already"), (True, "is not a directory")):
        with pytest.raises(StorageError, match=word):
            write_peft(compiled(), tmp_path / "file", force=force)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((StorageError, KeyboardInterrupt)):
        write_peft(compiled(), tmp_path / "new" / "out")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_get_the_permissions_of_the_umask(tmp_path: Path, mask: int) -> None:
    """The safetensors library alone would keep the weights from everybody else."""
    before = os.umask(mask)
    try:
        for _ in range(2):  # a new directory, and files in one that is there
            write_peft(compiled(), tmp_path / "out", force=True)
            found = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
            assert found == dict.fromkeys(("adapter_config.json", "adapter_model.safetensors"), 0o666 & ~mask)
    finally:
        os.umask(before)
