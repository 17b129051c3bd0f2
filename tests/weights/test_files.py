"""Whole files: complete or not at all, with the umask's permissions; bounded, UTF-8, each key once."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgecal_weights.errors import AdapterError, FileFormatError, ModelNotFoundError, StorageError
from edgecal_weights.files import (
    atomic_write,
    file_sha256,
    kind_of,
    parse_json,
    path_hint,
    read_bytes,
    read_json,
    read_object,
    read_text,
    staging_directory,
    write_json,
    write_text,
)
from edgecal_weights.safetensors_file import write_safetensors


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ----------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_get_the_permissions_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "text", "é")
        write_json(tmp_path / "json", {"é": 1})
        write_safetensors(tmp_path / "tensors", {"a": np.ones(3, np.float32)}, {"k": "v"})
        with atomic_write(tmp_path / "private", mode=0o600) as partial:
            partial.write_bytes(b"x")
    finally:
        os.umask(before)
    for name in ("text", "json", "tensors"):
        assert permissions(tmp_path / name) == 0o666 & ~mask
    assert permissions(tmp_path / "private") == 0o600
    assert (tmp_path / "text").read_text("utf-8") == "é"
    assert (tmp_path / "json").read_text("utf-8") == '{"é": 1}\n'
    assert load_file(tmp_path / "tensors")["a"].tolist() == [1, 1, 1]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_what_breaks_off_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(StorageError if error is OSError else error), atomic_write(target) as partial:
        partial.write_text("half of the n")
        raise error("stop")
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["file"]
    with pytest.raises(error), staging_directory(tmp_path / "folder") as staged:
        (staged / "a").touch()
        raise error("stop")
    assert os.listdir(tmp_path) == ["file"]


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    refusals = {
        tmp_path / "nowhere" / "x": f"nowhere/x could not be written: there is no folder {tmp_path / 'nowhere'}",
        tmp_path / "folder": "folder could not be written: Is a directory",
        tmp_path / "file" / "x": "file/x could not be written: Not a directory",
        tmp_path / ("x" * 300): "File name too long",
        "a\0b": "null byte",
        "~nobody-of-this-name/x": "nobody-of-this-name",
        "/dev/full": "/dev/full could not be written: No space left on device",
    }
    for path, message in refusals.items():
        with pytest.raises(StorageError, match=message):
            write_text(path, "text")
    with pytest.raises(StorageError, match="x could not be written.*surrogates"):
        write_text(tmp_path / "x", "\udcff")
    with pytest.raises(StorageError, match="there is no folder"):
        write_safetensors(tmp_path / "nowhere" / "x", {"a": np.ones(1)})
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_long_names_and_names_that_are_not_utf8(tmp_path):
    for name in (b"x" * 255, "é".encode() * 127, b"\xff\xfe.safetensors"):
        path = tmp_path / os.fsdecode(name)
        write_text(path, "text")
        assert path.read_text() == "text"
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    write_safetensors(folder / "w", {"a": np.ones(1, np.float32)})
    assert list(load_file(folder / "w")) == ["a"]


def test_a_link_is_followed_and_a_pipe_is_written_to(tmp_path):
    real = tmp_path / "real"
    real.write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and real.read_text() == "new"
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: (time.sleep(0.05), got.append(pipe.read_text())), daemon=True)
    reader.start()  # it comes late: the writer has to wait for it
    write_text(pipe, "through")
    reader.join(60)
    assert got == ["through"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_writers_of_one_file_do_not_meet(tmp_path):
    target = tmp_path / "file"
    with atomic_write(target) as one, atomic_write(target) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert target.read_text() == "one" and os.listdir(tmp_path) == ["file"]


def test_a_staging_directory_is_renamed_or_removed(tmp_path):
    target = tmp_path / "deep" / "folder"
    with staging_directory(target) as staged:
        assert staged.parent == target.parent and not list(staged.iterdir())
        (staged / "a").touch()
        os.rename(staged, target)
    assert os.listdir(tmp_path / "deep") == ["folder"] and os.listdir(target) == ["a"]


# ----------------------------------------------------------------------------------------------------------- reading


def test_limits(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 2048)
    assert read_bytes(path, 2048) == b"x" * 2048
    with pytest.raises(FileFormatError, match="file is larger than 1 KiB"):
        read_bytes(path, 2047)
    with pytest.raises(AdapterError, match="file is larger than 100 bytes"):
        read_bytes(path, 100, error=AdapterError)
    assert len(read_bytes("/proc/self/status", 1 << 20)) > 100  # a size of 0 by its status
    with pytest.raises(FileFormatError, match="larger than 10 bytes"):
        read_bytes("/proc/self/status", 10)


def test_a_pipe_is_refused_unless_it_was_asked_for(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileFormatError, match="pipe cannot be read: it is not a regular file"):
        read_bytes(pipe, 10)  # would wait forever
    writer = threading.Thread(target=lambda: pipe.write_text("through"))
    writer.start()
    assert read_text(pipe, 10, pipe=True) == "through"
    writer.join()


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="gone cannot be read: No such file"):
        read_text(tmp_path / "gone", 10)
    with pytest.raises(AdapterError, match="gone cannot be read: No such file"):
        read_text(tmp_path / "gone", 10, error=AdapterError)
    with pytest.raises(FileFormatError, match="cannot be read: Is a directory"):
        read_text(tmp_path, 10)
    with pytest.raises(FileFormatError, match="null byte"):
        read_text("a\0b", 10)
    with pytest.raises(FileFormatError, match="nobody-of-this-name/x cannot be read"):
        read_text("~nobody-of-this-name/x", 10)
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(FileFormatError, match="latin is not UTF-8 text"):
        read_text(tmp_path / "latin", 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "nested too deep"),
        ("1" * 5000, "not valid JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"b": [{"a": 1, "a": 1}]}', "the key 'a' occurs twice"),
    ],
)
def test_what_is_no_json(tmp_path, text, message):
    (tmp_path / "file").write_text(text)
    with pytest.raises(FileFormatError, match=f"file is not valid JSON: .*|{message}") as caught:
        read_json(tmp_path / "file", 1 << 20)
    assert message in str(caught.value)
    with pytest.raises(ValueError):
        parse_json(text)


def test_json(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')  # as an editor on Windows writes it
    assert read_json(path, 100) == read_object(path, 100) == {"a": "é"}
    path.write_text('{"a": 1, "a": 2}')
    assert read_json(path, 100, unique=False) == {"a": 2}
    path.write_text("[1]")
    assert read_json(path, 100) == [1]
    with pytest.raises(AdapterError, match="file holds a list, expected an object"):
        read_object(path, 100, error=AdapterError)


def test_kinds_are_named_in_the_words_of_json():
    values = json.loads('[null, true, 1, 1.5, "a", [], {}]')
    said = ["nothing (null)", "true or false", "a number", "a number", "a text", "a list", "an object"]
    assert [kind_of(value) for value in values] == said


def test_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * (3 << 20))
    assert file_sha256(path) == hashlib.sha256(b"x" * (3 << 20)).hexdigest()
    with pytest.raises(FileFormatError, match="gone cannot be read: No such file"):
        file_sha256(tmp_path / "gone")


# ------------------------------------------------------------------------------------------------------ missing paths


def test_hints_for_missing_paths(tmp_path, monkeypatch):
    models = tmp_path / "models"
    for name in ("Llama-3", "llama2", "qwen", "a", "b", ".hidden"):
        (models / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert path_hint(Path("models/llama")) == " (did you mean 'models/llama2' or 'models/Llama-3'?)"
    assert path_hint(models / "qwenn") == f" (did you mean '{models / 'qwen'}'?)"
    assert path_hint(Path("model/llama")) == f" (there is no {tmp_path / 'model'})"
    assert path_hint(Path("modelss")) == " (did you mean 'models'?)"
    for path in ("models/zzzzzz", "models/a/x", "zzzzzz"):
        assert path_hint(Path(path)) == ""
    (models / "a" / "only").mkdir()
    assert path_hint(Path("models/a/x")) == " (models/a has only)"
    assert path_hint(Path("models/../models/a/onyl")) == " (did you mean 'models/../models/a/only'?)"
    assert "there is no" in path_hint(Path("/nowhere/x" + "y" * 5000))
