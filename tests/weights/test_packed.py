"""The packed form: its layout on disk, what comes back from the map, and files that lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from edgecal_kernels.errors import EdgecalError
from edgecal_kernels.quant import FORMATS, SPECS, dequantize, quantize
from edgecal_weights.errors import FileFormatError, ModelNotFoundError, UnsupportedModelError, WeightsError
from edgecal_weights.file_kind import PACKED_FILE
from edgecal_weights.huggingface import HFCheckpoint
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.packed import PackedCheckpoint, TensorSpec, lay_out
from edgecal_weights.quantizer import quantize_checkpoint

from .hf_files import write_hf
from .samples import weights

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def tensors():
    return weights("llama", np.random.default_rng(5), tied=False)


@pytest.fixture(scope="module")
def packed_dir(tmp_path_factory, tensors):
    folder = tmp_path_factory.mktemp("packed")
    with HFCheckpoint(write_hf(folder / "hf", tensors)) as source:
        quantize_checkpoint(source, folder / "packed", format="int4_affine", group_size=64)
    return folder / "packed"


def test_arrays_are_aligned_views_of_the_file(packed_dir, tensors):
    with open_checkpoint(packed_dir) as checkpoint:
        assert isinstance(checkpoint, PackedCheckpoint) and checkpoint.kind == "packed"
        assert set(checkpoint.names()) == set(tensors)
        got, expected = checkpoint.packed(Q_PROJ), quantize(tensors[Q_PROJ], "int4_affine", 64)
        assert (got.format, got.shape, got.group_size) == ("int4_affine", (256, 256), 64)
        for part in ("codes", "scale", "minimum"):
            array = getattr(got, part)
            np.testing.assert_array_equal(array, getattr(expected, part))
            assert array.ctypes.data % 64 == 0
            assert not array.flags.owndata
        assert checkpoint.counterpart(Q_PROJ) == ("int4_affine", "exact")
        assert checkpoint.stored_type(Q_PROJ) == "int4_affine" and checkpoint.group_size(Q_PROJ) == 64
        assert checkpoint.packed("lm_head.weight").format == "int6"
        assert checkpoint.counterpart(NORM) is None and checkpoint.stored_type(NORM) == "F32"
        norm = checkpoint.read(NORM)
        np.testing.assert_array_equal(norm, tensors[NORM])
        assert norm.flags.writeable and norm.flags.owndata
        with pytest.raises(WeightsError, match="no packed counterpart"):
            checkpoint.packed(NORM)
        with pytest.raises(FileFormatError, match="no tensor nothing"):
            checkpoint.read("nothing")


def test_writing_into_a_view_never_reaches_the_file(packed_dir):
    before = (packed_dir / PACKED_FILE).read_bytes()
    with PackedCheckpoint(packed_dir) as checkpoint:
        checkpoint.packed(Q_PROJ).codes[...] = 0
    assert (packed_dir / PACKED_FILE).read_bytes() == before
    with PackedCheckpoint(packed_dir) as checkpoint:
        assert checkpoint.packed(Q_PROJ).codes.any()


def test_rows(packed_dir, tensors):
    with PackedCheckpoint(packed_dir) as checkpoint:
        whole = dequantize(quantize(tensors[Q_PROJ], "int4_affine", 64))
        np.testing.assert_array_equal(checkpoint.read(Q_PROJ), whole)
        for start, stop in ((0, 1), (0, 16), (15, 17), (16, 48), (33, 34), (7, 7), (250, 256)):
            rows = checkpoint.read_rows(Q_PROJ, start, stop)
            np.testing.assert_array_equal(rows, whole[start:stop])
            assert rows.flags.writeable and rows.flags.c_contiguous
            np.testing.assert_array_equal(checkpoint.read_rows(NORM, start, stop), tensors[NORM][start:stop])
        with pytest.raises(ValueError, match="rows"):
            checkpoint.read_rows(Q_PROJ, 0, 257)


def test_views_outlive_the_checkpoint(packed_dir, tensors):
    checkpoint = PackedCheckpoint(packed_dir)
    codes = checkpoint.packed(Q_PROJ).codes
    checkpoint.close()
    np.testing.assert_array_equal(codes, quantize(tensors[Q_PROJ], "int4_affine", 64).codes)
    with pytest.raises(ValueError, match="closed"):
        checkpoint.read(Q_PROJ)


def test_side_files_and_account(packed_dir):
    with PackedCheckpoint(packed_dir) as checkpoint:
        assert checkpoint.config["model_type"] == "llama" and checkpoint.config["hidden_size"] == 256
        assert checkpoint.generation_config == {"eos_token_id": 2}
        assert checkpoint.tokenizer().encode("a c").ids == [3, 5]
        assert checkpoint.tokenizer_config()["chat_template"] == "{{ messages[0].content }}"
        assert checkpoint.quantization["format"] == "int4_affine"
        assert checkpoint.source["kind"] == "huggingface" and checkpoint.source["name"] == "hf"


_dims = st.integers(1, 70)
_specs = st.one_of(
    st.builds(
        lambda format, shape, size: TensorSpec(format, shape, size if size in SPECS[format].group_sizes else 32),
        *(st.sampled_from(FORMATS), st.tuples(_dims, _dims), st.sampled_from((32, 64, 128))),
    ),
    st.builds(TensorSpec, st.just("fp32"), st.one_of(st.tuples(_dims), st.tuples(_dims, _dims))),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_specs, min_size=1, max_size=8))
def test_layout_has_no_holes_and_no_crooked_offsets(specs):
    """Whatever the shapes: 64-byte offsets, arrays that do not overlap, and a file that safetensors accepts."""
    import tempfile

    named = {f"model.layers.{i}.x.weight": spec for i, spec in enumerate(specs)}
    layout = lay_out(named, {})
    end = 0
    for name, spec in named.items():
        for array, (dtype, shape) in spec.arrays(name).items():
            offset = layout.offsets[array]
            assert offset % 64 == 0 and offset >= end
            end = offset + dtype.itemsize * int(np.prod(shape))
    assert 0 <= layout.size - end < 64
    with tempfile.NamedTemporaryFile() as file:
        file.write(layout.header)
        file.truncate(layout.size)
        with safe_open(file.name, "np") as opened:
            for array, offset in layout.offsets.items():
                assert array in opened.keys() and offset > 0  # noqa: SIM118 (safe_open is no dict)


def test_order_is_that_of_a_forward_pass():
    names = [
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.10.a",
        "model.layers.2.a",
        "model.embed_tokens.weight",
    ]
    layout = lay_out({name: TensorSpec("fp32", (16,)) for name in names}, {})
    ordered = sorted(layout.offsets, key=layout.offsets.__getitem__)
    assert ordered == [names[4], names[3], names[2], names[1], names[0]]


# A damage takes the header's metadata, the header's tensors and the metadata's tensors, and changes any of them.
Damage = Callable[[dict[str, str], dict[str, Any], dict[str, Any]], object]


def _grow_shape(meta: dict[str, str], entries: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors[Q_PROJ]["shape"] = [10**15, 10**15]


DAMAGES: dict[str, tuple[Damage, str]] = {
    "another format": (lambda m, e, t: m.update(format="pt"), "metadata format"),
    "no version": (lambda m, e, t: m.pop("version"), "version None"),
    "earlier version": (lambda m, e, t: m.update(version="1"), "quantize the model again"),
    "later version": (lambda m, e, t: m.update(version="3"), "upgrade"),
    "no tensors": (lambda m, e, t: t.clear(), "lists no tensors"),
    "unknown format": (lambda m, e, t: t[Q_PROJ].update(format="int3"), "int3"),
    "format is a number": (lambda m, e, t: t[Q_PROJ].update(format=4), "format 4"),
    "group size": (lambda m, e, t: t[Q_PROJ].update(group_size=48), "48"),
    "group size is text": (lambda m, e, t: t[Q_PROJ].update(group_size="32"), "group_size"),
    "other group size": (lambda m, e, t: t[Q_PROJ].update(group_size=32), "q_proj.scale"),
    "other known format": (lambda m, e, t: t[Q_PROJ].update(format="int8"), "q_proj.codes"),
    "absurd shape": (_grow_shape, "q_proj.codes"),
    "negative shape": (lambda m, e, t: t[Q_PROJ].update(shape=[-1, 256]), "positive"),
    "fractional shape": (lambda m, e, t: t[Q_PROJ].update(shape=[1.5, 256]), "positive"),
    "no shape": (lambda m, e, t: t[Q_PROJ].pop("shape"), "positive"),
    "three dimensions": (lambda m, e, t: t[Q_PROJ].update(shape=[2, 2, 2]), "only matrices"),
    "entry is a list": (lambda m, e, t: t.update({Q_PROJ: []}), "not a JSON object"),
    "float of other shape": (lambda m, e, t: t[NORM].update(shape=[255]), NORM),
    "unlisted tensor": (lambda m, e, t: t.pop(NORM), "not listed"),
    "missing tensor": (lambda m, e, t: t.update({"model.x.weight": t[Q_PROJ]}), "no model.x.codes"),
    "overlap": (lambda m, e, t: e["lm_head.codes"].update(data_offsets=[0, 12288]), PACKED_FILE),
    "other type": (lambda m, e, t: e["model.layers.0.self_attn.q_proj.codes"].update(dtype="I8"), "I8"),
}


def _copy(source, target):
    shutil.copytree(source, target)
    return target / PACKED_FILE


def _rewrite(path, damage: Damage, *, shift: int = 0) -> None:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    meta = header.pop("__metadata__")
    tensors = json.loads(meta["tensors"])
    damage(meta, header, tensors)
    meta["tensors"] = json.dumps(tensors)
    text = json.dumps({"__metadata__": meta, **header}).encode()
    text += b" " * (-(8 + len(text)) % 64 + shift)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize("damage", DAMAGES)
def test_metadata_that_lies(packed_dir, tmp_path, damage):
    change, message = DAMAGES[damage]
    path = _copy(packed_dir, tmp_path / "copy")
    _rewrite(path, change)
    error = UnsupportedModelError if "version" in damage else FileFormatError
    with pytest.raises(error, match=message) as caught:
        PackedCheckpoint(path.parent)
    assert PACKED_FILE in str(caught.value)


def test_misaligned(packed_dir, tmp_path):
    path = _copy(packed_dir, tmp_path / "copy")
    _rewrite(path, lambda m, e, t: None, shift=8)
    with pytest.raises(FileFormatError, match="multiple of 64"):
        PackedCheckpoint(path.parent)


@pytest.mark.parametrize("key", ["tensors", "quantization", "source"])
@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "1" * 10_000])
def test_metadata_that_is_no_json(packed_dir, tmp_path, key, text):
    path = _copy(packed_dir, tmp_path / "copy")
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"][key] = text
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + raw[8 + length :])
    with pytest.raises(FileFormatError, match=f"metadata {key}"):
        PackedCheckpoint(path.parent)


def test_truncated(packed_dir, tmp_path):
    path = _copy(packed_dir, tmp_path / "copy")
    size = path.stat().st_size
    with path.open("r+b") as file:
        for length in (size - 1, size // 2, 1000, 8, 3, 0):
            file.truncate(length)
            with pytest.raises(FileFormatError, match=PACKED_FILE):
                PackedCheckpoint(path.parent)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_header_bytes_never_crash(packed_dir, data):
    """Any damage to the header is an EdgecalError, or the file still says the same thing to the reader."""
    folder = packed_dir.parent / "flipped"
    if not folder.exists():
        shutil.copytree(packed_dir, folder)
    raw = bytearray((packed_dir / PACKED_FILE).read_bytes())
    length = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    (folder / PACKED_FILE).write_bytes(raw)
    try:
        with PackedCheckpoint(folder) as checkpoint:
            for name in checkpoint.names():
                checkpoint.read_rows(name, 0, 1)
    except EdgecalError:
        return


def test_missing_and_broken_side_files(packed_dir, tmp_path):
    path = _copy(packed_dir, tmp_path / "copy")
    folder = path.parent
    (folder / "tokenizer.json").write_text("{}")
    with PackedCheckpoint(folder) as checkpoint:
        with pytest.raises(FileFormatError, match=r"tokenizer\.json"):
            checkpoint.tokenizer()
        (folder / "tokenizer.json").unlink()
        with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
            checkpoint.tokenizer()
    (folder / "config.json").write_text("[]")
    with pytest.raises(FileFormatError, match=r"config\.json"):
        PackedCheckpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        PackedCheckpoint(folder)
