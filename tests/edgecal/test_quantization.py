"""Calibrated quantization: the mathematics beside float64 and GPTQ's own formulation, and a model from end to end."""

from __future__ import annotations

import heapq
import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecal import Engine
from edgecal.cli.quantize import command
from edgecal.errors import OptionError, PromptError, QuantizationError
from edgecal.perplexity import measure
from edgecal.quantization import layerwise, quantize_calibrated
from edgecal.quantization.calibrate import CONTEXT, DAMPING, DEFAULT_TEXT, TOKENS
from edgecal.quantization.rounding import Diagonal, Feedback, _factor, rounding_errors
from edgecal.text.corpus import read_documents, windows
from edgecal.text.tokenizer import Tokenizer
from edgecal_kernels.quant import FORMATS, SPECS, dequantize, quantize, unpack
from edgecal_weights.file_kind import PACKED_FILE
from edgecal_weights.imatrix_file import read_imatrix
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.packed import PackedCheckpoint
from edgecal_weights.quantizer import quantize_checkpoint
from tests.cli.shell import edgecal
from tests.tiny import write_tiny_hf

TEXT = read_documents(DEFAULT_TEXT)[:40]
FOUR_BITS = ("int4", "int4_f16", "int4_affine", "int4_k")
# Of plain rounding's error
LEFT = {
    "int8": 0.8, "int6": 0.6, "int6_k": 0.6, "int5": 0.65, "int5_k": 0.6, "int4": 0.65, "int4_f16": 0.65,
    "int4_affine": 0.5, "int4_k": 0.5,
}  # fmt: skip


def inputs(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """Correlated, and of very different sizes."""
    mixed = rng.normal(size=(n, k)) @ (np.eye(k) + 0.3 * rng.normal(size=(k, k)) / np.sqrt(k))
    return (mixed * np.exp(rng.normal(size=k))).astype(np.float32)


def output_error(x: np.ndarray, difference: np.ndarray) -> float:
    return float(np.square(x.astype(np.float64) @ difference.T.astype(np.float64)).sum())


# ------------------------------------------------------------------------------------------------- the mathematics


@pytest.mark.parametrize(
    ("format", "group_size", "k"),
    [(name, size, k) for size, k in ((32, 96), (64, 100)) for name in FORMATS if size in SPECS[name].group_sizes],
)
def test_outputs_change_less(rng, format, group_size, k):
    x, w = inputs(rng, 400, k), rng.standard_t(4, size=(160, k)).astype(np.float32)
    packed = Feedback(x.T @ x, group_size, DAMPING).round(w, format)
    assert (packed.format, packed.shape, packed.group_size) == (format, w.shape, group_size)
    plain = output_error(x, w - dequantize(quantize(w, format, group_size)))
    assert output_error(x, w - dequantize(packed)) < LEFT[format] * plain
    if format != "int8":  # whose scales are not searched
        searched = Diagonal(np.square(x).sum(axis=0), group_size).round(w, format)
        assert output_error(x, w - dequantize(searched)) < 0.85 * plain


@pytest.mark.parametrize("format", [*FOUR_BITS, "int6", "int6_k"])
def test_codes_are_those_of_gptq(rng, format):
    """Columns one by one, the rest moved by the Cholesky factor of the inverse, as the paper has it, in float64."""
    k, size = 64, 32
    x, w = inputs(rng, 300, k), rng.normal(size=(20, k)).astype(np.float32)
    metric = Feedback(x.T @ x, size, 0.05)
    packed = metric.round(w, format)
    codes, scale, minimum = unpack(packed)
    codes, scale = codes[:20], scale[:20].astype(np.float64)
    low = np.zeros_like(scale) if minimum is None else minimum[:20].astype(np.float64)
    gram = (x.T @ x).astype(np.float64)
    gram[np.diag_indices(k)] *= 1.05
    order = metric.columns[::-1]
    upper = np.linalg.cholesky(np.linalg.inv(gram[np.ix_(order, order)])).T
    left, spec, same = w[:, order].astype(np.float64), SPECS[format], 0
    for i, column in enumerate(order):
        group = column * scale.shape[1] // k
        exact = (left[:, i] - low[:, group]) / scale[:, group]
        code = np.clip(np.rint(exact), spec.lowest, spec.highest)
        same += (code + spec.code_offset == codes[:, column]).sum()
        taken = codes[:, column].astype(np.float64) - spec.code_offset
        error = (left[:, i] - (taken * scale[:, group] + low[:, group])) / upper[i, i]
        left[:, i:] -= error[:, None] * upper[i, i:]
    assert same >= 20 * k - 2  # float32 may fall on the other side of a half


@pytest.mark.parametrize("n", [1, 40, 512, 1100])  # of less than a block, one, and more
def test_a_matrix_is_factored_in_its_place(rng, n):
    x = rng.normal(size=(n + 10, n))
    h = x.T @ x + 0.2 * np.diag(np.square(x).sum(axis=0))
    expected = np.linalg.cholesky(h)
    found = _factor(h)
    assert found is h
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_inputs_of_all_windows_are_added_up(rng):
    lengths = (layerwise._TOGETHER, 3, layerwise._TOGETHER - 1, 5, 0, 7)  # sums on either side of what goes together
    pieces = [rng.normal(size=(n, 6)).astype(np.float32) for n in lengths]
    x = np.concatenate(pieces).astype(np.float64)
    np.testing.assert_allclose(layerwise._gram(iter(pieces), 6), x.T @ x, rtol=1e-5, atol=0.01)
    assert not layerwise._gram([], 6).any()


def test_the_norm_is_that_of_outputs(rng):
    x, difference = inputs(rng, 200, 40), rng.normal(size=(7, 40)).astype(np.float32)
    assert Feedback(x.T @ x, 32, 0.0).norm(difference) == pytest.approx(output_error(x, difference), rel=1e-4)
    expected = float((np.square(difference) @ np.square(x.astype(np.float64)).sum(axis=0)).sum())
    assert Diagonal(np.square(x.astype(np.float64)).sum(axis=0), 32).norm(difference) == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 40), st.integers(1, 70), st.floats(1e-6, 1e3), st.integers(0, 2**16))
