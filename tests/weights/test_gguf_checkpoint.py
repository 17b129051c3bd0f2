"""GGUF models seen as Hugging Face checkpoints: names, order of rows, configuration, and what is refused."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import gguf
import numpy as np
import pytest
from transformers import AutoConfig

from edgecal_kernels.errors import EdgecalError
from edgecal_kernels.quant import dequantize
from edgecal_weights.errors import FileFormatError, ModelNotFoundError, UnsupportedModelError
from edgecal_weights.families import BY_ARCHITECTURE
from edgecal_weights.gguf_blocks import COUNTERPARTS
from edgecal_weights.gguf_checkpoint import GGUFCheckpoint
from edgecal_weights.gguf_config import gguf_name, hf_name
from edgecal_weights.opening import open_checkpoint

from . import samples
from .samples import HEAD_DIM, HEADS, KV_HEADS, LAYERS, VOCAB, permuted, random_blocks, weights, write_gguf

FAMILIES = tuple(samples.ARCH)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_float_weights_come_back_under_their_names(tmp_path, rng, family, tied):
    expected = weights(family, rng, tied=tied, bias=True)
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", family, expected)) as checkpoint:
        assert checkpoint.kind == "gguf" and set(checkpoint.names()) == set(expected)
        for name, w in expected.items():
            assert checkpoint.shape(name) == w.shape and checkpoint.stored_type(name) == "F32"
            assert checkpoint.counterpart(name) is None
            got = checkpoint.read(name)
            assert got.flags.c_contiguous and got.flags.owndata
            np.testing.assert_array_equal(got, w)
        assert checkpoint.tensor_bytes() == sum(w.nbytes for w in expected.values())
        assert checkpoint.config["tie_word_embeddings"] is ("lm_head.weight" not in expected)


def test_any_range_of_permuted_rows(tmp_path, rng):
    expected = weights("llama", rng, bias=True)
    with GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", "llama", expected)) as checkpoint:
        for name in ("model.layers.1.self_attn.k_proj.weight", "model.layers.0.self_attn.q_proj.bias"):
            for start, stop in ((0, 1), (63, 65), (5, 5), (10, 100), (64, 128), (127, 128)):
                np.testing.assert_array_equal(
                    checkpoint.read_rows(name, start, stop), expected[name][start:stop]
                )
            with pytest.raises(ValueError, match="rows"):
                checkpoint.read_rows(name, 0, 10_000)


@pytest.mark.parametrize("type_name", COUNTERPARTS)
def test_quantized_weights(tmp_path, rng, type_name):
    """read() equals the gguf package's weights; packed() equals them, or is near as documented."""
    kind = gguf.GGMLQuantizationType[type_name]
    shapes = {name: w.shape for name, w in weights("llama", rng).items()}
    expected = {}

    def stored(name, w):
        if w.ndim == 1:
            return w, None
        raw = random_blocks(type_name, *shapes[name], rng)
        expected[name] = gguf.quants.dequantize(raw, kind)
        return raw, kind

    path = write_gguf(tmp_path / "m.gguf", "llama", weights("llama", rng), stored=stored)
    format, fidelity = COUNTERPARTS[type_name]
    with GGUFCheckpoint(path) as checkpoint:
        for name, w in expected.items():
            restored = np.empty_like(w)
            restored[permuted(name, np.arange(len(w)))] = w
            np.testing.assert_array_equal(checkpoint.read(name), restored)
            np.testing.assert_array_equal(checkpoint.read_rows(name, 3, 7), restored[3:7])
            assert checkpoint.stored_type(name) == type_name
            assert checkpoint.counterpart(name) == (format, fidelity)
            packed = checkpoint.packed(name)
            assert packed.format == format and packed.shape == w.shape
            tolerance = 0.0 if fidelity == "exact" else 0.0042 * np.abs(w).max()
            np.testing.assert_allclose(dequantize(packed), restored, rtol=0, atol=tolerance)
        assert checkpoint.counterpart("model.norm.weight") is None
        with pytest.raises(EdgecalError, match=r"model\.norm\.weight is stored as F32"):
            checkpoint.packed("model.norm.weight")


def test_packed_in_small_blocks_is_the_same(tmp_path, rng, monkeypatch):
    q8 = gguf.GGMLQuantizationType.Q8_0

    def stored(name, w):
        return (gguf.quants.quantize(w, q8), q8) if w.ndim == 2 else (w, None)

    path = write_gguf(tmp_path / "m.gguf", "llama", weights("llama", rng), stored=stored)
    with GGUFCheckpoint(path) as checkpoint:
        whole = {name: checkpoint.packed(name) for name in checkpoint.names() if checkpoint.counterpart(name)}
        monkeypatch.setattr("edgecal_weights.gguf_checkpoint._BLOCK_WEIGHTS", 1)
        for name, expected in whole.items():
            got = checkpoint.packed(name)
            np.testing.assert_array_equal(got.codes, expected.codes)
            np.testing.assert_array_equal(got.scale, expected.scale)


