"""One adapter in three formats: the same factors, the same answers, and the same care at the door."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgecal import Engine, LoraAdapter, Recipe
from edgecal.adapters.export import write_peft
from edgecal.adapters.recipe import compile_recipe
from edgecal.architecture import base_facts
from edgecal.engine import Settings
from edgecal.errors import AdapterError, FileFormatError, UnsupportedModelError, VerificationError
from edgecal.inspection.diagnosis import diagnose
from edgecal.inspection.report import inspect
from edgecal.verification.live import live_reference
from edgecal_weights.file_kind import describe
from edgecal_weights.opening import open_checkpoint
from tests.adapter_formats import write_gguf_adapter, write_mlx_adapter
from tests.tiny import FAMILIES, linear_shapes, model_config, write_tiny_adapter, write_tiny_hf

# Heads of 16 rows, as many of k as of q in one family and fewer in the others
SIZES: dict[str, dict[str, Any]] = {"stablelm": {"num_key_value_heads": 4}}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and one adapter of it as peft/, lora.gguf and mlx/."""
    root = tmp_path_factory.mktemp(request.param)
    write_tiny_hf(root / "model", request.param, **SIZES.get(request.param, {}))
    write_tiny_adapter(root / "peft", root / "model", rank=4, seed=3, lora_alpha=6)
    config = model_config(root / "model")
    write_gguf_adapter(root / "lora.gguf", root / "peft", config)
    write_mlx_adapter(root / "mlx", root / "peft", config.n_layers)
    return root


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("llama")
    write_tiny_hf(root / "model")
    write_tiny_adapter(root / "peft", root / "model", rank=4, seed=3)
    write_gguf_adapter(root / "lora.gguf", root / "peft", model_config(root / "model"))
    write_mlx_adapter(root / "mlx", root / "peft", 2)
    return root


def facts(root: Path) -> dict[str, Any]:
    return base_facts(model_config(root / "model"))


def same(found: LoraAdapter, wanted: LoraAdapter, tolerance: float = 1e-6) -> None:
    assert found.shapes == wanted.shapes and list(found.pairs) and set(found.pairs) == set(wanted.pairs)
    for module in wanted.shapes:
        ours, theirs = found.pairs[module].delta(), wanted.pairs[module].delta()
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max(), module


@pytest.mark.parametrize("name", ["lora.gguf", "mlx", "mlx/adapters.safetensors"])
def test_the_same_change(folder: Path, name: str) -> None:
    wanted = LoraAdapter.load(folder / "peft")
    found = LoraAdapter.load(folder / name).on_base(facts(folder))
    same(found, wanted)
    assert found.n_parameters == wanted.n_parameters and found.format == ("GGUF" if "gguf" in name else "MLX")
    assert found.name == ("lora" if "gguf" in name else "mlx")


@pytest.mark.parametrize(("stored", "tolerance"), [("F16", 2e-3), ("BF16", 1e-2), ("Q8_0", 2e-2)])
def test_types_of_gguf(llama: Path, tmp_path: Path, stored: str, tolerance: float) -> None:
    path = write_gguf_adapter(tmp_path / "a.gguf", llama / "peft", model_config(llama / "model"), stored)
    found = LoraAdapter.load(path).on_base(facts(llama))
    same(found, LoraAdapter.load(llama / "peft"), tolerance)
    if stored == "Q8_0":
        assert {tensor.type for tensor in inspect(path).tensors} == {"Q8_0", "F16"}  # type: ignore[union-attr]


def test_alpha_of_gguf(llama: Path, tmp_path: Path) -> None:
    """llama.cpp: alpha / r, and no factor at all for an alpha of 0 or none; r is each tensor's own."""
    config = model_config(llama / "model")
    for alpha, scaling in ((6.0, 1.5), (-2.0, -0.5), (0.0, 1.0), (None, 1.0)):
        path = write_gguf_adapter(tmp_path / f"{alpha}.gguf", llama / "peft", config, alpha=alpha)
        pairs = LoraAdapter.load(path).on_base(facts(llama)).pairs
        assert {pair.scaling for pair in pairs.values()} == {scaling}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_same_answers(folder: Path, backend: str) -> None:
    """Engine, compiled pairs and the prefix cache's keys: where the factors are equal, every bit is."""
    paths = {name: folder / path for name, path in (("p", "peft"), ("g", "lora.gguf"), ("m", "mlx"))}
    engine = Engine.load(folder / "model", weights="fp32", adapters=paths, backend=backend)
    for recipe in (lambda n: Recipe("single", (n,)), lambda n: Recipe("concat", (n, "p"), (0.7, 0.4))):
        ids = [engine.generate("Hello", recipe=recipe(n), settings=Settings(max_tokens=12)).text for n in "pgm"]
        assert ids[0] == ids[1] == ids[2]
        compiled = [engine.merge(recipe(name))[0] for name in "pgm"]
        for module in compiled[0].pairs:  # type: ignore[union-attr]
            for other in compiled[1:]:
                np.testing.assert_array_equal(other.pairs[module].b, compiled[0].pairs[module].b)  # type: ignore[union-attr]
    bare = engine.generate("Hello", settings=Settings(max_tokens=12)).text
    assert bare != ids[0]