def test_any_matrix_and_any_inputs(format, d, k, size, seed):
    """Fewer inputs than columns, inputs and rows that are 0: everything is finite, and no worse than what there is as
    soon as there are rows for a mean (plain rounding of a single one may be lucky). Weights of 1e4 are within float16,
    but what is made good can move one beyond it, which is refused."""
    rng = np.random.default_rng(seed)
    x = inputs(rng, 1 + seed % 50, k) * (rng.random(k) < 0.8)
    w = (size * rng.normal(size=(d, k)) * (rng.random((d, 1)) < 0.8)).astype(np.float32)
    for metric in (Feedback(x.T @ x, 32, DAMPING), Diagonal(np.square(x).sum(axis=0), 32)):
        packed = metric.round(w, format)
        assert np.isfinite(dequantize(packed)).all()
        assert not dequantize(packed)[~w.any(axis=1)].any()
        before, after = rounding_errors(metric, w, packed)
        # Scales are float16, or multiples of one: half of 2 ** -11 of a weight, squared, is what either may err by
        assert d < 16 or after <= before * 1.02 + 2**-24


def test_importance_finds_scales_for_columns_that_count(rng):
    w = rng.normal(size=(32, 64)).astype(np.float32)
    squares = np.full(64, 1e-3)
    squares[::8] = 1
    for format in (*FOUR_BITS, "int6", "int6_k"):
        searched = dequantize(Diagonal(squares, 32).round(w, format)) - w
        plain = dequantize(quantize(w, format)) - w
        assert np.square(searched[:, ::8]).sum() < 0.7 * np.square(plain[:, ::8]).sum()


# ------------------------------------------------------------------------------------------------- the text that ships


