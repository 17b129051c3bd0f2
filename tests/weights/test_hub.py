"""The hub, played by a local server. Every download runs in a process of its own, as the hub's address and
offline mode are read when huggingface_hub is imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgecal_weights.errors import ModelNotFoundError, WeightsError
from edgecal_weights.hub import _explained, _model_files, download, download_adapter
from edgecal_weights.opening import open_checkpoint

from .fake_hub import FakeHub, Repo, fake_hub
from .hf_files import write_hf
from .samples import weights

_CLIENT = """
import errno, json, os, sys
from edgecal_weights import hub
from huggingface_hub import file_download

def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def download_config(id, progress, **options):
    return hub.download_config(id, **options)

def run(task):
    calls = []
    fetch = {"adapter": hub.download_adapter, "config": download_config}.get(task.pop("kind", ""), hub.download)
    file_download.http_get = full if task.pop("full_disk", False) else http_get
    try:
        answer = {"path": str(fetch(task.pop("id"), **task, progress=lambda *call: calls.append(call)))}
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    return {**answer, "progress": calls}

http_get = file_download.http_get
print(json.dumps([run(task) for task in json.loads(sys.argv[1])]))
"""


class Client:
    """Runs downloads against one hub with one cache; several in one process, one after the other."""

    def __init__(self, hub: FakeHub, home: Path) -> None:
        self.hub, self.home = hub, home

    def __call__(self, *tasks: dict, env: dict[str, str] | None = None) -> list[dict]:
        settings = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home), "HF_HUB_OFFLINE": "0", **(env or {})}
        done = subprocess.run(
            [sys.executable, "-c", _CLIENT, json.dumps(tasks)],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def model_files(tmp_path_factory):
    import numpy as np

    folder = write_hf(tmp_path_factory.mktemp("hub") / "model", weights("llama", np.random.default_rng(3)), shards=2)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {
        "README.md": b"# card",
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"a second copy",
        "original/model.safetensors": b"a third copy",
        "onnx/model.onnx": b"onnx",
    }


@pytest.fixture(scope="module")
def repos(model_files):
    shard = "model-00001-of-00002.safetensors"
    quants = {f"small-{quant}.gguf": quant.encode() for quant in ("Q4_0", "Q4_K_M", "Q8_0")}
    return {
        "org/model": Repo(model_files),
        "org/breaks": Repo(model_files, cut={shard: 1000}),
        "org/short": Repo(model_files, short=(shard,)),
        "org/gated": Repo(model_files, gated=True),
        "org/forbidden": Repo(model_files, forbidden=True),
        "org/ggufs": Repo({**quants, "mmproj-F16.gguf": b"eyes", "README.md": b""}),
        "org/adapter": Repo({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x", "optimizer.pt": b"x"}),
    }


@pytest.fixture
def client(repos, tmp_path):
    with fake_hub(repos) as hub:
        yield Client(hub, tmp_path / "home")


def test_only_what_a_model_needs_is_fetched_and_then_cached(client, model_files):
    (answer,) = client({"id": "org/model"})
    folder = Path(answer["path"])
    wanted = {name for name in model_files if name.startswith("model-") or name.endswith(".json")}
    assert {path.name for path in folder.iterdir()} == wanted == client.hub.fetched()
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.kind == "huggingface"
        checkpoint.read("lm_head.weight")
    done, totals, names = zip(*answer["progress"], strict=True)
    assert done[-1] == totals[-1] == sum(len(model_files[name]) for name in wanted)
    assert set(names) == {"org/model"}

    client.hub.requests.clear()
    online = {"id": "org/model", "offline": False}
    by_default, refused = client({"id": "org/model"}, online, env={"HF_HUB_OFFLINE": "1"})
    assert by_default["path"] == str(folder) and not client.hub.requests
    assert refused["error"] == "HubError" and "unset it" in refused["message"]
    # a server that is gone is no reason not to answer from the cache
    (unreachable,) = client({"id": "org/model"}, env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert unreachable["path"] == str(folder)

    # what an interrupted download leaves: a snapshot without a shard
    (folder / "model-00002-of-00002.safetensors").unlink()
    offline = {"id": "org/model", "offline": True}
    partial, tagged, again = client(offline, {"id": "org/model", "revision": "v1"}, offline)
    assert partial["error"] == "HubError" and "only in part" in partial["message"]
    assert tagged["path"] == again["path"] == str(folder)


def test_a_configuration_comes_without_weights(client, model_files):
    task = {"id": "org/model", "kind": "config"}
    (answer,) = client(task)
    assert Path(answer["path"]).read_bytes() == model_files["config.json"]
    assert client.hub.fetched() == {"config.json"}
    (again,) = client({**task, "offline": True})
    assert again["path"] == answer["path"]


REFUSALS = [
    ({"id": "org/ggufs", "kind": "config"}, "ModelNotFoundError", "no config.json; GGUF files hold the configuration"),
    ({"id": "org", "kind": "config"}, "ModelNotFoundError", "org: no such file or directory, and not a hub id"),
    ({"id": "org/nothing"}, "ModelNotFoundError", "no model org/nothing at http.*hf auth login"),
    ({"id": "org/model", "revision": "v9"}, "HubError", "no revision 'v9'"),
    ({"id": "org/gated"}, "HubError", "gated: accept its terms at http.*HF_TOKEN"),
    ({"id": "org/forbidden"}, "HubError", "refuses org/forbidden .403.*hf auth login"),
    ({"id": "org/model", "offline": True}, "HubError", "offline mode is on.*fetch it once with a network"),
    ({"id": "org/short"}, "HubError", "Consistency check failed"),
    ({"id": "org/model", "full_disk": True}, "StorageError", "No space left.*HF_HOME"),
    ({"id": "org/ggufs"}, "ModelNotFoundError", "3 GGUF models.*org/ggufs:Q4_K_M.*small-Q8_0.gguf"),
    ({"id": "org/ggufs:Q5_0"}, "ModelNotFoundError", "no GGUF file of quantization 'Q5_0'.*small-Q4_0.gguf"),
    ({"id": "org/adapter"}, "ModelNotFoundError", "is a PEFT adapter, not a model"),
    ({"id": "org/model", "kind": "adapter"}, "ModelNotFoundError", "no adapter_config.json"),
]


@pytest.fixture(scope="module")
def refusals(repos, tmp_path_factory):
    with fake_hub(repos) as hub:
        return Client(hub, tmp_path_factory.mktemp("home"))(*(task for task, _, _ in REFUSALS))


@pytest.mark.parametrize("number", range(len(REFUSALS)), ids=[f"{e}: {m}" for _, e, m in REFUSALS])
def test_what_can_go_wrong(refusals, number):
    _, error, message = REFUSALS[number]
    assert refusals[number].get("error") == error, refusals[number]
    assert re.search(message, refusals[number]["message"], re.DOTALL)


def test_no_network(client):
    (answer,) = client({"id": "org/model"}, env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert answer["error"] == "HubError" and "could not be reached" in answer["message"]


def test_resumed_transfer_and_choices(client, model_files):
    shard = "model-00001-of-00002.safetensors"
    adapter = {"id": "org/adapter", "kind": "adapter"}
    one = {"id": "org/ggufs:q4_k_m"}
    answers = client({"id": "org/breaks"}, one, {**one, "offline": True}, adapter)
    broken, gguf, cached, adapter_folder = (Path(answer["path"]) for answer in answers)
    assert (broken / shard).read_bytes() == model_files[shard]
    assert gguf == cached and gguf.name == "small-Q4_K_M.gguf"
    assert {path.name for path in adapter_folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert not {name for name in client.hub.fetched() if name.endswith((".gguf", ".pt"))} - {gguf.name}


@pytest.mark.parametrize(
    ("files", "quant", "chosen"),
    [
        (["config.json", "model.safetensors", "model.fp16.safetensors"], None, ["model.safetensors", "config.json"]),
        (["config.json", "weights.safetensors"], None, ["weights.safetensors", "config.json"]),
        (["a-Q4_0.gguf", "README.md"], None, ["a-Q4_0.gguf"]),
        (["a-Q4_0.gguf", "a-Q4_0_4_4.gguf"], "Q4_0", ["a-Q4_0.gguf"]),
        (["a.IQ4_NL.gguf", "a.Q4_K_S.gguf"], "Q4_K_S", ["a.Q4_K_S.gguf"]),
        (
            ["Q8_0/a-Q8_0-00002-of-00002.gguf", "Q8_0/a-Q8_0-00001-of-00002.gguf", "a-Q4_0.gguf"],
            "Q8_0",
            ["Q8_0/a-Q8_0-00001-of-00002.gguf", "Q8_0/a-Q8_0-00002-of-00002.gguf"],
        ),
        (["config.json", "model.safetensors", "model-f16.gguf"], "f16", ["model-f16.gguf"]),
        (
            ["additional_chat_templates/rag.jinja", "config.json", "model.safetensors", "added_tokens.json", "x.jinja"],
            None,
            ["model.safetensors", "config.json", "added_tokens.json", "additional_chat_templates/rag.jinja"],
        ),
    ],
)
def test_choice_of_files(files, quant, chosen):
    assert _model_files("org/name", quant, files) == chosen


def test_pickles_are_refused():
    with pytest.raises(ModelNotFoundError, match="pickles"):
        _model_files("org/name", None, ["config.json", "pytorch_model.bin"])
    both = ["config.json", "model.safetensors", "adapter_config.json", "adapter_model.bin"]
    with pytest.raises(ModelNotFoundError, match="a PEFT adapter that transformers applies to it, but .* is a pickle"):
        _model_files("org/name", None, both)
    assert "adapter_model.safetensors" in _model_files("org/name", None, [*both, "adapter_model.safetensors"])


@pytest.mark.parametrize("name", ["name", "a/b/c", "../b", "org/", "org/name:", "org/na me", "/org/name"])
def test_ids_that_are_none(name):
    for fetch in (download, download_adapter):
        with pytest.raises(ModelNotFoundError, match="not a hub id"):
            fetch(name)


def test_unforeseen_errors_stay_in_the_family():
    assert isinstance(_explained("org/name", None, RuntimeError("surprise")), WeightsError)
    assert "surprise" in str(_explained("org/name", None, RuntimeError("surprise\ntraceback ...")))