def test_packing_needs_little_more_than_its_result(tmp_path, rng):
    w = random_blocks("Q6_K", 4096, 1024, rng)

    def stored(name, tensor):
        return (
            (w, gguf.GGMLQuantizationType.Q6_K) if name.endswith("0.mlp.up_proj.weight") else (tensor, None)
        )

    path = write_gguf(tmp_path / "m.gguf", "llama", weights("llama", rng), stored=stored)
    with GGUFCheckpoint(path) as checkpoint:
        tracemalloc.start()
        packed = checkpoint.packed("model.layers.0.mlp.up_proj.weight")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert packed.nbytes > 3 << 20
        assert peak < packed.nbytes + (5 << 20)  # the float32 weights are 16 MiB


@pytest.mark.parametrize("family", FAMILIES)
def test_names_agree_with_the_gguf_package(rng, family):
    table, spec = gguf.get_tensor_name_map(samples.ARCH[family], LAYERS), BY_ARCHITECTURE[family]
    for name in weights(family, rng, bias=True):
        theirs = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_name(name, spec) == theirs and hf_name(theirs, spec) == name
    for stranger in (
        "blk.0.ffn_gate_exps.weight",
        "blk.x.attn_q.weight",
        "output.scale",
        "blk.00.attn_q.weight",
    ):
        assert hf_name(stranger, spec) is None


