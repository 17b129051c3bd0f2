"""`edgecal chat` from a pipe and at a terminal, on a tiny random model."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgecal import Engine, Recipe, Settings
from edgecal.cache import KVCache
from edgecal.cli.chat import command
from tests.cli.shell import Terminal, edgecal, terminal
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf

HINT = "(Ctrl-D or /exit leaves)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chat")
    write_tiny_hf(root / "model", max_position_embeddings=16384)
    for name, seed in (("a", 1), ("b", 2)):
        write_tiny_adapter(root / name, root / "model", seed=seed)
    for method in ("learnable_calibration_pp", "projection_merge"):
        adapters = {name: root / name for name in "ab"}
        write_tiny_calibration(root / f"{method}.safetensors", root / "model", adapters, method)
    return root


def chat(folder: Path, home: Path, *lines: str, options: tuple[str | Path, ...] = ()):
    return edgecal("chat", folder / "model", "-n", "8", *options, home=home, input="".join(x + "\n" for x in lines))


def turns(done) -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def pair(folder: Path) -> tuple[str | Path, ...]:
    return "--adapter", folder / "a", "--adapter", folder / "b"


# ------------------------------------------------------------------------------------------------------ a pipe


def test_a_pipe_gets_the_answers_and_nothing_else(folder, tmp_path):
    done = chat(folder, tmp_path, "hello", "", "and again", options=pair(folder))
    assert done.returncode == 0
    engine = Engine.load(folder / "model", backend="numpy", adapters={name: folder / name for name in "ab"})
    recipe, settings = Recipe("linear", ("a", "b")), Settings(max_tokens=8)
    messages = [{"role": "user", "content": "hello"}]
    answers = [engine.generate(messages, recipe=recipe, settings=settings).text]
    messages += [{"role": "assistant", "content": answers[0]}, {"role": "user", "content": "and again"}]
    answers.append(engine.generate(messages, recipe=recipe, settings=settings).text)
    assert done.stdout == "".join(answer + "\n" for answer in answers)
    assert "method: linear   adapters: a, b" in done.stderr
    assert ">>>" not in done.stdout + done.stderr


def test_messages_of_several_lines(folder, tmp_path):
    lines = ['"""', "/first", "second", '"""', "one\\", "two\\", "", '"""/three"""', '"""', "open end"]
    said = [turn["user"] for turn in turns(chat(folder, tmp_path, *lines, options=("--json",)))]
    assert said == ["/first\nsecond", "one\ntwo\n", "/three", "open end"]


def test_json_has_one_object_for_each_input(folder, tmp_path):
    raw = "\n".join(
        (
            "hello",
            "/set temperature 0.5",
            "/set temperature 0",
            "/nonsense",
            "/stats",
            "/undo",
            "",
            "more",
            "/exit",
            "no",
        )
    ).encode()
    done = edgecal("chat", folder / "model", "-n", "8", "--json", *pair(folder), home=tmp_path, input=b"\xff\n" + raw)
    broken, hello, set_half, _, nonsense, stats, undo, go_on, leave = turns(done)
    assert broken["error"]["type"] == "PromptError"
    assert "UTF-8" in broken["error"]["message"]
    assert (hello["user"], hello["method"], hello["adapters"]) == ("hello", "linear", ["a", "b"])
    assert (hello["new_tokens"], hello["finish_reason"], hello["reused_tokens"]) == (8, "length", 0)
    assert set_half == {"command": "/set temperature 0.5", "output": {"temperature": 0.5}}
    assert "/method" in nonsense["error"]["message"]
    assert stats["output"]["turns"] == 1
    assert stats["output"]["last"]["prompt_tokens"] == hello["prompt_tokens"]
    assert stats["output"]["cache"]["context"] == 16384
    assert undo["output"] == "taken back: hello"
    assert go_on["reused_tokens"] > 0
    assert leave["command"] == "/exit"
    assert done.stderr == ""


