"""The GGUF parser against llama.cpp's own package, and against files that nobody should have written."""

from __future__ import annotations

import struct
import tracemalloc

import gguf
import numpy as np
import pytest

from edgecal_kernels.errors import EdgecalError
from edgecal_weights.errors import FileFormatError, ModelNotFoundError
from edgecal_weights.gguf_file import GGUFFile, general_type
from tests.work import counted

from .samples import gguf_header, gguf_string


@pytest.fixture
def sample(tmp_path, rng):
    """A small file with every kind of metadata and of tensor shape."""
    path = tmp_path / "sample.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -100)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -30000)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -2_000_000_000)
    writer.add_uint64("a.u64", 1 << 60)
    writer.add_int64("a.i64", -(1 << 60))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 1 / 3)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "größer 模型 🙂" * 50)
    writer.add_array("a.words", ["", "ä", "two words", "x" * 5000])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [0.25, -1.5])
    writer.add_tensor("matrix", rng.standard_normal((6, 64)).astype(np.float32))
    writer.add_tensor("vector", rng.standard_normal(7).astype(np.float32))
    writer.add_tensor("cube", rng.standard_normal((2, 3, 4)).astype(np.float16))
    blocks = gguf.quants.quantize(
        rng.standard_normal((5, 96)).astype(np.float32), gguf.GGMLQuantizationType.Q4_0
    )
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_equal_to_the_gguf_package(sample):
    reference = gguf.GGUFReader(sample)
    with GGUFFile(sample) as file:
        expected = {
            key: field.contents() for key, field in reference.fields.items() if not key.startswith("GGUF.")
        }
        assert dict(file.metadata) == expected
        assert file.data_offset == reference.data_offset and file.version == 3
        assert list(file.tensors) == [tensor.name for tensor in reference.tensors]
        for tensor in reference.tensors:
            ours = file.tensors[tensor.name]
            assert ours.shape == tuple(int(n) for n in reversed(tensor.shape))
            assert (ours.type, ours.offset, ours.nbytes) == (
                tensor.tensor_type.name,
                tensor.data_offset,
                tensor.n_bytes,
            )
            rows = ours.nbytes // ours.row_bytes
            np.testing.assert_array_equal(
                file.raw_rows(tensor.name, 0, rows).reshape(-1), tensor.data.view(np.uint8).reshape(-1)
            )


def test_metadata_is_read_on_demand(sample):
    with GGUFFile(sample) as file:
        assert file.metadata.length("a.words") == 4 and file.metadata.length("a.text") is None
        assert "a.words" in file.metadata and "a.nothing" not in file.metadata
        assert file.metadata.get("a.nothing", 5) == 5
        np.testing.assert_array_equal(file.raw_rows("blocks", 2, 4), file.raw_rows("blocks", 0, 5)[2:4])
        with pytest.raises(FileFormatError, match=r"sample\.gguf has no tensor 'nope'"):
            file.tensor("nope")
    with pytest.raises(ValueError, match="closed"):
        file.metadata["a.words"]