def test_configurations(tmp_path, rng):
    def config(family, bias=None, **keys):
        path = write_gguf(tmp_path / f"{family}.gguf", family, weights(family, rng, bias=bias), **keys)
        with GGUFCheckpoint(path) as checkpoint:
            return checkpoint.config

    llama = config("llama")
    assert (llama["model_type"], llama["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert llama["hidden_size"] == 256 and llama["intermediate_size"] == 512 and llama["vocab_size"] == VOCAB
    assert llama["num_attention_heads"] == HEADS and llama["num_key_value_heads"] == KV_HEADS
    assert llama["num_hidden_layers"] == LAYERS and llama["head_dim"] == HEAD_DIM
    assert llama["rope_theta"] == 12345.0 and llama["rope_scaling"] is None
    assert llama["rms_norm_eps"] == 2.0**-16 and llama["max_position_embeddings"] == 128
    assert llama["attention_bias"] is False and llama["mlp_bias"] is False
    assert (llama["bos_token_id"], llama["eos_token_id"]) == (1, 2)
    assert config("llama", bias=True)["attention_bias"] is True
    assert config("llama", attention__head_count_kv=[KV_HEADS] * LAYERS)["num_key_value_heads"] == KV_HEADS
    assert config("llama", rope__freq_base=None)["rope_theta"] == 10000.0
    linear = config("llama", rope__scaling__type="linear", rope__scaling__factor=4.0)
    assert linear["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert config("llama", rope__scale_linear=2.0)["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}

    assert config("qwen2")["partial_rotary_factor"] == 1.0
    stablelm = config("stablelm")
    assert stablelm["partial_rotary_factor"] == 0.25 and stablelm["layer_norm_eps"] == 2.0**-16
    assert stablelm["use_qkv_bias"] is True and stablelm["use_parallel_residual"] is False
    assert config("stablelm", bias=False)["use_qkv_bias"] is False
    for family, translated in (("llama", llama), ("stablelm", stablelm)):
        json.dumps(translated)
        assert AutoConfig.for_model(**translated).hidden_size == 256, family  # transformers takes it as it is


def test_head_dim_that_differs_from_hidden_over_heads(tmp_path, rng):
    tensors = weights("llama", rng)
    for i in range(LAYERS):
        for module in ("q", "k", "v"):
            name = f"model.layers.{i}.self_attn.{module}_proj.weight"
            tensors[name] = tensors[name][: len(tensors[name]) // 2]
        name = f"model.layers.{i}.self_attn.o_proj.weight"
        tensors[name] = np.ascontiguousarray(tensors[name][:, :128])
    keys = {"attention__key_length": 32, "attention__value_length": 32, "rope__dimension_count": 32}
    with GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", "llama", tensors, **keys)) as checkpoint:
        assert checkpoint.config["head_dim"] == 32
        name = "model.layers.1.self_attn.q_proj.weight"
        np.testing.assert_array_equal(checkpoint.read(name), tensors[name])


def test_parallel_residual_shows_by_the_missing_norm(tmp_path, rng):
    tensors = {k: w for k, w in weights("stablelm", rng).items() if "post_attention" not in k}
    with GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", "stablelm", tensors)) as checkpoint:
        assert checkpoint.config["use_parallel_residual"] is True


def test_frequency_factors(tmp_path, rng):
    factors = np.linspace(1, 8, HEAD_DIM // 2, dtype=np.float32)

    def add(writer):
        writer.add_tensor("rope_freqs.weight", factors)

    path = write_gguf(tmp_path / "m.gguf", "llama", weights("llama", rng), extra=add)
    with GGUFCheckpoint(path) as checkpoint:
        scaling = checkpoint.config["rope_scaling"]
        assert scaling["rope_type"] == "frequency_factors"
        np.testing.assert_array_equal(np.float32(scaling["factors"]), factors)
        assert not any("rope" in name for name in checkpoint.names())
    bad = write_gguf(
        tmp_path / "bad.gguf",
        "llama",
        weights("llama", rng),
        extra=lambda w: w.add_tensor("rope_freqs.weight", np.float32([1, 0])),
    )
    with pytest.raises(FileFormatError, match="rope_freqs"):
        GGUFCheckpoint(bad)


@pytest.mark.parametrize(
    ("kind", "factor", "old", "expected"),
    [
        ("linear", 4.0, None, 4.0),
        ("linear", 0.0, None, 1.0),
        ("linear", None, None, 1.0),
        ("linear", None, 2.0, 2.0),
        ("linear", 4.0, 2.0, 4.0),
        ("linear", 0.0, 2.0, 1.0),  # the old key is looked at only where the new one is missing
        (None, 4.0, None, 4.0),  # linear is what a file means that does not say
        (None, None, 2.0, 2.0),
        (None, 0, None, 1.0),
        (None, None, 0.0, 1.0),
        ("none", 4.0, 2.0, 1.0),
    ],
)
def test_linear_rope_scaling_as_llama_cpp_reads_it(tmp_path, rng, kind, factor, old, expected):
    """llama_model_base::load_hparams: the factor, else its old name, else 0; 0 is 1. Nothing is scaled for "none"."""
    keys = {"rope__scaling__type": kind, "rope__scaling__factor": factor, "rope__scale_linear": old}
    with GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", "llama", weights("llama", rng), **keys)) as checkpoint:
        found = checkpoint.config["rope_scaling"]
    assert found == (None if expected == 1 else {"rope_type": "linear", "factor": expected})


@pytest.mark.parametrize("key", ["rope__scaling__factor", "rope__scale_linear"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "4"])
def test_rope_factors_that_make_no_sense(tmp_path, rng, key, value):
    with pytest.raises(FileFormatError, match="llama.rope.scal.* expected a positive number"):
        GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", "llama", weights("llama", rng), **{key: value}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, "'yarn' is not served"),
        ({"rope__scaling__type": "longrope"}, "'longrope' is not served"),
        ({"expert_count": 8}, r"llama\.expert_count is 8"),
        ({"attention__sliding_window": 4096}, r"llama\.attention\.sliding_window is 4096"),
        ({"logit_scale": 0.5}, r"llama\.logit_scale"),
        ({"rope__dimension_count": 32}, "rotates 32 of 64"),
        ({"attention__value_length": 32}, "different length"),
        ({"attention__head_count_kv": [1, 2]}, "head_count_kv differs between layers"),
    ],
)
def test_options_that_are_not_served_are_named(tmp_path, rng, keys, message):
    with pytest.raises(UnsupportedModelError, match=message):
        GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", "llama", weights("llama", rng), **keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"embedding_length": None}, r"lacks the metadata llama\.embedding_length"),
        ({"attention__head_count": 0}, "expected a positive integer"),
        ({"attention__head_count": "4"}, "expected a positive integer"),
        ({"attention__head_count": 8, "rope__dimension_count": 32}, "128 rows, expected 2 heads of 32"),
        ({"rope__dimension_count": 65}, "rotates 65 of 64"),
        ({"attention__head_count": 1000}, "lacks|expected"),
        ({"block_count": 3}, "block_count is 3, but 2"),
        ({"block_count": 1}, "block_count is 1, but 2"),
        ({"vocab_size": 99}, r"48 rows, llama\.vocab_size is 99"),
        ({"rope__freq_base": -1.0}, "expected a positive number"),
        ({"rope__freq_base": float("nan")}, "expected a positive number"),
        ({"attention__layer_norm_rms_epsilon": None}, "lacks the metadata"),
    ],
)
def test_metadata_that_makes_no_sense(tmp_path, rng, keys, message):
    with pytest.raises(FileFormatError, match=message):
        GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", "llama", weights("llama", rng), **keys))