def test_a_gguf_of_llama_needs_its_base(llama: Path, tmp_path: Path) -> None:
    """How many rows a head has is nowhere in the file; what does not depend on it is read without a base."""
    shapes = linear_shapes(model_config(llama / "model"))
    adapters = {"g": LoraAdapter.load(llama / "lora.gguf")}
    with pytest.raises(AdapterError, match=r"rows of .*(q|k)_proj are in llama\.cpp's order.*say which model"):
        compile_recipe(Recipe("single", ("g",)), adapters, None, shapes, None)
    assert compile_recipe(Recipe("single", ("g",)), adapters, None, shapes, facts(llama)) is not None
    write_tiny_adapter(tmp_path / "mlp", llama / "model", components=("down_proj", "v_proj"))
    path = write_gguf_adapter(tmp_path / "mlp.gguf", tmp_path / "mlp", model_config(llama / "model"))
    same(LoraAdapter.load(path), LoraAdapter.load(tmp_path / "mlp"))
    adapter = adapters["g"]
    with pytest.raises(AdapterError, match="an adapter for llama models, the base is qwen2"):
        adapter.on_base({**facts(llama), "model_type": "qwen2"})
    with pytest.raises(AdapterError, match=r"attn_[qk]\.weight\.lora_b has \d+ rows, which are no heads of 24"):
        adapter.on_base({**facts(llama), "head_dim": 24})


def test_they_become_peft(llama: Path, tmp_path: Path) -> None:
    """What `edgecal merge` writes of one, PEFT can read."""
    shapes = linear_shapes(model_config(llama / "model"))
    for name in ("lora.gguf", "mlx"):
        compiled = compile_recipe(
            Recipe("single", ("a",)), {"a": LoraAdapter.load(llama / name)}, None, shapes, facts(llama)
        )
        assert compiled is not None
        write_peft(compiled, tmp_path / name)
        same(LoraAdapter.load(tmp_path / name), LoraAdapter.load(llama / "peft"))


def test_inspect_and_doctor(folder: Path) -> None:
    wanted = inspect(folder / "peft", folder / "model")
    with open_checkpoint(folder / "model") as checkpoint:
        norms = diagnose(checkpoint, {"a": folder / "peft"}).adapters[0].changes
        for name, form in (("lora.gguf", "GGUF"), ("mlx", "MLX")):
            report = inspect(folder / name, folder / "model")
            assert (report.what, report.format, report.groups) == ("adapter", form, wanted.groups)  # type: ignore[union-attr]
            assert report.match.fits and report.match.absent == []  # type: ignore[union-attr]
            assert len(report.tensors) == 28
            health = diagnose(checkpoint, {"a": folder / name})
            assert health.healthy and not health.adapters[0].ignored
            for change, other in zip(health.adapters[0].changes, norms, strict=True):
                assert change.module == other.module and change.norm == pytest.approx(other.norm, rel=1e-6)


def test_what_they_are_called(llama: Path, tmp_path: Path) -> None:
    assert describe(llama / "lora.gguf") == "a LoRA adapter in GGUF"
    assert describe(llama / "mlx") == "the directory of an MLX adapter"
    assert describe(llama / "mlx" / "adapters.safetensors") == "an MLX adapter's weights"
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(8))
    assert describe(tmp_path / "bad.gguf") == "a damaged GGUF file"
    for name, word in (("lora.gguf", "a LoRA adapter in GGUF"), ("mlx", "an MLX adapter")):
        with pytest.raises(UnsupportedModelError, match=f"{word}, not a model; .*with its base"):
            open_checkpoint(llama / name)
    with (
        pytest.raises(VerificationError, match="a file of GGUF, which PEFT does not read"),
        live_reference(str(llama / "model"), Recipe("single", ("g",)), {"g": LoraAdapter.load(llama / "lora.gguf")}),
    ):
        pass
    os.link(llama / "lora.gguf", tmp_path / "lora.gguf")
    (tmp_path / "bad.gguf").unlink()
    assert LoraAdapter.load(tmp_path).sha256 == LoraAdapter.load(llama / "lora.gguf").sha256  # a directory with it