def test_the_text_is_small_and_no_one_elses():
    assert DEFAULT_TEXT.stat().st_size < 160_000
    documents = read_documents(DEFAULT_TEXT)
    assert len(set(documents)) == len(documents)
    held = {line.strip() for document in documents for line in document.splitlines()}
    tested = {line.strip() for line in Path(heapq.__file__).read_text("utf-8").splitlines() if len(line.strip()) > 25}
    assert tested - held == tested - {'if __name__ == "__main__":'}  # what bench.quality asks about code


def test_the_text_has_code_of_many_languages_all_the_way_through():
    documents = read_documents(DEFAULT_TEXT)
    for mark in ("#include <", "def ", "const ", "public class ", "func ", "fn ", "SELECT", "#!/", "version:", "<h1>"):
        assert any(mark in document for document in documents), mark
    begins = re.compile("^(def|class|import|from|#include) ", re.MULTILINE)
    code = [begins.search(document) is not None for document in documents]
    assert all(0.1 < np.mean(quarter) < 0.5 for quarter in np.array_split(code, 4))


def test_the_text_has_the_tokens_that_are_taken_of_it(smollm2_gguf):
    with open_checkpoint(smollm2_gguf) as checkpoint:
        found = windows(Tokenizer.from_checkpoint(checkpoint), read_documents(DEFAULT_TEXT), CONTEXT)
    assert sum(len(window) == CONTEXT for window in found) >= TOKENS // CONTEXT
    [default] = [option.default for option in command.params if option.name == "calibrate_tokens"]
    assert default == TOKENS


# ------------------------------------------------------------------------------------------------------ whole models


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("calibrated") / "model"
    write_tiny_hf(root, hidden_size=128, intermediate_size=192)
    return root


def calibrated(model: Path, out: Path, **options):
    with open_checkpoint(model) as checkpoint:
        return quantize_calibrated(checkpoint, out, documents=TEXT, tokens=2048, **options)


def divergence(model: Path, packed: Path) -> float:
    exact = Engine.load(model, weights="fp32", cache_dtype="fp32", backend="numpy")
    engine = Engine.load(packed, cache_dtype="fp32", backend="numpy")
    found = measure(engine, TEXT[-8:], against=exact, context=128, max_tokens=1024)
    assert found.against is not None
    return found.against.kl.value


@pytest.mark.parametrize("family", ["qwen2", "stablelm", "qwen3", "gemma3_text"])
def test_every_family(tmp_path, family):
    write_tiny_hf(tmp_path / "model", family)
    report = calibrated(tmp_path / "model", tmp_path / "out")
    names = set(report.output_errors)
    assert len([name for name in names if name.startswith("model.layers.")]) == 14
    with open_checkpoint(tmp_path / "model") as checkpoint:
        tied = checkpoint.config["tie_word_embeddings"]
    assert ("lm_head.weight" in names) != tied
    assert all(error.calibrated <= error.rounded for error in report.output_errors.values())
    engine = Engine.load(tmp_path / "out", backend="numpy")
    assert engine.generate("Hi", max_tokens=2).text is not None


def test_closer_than_rounding_at_the_same_bytes(model, tmp_path):
    with open_checkpoint(model) as checkpoint:
        plain = quantize_checkpoint(checkpoint, tmp_path / "plain", format="int4")
    found = calibrated(model, tmp_path / "feedback")
    calibrated(model, tmp_path / "importance", feedback=False)
    assert found.packed_bytes == plain.packed_bytes and found.formats == plain.formats
    rounded = divergence(model, tmp_path / "plain")
    assert divergence(model, tmp_path / "feedback") < 0.8 * rounded
    assert divergence(model, tmp_path / "importance") < rounded
    with PackedCheckpoint(tmp_path / "feedback") as packed:
        assert packed.source["calibration"] == {"method": "feedback", "tokens": 2048}


