"""`edgecal quantize` and `edgecal pull` as a user meets them: output, JSON, exit codes, one-line refusals."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from edgecal.cli import main
from edgecal_weights import demo_model, hub
from edgecal_weights.opening import open_checkpoint
from tests.cli.shell import edgecal
from tests.tiny import write_tiny_hf
from tests.weights.hf_files import write_hf
from tests.weights.samples import weights


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["edgecal", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    tensors = weights("llama", np.random.default_rng(8), tied=True)
    return write_hf(tmp_path_factory.mktemp("cli") / "small", tensors)


def test_report(run, source, tmp_path):
    code, out, err = run("quantize", source, tmp_path / "out", "--errors")
    assert code == 0 and err == ""
    assert "int4" in out and "int6" in out and "fp32" in out
    assert "tensors: 5 exact, 15 rounded" in out and "relative RMS error" in out
    assert str(tmp_path / "out") in out.replace("\n", "")


def test_options_and_json(run, source, tmp_path):
    options = ["--format", "int4_affine", "--group-size", "128", "--embedding", "fp32", "--json"]
    code, out, _ = run("quantize", source, tmp_path / "out", *options)
    report = json.loads(out)
    assert code == 0 and report["path"] == str(tmp_path / "out") and report["source"] == "small"
    assert report["formats"]["int4_affine"]["tensors"] == 14 and report["formats"]["fp32"]["tensors"] == 6
    with open_checkpoint(tmp_path / "out") as packed:
        assert packed.packed("model.layers.0.mlp.up_proj.weight").group_size == 128
        assert report["packed_bytes"] == packed.tensor_bytes()


def test_refusals(run, source, tmp_path):
    assert run("quantize", source, tmp_path / "out")[0] == 0
    code, out, err = run("quantize", source, tmp_path / "out")
    assert code == 1 and out == "" and err.startswith("edgecal: error:") and "--force" in err
    assert run("quantize", source, tmp_path / "out", "--force")[0] == 0
    code, _, err = run("quantize", tmp_path / "nothing", tmp_path / "out2", "--json")
    assert code == 1 and json.loads(err)["error"]["type"] == "ModelNotFoundError"
    code, _, err = run("quantize", source, tmp_path / "out2", "--format", "int3")
    assert code == 2 and "int4_affine" in err


def test_help_says_what_the_formats_cost(run):
    _, out, _ = run("quantize", "--help")
    told = " ".join(out.split())
    bits = "int8 8.5, int6 6.5, int5 5.5, int4 4.25, int4_f16 4.5, int4_affine 5, int6_k 6.5625"
    assert f"Bits per weight: {bits}" in told


def test_interrupted(run, source, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgecal.cli.quantize.quantize_checkpoint", interrupt)
    assert run("quantize", source, tmp_path / "out")[0] == 130
    assert not list(tmp_path.iterdir())


def test_pull_demo(run, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(bytes(2_500_000))
    asked = []

    def pull(progress, keep_gguf):
        asked.append(keep_gguf)
        return tmp_path / "model"

    monkeypatch.setattr(demo_model, "pull_demo", pull)
    code, out, _ = run("pull", "demo")
    assert code == 0 and out == f"demo: 2.5 MB in {tmp_path / 'model'}\n"
    code, out, _ = run("pull", "demo", "--keep-gguf", "--json")
    assert json.loads(out) == {"model": "demo", "path": str(tmp_path / "model"), "bytes": 2_500_000}
    assert asked == [False, True]


def test_pull_from_the_hub(run, tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"1234")
    asked = []

    def fetch(name, **options):
        options.pop("progress")(1, 4, "m.gguf")  # nobody is looking
        asked.append((name, options))
        return tmp_path / "m.gguf"

    monkeypatch.setattr(hub, "download", fetch)
    monkeypatch.setattr(hub, "download_adapter", fetch)
    code, out, _ = run("pull", "org/name:Q4_0", "--revision", "v1", "--offline", "--json")
    assert code == 0 and json.loads(out)["bytes"] == 4
    run("pull", "org/adapter", "--adapter")
    assert asked[0] == ("org/name:Q4_0", {"revision": "v1", "offline": True})
    assert asked[1] == ("org/adapter", {"revision": None, "offline": None})


@pytest.mark.parametrize("arguments", [["demo", "--offline"], ["demo", "--adapter"], ["org/name", "--keep-gguf"]])
def test_options_that_do_not_belong(run, arguments):
    code, _, err = run("pull", *arguments)
    assert code == 2 and "demo" in err


def test_calibrated(tmp_path):
    write_tiny_hf(tmp_path / "model")
    done = edgecal("quantize", tmp_path / "model", tmp_path / "int8", "--format", "int8", home=tmp_path)
    assert done.returncode == 0, done.stderr
    options = ["--calibrate-tokens", "1024", "--calibrate"]
    done = edgecal("quantize", tmp_path / "int8", tmp_path / "out", *options, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "are rounded already (int8); their float32 values are rounded again" in done.stderr
    assert "squared error of outputs" in done.stdout and "down_proj" in done.stdout
    text = json.dumps({"dialogue": "A: Hello there. B: Who are you? " * 40}) + "\n"
    options = ["--calibrate=-", "--importance", "--calibrate-tokens", "512", "--force", "--json"]
    done = edgecal("quantize", tmp_path / "model", tmp_path / "out", *options, home=tmp_path, input=text)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)["output_errors"]
    assert len(errors) == 14 and all(error["calibrated"] < error["rounded"] for error in errors.values())


def test_options_that_contradict_each_other(tmp_path):
    for options, message in (
        (("--importance",), "give it with --calibrate"),
        (("--imatrix", "x.gguf", "--calibrate"), "without --calibrate"),
    ):
        done = edgecal("quantize", tmp_path / "model", tmp_path / "out", *options, home=tmp_path)
        assert done.returncode == 2 and message in " ".join(done.stderr.split())
