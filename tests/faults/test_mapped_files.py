"""A model's file that is cut off or written over while it is in use."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from edgecal import Engine
from edgecal.errors import FileFormatError
from edgecal_kernels import dispatch
from edgecal_weights.file_kind import PACKED_FILE
from edgecal_weights.mapped_file import MappedFile
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.quantizer import quantize_checkpoint
from tests.tiny import write_tiny_hf

from .children import python


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("mapped")
    with open_checkpoint(write_tiny_hf(root / "hf")) as source:
        quantize_checkpoint(source, root / "packed", format="int8")
    return root / "packed"


@pytest.fixture
def model(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "model")


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_file_that_shrinks_is_an_error_and_no_crash(model, backend):
    engine = Engine.load(model, backend=backend)
    before = engine.generate("Hello", max_tokens=3).text
    file = model / PACKED_FILE
    size = file.stat().st_size
    os.truncate(file, 4096)
    with pytest.raises(FileFormatError, match=rf"was changed while it is in use: it had {size} bytes and has 4096"):
        engine.generate("Hello", max_tokens=3)
    assert before is not None


def test_a_file_that_is_written_over_is_an_error(model):
    engine = Engine.load(model, backend="numpy")
    file = model / PACKED_FILE
    content = file.read_bytes()
    with file.open("r+b") as opened:
        opened.write(content)
    os.utime(file, ns=(1, 1))
    with pytest.raises(FileFormatError, match="it was written over"):
        engine.generate("Hello", max_tokens=3)


def test_a_file_that_is_deleted_or_replaced_does_no_harm(model):
    engine = Engine.load(model, backend="numpy")
    before = engine.generate("Hello", max_tokens=5).text
    (model / "new").write_bytes(b"something else")
    os.replace(model / "new", model / PACKED_FILE)
    assert engine.generate("Hello", max_tokens=5).text == before
    shutil.rmtree(model)
    assert engine.generate("Hello", max_tokens=5).text == before


def test_pages_that_are_gone_are_zeros_and_the_check_says_so(tmp_path):
    """In a process of its own: without the handler it would be killed."""
    done = python(
        """
        import os, sys
        from pathlib import Path
        import numpy as np
        from edgecal_weights.mapped_file import MappedFile
        path = Path(sys.argv[1])
        path.write_bytes(b"x" * (1 << 20))
        mapped = MappedFile(path)
        array = np.frombuffer(mapped, np.uint8)
        os.truncate(path, 5000)
        assert array[:4000].sum() == 4000 * ord("x") and array[8192:].sum() == 0
        os.truncate(path, 1 << 20)
        os.utime(path, ns=(mapped._known[1], mapped._known[1]))
        try:
            mapped.check()
        except Exception as error:
            print(type(error).__name__)
        """,
        tmp_path / "file",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "FileFormatError\n", "")


@pytest.mark.slow
def test_a_file_that_shrinks_in_the_middle_of_a_pass(packed, tmp_path):
    """The check in front of the pass is taken away, so that the kernels of all threads meet the missing pages."""
    model = shutil.copytree(packed, tmp_path / "model")
    done = python(
        """
        import os, sys
        from edgecal import Engine
        from edgecal.errors import FileFormatError
        engine = Engine.load(sys.argv[1], backend=sys.argv[2])
        check, calls = engine.model.watch, []
        engine.model.watch = lambda: calls.append(1) or (check() if len(calls) % 2 == 0 else None)
        os.truncate(sys.argv[1] + "/edgecal-packed.safetensors", 0)
        try:
            engine.generate("Hello", max_tokens=3)
        except FileFormatError as error:
            print("refused:", error)
        """,
        model,
        dispatch.backend("numba").NAME,
    )
    assert done.returncode == 0 and "was changed while it is in use" in done.stdout, done.stderr


def test_a_fault_elsewhere_still_ends_the_process(tmp_path):
    done = python(
        """
        import mmap, os, sys
        from pathlib import Path
        from edgecal_weights.mapped_file import MappedFile
        ours, other = Path(sys.argv[1], "ours"), Path(sys.argv[1], "other")
        ours.write_bytes(bytes(1 << 16)), other.write_bytes(bytes(1 << 16))
        mapped = MappedFile(ours)
        with other.open("r+b") as file:
            foreign = mmap.mmap(file.fileno(), 0)
        os.truncate(other, 0)
        foreign[5000]
        """,
        tmp_path,
    )
    assert done.returncode < 0 and "a page of a mapped file could not be read" in done.stderr


def test_what_cannot_be_mapped_is_an_error(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty"):
        MappedFile(tmp_path / "empty")
    with pytest.raises(OSError):
        MappedFile(tmp_path / "nothing")
    (tmp_path / "some").write_bytes(b"abc")
    assert np.frombuffer(MappedFile(tmp_path / "some"), np.uint8).tolist() == [97, 98, 99]