def test_a_calibration_that_tasks_share(folder, tmp_path):
    """Any of its lists of adapters will do: what is composed now comes first, then what is loaded."""
    path, third = tmp_path / "shared.safetensors", write_tiny_adapter(tmp_path / "c", folder / "model", seed=3)
    a, b = folder / "a", folder / "b"
    write_tiny_calibration(path, folder / "model", {"a": a, "b": b}, shared_with=[{"a": a, "c": third}])
    described = "method: learnable_calibration_pp   adapters: {}   calibration: shared.safetensors"
    loaded = "loaded b (rank 4)\ncompose it with: /use {} b"
    commands = {
        f"/adapter add {a}": "loaded a (rank 4)\nmethod: single   adapters: a",
        f"/calibration  {path}": f"{path} was trained for the adapters a, b or a, c; not loaded: b "
        "(/adapter add PATH loads one; it must be the very file)",
        f"/adapter add {third}": "loaded c (rank 4)\ncompose it with: /use a c",
        f"/calibration {path}": described.format("a, c"),
        f"/adapter add {b}": loaded.format("a c"),
        f"/calibration   {path}": described.format("a, c"),
        "/use a b": described.format("a, b"),
        f"/calibration    {path}": described.format("a, b"),
        "/use c a": "(learnable_calibration_pp does not go with that: calibration "
        f"{path} was trained for the adapters in the order a, c; given: c, a. Swap them)\n"
        "method: linear   adapters: c, a",
        f"/calibration     {path}": described.format("a, c"),
    }
    found = turns(chat(folder, tmp_path, *commands, options=("--json",)))
    said = [turn["output"] if "output" in turn else turn["error"]["message"] for turn in found]
    assert said == list(commands.values())


def test_the_method_and_the_adapters_change_on_the_way(folder, tmp_path):
    lcpp = folder / "learnable_calibration_pp.safetensors"
    commands = {
        f"/adapter add first={folder / 'a'}": "loaded first (rank 4)\nmethod: single   adapters: first",
        f"/adapter add {folder / 'b'}": "loaded b (rank 4)\ncompose it with: /use first b",
        "/use first b": "(single does not go with that: single takes one adapter; given: first, b)\n"
        "method: linear   adapters: first, b",
        "/method concat": "method: concat   adapters: first, b",
        "/method zero_shot": "method: zero_shot   adapters: none",
        "/method linear": "method: linear   adapters: first, b",
        f"/calibration {lcpp}": "method: learnable_calibration_pp   adapters: first, b   calibration: " + lcpp.name,
        "/calibration": "method: learnable_calibration_pp   adapters: first, b   calibration: " + lcpp.name,
        "/calibration none": "method: linear   adapters: first, b",
        "/use b": "method: linear   adapters: b",
        "/use none": "method: zero_shot   adapters: none",
        "/use b first": "method: linear   adapters: b, first",
        # the calibration knows its adapters and their order
        f"/calibration {folder / 'projection_merge.safetensors'}": "method: projection_merge   adapters: first, b   "
        "calibration: projection_merge.safetensors",
        "/adapter remove b": "removed b\n(projection_merge does not go with that: calibration "
        f"{folder / 'projection_merge.safetensors'} was trained for 2 adapters (a, b); given: 1)\n"
        "method: single   adapters: first",
        "/adapter remove first": "removed first\nmethod: zero_shot   adapters: none",
        "/adapter": "no adapters; load one with /adapter add PATH (or demo:summarize)",
    }
    found = {turn["command"]: turn["output"] for turn in turns(chat(folder, tmp_path, *commands, options=("--json",)))}
    assert found == commands


def test_every_answer_is_that_of_its_recipe(folder, tmp_path):
    lcpp = folder / "learnable_calibration_pp.safetensors"
    lines = ["/method zero_shot", "hi", "/reset", "/use a", "hi", "/reset", f"/calibration {lcpp}", "hi"]
    said = [turn for turn in turns(chat(folder, tmp_path, *lines, options=("--json", *pair(folder)))) if "user" in turn]
    engine = Engine.load(folder / "model", backend="numpy", adapters={name: folder / name for name in "ab"})
    recipes = [
        Recipe("zero_shot"),
        Recipe("single", ("a",)),
        Recipe("learnable_calibration_pp", ("a", "b"), calibration=str(lcpp)),
    ]
    assert [turn["method"] for turn in said] == [recipe.method for recipe in recipes]
    assert [turn["adapters"] for turn in said] == [list(recipe.adapters) for recipe in recipes]
    for turn, recipe in zip(said, recipes, strict=True):
        assert turn["text"] == engine.generate("hi", recipe=recipe, settings=Settings(max_tokens=8)).text


