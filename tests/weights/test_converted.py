"""A model that is converted once: found again by its content, bounded, and never in the way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgecal import Engine
from edgecal_weights import converted
from edgecal_weights.errors import StorageError
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.quantizer import pack_tensor, plan, quantize_checkpoint
from tests.tiny import write_tiny_hf
from tests.weights.samples import gguf_of, weights


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own that keeps the smallest model, too."""
    monkeypatch.setenv("EDGECAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGECAL_CONVERTED", raising=False)
    monkeypatch.setattr(converted, "_SMALLEST", 0)
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_tiny_hf(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was converted, in order."""
    calls: list[Path] = []

    def counted(checkpoint, *arguments, **options):
        calls.append(checkpoint.path)
        return quantize_checkpoint(checkpoint, *arguments, **options)

    monkeypatch.setattr(converted, "quantize_checkpoint", counted)
    return calls


def load(path: Path, format: str = "auto", group_size: int = 32) -> str:
    """The note, once every tensor was seen to be what a load without a cache gives, to the last bit."""
    with open_checkpoint(path) as checkpoint, converted.run_form(checkpoint, format, group_size) as form:
        expected = {d.name: pack_tensor(checkpoint, d) for d in plan(checkpoint, format, group_size)}
        found = {d.name: pack_tensor(form.checkpoint, d) for d in plan(form.checkpoint, format, group_size)}
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(found[name], value)
                continue
            assert (found[name].format, found[name].group_size) == (value.format, value.group_size), name
            for part, array in value.arrays.items():
                np.testing.assert_array_equal(found[name].arrays[part], array, err_msg=f"{name} {part}")
        return form.note


@pytest.mark.parametrize("stored", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q6_K", "F32"])
@pytest.mark.parametrize("format", ["auto", "int8", "int4"])
def test_a_gguf_is_converted_once(tmp_path, made, rng, stored, format):
    path = gguf_of(tmp_path / "m.gguf", weights("llama", rng), {"": stored}, rng)
    assert "kept in its packed form" in load(path, format)
    assert load(path, format) == ""
    assert made == [path]


@pytest.mark.parametrize("format", ["auto", "int8", "int6", "int4_affine", "int4_k"])
def test_float_weights_are_rounded_once(model, made, format):
    assert load(model, format, 32) and not load(model, format, 32)
    assert made == [model]


def test_what_is_asked_for_decides(model, made):
    for format in ("int4", "int8", "int4", "int8"):
        load(model, format)
    assert len(made) == 2


def test_a_copy_is_recognised_without_converting_it(model, made, tmp_path):
    load(model)
    shutil.copytree(model, tmp_path / "copy")
    assert load(tmp_path / "copy") == ""
    assert made == [model]


def test_a_known_file_is_not_read_for_its_digest(model, monkeypatch):
    load(model)
    read: list[Path] = []
    digest = converted.file_sha256
    monkeypatch.setattr(converted, "file_sha256", lambda path: read.append(Path(path)) or digest(path))
    load(model)
    assert model / "model.safetensors" not in read


def test_a_changed_file_is_converted_anew(model, made):
    load(model)
    write_tiny_hf(model, seed=1)
    assert load(model)
    assert len(made) == 2


def test_other_code_converts_anew(model, made, monkeypatch):
    load(model)
    monkeypatch.setattr(converted, "_CODE", converted._CODE[1:])
    assert load(model)
    assert len(made) == 2


def test_fp32_and_packed_models_are_run_from_where_they_are(model, made, tmp_path):
    with open_checkpoint(model) as checkpoint:
        quantize_checkpoint(checkpoint, tmp_path / "packed")
        with converted.run_form(checkpoint, "fp32", 32) as form:
            assert form.checkpoint is checkpoint
    with open_checkpoint(tmp_path / "packed") as checkpoint, converted.run_form(checkpoint, "auto", 32) as form:
        assert form.checkpoint is checkpoint and not form.note
    assert not made
    assert load(tmp_path / "packed", "int8")  # rounded to something else, it is worth keeping
    assert not load(tmp_path / "packed", "int8")


def test_small_models_are_not_kept(model, made, monkeypatch):
    monkeypatch.undo()
    assert load(model) == ""
    assert not made


@pytest.mark.parametrize("text", ["0", "0G", "1000"])
def test_nothing_is_kept_beyond_the_limit(model, cache, monkeypatch, made, text):
    monkeypatch.setenv("EDGECAL_CONVERTED", text)
    assert load(model) == ""
    assert not made and not list(cache.rglob("*.safetensors"))


def test_those_used_longest_ago_go_first(tmp_path, cache, monkeypatch):
    models = [tmp_path / name for name in ("one", "two", "three")]
    for seed, path in enumerate(models):
        write_tiny_hf(path, seed=seed)
    load(models[0])
    size = sum(file.stat().st_size for file in cache.rglob("*.safetensors"))
    monkeypatch.setenv("EDGECAL_CONVERTED", str(2 * size + size // 2))
    load(models[1])
    for age, name in ((100, "two"), (50, "one")):
        (file,) = cache.glob(f"converted/{name}-*/*.safetensors")
        os.utime(file, (file.stat().st_atime - age,) * 2)
    load(models[2])
    assert sorted(path.name.partition("-")[0] for path in (cache / "converted").iterdir()) == ["one", "three"]


def test_a_lower_limit_holds_from_the_next_load_on(tmp_path, cache, monkeypatch):
    for seed, name in enumerate(("one", "two")):
        write_tiny_hf(tmp_path / name, seed=seed)
        load(tmp_path / name)
    size = sum(file.stat().st_size for file in cache.rglob("*.safetensors"))
    monkeypatch.setenv("EDGECAL_CONVERTED", str(size * 3 // 4))
    assert load(tmp_path / "two") == ""
    assert [path.name.partition("-")[0] for path in (cache / "converted").iterdir()] == ["two"]


def test_the_name_says_the_format(model, cache):
    for format in ("int8", "int4_affine"):
        load(model, format)
    assert sorted(path.name.split("-")[1] for path in (cache / "converted").iterdir()) == ["int4_affine", "int8"]


@pytest.mark.parametrize(("text", "number"), [("", 4 << 30), ("500M", 500 << 20), ("8 GiB", 8 << 30), ("12345", 12345)])
def test_limits(monkeypatch, text, number):
    monkeypatch.setenv("EDGECAL_CONVERTED", text)
    assert converted.limit() == number


@pytest.mark.parametrize("text", ["lots", "-1", "1,5G", "9" * 40])
def test_a_limit_that_is_none_is_refused(model, monkeypatch, text):
    monkeypatch.setenv("EDGECAL_CONVERTED", text)
    with pytest.raises(StorageError, match=f"EDGECAL_CONVERTED is '{text}', expected a number of bytes"):
        load(model)


@pytest.mark.parametrize("damage", ["cut", "origins", "gone"])
def test_what_is_damaged_is_made_again(model, cache, made, damage):
    load(model)
    (kept,) = (cache / "converted").iterdir()
    if damage == "cut":
        os.truncate(kept / "edgecal-packed.safetensors", 100)
    elif damage == "origins":
        (kept / "origins.json").write_text("[{")
    else:
        (kept / "edgecal-packed.safetensors").unlink()
    load(model)
    assert len(made) == (1 if damage == "origins" else 2)
    assert load(model) == ""


def test_a_cache_that_cannot_be_written_is_said_and_not_in_the_way(model, cache, made):
    cache.write_text("a file where the folder should be")
    assert "could not be kept" in load(model)
    assert not made


def test_a_full_disk_is_said_and_not_in_the_way(model, made, monkeypatch):
    monkeypatch.setattr(converted.shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    assert "too little room" in load(model)
    assert not made


def test_weights_that_are_not_finite_are_named_in_their_own_file(tmp_path):
    write_tiny_hf(tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = np.nan
    save_file(tensors, tmp_path / "model/model.safetensors")
    with pytest.raises(Exception, match=r"model: model\.layers\.0\.mlp\.up_proj\.weight is nan at \[3, 4\]"):
        Engine.load(tmp_path / "model", backend="numpy")
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_an_engine_answers_alike_from_both(model, cache):
    first = Engine.load(model, backend="numpy")
    second = Engine.load(model, backend="numpy")
    (kept,) = (cache / "converted").iterdir()
    assert first.note == f"kept in its packed form for the next start (0.1 MiB; edgecal rm converted/{kept.name})"
    assert second.note == ""
    assert first.generate("the cat", max_tokens=12).text == second.generate("the cat", max_tokens=12).text