# ------------------------------------------------------------------------------------------------- at the door


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"type": "model"}, "is no LoRA adapter: its general.type is 'model', expected 'adapter'"),
        ({"type": None}, "its general.type is None"),
        ({"adapter": "dora"}, "its adapter.type is 'dora', expected 'lora'"),
        ({"alpha": float("nan")}, r"adapter\.lora\.alpha is nan, expected a number"),
        ({"architecture": "gemma"}, "for the architecture 'gemma'; edgecal runs llama"),
        ({"extra": lambda w: w.add_array("adapter.alora.invocation_tokens", [1])}, "activated LoRA"),
        ({"tensors": {"blk.0.attn_norm.weight": ones(4)}}, "'blk.0.attn_norm.weight' is a norm that was trained"),
        ({"tensors": {"blk.0.attn_q.bias.lora_a": ones(4, 4)}}, "is nothing that edgecal knows"),
        ({"tensors": {"blk.0.ssm.weight.lora_a": ones(4, 4)}}, "is nothing that edgecal knows"),
        ({"tensors": {"output.weight.lora_a": ones(4, 4)}}, r"output\.weight\.lora_a has no partner"),
        (
            {"tensors": {"output.weight.lora_a": ones(4, 8), "output.weight.lora_b": ones(8, 3)}},
            r"lora_a has shape \(4, 8\) and output\.weight\.lora_b \(8, 3\), whose ranks must be equal",
        ),
        (
            {"tensors": {"output.weight.lora_a": ones(4), "output.weight.lora_b": ones(8, 4)}},
            r"output\.weight\.lora_a has shape \(4,\), expected a matrix",
        ),
        (
            {"tensors": {"output.weight.lora_a": ones(4, 8) * np.inf, "output.weight.lora_b": ones(8, 4)}},
            r"output\.weight\.lora_a has 32 numbers that are not finite",
        ),
    ],
)
def test_wrong_gguf(llama: Path, tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    path = write_gguf_adapter(tmp_path / "a.gguf", llama / "peft", model_config(llama / "model"), **changes)
    with pytest.raises(AdapterError, match=word) as caught:
        LoraAdapter.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"fine_tune_type": "dora"}, "fine_tune_type is 'dora' .DoRA, which rescales"),
        ({"fine_tune_type": "full"}, "fine_tune_type is 'full'"),
        ({"lora_parameters": None}, "lora_parameters is 'None', expected an object"),
        ({"lora_parameters": {"rank": 4}}, "lora_parameters.scale is 'None'"),
        ({"lora_parameters": {"rank": 4, "scale": 0}}, "lora_parameters.scale is '0'"),
        ({"lora_parameters": {"rank": 4, "scale": True}}, "lora_parameters.scale is 'True'"),
        ({"lora_parameters": {"rank": 8, "scale": 2}}, r"has lora_a \(96, 4\) .* says rank 8"),
        ({"lora_parameters": {"rank": 4, "scale": 2, "keys": "q_proj"}}, "keys is 'q_proj', expected a list"),
        (
            {"lora_parameters": {"rank": 4, "scale": 2, "alpha": 16}, "num_layers": None, "fine_tune_type": None},
            "has alpha 16 beside scale 2.*before June 2024",
        ),
        ({"num_layers": 1}, "num_layers is 1, and adapters.safetensors changes the layers 0 to 1"),
        ({"num_layers": "all"}, "num_layers is 'all', expected a whole number"),
    ],
)
def test_wrong_mlx_configuration(llama: Path, tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    path = write_mlx_adapter(tmp_path / "a", llama / "peft", **changes)
    with pytest.raises(AdapterError, match=word) as caught:
        LoraAdapter.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model.layers.0.self_attn.q_proj.m": ones(64)}, "belongs to DoRA, which is not supported"),
        ({"model.layers.0.input_layernorm.weight": ones(64)}, "is no lora_a or lora_b and not supported"),
        ({"model.layers.0.mlp.up_proj.lora_a": None}, r"up_proj\.lora_a is missing, its partner is there"),
        ({"model.layers.0.mlp.up_proj.lora_a": np.ones((64, 4), np.int8)}, "has type I8; edgecal reads F32"),
        ({"model.layers.0.mlp.up_proj.lora_a": ones(2, 4, 64)}, r"has shape \(2, 4, 64\), expected a matrix; experts"),
        ({"model.layers.0.mlp.up_proj.lora_a": ones(64, 4) * np.nan}, r"up_proj\.lora_a has 256 numbers that are not"),
        (None, "holds no LoRA tensors"),
    ],
)
def test_wrong_mlx_tensors(llama: Path, tmp_path: Path, changes: dict[str, Any] | None, word: str) -> None:
    path = write_mlx_adapter(tmp_path / "a", llama / "peft")
    tensors = {} if changes is None else load_file(path / "adapters.safetensors") | changes
    save_file({name: t for name, t in tensors.items() if t is not None}, path / "adapters.safetensors")
    with pytest.raises(AdapterError, match=word):
        LoraAdapter.load(path)