def test_the_type_of_the_cache(folder, tmp_path):
    """int8: a second turn reads what the first has written, and /reset begins anew."""
    options = ("--json", "--cache-dtype", "int8", "--temperature", "0")
    done = chat(folder, tmp_path, "hi", "more", "/reset", "hi", options=options)
    said = [turn for turn in turns(done) if "user" in turn]
    engine = Engine.load(folder / "model", backend="numpy", cache_dtype="int8")
    messages: list[dict[str, str]] = []
    for turn in said[:2]:
        messages.append({"role": "user", "content": turn["user"]})
        answer = engine.generate(messages, settings=Settings(max_tokens=8)).text
        assert turn["text"] == answer
        messages.append({"role": "assistant", "content": answer})
    assert said[2]["text"] == said[0]["text"]


def test_a_type_that_no_cache_has(folder, tmp_path):
    done = chat(folder, tmp_path, "hi", options=("--cache-dtype", "half"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "'--cache-dtype': 'half' is not one of 'fp16', 'fp32', 'int8'" in done.stderr


def test_refused_commands_change_nothing(folder, tmp_path):
    refused = {
        "/method nonsense": "unknown method 'nonsense'",
        "/method single": "single takes one adapter",
        "/method projection_merge": "/calibration FILE",
        "/method multi_step": "generate --step",
        "/use a nobody": "no adapter 'nobody' is loaded; loaded: a, b",
        "/use": "expected /use NAME...",
        "/adapter add /nowhere": "no such path",
        "/adapter add": "expected /adapter",
        "/adapter remove nobody": "no adapter 'nobody'",
        "/adapter add 'x": "quotation",
        f"/calibration {folder / 'a'}": "calibration",
        "/calibration /no /where": "expected /calibration FILE",
        "/set nonsense 1": "options: temperature",
        "/set temperature": "expected /set temperature VALUE",
        "/set temperature hot": "takes a number",
        "/set temperature -1": "at least 0",
        "/set temperature nan": "at least 0",
        "/set top_k 1.5": "whole number",
        "/set max_tokens 0": "at least 1",
        "/set seed 1 2": "one value",
        '/set stop ""': "at least one character",
        "/load /nowhere.json": "cannot be read",
        "/save": "expected /save FILE",
        "/save /nowhere/x.json": "could not be written",
        "/adapter add " + "x" * 5000: "path",
        "/adapter add new=~nobody-of-this-name/x": "is no path",
        "/calibration ~nobody-of-this-name/x": "is no path",
        "/load ~nobody-of-this-name/x": "cannot be read",
        "/save ~nobody-of-this-name/x": "could not be written",
        "/load a\0b": "null",
        "/undo": "no turn",
        "/nonsense": "commands: /help, /method",
        "/": "commands: /help",
    }
    options = ("--json", *pair(folder))
    answers = turns(chat(folder, tmp_path, *refused, "/calibration", "/set", "/history", options=options))
    for (line, message), answer in zip(refused.items(), answers, strict=False):
        assert message.replace("quotation", "") in answer["error"]["message"], line
    method, settings, history = (answer["output"] for answer in answers[-3:])
    assert method == "method: linear   adapters: a, b"
    assert settings["temperature"] == 0
    assert (settings["max_tokens"], settings["stop"], settings["seed"]) == (8, [], None)
    assert history == []


def test_conversations_are_saved_and_loaded(folder, tmp_path):
    file = tmp_path / "a conversation.json"
    lines = ["/system Be brief.", "hello", f"/save '{file}'", "/reset", "/history"]
    lines += [f"/load '{file}'", "/history", "go on"]
    answers = turns(chat(folder, tmp_path, *lines, options=("--json",)))
    system = {"role": "system", "content": "Be brief."}
    hello = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": answers[1]["text"]}]
    assert json.loads(file.read_text())["messages"] == [system, *hello]
    assert answers[4]["output"] == [system]
    assert answers[6]["output"] == [system, *hello]
    assert answers[7]["prompt_tokens"] > answers[1]["prompt_tokens"]


def test_options_are_set(folder, tmp_path):
    commands = ["/set stop END 'the end'", "/set stop none", "/set seed 7", "/set seed none", "/set top-p 0.5", "/set"]
    outputs = [answer["output"] for answer in turns(chat(folder, tmp_path, *commands, options=("--json",)))]
    assert outputs[:5] == [{"stop": ["END", "the end"]}, {"stop": []}, {"seed": 7}, {"seed": None}, {"top_p": 0.5}]
    assert outputs[5]["top_p"] == 0.5


def test_text_output_of_commands_goes_to_stderr(folder, tmp_path):
    commands = ["/help", "/method", "/adapter", "/set", "/stats", "/history", "/system", "/nonsense"]
    done = chat(folder, tmp_path, *commands, options=pair(folder))
    assert (done.returncode, done.stdout) == (0, "")
    for text in ("/calibration FILE", "* linear", "* a: rank 4, 14 modules", "stop none", "KV cache: 0 of", "system: "):
        assert text in done.stderr
    assert "error: unknown command /nonsense" in done.stderr
    assert max(map(len, done.stderr.partition("/help")[2].partition("zero_shot")[0].splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--step", ":Do it"), "multi_step"),
        (("--method", "nonsense"), "unknown method"),
        (("--adapter", "/nowhere"), "/nowhere"),
    ],
)
def test_refused_at_the_start(folder, tmp_path, options, message):
    done = chat(folder, tmp_path, "hello", options=options)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_model_without_chat_template(tmp_path):
    done = edgecal("chat", write_tiny_hf(tmp_path / "m", chat_template=False), home=tmp_path, input="hello\n")
    assert done.returncode == 1
    assert "no chat template" in done.stderr


def test_a_conversation_that_outgrows_the_context(tmp_path):
    model = write_tiny_hf(tmp_path / "m", max_position_embeddings=96)
    done = edgecal("chat", model, "--json", "--temp", "0", home=tmp_path, input="hello\nmore\n/reset\nhello\n")
    first, error, _, again = turns(done)
    assert first["finish_reason"] == "context"
    assert error["error"]["type"] == "ContextLengthError"
    assert "/reset" in error["error"]["message"]
    assert again["text"] == first["text"]


def test_too_little_memory_ends_the_turn_only(folder, tmp_path, monkeypatch):
    reserve = KVCache.reserve

    def scarce(cache: KVCache, n_positions: int) -> None:
        if n_positions > 256:
            raise MemoryError
        reserve(cache, n_positions)

    monkeypatch.setattr(KVCache, "reserve", scarce)
    monkeypatch.setenv("EDGECAL_BACKEND", "numpy")
    arguments = [str(folder / "model"), "-n", "8", "--temperature", "0", "--json"]
    done = CliRunner().invoke(command, arguments, input="x" * 300 + "\nhello\n")
    error, hello = (json.loads(line) for line in done.output.splitlines())
    assert "memory" in error["error"]["message"]
    assert hello["new_tokens"] == 8


# -------------------------------------------------------------------------------------------------- a terminal


def start(folder: Path, home: Path, *options: str | Path):
    return terminal("chat", folder / "model", *options, home=home)


def leave(screen: Terminal) -> None:
    screen.end()
    assert screen.wait() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(folder, tmp_path):
    engine = Engine.load(folder / "model", backend="numpy", adapters={name: folder / name for name in "ab"})
    beginning = engine.generate("hello", recipe=Recipe("linear", ("a", "b")), settings=Settings(max_tokens=8)).text
    with start(folder, tmp_path, "-n", "16000", *pair(folder)) as screen:
        shown = screen.expect(">>> ")
        assert "method: linear   adapters: a, b" in shown
        assert "/help" in shown
        screen.type("hello\n")
        screen.expect(beginning)
        screen.type("\x03")
        screen.expect("stopped; what was said stays")
        screen.expect(">>> ")
        screen.type("/stats\n")
        stats = screen.expect("KV cache")
        new_tokens = int(stats.partition(" new tokens")[0].rpartition("; ")[2])
        assert 1 <= new_tokens < 16000
        screen.expect(">>> ")
        screen.type("/set max_tokens 5\n")
        screen.expect(">>> ")
        screen.type("go on\n")
        screen.expect("stopped after 5 tokens")
        screen.expect(">>> ")
        screen.type("/history\n")
        history = screen.expect(">>> ")
        assert [line.partition(":")[0] for line in history.splitlines() if ": " in line[:12]][-4:] == [
            "user",
            "assistant",
        ] * 2
        leave(screen)


def test_ctrl_c_and_ctrl_d_at_the_prompt(folder, tmp_path):
    with start(folder, tmp_path) as screen:
        screen.expect(">>> ")
        screen.interrupt()
        screen.expect(HINT)
        screen.expect(">>> ")
        screen.type('"""half a\n')
        screen.expect("... ")
        screen.interrupt("block")
        screen.expect(HINT)
        screen.expect(">>> ")
        screen.type("/history\n")
        screen.expect("nothing was said yet")
        leave(screen)


def test_several_lines_pasted_are_one_message(folder, tmp_path):
    """What begins with a slash among them is text, and Enter sends it."""
    pytest.importorskip("readline")
    with terminal("chat", folder / "model", "-n", "4", home=tmp_path, TERM="xterm") as screen:
        screen.expect(">>> ")
        screen.type("\x1b[200~first line\n/second line\tend\n\nthird\n\x1b[201~")
        screen.type("\n")
        screen.expect("stopped after 4 tokens")
        screen.expect(">>> ")
        screen.type("/history\n")
        history = screen.expect("assistant:")
        assert "user: first line\n/second line" in history and "\n\nthird\n" in history
        screen.expect(">>> ")
        screen.type("\x1b[200~/stats\n\x1b[201~\n")  # one line, with its end, is what it would be when typed
        screen.expect("KV cache")
        screen.expect(">>> ")
        leave(screen)


def test_history_is_kept_for_the_next_chat(folder, tmp_path):
    pytest.importorskip("readline")
    with start(folder, tmp_path) as screen:
        screen.expect(">>> ")
        screen.type("/system something to remember\n")
        screen.expect(">>> ")
        screen.type("/exit\n")
        screen.expect("/exit")
        assert screen.wait() == 0
    file = tmp_path / "chat_history"
    assert "/system something to remember" in file.read_text()
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    with start(folder, tmp_path) as screen:
        screen.expect(">>> ")
        screen.type("\x1b[A\x1b[A\n")  # up, up
        screen.expect("system: something to remember")
        screen.type("/und\t\n")
        screen.expect("no turn to take back")
        leave(screen)


def test_a_terminal_is_not_obeyed_by_answers_or_files(folder, tmp_path):
    """Control characters of a loaded conversation are shown, not sent."""
    file = tmp_path / "c.json"
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "red \x1b[31m text"}]
    file.write_text(json.dumps(messages))
    with start(folder, tmp_path) as screen:
        screen.expect(">>> ")
        screen.type(f"/load {file}\n/history\n")
        assert "red \ufffd[31m text" in screen.expect(" text")
        leave(screen)


