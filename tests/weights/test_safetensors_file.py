"""The safetensors reader: exact values, bounded reads, and no way to hurt it with a file."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import load_file, save
from safetensors.torch import save_file

from edgecal_kernels.errors import EdgecalError
from edgecal_weights.errors import FileFormatError, ModelNotFoundError, UnsupportedModelError
from edgecal_weights.safetensors_file import SafetensorsFile, write_safetensors

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def header_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def sample(tmp_path):
    torch.manual_seed(0)
    tensors = {f"w{name}": torch.randn(37, 19).to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {
        "scalar": torch.tensor(2.5),
        "cube": torch.randn(3, 4, 5),
        "ints": torch.arange(4),
        "none": torch.empty(0, 3),
    }
    path = tmp_path / "sample.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path, tensors


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_equal_torch(sample, dtype):
    path, tensors = sample
    with SafetensorsFile(path) as file:
        got = file.read(f"w{dtype}")
        assert got.dtype == np.float32 and got.flags.c_contiguous and got.flags.owndata
        np.testing.assert_array_equal(got, tensors[f"w{dtype}"].float().numpy())
        rows = file.read_rows(f"w{dtype}", 5, 11)
        np.testing.assert_array_equal(rows, got[5:11])
        assert file.read_rows(f"w{dtype}", 7, 7).shape == (0, 19)
        assert file.dtype(f"w{dtype}") == dtype and file.shape(f"w{dtype}") == (37, 19)


def test_every_bfloat16_is_exact(tmp_path):
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    every = bits.view(torch.bfloat16)
    save_file({"w": every}, tmp_path / "w.safetensors")
    with SafetensorsFile(tmp_path / "w.safetensors") as file:
        np.testing.assert_array_equal(file.read("w").view(np.uint32), every.float().numpy().view(np.uint32))


def test_other_shapes_and_metadata(sample):
    path, tensors = sample
    with SafetensorsFile(path) as file:
        assert set(file.names()) == set(tensors) and "cube" in file and "nope" not in file
        assert file.metadata == {"format": "pt"}
        assert file.read("scalar").shape == () and file.read("scalar") == 2.5
        assert file.read("none").shape == (0, 3)
        np.testing.assert_array_equal(file.read_rows("cube", 1, 3), tensors["cube"].numpy()[1:])
        assert file.tensor_bytes() == sum(t.numel() * t.element_size() for t in tensors.values())


def test_what_is_not_there_is_named(sample, tmp_path):
    path, _ = sample
    with SafetensorsFile(path) as file:
        with pytest.raises(FileFormatError, match=r"sample\.safetensors has no tensor 'nope'"):
            file.read("nope")
        with pytest.raises(UnsupportedModelError, match="ints has type I64"):
            file.read("ints")
        for start, stop in ((-1, 2), (0, 38), (5, 4)):
            with pytest.raises(ValueError, match="rows"):
                file.read_rows("wF32", start, stop)
        with pytest.raises(ValueError, match="rows"):
            file.read_rows("scalar", 0, 1)
    with pytest.raises(ValueError, match="closed"):
        file.read("wF32")
    with pytest.raises(ModelNotFoundError, match="no such file"):
        SafetensorsFile(tmp_path / "missing.safetensors")


def test_only_the_rows_asked_for_are_read(tmp_path, monkeypatch):
    save_file({"w": torch.zeros(1000, 64, dtype=torch.bfloat16)}, tmp_path / "w.safetensors")
    with SafetensorsFile(tmp_path / "w.safetensors") as file:
        read = []
        plain = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, views, at: read.append(plain(fd, views, at)) or read[-1])
        file.read_rows("w", 500, 510)
        assert sum(read) == 10 * 64 * 2


def test_a_file_that_shrinks_after_opening(sample):
    path, _ = sample
    with SafetensorsFile(path) as file:
        os.truncate(path, path.stat().st_size - 3000)
        with pytest.raises(FileFormatError, match="truncated"):
            for name in ("wF32", "wF16", "wBF16", "wF64", "cube"):
                file.read(name)


def test_truncation_anywhere_is_an_error(sample, tmp_path):
    whole = sample[0].read_bytes()
    cut = tmp_path / "cut.safetensors"
    for size in (*range(0, 700, 7), *range(700, len(whole), 997), len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match=r"cut\.safetensors"):
            SafetensorsFile(cut)


def test_truncation_names_the_tensor(tmp_path):
    header = {"a": entry([2], 0, 8), "b": entry([4], 8, 24)}
    with pytest.raises(FileFormatError, match=r"truncated: b ends at byte \d+, the file has \d+"):
        SafetensorsFile(header_file(tmp_path / "x.safetensors", header, bytes(16)))


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12),  # overlap
        ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, 20),  # gap
        ({"a": entry([2], 0, 8)}, 12),  # bytes that belong to nothing
        ({"a": entry([3], 0, 8)}, 8),  # shape does not fill its bytes
        ({"a": entry([2], 8, 0)}, 8),
        ({"a": entry([-2], 0, 8)}, 8),
        ({"a": entry([1 << 62, 1 << 62], 0, 8)}, 8),
        ({"a": entry([2.0], 0, 8)}, 8),
        ({"a": entry([True, True], 0, 4)}, 4),
        ({"a": entry([2], 0, 8, dtype="F31")}, 8),
        ({"a": entry([2], 0, 8, dtype=None)}, 8),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8),
        ({"a": [1, 2]}, 8),
        ({"__metadata__": {"a": 1}}, 0),
        ({"__metadata__": []}, 0),
        ([1, 2], 0),
        (b"null", 0),
        (b"{", 0),
        (b"\xff\xfe", 0),
        (b"[" * 100_000, 0),
        (b'{"a":' * 50_000, 0),
        (b'{"a":' + b"1" * 10_000 + b"}", 0),
        (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            4,
        ),
    ],
)
def test_malformed_headers(tmp_path, header, data):
    with pytest.raises(FileFormatError, match=r"x\.safetensors"):
        SafetensorsFile(header_file(tmp_path / "x.safetensors", header, bytes(data)))


@pytest.mark.parametrize("written", [{}, {"__metadata__": None}, {"__metadata__": {}}, {"__metadata__": {"a": "b"}}])
def test_files_without_metadata(tmp_path, written):
    """null is legal: the safetensors library reads it."""
    path = header_file(tmp_path / "x.safetensors", {**written, "w": entry([2], 0, 8)}, bytes(8))
    assert load_file(path)["w"].tolist() == [0, 0]
    with SafetensorsFile(path) as file:
        assert file.metadata == (written.get("__metadata__") or {}) and file.names() == ["w"]


TYPES = ("?", "i1", "u1", "i2", "u2", "f2", "i4", "u4", "f4", "c8", "f8", "i8", "u8", ">f4", ">i8")


def test_writing(tmp_path):
    """Byte for byte what the library writes; but its permissions (nobody else may read) are not taken over."""
    rng = np.random.default_rng(0)
    tensors = {f"w{i}": rng.integers(0, 2, (i % 3, i)).astype(dtype) for i, dtype in enumerate(TYPES)}
    tensors |= {"a\tü\"": np.ones(3, np.float16), "turned": rng.random((4, 3)).T, "scalar": np.array(2.0)}
    write_safetensors(tmp_path / "w", tensors, {"k": "v \n ü"})
    native = {name: np.ascontiguousarray(t, t.dtype.newbyteorder("=")).reshape(t.shape) for name, t in tensors.items()}
    assert (tmp_path / "w").read_bytes() == save(native, {"k": "v \n ü"})
    write_safetensors(tmp_path / "none", {})
    assert (tmp_path / "none").read_bytes() == save({})
    with SafetensorsFile(tmp_path / "w") as file:
        assert file.metadata == {"k": "v \n ü"} and file.shape("scalar") == ()


KNOWN = ["BOOL", "F4", "F6_E2M3", "F8_E4M3", "F8_E5M2FNUZ", "I16", "BF16", "F32", "C64", "U64"]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.tuples(st.sampled_from([*KNOWN, "F31"]), st.integers(0, 5), st.integers(-1, 1)), max_size=4),
    changes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(-9, 9)), max_size=1),
    rest=st.sampled_from([0, 0, 0, 1, -1]),
)
def test_the_library_agrees_on_what_is_valid(tmp_path, sizes, changes, rest):
    bits = {name: int("".join(c for c in name.split("_")[0] if c.isdecimal()) or 8) for name in KNOWN}
    header, at = {}, 0
    for i, (dtype, n, more) in enumerate(sizes):
        end = at + max(0, n * bits.get(dtype, 8) // 8 + (more if i == 2 else 0))
        header[f"t{i}"], at = entry([n], at, end, dtype), end
    for i, which, by in changes:
        if f"t{i}" in header:
            header[f"t{i}"]["data_offsets"][which] += by
    path = header_file(tmp_path / "x.safetensors", header, bytes(max(0, at + rest)))
    try:
        deserialize(path.read_bytes())
    except SafetensorError:
        with pytest.raises(FileFormatError, match=r"x\.safetensors"):
            SafetensorsFile(path)
    else:
        SafetensorsFile(path).close()


@pytest.mark.parametrize("length", [0, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_absurd_header_length(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" * 100)
    with pytest.raises(FileFormatError, match=r"x\.safetensors"):
        SafetensorsFile(path)


def test_not_a_regular_file(tmp_path):
    with pytest.raises(FileFormatError, match="regular"):
        SafetensorsFile(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(FileFormatError, match="regular"):
        SafetensorsFile(tmp_path / "pipe.safetensors")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_only_ever_raise_our_errors(sample, tmp_path, data):
    whole = bytearray(sample[0].read_bytes())
    header_end = 8 + struct.unpack_from("<Q", whole)[0]
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, header_end + 40))] = data.draw(st.integers(0, 255))
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(whole)
    try:
        with SafetensorsFile(path) as file:
            for name in file.names():
                file.read(name)
    except EdgecalError as error:
        assert "flipped.safetensors" in str(error)
