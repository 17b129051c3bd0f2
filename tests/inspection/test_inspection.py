"""What `inspect` says, held against the engine that loads the same files: exact, as everything here is counting."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgecal import Engine
from edgecal.architecture import linear_shapes
from edgecal.cache import KVCache
from edgecal.errors import (
    AdapterError,
    EdgecalError,
    FileFormatError,
    ModelNotFoundError,
    OptionError,
    UnsupportedModelError,
)
from edgecal.inspection.report import inspect
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.quantizer import quantize_checkpoint
from tests.tiny import (
    COMPONENTS,
    FAMILIES,
    model_config,
    write_tiny_adapter,
    write_tiny_calibration,
    write_tiny_hf,
)
from tests.weights import samples


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_hf(tmp_path_factory.mktemp("model") / "llama", dtype="F16")


@pytest.fixture
def adapter(tmp_path: Path, model: Path) -> Path:
    return write_tiny_adapter(tmp_path / "a", model)


def edit(path: Path, **values: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def as_json(report: Any) -> dict[str, Any]:
    return json.loads(json.dumps(report.to_dict()))


# ------------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model(tmp_path, family):
    path = write_tiny_hf(tmp_path / family, family)
    report = inspect(path)
    config, tensors = model_config(path), load_file(path / "model.safetensors")
    assert (report.what, report.kind, report.architecture, report.refusal) == ("model", "huggingface", family, None)
    for name, value in report.sizes.items():
        if name == "options":
            assert set(value) == config.options - {"layer_norm"}
        elif name == "sliding_window":
            assert value == (max(config.windows) or None)
        elif name not in ("norm", "rope_scaling"):
            assert value == getattr(config, name)
    assert report.sizes["norm"] == ("LayerNorm" if family == "stablelm" else "RMSNorm")
    assert report.parameters == sum(w.size for w in tensors.values())
    assert report.nbytes == sum(w.nbytes for w in tensors.values())
    assert {t.name: (t.shape, t.type, t.nbytes) for t in report.tensors} == {
        name: (w.shape, "F32", w.nbytes) for name, w in tensors.items()
    }
    assert report.bits_per_weight == 32
    assert (report.tokenizer_entries, report.chat_template) == (264, True)
    engine = Engine.load(path, backend="numpy")
    assert linear_shapes(config) == engine.model.linear_shapes
    assert report.load.weight_bytes == engine.model.weight_bytes
    cache = KVCache(config)
    cache.reserve(1024)
    assert (report.load.kv_bytes, report.load.context) == (cache.nbytes, 1024)
    assert report.load.kv_bytes_per_token == cache.nbytes // 1024
    assert report.load.memory_bytes > report.load.weight_bytes + report.load.kv_bytes
    found = {(c.stored, c.becomes, c.fidelity) for c in report.load.conversions}
    assert found == {("F32", "fp32", "exact"), ("F32", "int4", "rounded"), ("F32", "int6", "rounded")}
    assert sum(c.tensors for c in report.load.conversions) == len(tensors)
    assert as_json(report)["runnable"] is True


def test_a_tied_head_that_is_stored_counts_once(tmp_path):
    path = write_tiny_hf(tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    whole = sum(w.size for w in tensors.values())
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, path / "model.safetensors")
    report = inspect(path)
    assert report.parameters == whole
    assert report.formats["F32"].weights == whole + tensors["model.embed_tokens.weight"].size
    assert report.load.weight_bytes == Engine.load(path, backend="numpy").model.weight_bytes


def test_a_packed_directory(tmp_path, model):
    with open_checkpoint(model) as checkpoint:
        written = quantize_checkpoint(checkpoint, tmp_path / "packed", format="int4_affine", group_size=64)
    for path in (tmp_path / "packed", tmp_path / "packed" / "edgecal-packed.safetensors"):
        report = inspect(path)
        assert report.kind == "packed"
        assert report.nbytes == written.packed_bytes == report.load.weight_bytes
        assert sum(t.nbytes for t in report.tensors) == report.nbytes
        assert {c.fidelity for c in report.load.conversions} == {"exact"}
        assert set(report.formats) == {"int4_affine", "int6", "F32"}


def test_a_gguf(tmp_path, rng):
    def stored(name: str, w: np.ndarray) -> tuple[np.ndarray, gguf.GGMLQuantizationType | None]:
        kind = "Q6_K" if "down" in name else "Q4_0" if "proj" in name else None
        if kind is None or w.ndim == 1:
            return w, None
        return samples.random_blocks(kind, *w.shape, rng), gguf.GGMLQuantizationType[kind]

    path = samples.write_gguf(tmp_path / "m.gguf", "llama", samples.weights("llama", rng), stored=stored)
    report = inspect(path)
    assert (report.kind, report.architecture, report.refusal) == ("gguf", "llama", None)
    down = samples.HIDDEN * samples.FFN
    assert report.formats["Q6_K"].bytes == samples.LAYERS * down // 256 * 210
    assert sum(t.bytes for t in report.formats.values()) == report.nbytes
    fidelity = {c.stored: (c.becomes, c.fidelity) for c in report.load.conversions}
    assert fidelity["Q4_0"] == ("int4_f16", "exact")
    assert fidelity["Q6_K"] == ("int6_k", "exact")
    assert report.sizes["rope_theta"] == 12345.0
    assert report.chat_template
    assert report.load.weight_bytes == Engine.load(path, backend="numpy").model.weight_bytes


def test_a_gguf_of_another_architecture(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt2")
    writer.add_block_count(3)
    writer.add_embedding_length(32)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for path in (tmp_path / "m.gguf", tmp_path):
        report = inspect(path)
        assert (report.architecture, report.parameters, report.tokenizer_entries) == ("gpt2", 64, 2)
        assert report.sizes == {"n_layers": 3, "hidden_size": 32}
        assert "gpt2" in report.refusal
        assert report.load is None
        assert as_json(report)["runnable"] is False


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gpt_neox"}, "gpt_neox"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"vocab_size": 300}, "shape"),
        ({"rope_parameters": {"full": {"rope_theta": 1.0}}}, "rope_parameters"),
        ({"hidden_size": "many"}, "hidden_size"),
    ],
)
def test_models_that_do_not_run_say_why(tmp_path, changes, reason):
    path = write_tiny_hf(tmp_path / "m")
    edit(path / "config.json", **changes)
    report = inspect(path)
    assert reason in report.refusal
    assert report.load is None
    assert report.formats["F32"].tensors == len(load_file(path / "model.safetensors"))
    assert report.sizes.get("intermediate_size") == 96
    with pytest.raises(EdgecalError, match=reason):
        Engine.load(path, backend="numpy")


def test_models_without_what_they_need(tmp_path, model):
    pickled = tmp_path / "pickled"
    shutil.copytree(model, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    report = inspect(pickled)
    assert "pickle" in report.refusal
    assert (report.tensors, report.bits_per_weight, report.architecture) == ([], 0, "llama")
    mute = tmp_path / "mute"
    shutil.copytree(model, mute)
    (mute / "tokenizer.json").unlink()
    report = inspect(mute)
    assert "tokenizer.json" in report.refusal
    assert report.tokenizer_entries is None
    raw = write_tiny_hf(tmp_path / "raw", chat_template=False)
    assert inspect(raw).chat_template is False
    assert inspect(raw).refusal is None


def test_the_real_model(smollm2_gguf):
    report = inspect(smollm2_gguf)
    assert report.parameters == 134_515_008
    assert report.load.kv_bytes_per_token == 2 * 30 * 3 * 64 * 2
    assert report.load.weight_bytes < 100 << 20
    assert {c.fidelity for c in report.load.conversions} == {"exact"}


# ---------------------------------------------------------------------------------------------------- adapters


def test_an_adapter(adapter, model, export):
    report = inspect(adapter, against=model)
    shapes = linear_shapes(model_config(model))
    assert (report.what, report.base_model_name, report.n_modules, report.n_layers) == ("adapter", model.name, 14, 2)
    assert (report.ranks, report.scalings, report.dtypes) == ({4: 14}, {2.0: 14}, {"F32": 14})
    assert report.parameters == sum(4 * (d + k) for d, k in shapes.values())
    assert report.nbytes == 4 * report.parameters
    assert {(g.component, g.layers, g.n_modules) for g in report.groups} == {(c, "0-1", 2) for c in COMPONENTS}
    assert report.match.fits
    assert report.match.matched == report.match.of_the_model == 14
    assert inspect(adapter / "adapter_model.safetensors").sha256 == report.sha256
    assert inspect(adapter).match is None
    summarize = inspect(export / "summarize")
    assert (summarize.ranks, summarize.scalings, summarize.parameters) == ({16: 210}, {0.5: 210}, 4_884_480)
    assert as_json(report)["match"]["fits"] is True


def test_patterns_show_as_groups(tmp_path, model):
    path = write_tiny_adapter(
        tmp_path / "a",
        model,
        components=("q_proj", "v_proj"),
        alpha_pattern={r"model\.layers\.1\..*q_proj": 16},
        use_rslora=True,
    )
    groups = {(g.component, g.layers): g.scaling for g in inspect(path).groups}
    assert groups == {("q_proj", "0"): 4.0, ("q_proj", "1"): 8.0, ("v_proj", "0-1"): 4.0}


def test_an_adapter_for_another_model(tmp_path, adapter, model):
    deeper = write_tiny_hf(tmp_path / "deeper", num_hidden_layers=3)
    match = inspect(adapter, against=deeper).match
    assert (match.matched, match.of_the_model, match.missing, match.misshapen) == (14, 21, [], [])
    assert len(match.absent) == 7
    assert "incomplete" in match.refusal
    shallow = write_tiny_hf(tmp_path / "shallow", num_hidden_layers=1)
    match = inspect(adapter, against=shallow).match
    assert match.matched == 7
    assert [name.split(".")[2] for name in match.missing] == ["1"] * 7
    assert "no effect" in match.refusal
    wider = write_tiny_hf(tmp_path / "wider", intermediate_size=128)
    match = inspect(adapter, against=wider).match
    assert match.matched == 8
    assert ("model.layers.0.mlp.up_proj", (128, 64), (96, 64)) in match.misshapen
    assert "another base" in match.refusal
    report = inspect(adapter, against=wider)
    assert as_json(report)["match"]["fits"] is False
    for other in (deeper, shallow, wider):
        with pytest.raises(AdapterError):
            Engine.load(other, backend="numpy", adapters={"a": adapter})


def test_adapters_that_cannot_be_used(tmp_path, model, adapter):
    dora = write_tiny_adapter(tmp_path / "dora", model, use_dora=True)
    with pytest.raises(AdapterError, match="use_dora"):
        inspect(dora)
    (adapter / "adapter_config.json").unlink()
    for path in (adapter, adapter / "adapter_model.safetensors"):
        with pytest.raises(AdapterError, match="adapter_config"):
            inspect(path)


# ------------------------------------------------------------------------------------------------ calibrations


@pytest.mark.parametrize("method", ["learnable_calibration", "learnable_calibration_pp", "projection_merge"])
def test_a_calibration(tmp_path, model, adapter, method):
    other = write_tiny_adapter(tmp_path / "b", model, seed=7)
    path = write_tiny_calibration(tmp_path / "c.safetensors", model, {"a": adapter, "b": other}, method)
    report = inspect(path, against=model)
    assert (report.what, report.method) == ("calibration", method)
    assert [(a.name, a.sha256) for a in report.adapters] == [
        (name, inspect(folder).sha256) for name, folder in (("a", adapter), ("b", other))
    ]
    assert report.weights == [0.5, 0.5]
    assert report.parameters == sum(w.size for w in load_file(path).values())
    assert report.nbytes == 4 * report.parameters
    plain = method == "learnable_calibration"
    assert (report.rank, report.bias_mode) == ((None, "columns") if plain else (2, None))
    assert report.base_model.hidden_size == 64
    assert report.match.fits
    assert as_json(report)["match"]["fits"] is True


def test_a_calibration_that_tasks_share(tmp_path, model, adapter):
    third = write_tiny_adapter(tmp_path / "c", model, seed=7)
    path = write_tiny_calibration(tmp_path / "c.safetensors", model, {"a": adapter}, shared_with=[{"c": third}])
    report = inspect(path)
    assert [[a.name for a in others] for others in report.shared_with] == [["c"]]
    assert as_json(report)["shared_with"] == [[{"name": "c", "sha256": inspect(third).sha256}]]


def test_a_calibration_for_another_base(tmp_path, model, adapter):
    paths = [
        write_tiny_calibration(tmp_path / f"{method}.safetensors", model, {"a": adapter}, method)
        for method in ("learnable_calibration_pp", "projection_merge")
    ]
    qwen = write_tiny_hf(tmp_path / "qwen", "qwen2", num_hidden_layers=3)
    for path in paths:
        match = inspect(path, against=qwen).match
        assert not match.fits
        assert [(d.field, d.calibration, d.model) for d in match.differences] == [
            ("model_type", "llama", "qwen2"),
            ("num_hidden_layers", 2, 3),
        ]
        assert match.problems == []
    wider = write_tiny_hf(tmp_path / "wider", intermediate_size=128)
    match = inspect(paths[0], against=wider).match
    assert match.differences == []
    assert {problem.split()[3] for problem in match.problems} == {"gate_proj", "up_proj", "down_proj"}
    match = inspect(paths[1], against=wider).match
    assert sorted(problem.split()[-1] for problem in match.problems) == ["64x96", "96x64"]
    assert not match.fits


# ------------------------------------------------------------------------------------------------- other files


def test_a_reference_file(tmp_path):
    metadata = {
        "format": "edgecal-reference",
        "version": "1",
        "method": "linear",
        "adapters": json.dumps([{"name": "a", "sha256": "0"}, {"name": "b", "sha256": "1"}]),
        "calibration": "",
        "base_model": json.dumps({"name": "some/base", "hidden_size": 8}),
        "dtype": "float32",
        "cases": json.dumps({"dialogue_0": {"text": "hello"}, "dialogue_1": {"text": "bye"}}),
    }
    tensors = {
        "delta/model.layers.0.self_attn.q_proj": np.zeros((2, 2), np.float32),
        "greedy_ids/dialogue_0": np.arange(3),
    }
    path = tmp_path / "linear.safetensors"
    save_file(tensors, path, metadata)
    report = inspect(path)
    assert (report.what, report.method, report.adapters) == ("reference", "linear", ["a", "b"])
    assert (report.base_model, report.dtype, report.nbytes) == ("some/base", "float32", 16 + 24)
    assert report.cases == ["dialogue_0", "dialogue_1"]
    assert report.deltas == ["model.layers.0.self_attn.q_proj"]
    assert as_json(report)["calibration"] is None


def test_a_reference_with_odd_metadata(tmp_path):
    path = tmp_path / "r.safetensors"
    metadata = {"format": "edgecal-reference", "cases": "{", "adapters": "3", "base_model": "[1]"}
    save_file({"delta/x": np.zeros(2, np.float32)}, path, metadata)
    report = inspect(path)
    assert (report.cases, report.adapters, report.base_model, report.method) == (["{"], ["3"], "[1]", "unknown")


def test_a_file_of_tensors(model, tmp_path):
    report = inspect(model / "model.safetensors")
    assert (report.what, report.metadata) == ("tensors", {"format": "pt"})
    assert str(model) in report.hint
    save_file({"x": np.zeros((2, 3), np.int8)}, tmp_path / "x.safetensors")
    report = inspect(tmp_path / "x.safetensors")
    assert "none beside" in report.hint
    assert report.formats["I8"].bytes == 6
    assert math.prod(report.tensors[0].shape) == 6


def test_what_is_nothing(tmp_path, model, adapter):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "weights.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "empty").mkdir()
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text("{}")
    expected = {
        tmp_path / "notes.txt": (UnsupportedModelError, "nothing that edgecal knows"),
        tmp_path / "weights.bin": (UnsupportedModelError, "pickle"),
        tmp_path / "empty": (ModelNotFoundError, "nothing that edgecal knows"),
        tmp_path / "config": (ModelNotFoundError, "holds no model"),
        tmp_path / "gone": (ModelNotFoundError, "no such file"),
        tmp_path / "gone.gguf": (ModelNotFoundError, "no such file"),
        "x" * 5000: (ModelNotFoundError, "cannot be opened|no such file"),
        "~nobody-of-this-name/x": (ModelNotFoundError, "cannot be opened"),
        "a\0b": (ModelNotFoundError, "no such file|cannot be opened"),
    }
    for path, (error, message) in expected.items():
        with pytest.raises(error, match=message):
            inspect(path)
    with pytest.raises(OptionError, match="only an adapter or a calibration"):
        inspect(model, against=model)
    with pytest.raises(UnsupportedModelError, match="PEFT adapter"):
        inspect(adapter, against=adapter)


@pytest.mark.parametrize("name", ["model.safetensors", "m.gguf", "adapter_model.safetensors", "c.safetensors"])
def test_damaged_files(tmp_path, model, adapter, rng, name):
    """Cut anywhere, a file is refused by name or, in its last bytes of data, by its size."""
    if name == "m.gguf":
        source = samples.write_gguf(tmp_path / name, "llama", samples.weights("llama", rng))
    elif name == "c.safetensors":
        source = write_tiny_calibration(tmp_path / name, model, {"a": adapter})
    elif name.startswith("adapter"):
        source = adapter / name
    else:
        source = shutil.copytree(model, tmp_path / "copy") / name
    content = source.read_bytes()
    target = source.parent if name == "model.safetensors" else source
    for length in (0, 7, 20, len(content) // 3, len(content) - 1):
        source.write_bytes(content[:length])
        with pytest.raises((FileFormatError, AdapterError), match=name):
            inspect(target)


def test_a_broken_tokenizer_config_is_a_reason(tmp_path):
    path = write_tiny_hf(tmp_path / "m")
    (path / "tokenizer_config.json").write_text("{")
    report = inspect(path)
    assert "tokenizer_config.json" in report.refusal
    assert not report.chat_template