def test_an_incomplete_mlx_adapter_is_noticed(llama: Path, tmp_path: Path) -> None:
    path, shapes = write_mlx_adapter(tmp_path / "a", llama / "peft", 2), linear_shapes(model_config(llama / "model"))
    LoraAdapter.load(path).check_against(shapes)
    tensors = load_file(path / "adapters.safetensors")
    left = {name: t for name, t in tensors.items() if not name.startswith("model.layers.1.mlp.up_proj")}
    save_file(left, path / "adapters.safetensors")
    with pytest.raises(AdapterError, match="ask for 1 module that its file has no tensors for: model.layers.1.mlp.up"):
        LoraAdapter.load(path).check_against(shapes)
    # the last layer alone is what num_layers 1 means
    last = {name: t for name, t in tensors.items() if name.startswith("model.layers.1.")}
    save_file(last, path / "adapters.safetensors")
    config = json.loads((path / "adapter_config.json").read_text()) | {"num_layers": 1}
    (path / "adapter_config.json").write_text(json.dumps(config))
    LoraAdapter.load(path).check_against(shapes)
    config["lora_parameters"]["keys"] = ["self_attn.q_proj", "mlp.nothing"]
    (path / "adapter_config.json").write_text(json.dumps(config))
    LoraAdapter.load(path).check_against(shapes)


def test_an_alpha_that_mlx_no_longer_uses(llama: Path, tmp_path: Path) -> None:
    """Between June 2024 and April 2025 mlx-lm wrote an alpha and did not use it."""
    parameters = {"rank": 4, "scale": 2.0, "alpha": 16}
    path = write_mlx_adapter(tmp_path / "a", llama / "peft", lora_parameters=parameters)
    assert {pair.scaling for pair in LoraAdapter.load(path).pairs.values()} == {2.0}
    same_alpha = {"rank": 4, "scale": 2.0, "alpha": 4}
    old = {"num_layers": None, "fine_tune_type": None, "lora_layers": 2}
    path = write_mlx_adapter(tmp_path / "b", llama / "peft", lora_parameters=same_alpha, **old)
    assert {pair.scaling for pair in LoraAdapter.load(path).pairs.values()} == {2.0}


def test_damaged_files(llama: Path, tmp_path: Path) -> None:
    """Cut anywhere, a GGUF is refused by name; text is no adapter."""
    content = (llama / "lora.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in (0, 3, 40, len(content) // 3, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises((AdapterError, FileFormatError), match=r"cut\.gguf"):
            LoraAdapter.load(path)
    with pytest.raises(AdapterError, match="is not an adapter: expected .*or a GGUF adapter; there is no such path"):
        LoraAdapter.load(tmp_path / "nowhere.gguf")


def test_names_of_the_base(llama: Path, tmp_path: Path) -> None:
    def named(writer: gguf.GGUFWriter) -> None:
        writer.add_base_model_count(1)
        writer.add_base_model_repo_url(0, "https://huggingface.co/org/base")

    config = model_config(llama / "model")
    path = write_gguf_adapter(tmp_path / "a.gguf", llama / "peft", config, extra=named)
    assert LoraAdapter.load(path).base_model_name == "org/base"
    assert LoraAdapter.load(llama / "lora.gguf").base_model_name is None
    assert LoraAdapter.load(llama / "mlx").base_model_name == "model"