def test_the_same_bytes_twice_and_after_a_kill(model, tmp_path):
    calibrated(model, tmp_path / "once", format="int4_affine")

    class Killed(BaseException):
        pass

    def stop(done: int, total: int, note: str) -> None:
        seen.append(note)
        if done == 1:
            raise Killed

    seen: list[str] = []
    with pytest.raises(Killed):
        calibrated(model, tmp_path / "twice", format="int4_affine", progress=stop)
    [kept] = tmp_path.glob(".twice.calibrating")
    assert not (tmp_path / "twice").exists() and (kept / "000.npz").exists()
    layers: list[int] = []
    report = calibrated(
        model, tmp_path / "twice", format="int4_affine", progress=lambda done, total, note: layers.append(done)
    )
    assert layers[0] == 1 and not kept.exists() and len(report.output_errors) == 14
    assert (tmp_path / "once" / PACKED_FILE).read_bytes() == (tmp_path / "twice" / PACKED_FILE).read_bytes()


def test_memory_does_not_depend_on_the_number_of_layers(tmp_path):
    """A layer has 0.6 MB of float32 weights here, and 0.07 MB of packed ones: neither adds up."""
    peaks = []
    for layers in (2, 5):
        sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": layers}
        folder = write_tiny_hf(tmp_path / f"{layers}", **sizes)
        with open_checkpoint(folder) as checkpoint:
            tracemalloc.start()
            quantize_calibrated(checkpoint, tmp_path / f"{layers}-out", documents=TEXT, tokens=512)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000


def test_what_was_begun_otherwise_is_begun_again(model, tmp_path):
    def stop(done: int, total: int, note: str) -> None:
        starts.append(done)
        if done == 1:
            raise KeyboardInterrupt

    starts: list[int] = []
    for options in ({}, {"group_size": 64}, {"feedback": False}):
        with pytest.raises(KeyboardInterrupt):
            calibrated(model, tmp_path / "out", progress=stop, **options)
    assert starts == [0, 1] * 3
    (tmp_path / ".out.calibrating" / "state.json").write_text("{")
    with pytest.raises(KeyboardInterrupt):
        calibrated(model, tmp_path / "out", progress=stop, feedback=False)
    assert starts == [0, 1] * 4


def test_refusals(model, tmp_path):
    with pytest.raises(QuantizationError, match="keep rounds nothing"):
        calibrated(model, tmp_path / "out", format="keep")
    with pytest.raises(OptionError, match="512 tokens or more"), open_checkpoint(model) as checkpoint:
        quantize_calibrated(checkpoint, tmp_path / "out", tokens=10)
    with pytest.raises(PromptError, match="at least two"), open_checkpoint(model) as checkpoint:
        quantize_calibrated(checkpoint, tmp_path / "out", documents=["a"])
    calibrated(model, tmp_path / "out")
    with pytest.raises(QuantizationError, match="every matrix is int4 already"):
        calibrated(tmp_path / "out", tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


# ----------------------------------------------------------------------------------------------------------- imatrix


def write_imatrix(path: Path, tensors: dict[str, np.ndarray], kind: str = "imatrix") -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "")
    writer.add_type(kind)
    for name, values in tensors.items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_an_importance_matrix_of_llama_cpp(model, tmp_path, rng):
    sums = rng.random(128) * 50
    both = {"in_sum2": sums[None], "counts": np.array([[25.0]])}
    write_imatrix(tmp_path / "i.gguf", {f"blk.1.attn_q.weight.{part}": values for part, values in both.items()})
    from edgecal_weights.families import LLAMA as family

    [(name, found)] = read_imatrix(tmp_path / "i.gguf", family).items()
    assert name == "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_allclose(found, sums / 25, rtol=1e-6)
    done = edgecal("quantize", model, tmp_path / "out", "--imatrix", tmp_path / "i.gguf", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["output_errors"]) == [name]
    with open_checkpoint(model) as checkpoint, PackedCheckpoint(tmp_path / "out") as packed:
        expected = Diagonal(found, 32).round(checkpoint.read(name), "int4")
        assert (packed.packed(name).codes == expected.codes).all()
