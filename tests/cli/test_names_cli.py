"""Names and their near misses: commands, models, adapters, tasks, tones, options; short options; shell completion."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import pytest

from edgecal import Engine, Recipe, Settings, demo
from edgecal.cli import COMMANDS, group
from edgecal.errors import ModelNotFoundError
from edgecal_weights.nearest import did_you_mean, nearest
from tests.cli.shell import edgecal
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf

PAIR = ("summary", "formal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("names")
    write_tiny_hf(root / "model", max_position_embeddings=4096)
    for seed, name in enumerate(PAIR):
        write_tiny_adapter(root / name, root / "model", seed=seed)
    write_tiny_calibration(root / "pp.safetensors", root / "model", {name: root / name for name in PAIR})
    (root / "key.yaml").write_text("method: single\nadapter: [formal]\n")
    (root / "names.yaml").write_text("method: single\nadapters: [formal]\n")
    return root


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("generat", "generate"), ("Chat", "chat"), ("profil", "profile"), ("inspcet", "inspect"), ("gen", "generate"),
        ("xyz", None), ("", None), ("q", None),
    ],
)  # fmt: skip
def test_nearest(word, expected):
    assert nearest(word, ("generate", "chat", "profile", "inspect", "quantize", "merge")) == expected
    assert did_you_mean("xyz", ["abc"]) == "" and did_you_mean("abd", ["abc"]) == " (did you mean 'abc'?)"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["genrate"], 2, "did you mean 'generate'?"),
        (["run"], 2, "did you mean 'generate'?"),
        (["ls"], 2, "did you mean 'list'?"),
        (["generate", "demmo", "x"], 1, "(did you mean 'demo'?)"),
        (["generate", "FOLDER/modle", "x"], 1, "(did you mean 'FOLDER/model'?)"),
        (["doctor", "FOLDER/modle", "--adapter", "FOLDER/formal"], 1, "(did you mean 'FOLDER/model'?)"),
        (["inspect", "FOLDER/sumary"], 1, "(did you mean 'FOLDER/summary'?)"),
        (["quantize", "FOLDER/modell", "FOLDER/out"], 1, "(did you mean 'FOLDER/model'?)"),
        (["generate", "FOLDER/model", "x", "--adapter", "FOLDER/fromal"], 1, "(did you mean 'FOLDER/formal'?)"),
        (["generate", "FOLDER/model", "x", "--adapter", "demo:sumarize"], 1, "(did you mean 'demo:summarize'?)"),
        (["generate", "FOLDER/model", "x", "--calibration", "FOLDER/p.safetensors"], 1, "'FOLDER/pp.safetensors'?)"),
        (["generate", "FOLDER/model", "x", "--task", "sumarize"], 1, "(did you mean 'summarize'?)"),
        (["generate", "FOLDER/model", "x", "--method", "liner"], 1, "did you mean 'linear'"),
        (["generate", "FOLDER/model", "x", "--temprature", "1"], 2, "--temperature"),
        (["rm", "dmo"], 1, "no model 'dmo'"),
        (["pull", "dmo"], 1, "expected org/name or org/name:QUANT (did you mean 'demo'?)"),
        (["generate", "FOLDER/model", "x", "--weights", "Q4_K_M"], 2, "llama.cpp's Q4_K_M is int4_k here."),
        (["quantize", "FOLDER/model", "FOLDER/out", "--format", "q8_0"], 2, "llama.cpp's q8_0 is int8 here."),
        (["quantize", "FOLDER/model", "FOLDER/out", "--format", "q4"], 2, "'int4_k'.\n"),
        (["generate", "FOLDER/modle", "x", "--recipe", "FOLDER/key.yaml"], 1, "'adapter' (did you mean 'adapters'?)"),
        (["generate", "FOLDER/modle", "x", "--recipe", "FOLDER/names.yaml"], 1, "give --adapter formal=PATH"),
        (["generate", "FOLDER/modle", "x", "--step", "formal:Be formal"], 1, "give --adapter formal=PATH"),
        (["generate", "FOLDER/model", "-f", "demo:dialog"], 1, "(did you mean 'demo:dialogue'?)"),
    ],
)
def test_did_you_mean(folder, arguments, code, message):
    words = [word.replace("FOLDER", str(folder)) for word in arguments]
    done = edgecal(*words, home=folder / "home")
    assert done.returncode == code and done.stdout == "", done.stderr
    assert message.replace("FOLDER", str(folder)) in done.stderr


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (["--task", "tone", "--tone", "profesional"], "did you mean 'professional'?"),
        (["--task", "translate", "--language", "Spanisch"], "did you mean 'Spanish'?"),
        (["--task", "tone", "--tone", "like a pirate"], None),
        (["--task", "tone", "--tone", "Casual"], None),
    ],
)
def test_any_tone_is_taken(folder, options, note):
    done = edgecal("generate", folder / "model", "x", "-n", "2", *options, home=folder)
    assert done.returncode == 0 and (note in done.stderr if note else "note" not in done.stderr)
    assert edgecal("generate", folder / "model", "x", "-n", "2", "-q", *options, home=folder).stderr == ""


def test_chat_knows_the_words_of_other_chats(folder):
    lines = ["/?", "/clear", "/metod linear", "/set temprature 1", "/use sumary", "/bye", "not read"]
    adapters = ["--adapter", folder / "summary"]
    done = edgecal("chat", folder / "model", "--json", *adapters, home=folder, input="".join(x + "\n" for x in lines))
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert "/calibration" in said[0]["output"] and said[1]["output"] == "the conversation begins anew"
    messages = [answer["error"]["message"] for answer in said[2:5]]
    assert ["/method" in messages[0], "temperature" in messages[1], "summary" in messages[2]] == [True] * 3
    assert all("did you mean" in message for message in messages)
    assert said[5] == {"command": "/bye", "output": ""} and len(said) == 6


def test_short_options(folder):
    expected = edgecal(
        "generate", folder / "model", "hello", "-n", "4", "--temperature", "1", "--seed", "2", home=folder
    )
    short = ["-m", folder / "model", "-p", "hello", "-n", "4", "--temp", "1", "--seed", "2"]
    assert edgecal("generate", *short, "-q", home=folder).stdout == expected.stdout
    assert edgecal("generate", "-m", folder / "model", "hello", *short[4:], "-q", home=folder).stdout == expected.stdout
    for wrong in ([], ["-m", folder / "model", "a", "b"], [folder / "model", "a", "-p", "b"]):
        assert edgecal("generate", *wrong, home=folder).returncode == 2
    assert edgecal("chat", "-m", folder / "model", home=folder, input="/exit\n").returncode == 0
    for wrong in ([], [folder / "model", "-m", folder / "model"]):
        assert edgecal("chat", *wrong, home=folder).returncode == 2


def test_every_model_may_be_an_argument_or_an_option():
    commands = [group.get_command(click.Context(group), name) for name in COMMANDS]
    spelled = {c.name: {o for p in c.params for o in p.opts if p.name in ("model", "named")} for c in commands if c}
    both = {name for name, options in spelled.items() if options == {"model", "-m", "--model"}}
    asked, looked_at = {"generate", "chat", "serve"}, {"search", "verify", "doctor", "figure"}
    assert both == asked | looked_at | {"perplexity", "profile", "tune"}
    assert {name for name, options in spelled.items() if options} - both == {"pull"}, "which takes no folder or file"


def test_a_smaller_context(folder):
    """Prompt and answer, but for its last token, which is not read; more than the model knows is refused."""
    done = edgecal("generate", folder / "model", "hello", "-n", "500", "-c", "80", "--json", home=folder)
    answer = json.loads(done.stdout)
    assert answer["finish_reason"] == "context" and answer["prompt_tokens"] + answer["new_tokens"] == 81
    assert "the model was trained on 4096 tokens" in edgecal(
        "generate", folder / "model", "x", "-c", "5000", home=folder
    ).stderr  # fmt: skip
    long = edgecal("generate", folder / "model", "x" * 200, "-c", "80", home=folder)
    assert long.returncode == 1 and "80" in long.stderr
    said = edgecal("chat", folder / "model", "-c", "90", "--json", home=folder, input="/stats\n")
    assert json.loads(said.stdout)["output"]["cache"]["context"] == 90


# ------------------------------------------------------------------------------------------------------- demo


def test_demo_names_in_python(folder, monkeypatch):
    monkeypatch.setattr(demo, "demo_model_path", lambda: folder / "model")
    monkeypatch.setattr(demo, "DATA", folder)
    monkeypatch.setattr(demo, "ADAPTERS", PAIR)
    monkeypatch.setattr(demo, "CALIBRATIONS", ("pp",))
    engine = Engine.load("demo", backend="numpy", adapters={"s": "demo:summary"})
    engine.add_adapter("demo:formal")
    recipe = Recipe("learnable_calibration_pp", ("s", "formal"), calibration="demo:pp")
    answer = engine.generate("hello", recipe=recipe, settings=Settings(max_tokens=4))
    by_path = Engine.load(folder / "model", backend="numpy", adapters={"s": folder / "summary", "f": folder / "formal"})
    recipe = Recipe("learnable_calibration_pp", ("s", "f"), calibration=str(folder / "pp.safetensors"))
    assert answer.text == by_path.generate("hello", recipe=recipe, settings=Settings(max_tokens=4)).text
    with pytest.raises(ModelNotFoundError, match="did you mean 'demo:formal'"):
        engine.add_adapter("demo:fromal")


def test_the_adapters_are_a_package_of_their_own(tmp_path, monkeypatch):
    """In a checkout they lie beside the packages; elsewhere they are found where they are installed."""
    assert (demo.DATA / "README.md").exists() and demo.DATA.parent.name == "demo_data"
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "site-packages" / "edgecal" / "demo.py"))
    (tmp_path / demo.PACKAGE).mkdir()
    (tmp_path / demo.PACKAGE / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert demo._data() == tmp_path / demo.PACKAGE
    monkeypatch.setattr(demo, "DATA", tmp_path / demo.PACKAGE)
    for ask in (demo.dialogue, demo.recipes, lambda: demo.find("demo:summarize")):
        with pytest.raises(ModelNotFoundError, match="pip install edgecal-demo-data"):
            ask()


def test_a_directory_called_demo(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert demo.find("demo") == "demo"
    assert demo.find("x" * 5000) == "x" * 5000 and demo.find("a\0b") == "a\0b"


# ------------------------------------------------------------------------------------------------- completion


def complete(folder: Path, *words: str) -> list[str]:
    """What bash is offered for the last word: names, or "file" where it completes paths itself."""
    line = ["edgecal", *words]
    variables = {"_EDGECAL_COMPLETE": "bash_complete", "COMP_WORDS": "\n".join(line), "COMP_CWORD": str(len(line) - 1)}
    done = edgecal(home=folder, **variables)
    found = [line.split(",", 1) for line in done.stdout.splitlines()]
    return ["file" if kind == "file" else word for kind, word in found]


def test_completion(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PWD", os.getcwd())
    assert complete(folder, "gen") == ["generate"]
    assert complete(folder, "generate", "de") == ["demo"]
    assert complete(folder, "generate", "mod") == ["file"]
    assert complete(folder, "verify", "de") == complete(folder, "figure", "-m", "de") == ["demo"]
    assert complete(folder, "generate", "demo", "--task", "summarize+") == [
        "summarize+translate",
        "summarize+tone",
        "summarize+tone+translate",
    ]
    found = complete(folder, "generate", "demo", "--method", "learnable_calibration_pp")
    assert sorted(found) == ["learnable_calibration_pp", "learnable_calibration_pp_only"]
    assert complete(folder, "generate", "demo", "--adapter", "demo:s") == ["demo:summarize"]
    assert complete(folder, "generate", "demo", "--adapter", "x=demo:s") == ["x=demo:summarize"]
    assert complete(folder, "generate", "demo", "--adapter", "x=sum") == ["x=summary/"]
    assert complete(folder, "generate", "demo", "--calibration", "demo:p") == ["demo:projection_merge"]
    assert complete(folder, "generate", "demo", "--calibration", "pp") == ["file"]
    assert complete(folder, "generate", "demo", "--tone", "W") == ["witty"]
    assert "demo:summarize" in complete(folder, "inspect", "demo:")
