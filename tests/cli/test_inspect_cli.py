"""`edgecal inspect`: readable on 80 columns, complete as JSON, one line when it refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from edgecal.cli._inspect_tables import plain, show, size
from edgecal.inspection.report import inspect
from tests.cli.shell import edgecal
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf
from tests.weights.fake_hub import Repo, fake_hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspect")
    write_tiny_hf(root / "model")
    write_tiny_hf(root / "other", "qwen2", num_hidden_layers=1)
    config = write_tiny_hf(root / "foreign") / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"gpt_neox"'))
    write_tiny_adapter(root / "a", root / "model")
    for method in ("learnable_calibration", "projection_merge"):
        write_tiny_calibration(root / f"{method}.safetensors", root / "model", {"a": root / "a"}, method)
    return root


def text(path: Path, against: Path | None = None, *, with_tensors: bool = False) -> str:
    """What the command prints, on one very long line per row, so that nothing is folded."""
    shown = io.StringIO()
    console = Console(markup=False, emoji=False, highlight=False, width=1000, file=shown)
    show(inspect(path, against), console, with_tensors=with_tensors)
    return "\n".join(line.rstrip() for line in shown.getvalue().splitlines())


def test_the_command(folder, tmp_path):
    done = edgecal("inspect", folder / "a", "--against", folder / "model", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "fits                yes" in done.stdout
    assert inspect(folder / "a").sha256 in done.stdout  # in one piece, to be copied
    as_json = edgecal("inspect", folder / "a", "--against", folder / "model", "--json", home=tmp_path)
    values = json.loads(as_json.stdout)
    assert (values["what"], values["match"]["fits"], len(values["tensors"])) == ("adapter", True, 28)


def test_a_configuration_alone(folder, tmp_path):
    """A file of any name, or a directory that has it and no weights; the counts are those of the ranks asked for."""
    config = tmp_path / "some.config.json"
    config.write_text((folder / "model" / "config.json").read_text())
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(config.read_text())
    whole = inspect(folder / "model", rank=3, lora_rank=8)
    for path in (config, tmp_path / "bare", tmp_path / "bare" / "config.json"):
        report = inspect(path, rank=3, lora_rank=8)
        assert (report.kind, report.parameters, report.counts) == ("config", whole.parameters, whole.counts)
        assert report.refusal is not None
    shown = edgecal("inspect", config, "--rank", "3", "--lora-rank", "8", home=tmp_path)
    assert shown.returncode == 0 and "configuration" in shown.stdout and "bits per weight" not in shown.stdout
    assert f"LoRA of rank 8         {whole.counts.lora:,} parameters" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert json.loads(edgecal("inspect", config, "--json", home=tmp_path).stdout)["counts"]["rank"] == 4
    assert inspect(folder / "foreign").counts is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "no such file"),
        (("model", "--against", "model"), "only an adapter or a calibration"),
        (("a", "--against", "a"), "PEFT adapter"),
        (("demo:nonsense",), "not part of the demo"),
    ],
)
def test_refusals(folder, tmp_path, arguments, message):
    places = [folder / a if a in ("nowhere", "model", "a") else a for a in arguments]
    done = edgecal("inspect", *places, home=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_demo_names(tmp_path):
    done = edgecal("inspect", "demo:learnable_calibration_pp", "--json", home=tmp_path)
    values = json.loads(done.stdout)
    assert (values["parameters"], [a["name"] for a in values["adapters"]]) == (40704, ["summarize", "professional"])


def test_hub_ids(folder, tmp_path):
    """A model and an adapter of the hub, by their ids; what is neither is refused with the first reason."""

    def files(path: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in path.iterdir()}

    repos = {"org/model": Repo(files(folder / "model")), "org/adapter": Repo(files(folder / "a")), "org/no": Repo({})}
    with fake_hub(repos) as hub:
        place = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        done = edgecal("inspect", "org/adapter", "--against", "org/model", "--json", home=tmp_path, **place)
        assert json.loads(done.stdout)["match"]["fits"] is True
        done = edgecal("inspect", "org/no", home=tmp_path, **place)
        assert done.returncode == 1
        assert "no safetensors and no GGUF" in done.stderr
    done = edgecal("inspect", "org/model", "--offline", "--json", home=tmp_path, HF_HOME=str(tmp_path / "hf"))
    assert json.loads(done.stdout)["runnable"] is True


def test_a_model(folder):
    shown = text(folder / "model", with_tensors=True)
    assert "layers              2, hidden 64, feed-forward 96" in shown
    assert "attention           4 heads, 2 KV heads, head_dim 16" in shown
    assert "rope                theta 10,000, 16 dimensions" in shown
    assert "vocabulary          272, head tied" in shown
    assert "chat template       yes" in shown
    assert "edgecal can run it" in shown
    assert "F32     int4     rounded        14" in shown
    assert "KV cache, fp16  256 bytes per token" in shown
    assert "model.layers.1.mlp.down_proj.weight" in shown
    assert "64 x 96" in shown
    assert "model.layers.1.mlp.down_proj.weight" not in text(folder / "model")
    refused = text(folder / "foreign")
    assert "edgecal cannot run it  config.json: model_type 'gpt_neox' is not served" in refused
    assert "When it is loaded" not in refused


def test_what_does_not_fit(folder):
    shown = text(folder / "a", folder / "other")
    assert "fits                no" in shown
    assert "modules that match  7 (the model has 7)" in shown
    assert "not in the model    7: model.layers.1." in shown
    assert "and 4 more" in shown
    assert "edgecal refuses it  adapter a" in shown
    for method in ("learnable_calibration", "projection_merge"):
        shown = text(folder / f"{method}.safetensors", folder / "other")
        assert "model_type         llama in the calibration, qwen2 in the model" in shown
        assert "num_hidden_layers  2 in the calibration, 1 in the model" in shown
        assert ("bias mode" in shown) == (method == "learnable_calibration")
    assert "fits     yes" in text(folder / "projection_merge.safetensors", folder / "model")


def test_names_cannot_command_the_terminal(tmp_path):
    """Tensor names and metadata of a stranger's file: neither escape sequences nor rich's markup act."""
    path = tmp_path / "x.safetensors"
    save_file({"[red]x[/red]\x1b[31m\u202e": np.zeros(3, np.float32)}, path, {"note": "a\x1b[2Jb\nc [bold]d"})
    shown = text(path, with_tensors=True)
    assert "[red]x[/red]\ufffd[31m\ufffd" in shown
    assert "a\ufffd[2Jb\ufffdc [bold]d" in shown
    assert plain("ñ 北京") == "ñ 北京"


def test_sizes():
    assert [size(n) for n in (0, 1023, 1024, 90 << 20, 3 << 30)] == [
        "0 bytes",
        "1,023 bytes",
        "1.0 KiB",
        "90.0 MiB",
        "3.0 GiB",
    ]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_of_a_model_stands_for_the_model(folder, tmp_path, name):
    done = edgecal("inspect", folder / "model" / name, "--json", home=tmp_path)
    values = json.loads(done.stdout)
    assert (values["what"], values["runnable"], values["path"]) == ("model", True, str(folder / "model"))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_of_an_adapter_stands_for_the_adapter(folder, tmp_path, name):
    values = json.loads(edgecal("inspect", folder / "a" / name, "--json", home=tmp_path).stdout)
    assert (values["what"], values["path"]) == ("adapter", str(folder / "a"))


def test_a_file_of_nothing(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    done = edgecal("inspect", tmp_path / "notes.json", home=tmp_path)
    assert done.returncode == 1 and "nothing that edgecal knows" in done.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_exit_code_says_whether_it_fits(folder, tmp_path, options):
    """As `edgecal doctor` does."""
    for what in ("a", "projection_merge.safetensors"):
        for model, code in (("model", 0), ("other", 1)):
            done = edgecal("inspect", folder / what, "--against", folder / model, *options, home=tmp_path)
            assert (done.returncode, done.stderr) == (code, ""), done.stdout
    assert edgecal("doctor", folder / "other", "--adapter", folder / "a", home=tmp_path).returncode == 1


def test_one_name_for_bytes(folder, tmp_path):
    values = json.loads(edgecal("inspect", folder / "a", "--json", home=tmp_path).stdout)
    assert values["bytes"] > 0 and "nbytes" not in json.dumps(values)
    assert values["tensors"][0]["bytes"] > 0