def test_ctrl_c_in_a_pipeline_ends_it(folder, tmp_path):
    """Nobody can type the next message, so the program ends, with what was said and the exit code of an interrupt."""
    import signal
    import subprocess
    import sys

    from tests.cli.shell import MAIN, environment, killed_at_the_end

    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "chat", str(folder / "model"), "-n", "16000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
    )
    with killed_at_the_end(process):
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert len(first + out) > 1
    assert b"stopped" in err
    assert b"Traceback" not in err


def test_talk_is_sampled_and_adapters_are_not(folder, tmp_path):
    """Small models talk in circles greedily. What the model advises comes first, what a person says before it."""
    lines = "/set\n"

    def settings(model: Path, *options: str | Path) -> dict:
        done = edgecal("chat", model, "--json", *options, home=tmp_path, input=lines)
        return turns(done)[0]["output"]

    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    found = settings(folder / "model")
    assert [found[name] for name in names] == [0.6, 0, 0.9, 1.05] and found["stop_at_repetition"] is True
    assert [settings(folder / "model", "--temperature", "0")[name] for name in names] == [0, 0, 1, 1]
    assert [settings(folder / "model", "--top-k", "5")[name] for name in names] == [0.6, 5, 0.9, 1.05]
    assert [settings(folder / "model", *pair(folder))[name] for name in names] == [0, 0, 1, 1]
    advised = write_tiny_hf(tmp_path / "advised")
    advice = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}
    (advised / "generation_config.json").write_text(json.dumps(advice))
    assert [settings(advised)[name] for name in names] == [0.7, 20, 0.8, 1.1]


def test_a_switch_is_set(folder, tmp_path):
    done = chat(folder, tmp_path, "/set stop_at_repetition off", "/set stop_at_repetition maybe", options=("--json",))
    switched, refused = turns(done)
    assert switched["output"] == {"stop_at_repetition": False}
    assert "takes on or off, found 'maybe'" in refused["error"]["message"]