def test_a_vocabulary_costs_its_own_size_only(tmp_path):
    path = tmp_path / "large.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([f"token {i}" for i in range(150_000)])
    writer.add_token_merges([f"left{i} right{i}" for i in range(150_000)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tracemalloc.start()
    with GGUFFile(path) as file:
        opened = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        tokens = file.metadata["tokenizer.ggml.tokens"]
    assert opened < 4 << 20
    assert len(tokens) == 150_000 and tokens[123_456] == "token 123456"


def test_version_2(sample, tmp_path):
    raw = bytearray(sample.read_bytes())
    raw[4] = 2
    (tmp_path / "v2.gguf").write_bytes(raw)
    with GGUFFile(tmp_path / "v2.gguf") as file, GGUFFile(sample) as current:
        assert file.version == 2 and file.tensors == current.tensors


def test_larger_alignment(tmp_path, rng):
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    w = rng.standard_normal((3, 5)).astype(np.float32)
    writer.add_tensor("a", w)
    writer.add_tensor("b", 2 * w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(path) as file:
        assert file.tensors["b"].offset % 256 == 0
        np.testing.assert_array_equal(file.raw_rows("b", 0, 3).view("<f4"), 2 * w)


def key(name, kind, payload):
    return gguf_string(name) + struct.pack("<I", kind) + payload


def array(name, kind, count, payload=b""):
    return key(name, 9, struct.pack("<IQ", kind, count) + payload)


def record(name, dims, kind=0, offset=0):
    return gguf_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def padded(header, n_data):
    return header + bytes(-len(header) % 32) + bytes(n_data)


HUGE = (1 << 64) - 1
MALFORMED = {
    "empty": b"",
    "magic": gguf_header(0, 0, magic=b"GGML"),
    "version 1": gguf_header(0, 0, version=1),
    "version 4": gguf_header(0, 0, version=4),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "tensors": gguf_header(HUGE, 0),
    "keys": gguf_header(0, HUGE),
    "keys that are not there": gguf_header(0, 60_000),
    "key name": gguf_header(0, 1, struct.pack("<Q", HUGE) + bytes(100)),
    "key not UTF-8": gguf_header(0, 1, struct.pack("<Q", 2) + b"\xff\xfe" + bytes(20)),
    "key type": gguf_header(0, 1, key("k", 13, bytes(8))),
    "string length": gguf_header(0, 1, key("k", 8, struct.pack("<Q", HUGE) + bytes(100))),
    "long string": gguf_header(0, 1, key("k", 8, struct.pack("<Q", 5 << 20) + bytes(6 << 20))),
    "array length": gguf_header(0, 1, array("k", 0, HUGE, bytes(100))),
    "array beyond the file": gguf_header(0, 1, array("k", 0, 1000, bytes(100))),
    "strings beyond the file": gguf_header(0, 1, array("k", 8, 1_000_000, bytes(100))),
    "array of arrays": gguf_header(0, 1, array("k", 9, 1, struct.pack("<IQ", 0, 1) + b"a")),
    "array type": gguf_header(0, 1, array("k", 77, 1, bytes(100))),
    "key twice": gguf_header(0, 2, key("k", 0, b"a") + key("k", 0, b"b")),
    "alignment 0": gguf_header(0, 1, key("general.alignment", 4, struct.pack("<I", 0))),
    "alignment 24": gguf_header(0, 1, key("general.alignment", 4, struct.pack("<I", 24))),
    "alignment 2 GiB": gguf_header(0, 1, key("general.alignment", 4, struct.pack("<I", 1 << 31))),
    "alignment text": gguf_header(0, 1, key("general.alignment", 8, gguf_string("32"))),
    "alignment list": gguf_header(0, 1, array("general.alignment", 4, 1, struct.pack("<I", 32))),
    "no dimensions": padded(gguf_header(1, 0, record("t", [])), 64),
    "five dimensions": padded(gguf_header(1, 0, record("t", [1] * 5)), 64),
    "zero rows": padded(gguf_header(1, 0, record("t", [4, 0])), 64),
    "huge shape": padded(gguf_header(1, 0, record("t", [1 << 62] * 4)), 64),
    "half a block": padded(gguf_header(1, 0, record("t", [48], kind=2)), 64),
    "tensor type": padded(gguf_header(1, 0, record("t", [4], kind=4)), 64),
    "beyond the file": padded(gguf_header(1, 0, record("t", [17])), 64),
    "offset": padded(gguf_header(1, 0, record("t", [4], offset=HUGE - 31)), 64),
    "not aligned": padded(gguf_header(1, 0, record("t", [4], offset=8)), 64),
    "name twice": padded(gguf_header(2, 0, record("t", [4]) + record("t", [4], offset=32)), 64),
    "overlap": padded(gguf_header(2, 0, record("t", [12]) + record("u", [4], offset=32)), 64),
    "tensor name": gguf_header(1, 0, struct.pack("<Q", 1 << 20) + bytes(2 << 20)),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_files_end_quickly_in_an_error(tmp_path, what):
    path = tmp_path / "bad.gguf"
    path.write_bytes(MALFORMED[what])
    tracemalloc.start()
    with counted(100_000), pytest.raises(FileFormatError, match=r"bad\.gguf"):
        GGUFFile(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_text_that_is_not_utf8_is_refused_when_read(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(padded(gguf_header(0, 1, key("k", 8, struct.pack("<Q", 2) + b"\xff\xfe")), 0))
    with GGUFFile(path) as file, pytest.raises(FileFormatError, match=r"bad\.gguf: k is not UTF-8"):
        file.metadata["k"]


def test_a_header_of_many_empty_strings_is_bounded(tmp_path):
    """48 MiB of zeros are 6 million empty strings: refused by count, before any of them exists."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(gguf_header(0, 1, array("k", 8, 6 << 20)))
    with path.open("r+b") as file:
        file.truncate(48 << 20)  # sparse
    with pytest.raises(FileFormatError, match="limit"):
        GGUFFile(path)


def test_missing_file(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such file"):
        GGUFFile(tmp_path / "missing.gguf")


def read_all(path):
    with GGUFFile(path) as file:
        for _ in file.metadata.items():
            pass
        for tensor in file.tensors.values():
            file.raw_rows(tensor.name, 0, tensor.nbytes // tensor.row_bytes)


def test_truncation_anywhere_is_an_error(sample, tmp_path):
    whole = sample.read_bytes()
    path = tmp_path / "cut.gguf"
    with GGUFFile(sample) as file:
        end = max(tensor.offset + tensor.nbytes for tensor in file.tensors.values())
    for size in (*range(0, 1500, 5), *range(1500, end, 97), end - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match=r"cut\.gguf"):
            read_all(path)


def test_flipped_bytes_only_ever_raise_our_errors(sample, tmp_path, rng):
    whole = np.frombuffer(sample.read_bytes(), np.uint8)
    with GGUFFile(sample) as file:
        header = file.data_offset
    path = tmp_path / "flipped.gguf"
    for _ in range(1500):
        raw = whole.copy()
        for _ in range(int(rng.integers(1, 4))):
            raw[rng.integers(0, header)] = rng.integers(0, 256)
        path.write_bytes(raw.tobytes())
        try:
            read_all(path)
        except EdgecalError as error:
            assert "flipped.gguf" in str(error)


@pytest.mark.parametrize("kind", ["model", "adapter", None])
def test_the_type_is_read_without_the_vocabulary(tmp_path, monkeypatch, kind):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if kind is not None:
        writer.add_type(kind)
    writer.add_block_count(1)
    writer.add_token_list(["token"] * 1000)
    writer.add_tensor("a", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(path) as file:
        assert file.metadata.get("general.type") == kind
    monkeypatch.setattr("edgecal_weights.gguf_file._Cursor.skip_strings", only_single_strings)
    assert general_type(path) == kind
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(FileFormatError, match="m.gguf is truncated"):
        general_type(path)
    path.write_bytes(path.read_bytes()[:7])
    with pytest.raises(FileFormatError, match="the version ends at byte 8, the file has 7"):
        general_type(path)
    path.write_bytes(b"GG")
    with pytest.raises(FileFormatError, match="not a GGUF file"):
        general_type(path)


def only_single_strings(cursor, count, what):
    assert count == 1, f"{what} was read"
    cursor.skip(cursor.count("the length of a string", 1000), what)
