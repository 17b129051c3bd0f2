"""The streaming quantizer: what it writes, what it costs, and what it leaves behind when it fails."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from edgecal_kernels.errors import QuantizationError
from edgecal_kernels.quant import FORMATS, SPECS, dequantize, quantize
from edgecal_weights import packed_writer
from edgecal_weights.errors import FileFormatError, ModelNotFoundError, StorageError
from edgecal_weights.file_kind import PACKED_FILE
from edgecal_weights.gguf_checkpoint import GGUFCheckpoint
from edgecal_weights.huggingface import HFCheckpoint
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.packed import PackedCheckpoint
from edgecal_weights.quantize_report import source_name
from edgecal_weights.quantizer import pack_tensor, plan, quantize_checkpoint

from .hf_files import write_hf
from .samples import gguf_of, weights

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def tensors():
    return weights("llama", np.random.default_rng(6), tied=True)


SCALES = [("int4", "row_scale"), ("int4_f16", "scale"), ("int4_affine", "minimum"), ("int4_k", "super_scale")]


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory, tensors):
    return write_hf(tmp_path_factory.mktemp("source") / "hf", tensors)


@pytest.fixture
def source(hf_dir):
    with HFCheckpoint(hf_dir) as checkpoint:
        yield checkpoint


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("format", "group_size"),
    [(format, size) for size in (32, 128) for format in FORMATS if size in SPECS[format].group_sizes],
)
@pytest.mark.parametrize("embedding", ["auto", "int4", "fp32"])
def test_blocks_of_rows_give_what_the_whole_gives(source, tensors, tmp_path, format, group_size, embedding):
    """The file holds exactly quantize(whole tensor), although it was written in blocks of rows."""
    report = quantize_checkpoint(
        source, tmp_path / "out", format=format, group_size=group_size, embedding_format=embedding
    )
    with open_checkpoint(tmp_path / "out") as packed:
        assert set(packed.names()) == set(tensors)
        for name, w in tensors.items():
            automatic = "int8" if format == "int8" else "int6"
            kind = format if name != EMBEDDING else {"auto": automatic}.get(embedding, embedding)
            if w.ndim == 1 or kind == "fp32":
                np.testing.assert_array_equal(packed.read(name), w)
            else:
                of_head = max(group_size, 64) if (kind, embedding) == ("int6", "auto") else group_size
                expected = quantize(w, kind, of_head if name == EMBEDDING else group_size)
                got = packed.packed(name)
                assert got.group_size == expected.group_size and got.arrays.keys() == expected.arrays.keys()
                for part, array in expected.arrays.items():
                    np.testing.assert_array_equal(got.arrays[part], array)
        assert report.packed_bytes == packed.tensor_bytes() == sum(t.bytes for t in report.formats.values())
        assert report.n_weights == sum(w.size for w in tensors.values())
        assert report.bits_per_weight == 8 * report.packed_bytes / report.n_weights
        assert sum(report.fidelity.values()) == len(tensors)
    assert json.loads(json.dumps(report.to_dict()))["source"] == "hf"


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_shards_and_half_floats(tensors, tmp_path, dtype):
    with HFCheckpoint(write_hf(tmp_path / "hf", tensors, dtype=dtype, shards=3)) as source:
        quantize_checkpoint(source, tmp_path / "out")
        with open_checkpoint(tmp_path / "out") as packed:
            expected = quantize(source.read(Q_PROJ), "int4")
            np.testing.assert_array_equal(packed.packed(Q_PROJ).codes, expected.codes)


def test_two_runs_write_the_same_bytes(source, tmp_path):
    for name in ("a", "b"):
        quantize_checkpoint(source, tmp_path / name)
    for file in left_in(tmp_path / "a"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_tied_head_is_not_stored(tmp_path, rng):
    copied = weights("llama", rng, tied=True)
    copied["lm_head.weight"] = copied[EMBEDDING]
    with HFCheckpoint(write_hf(tmp_path / "hf", copied, tie_word_embeddings=True)) as source:
        quantize_checkpoint(source, tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as packed:
        assert "lm_head.weight" not in packed.names() and packed.config["tie_word_embeddings"] is True


def test_keep_takes_gguf_codes_over(tensors, tmp_path, rng):
    """Exact counterparts come out bit for bit; the report says which are near; float matrices become int8."""
    types = {"": "Q4_1", EMBEDDING: "Q8_0", Q_PROJ: "Q5_1", "model.layers.1.mlp.up_proj.weight": "F32"}
    kept = {"model.layers.0.mlp.gate_proj.weight": "Q4_K", "model.layers.0.mlp.down_proj.weight": "Q6_K"}
    kept |= {"model.layers.0.self_attn.v_proj.weight": "Q5_K", "model.layers.0.self_attn.o_proj.weight": "Q5_0"}
    types |= kept
    with GGUFCheckpoint(gguf_of(tmp_path / "m.gguf", tensors, types, rng)) as source:
        report = quantize_checkpoint(source, tmp_path / "out", measure_errors=True)
        with open_checkpoint(tmp_path / "out") as packed:
            for name in source.names():
                near = name in (Q_PROJ, "model.layers.1.mlp.up_proj.weight")
                if not near:
                    np.testing.assert_array_equal(packed.read(name), source.read(name))
                    assert report.errors[name].largest == 0
            assert packed.stored_type(Q_PROJ) == "int8" and packed.stored_type(EMBEDDING) == "int8"
            assert [packed.stored_type(name) for name in kept] == ["int4_k", "int6_k", "int5_k", "int5"]
            assert packed.tokenizer_config()["chat_template"] == source.tokenizer_config()["chat_template"]
            assert packed.tokenizer().to_str() == source.tokenizer().to_str()
            assert packed.config == source.config and packed.generation_config == source.generation_config
        n = len(source.names())
        assert report.fidelity == {"exact": n - 2, "near": 1, "rounded": 1}
        assert 0 < report.errors[Q_PROJ].relative < 1e-2


def test_int4_of_a_gguf_is_rounded_from_its_values(tensors, tmp_path, rng):
    with GGUFCheckpoint(gguf_of(tmp_path / "m.gguf", tensors, {"": "Q8_0"}, rng)) as source:
        quantize_checkpoint(source, tmp_path / "out", format="int4", embedding_format="int8")
        with open_checkpoint(tmp_path / "out") as packed:
            expected = quantize(source.read(Q_PROJ), "int4")
            np.testing.assert_array_equal(packed.packed(Q_PROJ).codes, expected.codes)
            # int8 was asked for the embedding, and int8 is what it is already: not rounded again
            np.testing.assert_array_equal(packed.read(EMBEDDING), source.read(EMBEDDING))


def test_packed_source_is_kept(source, tmp_path):
    quantize_checkpoint(source, tmp_path / "a", format="int4", group_size=64)
    with PackedCheckpoint(tmp_path / "a") as packed:
        assert all(decision.fidelity == "exact" for decision in plan(packed))
        quantize_checkpoint(packed, tmp_path / "b")
        with PackedCheckpoint(tmp_path / "b") as again:
            for name in packed.names():
                assert again.stored_type(name) == packed.stored_type(name)
                assert again.group_size(name) == packed.group_size(name)
                np.testing.assert_array_equal(again.read(name), packed.read(name))


@pytest.mark.parametrize("format", ["int4", "int8", "int4_affine", "int4_k"])
def test_tensor_in_memory_equals_file(source, tmp_path, format):
    quantize_checkpoint(source, tmp_path / "out", format=format)
    with PackedCheckpoint(tmp_path / "out") as packed:
        for decision in plan(source, format):
            got = pack_tensor(source, decision)
            values = got if isinstance(got, np.ndarray) else dequantize(got)
            np.testing.assert_array_equal(values, packed.read(decision.name))


def test_measured_errors(source, tensors, tmp_path):
    report = quantize_checkpoint(source, tmp_path / "out", measure_errors=True)
    difference = dequantize(quantize(tensors[Q_PROJ], "int4")).astype(np.float64) - tensors[Q_PROJ]
    error = report.errors[Q_PROJ]
    assert error.largest == pytest.approx(np.abs(difference).max(), rel=1e-12)
    assert error.mean_absolute == pytest.approx(np.abs(difference).mean(), rel=1e-9)
    relative = np.sqrt(np.square(difference).sum() / np.square(tensors[Q_PROJ].astype(np.float64)).sum())
    assert error.relative == pytest.approx(relative, rel=1e-9) and report.errors[NORM].largest == 0


def test_progress(source, tmp_path):
    calls = []
    report = quantize_checkpoint(source, tmp_path / "out", progress=lambda *call: calls.append(call))
    done, totals, names = zip(*calls, strict=True)
    assert list(done) == sorted(done) and done[-1] == report.packed_bytes and set(totals) == {report.packed_bytes}
    assert set(names) == set(source.names())


@pytest.mark.parametrize(("name", "place"), [(Q_PROJ, (200, 3)), (NORM, (17,)), (EMBEDDING, (40, 255))])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(tensors, tmp_path, name, place, value):
    broken = {**tensors, name: tensors[name].copy()}
    broken[name][place] = value
    with HFCheckpoint(write_hf(tmp_path / "hf", broken)) as source:
        with pytest.raises(FileFormatError) as caught:
            quantize_checkpoint(source, tmp_path / "out")
        assert name in str(caught.value) and str(list(place)) in str(caught.value)
        with pytest.raises(FileFormatError, match=name):
            pack_tensor(source, next(d for d in plan(source) if d.name == name))
    assert left_in(tmp_path) == ["hf"]


@pytest.mark.parametrize(("format", "part"), SCALES)
def test_scales_that_are_not_finite(source, tmp_path, format, part):
    """A packed file is trusted no more than any other."""
    quantize_checkpoint(source, tmp_path / "out", format=format)
    with PackedCheckpoint(tmp_path / "out") as packed:
        array = packed.packed(Q_PROJ).arrays[part]
        at = (tmp_path / "out" / PACKED_FILE).read_bytes().index(array.tobytes())
    with (tmp_path / "out" / PACKED_FILE).open("r+b") as file:
        file.seek(at + 3 * array.itemsize)
        file.write(np.array(np.nan, array.dtype).tobytes())
    with PackedCheckpoint(tmp_path / "out") as packed:
        decision = next(d for d in plan(packed) if d.name == Q_PROJ)
        with pytest.raises(FileFormatError, match=f"{Q_PROJ} has scales that are NaN"):
            pack_tensor(packed, decision)


def test_weights_beyond_float16_scales(tensors, tmp_path):
    huge = {**tensors, Q_PROJ: tensors[Q_PROJ] * np.float32(1e8)}
    with (
        HFCheckpoint(write_hf(tmp_path / "hf", huge)) as source,
        pytest.raises(QuantizationError, match=f"{Q_PROJ}.*float16"),
    ):
        quantize_checkpoint(source, tmp_path / "out", format="int4_f16")
    with HFCheckpoint(tmp_path / "hf") as source:  # int4 has float32 scales of rows
        quantize_checkpoint(source, tmp_path / "out", format="int4")
        with open_checkpoint(tmp_path / "out") as packed:
            expected = dequantize(quantize(tensors[Q_PROJ], "int4")) * np.float32(1e8)
            np.testing.assert_allclose(packed.read(Q_PROJ), expected, rtol=1e-5)


@pytest.mark.parametrize("options", [{"format": "int3"}, {"group_size": 48}, {"embedding_format": "keep"}])
def test_unknown_options(source, tmp_path, options):
    with pytest.raises(QuantizationError):
        quantize_checkpoint(source, tmp_path / "out", **options)


def test_source_without_tokenizer_fails_at_once(tensors, tmp_path):
    with (
        HFCheckpoint(write_hf(tmp_path / "hf", tensors, tokenizer=False)) as source,
        pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"),
    ):
        quantize_checkpoint(source, tmp_path / "out")
    assert left_in(tmp_path) == ["hf"]


def test_overwriting(source, tmp_path):
    out = tmp_path / "out"
    quantize_checkpoint(source, out, format="int8")
    with pytest.raises(StorageError, match="--force"):
        quantize_checkpoint(source, out)
    with PackedCheckpoint(out) as old:
        codes = old.packed(Q_PROJ).codes
        before = codes.copy()
        quantize_checkpoint(source, out, format="int4", overwrite=True)
        np.testing.assert_array_equal(codes, before)  # who has the old file open keeps it
    with PackedCheckpoint(out) as new:
        assert new.stored_type(Q_PROJ) == "int4"
    assert left_in(tmp_path) == ["out"]


def test_other_peoples_files_are_never_replaced(source, hf_dir, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    with pytest.raises(StorageError, match=r"chapter1\.tex"):
        quantize_checkpoint(source, tmp_path / "thesis", overwrite=True)
    with pytest.raises(StorageError, match="not part of a packed model"):
        quantize_checkpoint(source, hf_dir, overwrite=True)
    (tmp_path / "file").write_text("...")
    with pytest.raises(StorageError, match="is a file"):
        quantize_checkpoint(source, tmp_path / "file", overwrite=True)
    with pytest.raises(StorageError, match="could not be written"):
        quantize_checkpoint(source, tmp_path / "file" / "out")
    (tmp_path / "empty").mkdir()
    quantize_checkpoint(source, tmp_path / "empty")
    assert left_in(tmp_path) == ["empty", "file", "thesis"]


def test_ctrl_c(source, tmp_path):
    out = tmp_path / "out"
    quantize_checkpoint(source, out, format="int8")

    def interrupt(done, total, name):
        if done > total // 2:
            raise KeyboardInterrupt

    for target in (out, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            quantize_checkpoint(source, target, overwrite=True, progress=interrupt)
    assert left_in(tmp_path) == ["out"]
    with PackedCheckpoint(out) as packed:
        assert packed.stored_type(Q_PROJ) == "int8"


def test_disk_fills_up_midway(source, tmp_path, monkeypatch):
    calls, pwrite = [], os.pwrite

    def limited(descriptor, content, offset):
        calls.append(offset)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, content[:5000], offset)  # short writes are legal, too

    monkeypatch.setattr(os, "pwrite", limited)
    with pytest.raises(StorageError, match=r"No space left.*needs [\d,]+ bytes and [\d,]+ bytes are free.*free some"):
        quantize_checkpoint(source, tmp_path / "out")
    assert left_in(tmp_path) == [] and len(calls) == 21


def test_disk_too_small_is_found_before_the_work(source, tmp_path, monkeypatch):
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(packed_writer.shutil, "disk_usage", lambda path: usage)
    calls = []
    with pytest.raises(StorageError, match="No space left"):
        quantize_checkpoint(source, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert left_in(tmp_path) == [] and not calls


_LIMITED = """
import resource, signal, sys
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.errors import StorageError
from edgecal_weights.quantizer import quantize_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    quantize_checkpoint(open_checkpoint(sys.argv[1]), sys.argv[2])
except StorageError as error:
    print(error)
