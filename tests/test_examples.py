"""The programs of examples/ run, and the recipes and Python in the pages are what the code takes."""

from __future__ import annotations

import ast
import re
import runpy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

import edgecal
from edgecal.adapters.recipe_spelling import arguments
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the names that README's example has."""
    root = tmp_path_factory.mktemp("examples")
    write_tiny_hf(root / "model")
    pair = {"summarize": root / "adapters/summarize", "formal": root / "adapters/formal"}
    for seed, path in enumerate(pair.values()):
        write_tiny_adapter(path, root / "model", seed=seed)
    write_tiny_calibration(root / "lcpp.safetensors", root / "model", pair)
    (root / "chat.txt").write_text("Ann: Are you there?\nBob: Soon.")
    return root


@pytest.fixture(autouse=True)
def numpy_back_end(monkeypatch: pytest.MonkeyPatch, made: Path) -> None:
    monkeypatch.setenv("EDGECAL_BACKEND", "numpy")
    monkeypatch.chdir(made)


def run(name: str, *arguments: str) -> None:
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](*arguments)


def test_compose(capsys: pytest.CaptureFixture[str]) -> None:
    run("compose", "model", "adapters/summarize", "adapters/formal", "lcpp.safetensors")
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()][:1] == ["one adapter"]


def test_batch(capsys: pytest.CaptureFixture[str]) -> None:
    run("batch", "model", "adapters/summarize")
    assert "'It rains.': " in capsys.readouterr().out


def test_client(capsys: pytest.CaptureFixture[str]) -> None:
    from edgecal.server import Served
    from tests.server.conftest import running

    engine = edgecal.Engine.load("model", adapters={"a": "adapters/summarize"})
    with running(lambda: Served(engine, "tiny")) as server:
        run("client", server.url, "a")
    assert capsys.readouterr().out.strip()


# open().read() closes when it is collected
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_example_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict[str, Any] = {"chats": ["Ann: hi", "Bob: yes"]}
    exec(code.replace("recipe=recipe)", "recipe=recipe, max_tokens=4)"), names)
    assert len(names["answers"]) == 2 and capsys.readouterr().out


def blocks(language: str) -> list[Any]:
    """A parameter for each block of a language in the pages."""
    found = []
    for page in PAGES:
        for index, code in enumerate(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)):
            found.append(pytest.param(code, id=f"{page.stem}-{index}"))
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_python_in_the_pages_can_be_read_and_names_what_there_is(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "edgecal":
            assert node.attr in edgecal.__all__, node.attr


@pytest.mark.parametrize("code", blocks("yaml"))
def test_recipes_in_the_pages_are_recipes(code: str) -> None:
    values = yaml.safe_load(code)
    if "method" in values or "merge_method" in values:
        edgecal.Recipe(**arguments(values))


def test_the_version_is_in_one_place() -> None:
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert version("edgecal") == edgecal.__version__