def test_other_architectures_types_and_tensors_are_refused_by_name(tmp_path, rng):
    writer = gguf.GGUFWriter(tmp_path / "phi.gguf", "phi3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=f"'phi3'; known: {', '.join(BY_ARCHITECTURE)}"):
        GGUFCheckpoint(tmp_path / "phi.gguf")

    def experts(writer):
        writer.add_tensor("blk.0.ffn_gate_exps.weight", np.zeros((2, 32), np.float32))

    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.ffn_gate_exps\.weight"):
        GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", "llama", weights("llama", rng), extra=experts))

    def iq4(name, w):
        if not name.endswith("up_proj.weight"):
            return w, None
        return np.zeros((len(w), w.shape[1] // 256 * 136), np.uint8), gguf.GGMLQuantizationType.IQ4_XS

    with pytest.raises(
        UnsupportedModelError, match=r"blk\.0\.ffn_up\.weight is stored as IQ4_XS; edgecal reads F32"
    ):
        GGUFCheckpoint(write_gguf(tmp_path / "i.gguf", "llama", weights("llama", rng), stored=iq4))

    with pytest.raises(UnsupportedModelError, match="'adapter'"):
        GGUFCheckpoint(
            write_gguf(
                tmp_path / "a.gguf", "llama", weights("llama", rng), extra=lambda w: w.add_type("adapter")
            )
        )
    nothing = {k: w for k, w in weights("llama", rng).items() if "embed" not in k}
    with pytest.raises(FileFormatError, match="token_embd"):
        GGUFCheckpoint(write_gguf(tmp_path / "n.gguf", "llama", nothing))


def test_nan_scale_names_file_and_tensor(tmp_path, rng):
    q8 = gguf.GGMLQuantizationType.Q8_0

    def stored(name, w):
        if not name.endswith("down_proj.weight"):
            return w, None
        raw = gguf.quants.quantize(w, q8)
        raw[3, :2] = 0xFF
        return raw, q8

    with GGUFCheckpoint(
        write_gguf(tmp_path / "m.gguf", "llama", weights("llama", rng), stored=stored)
    ) as checkpoint:
        with pytest.raises(FileFormatError, match=r"m\.gguf: blk\.1\.ffn_down\.weight: .*not finite"):
            checkpoint.packed("model.layers.1.mlp.down_proj.weight")
        with pytest.raises(FileFormatError, match=r"no tensor for model\.nope"):
            checkpoint.read("model.nope")


def test_tokenizer_config_and_ends_of_text(tmp_path, rng):
    tensors = weights("llama", rng)
    with GGUFCheckpoint(write_gguf(tmp_path / "m.gguf", "llama", tensors)) as checkpoint:
        assert checkpoint.tokenizer_config() == {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
        }
        assert checkpoint.generation_config == {"bos_token_id": 1, "eos_token_id": [2]}
        assert checkpoint.tokenizer().get_vocab_size() == VOCAB
    named = write_gguf(tmp_path / "eot.gguf", "llama", tensors, extra=lambda w: w.add_eot_token_id(7))
    with GGUFCheckpoint(named) as checkpoint:
        assert checkpoint.generation_config["eos_token_id"] == [2, 7]
    outside = write_gguf(tmp_path / "pad.gguf", "llama", tensors, extra=lambda w: w.add_pad_token_id(500))
    with GGUFCheckpoint(outside) as checkpoint:
        assert "pad_token" not in checkpoint.tokenizer_config(), "llama.cpp runs such files too"
    none = write_gguf(tmp_path / "none.gguf", "llama", tensors, eos=0xFFFFFFFF)
    with GGUFCheckpoint(none) as checkpoint:
        assert "eos_token_id" not in checkpoint.config
        assert checkpoint.generation_config["eos_token_id"] == [2]


def test_end_of_turn_is_found_in_the_vocabulary(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(samples, "TOKENS", ["<unk>", "<s>", "<|eot_id|>", "<|end|>", *samples.TOKENS[4:]])
    path = write_gguf(tmp_path / "m.gguf", "llama", weights("llama", rng), eos=1)
    with GGUFCheckpoint(path) as checkpoint:
        # <|end|> is an ordinary token in this vocabulary, so it ends nothing.
        assert checkpoint.generation_config["eos_token_id"] == [1, 2]


def split(tmp_path, rng, n_parts=3):
    """The tensors of a model dealt out to the parts of a split file, metadata in the first."""
    tensors = weights("llama", rng)
    names = list(tensors)
    folder = tmp_path / "split"
    folder.mkdir()
    for i in range(n_parts):
        path = folder / f"m-{i + 1:05}-of-{n_parts:05}.gguf"

        def add(writer, i=i):
            writer.add_uint16("split.no", i)
            writer.add_uint16("split.count", n_parts)
            writer.add_int32("split.tensors.count", len(names))

        write_gguf(path, "llama", {name: tensors[name] for name in names[i::n_parts]}, extra=add)
    return folder, tensors


def test_split_files_are_joined(tmp_path, rng):
    folder, tensors = split(tmp_path, rng)
    for path in (*sorted(folder.iterdir()), folder):
        with open_checkpoint(path) as checkpoint:
            assert set(checkpoint.names()) == set(tensors)
            for name, w in tensors.items():
                np.testing.assert_array_equal(checkpoint.read(name), w)


def test_split_files_with_a_part_missing_or_wrong(tmp_path, rng):
    folder, _ = split(tmp_path, rng)
    first, second, third = sorted(folder.iterdir())
    shutil.copy(first, third)
    with pytest.raises(FileFormatError, match="is not part 3 of 3"):
        GGUFCheckpoint(first)
    third.unlink()
    with pytest.raises(ModelNotFoundError, match=r"missing beside it: m-00003-of-00003\.gguf"):
        GGUFCheckpoint(second)
    renamed = first.rename(folder / "model.gguf")
    with pytest.raises(FileFormatError, match="one of 3 parts"):
        GGUFCheckpoint(renamed)


def use(path):
    with GGUFCheckpoint(path) as checkpoint:
        checkpoint.tokenizer_config()
        for name in checkpoint.names():
            if checkpoint.counterpart(name):
                checkpoint.packed(name)
            else:
                checkpoint.read(name)


def test_flipped_bytes_only_ever_raise_our_errors(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(samples, "LAYERS", 1)
    monkeypatch.setattr(samples, "HIDDEN", 32)
    monkeypatch.setattr(samples, "HEAD_DIM", 8)
    monkeypatch.setattr(samples, "FFN", 32)
    q4 = gguf.GGMLQuantizationType.Q4_1

    def stored(name, w):
        return (gguf.quants.quantize(w, q4), q4) if w.ndim == 2 else (w, None)

    path = write_gguf(tmp_path / "m.gguf", "llama", weights("llama", rng), stored=stored)
    use(path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    flipped = tmp_path / "flipped.gguf"
    for _ in range(600):
        raw = whole.copy()
        raw[rng.integers(0, 3500)] = rng.integers(0, 256)
        flipped.write_bytes(raw.tobytes())
        try:
            use(flipped)
        except EdgecalError as error:
            assert "flipped.gguf" in str(error)
    for size in range(0, len(whole) - 100, 307):
        flipped.write_bytes(whole[:size].tobytes())
        with pytest.raises(FileFormatError, match=r"flipped\.gguf"):
            use(flipped)


def test_real_smollm2(smollm2_gguf, smollm2_hf):
    """The Q4_1 file against the directory that transformers made of it: bf16, so equal to 8 bits."""
    with open_checkpoint(smollm2_gguf) as ours, open_checkpoint(smollm2_hf) as theirs:
        assert set(ours.names()) == set(theirs.names())
        same = (
            "hidden_size",
            "num_hidden_layers",
            "num_key_value_heads",
            "head_dim",
            "rope_theta",
            "vocab_size",
        )
        for key in (*same, "tie_word_embeddings", "rms_norm_eps", "rope_scaling", "intermediate_size"):
            assert ours.config[key] == theirs.config[key], key
        for name in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "mlp.down_proj",
            "input_layernorm",
        ):
            name = f"model.layers.17.{name}.weight"
            w, reference = ours.read(name), theirs.read(name)
            np.testing.assert_allclose(w, reference, rtol=2.0**-8, atol=1e-7)
            if ours.counterpart(name):
                assert ours.counterpart(name) == ("int4_affine", "exact")
                np.testing.assert_array_equal(dequantize(ours.packed(name)), w)
        assert ours.counterpart("model.embed_tokens.weight") == ("int8", "exact")
        rows = ours.read_rows("model.embed_tokens.weight", 1000, 1003)
        np.testing.assert_allclose(
            rows, theirs.read_rows("model.embed_tokens.weight", 1000, 1003), rtol=2.0**-8
        )
        assert ours.tokenizer_config()["eos_token"] == "<|im_end|>"