"""


def test_the_system_refuses_the_file(hf_dir, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(hf_dir), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert "File too large" in done.stdout and "Nothing half-written was left" in done.stdout
    assert left_in(tmp_path) == []


_PEAK = """
import json, sys
from pathlib import Path
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.quantizer import quantize_checkpoint
import tokenizers

def peak():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024

before = peak()
report = quantize_checkpoint(open_checkpoint(sys.argv[1]), sys.argv[2])
print(json.dumps([peak() - before, report.packed_bytes, report.source_bytes]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the resident memory from /proc")
def test_memory_stays_small(tmp_path, rng):
    """128 MB of bf16 shards: the promise is 1.5 times the packed size at most, in truth it is a few blocks of rows."""
    base = weights("llama", rng, tied=True)
    block = (rng.standard_normal((2048, 2048)) * 0.02).astype(np.float32)
    matrices = {f"model.layers.{i}.mlp.up_proj.weight": block for i in range(15)}
    norms = {name: w for name, w in base.items() if w.ndim == 1}
    tensors = {EMBEDDING: block[:512], **matrices, **norms}
    write_hf(tmp_path / "hf", tensors, dtype="BF16", shards=4, hidden_size=2048, num_hidden_layers=15)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path / "hf"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    grown, packed, stored = json.loads(done.stdout)
    assert stored > 125e6 and packed > 33e6
    assert grown <= 1.5 * packed
    assert grown <= 48 << 20


def test_sources_in_the_hub_cache_have_their_name(tmp_path):
    snapshot = tmp_path / "models--org--some-model" / "snapshots" / "0123abc"
    assert source_name(snapshot) == "org/some-model"
    assert source_name(snapshot / "m.Q4_0.gguf") == "org/some-model/m.Q4_0.gguf"


def test_real_model_is_kept_exactly(smollm2_gguf, tmp_path):
    """Every tensor of the demo model (Q4_1, Q8_0, F32) has an exact counterpart, llama's row order included."""
    with GGUFCheckpoint(smollm2_gguf) as source:
        report = quantize_checkpoint(source, tmp_path / "out")
        assert report.fidelity == {"exact": 272}
        assert report.packed_bytes == source.tensor_bytes()
        with open_checkpoint(tmp_path / "out") as packed:
            for name in ("model.layers.7.self_attn.k_proj.weight", "model.layers.29.mlp.down_proj.weight", NORM):
                np.testing.assert_array_equal(packed.read(name), source.read(name))
            rows = packed.read_rows(EMBEDDING, 49_000, 49_152)
            np.testing.assert_array_equal(rows, source.read_rows(EMBEDDING, 49_000, 49_152))
    assert (tmp_path / "out" / PACKED_FILE).stat().st_size < 97e6
