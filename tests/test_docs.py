"""What the documentation says is so: the files that it names exist, its examples run, its picture is what is drawn."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import runpy
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import edgecal

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / page for page in ("CONTRIBUTING.md", "README.md", "SECURITY.md", "kernels/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
# A page names a file from the root, or by the folder that it is about
FOLDERS = ["", "docs", "kernels", "kernels/edgecal_kernels", "kernels/edgecal_kernels/isa", "weights/edgecal_weights"]
FOLDERS += ["edgecal", "edgecal/adapters", "edgecal/adapters/merge", "edgecal/benchmark", "edgecal/cli"]
FOLDERS += ["weights", "tests"]
FOREIGN = {"adapter_config.json", "config.json", "tokenizer.json", "modeling_NAME.py", "before.json", "after.json"}
FOREIGN |= {"notes.json"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.M | re.S)
    named = {*re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|md|json|yml|svg))`", text)}
    named |= {*re.findall(r"`((?:[\w.-]+/)+)`", text)}
    ours = [name for name in sorted(named - FOREIGN) if "NAME" not in name and not name.startswith("result")]
    missing = [name for name in ours if not any((ROOT / folder / name).exists() for folder in FOLDERS)]
    assert not missing, f"{page.name} names {', '.join(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_api_reference_has_every_public_name() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = re.findall(r"^::: ([\w.]+)$", pages, re.M)
    assert len(set(shown)) == len(shown)
    for name in edgecal.__all__:
        assert f"edgecal.{name}" in shown or name == "__version__", f"{name} is in no page of docs/api"
    for name in shown:
        assert pkgutil.resolve_name(name) is not None


def test_the_picture_is_what_the_script_draws() -> None:
    picture = runpy.run_path(str(ROOT / "docs" / "picture.py"))
    assert (ROOT / "docs" / "architecture.svg").read_text() == picture["draw"]()
    boxes, arrows = picture["BOXES"], picture["ARROWS"]
    assert {name for arrow in arrows for name in (arrow.start, arrow.end)} == set(boxes)


def example(word: str) -> str:
    """The Python block of docs/extending.md that has `word` in it."""
    text = (ROOT / "docs" / "extending.md").read_text()
    [block] = [b for b in re.findall(r"^ *```python\n(.*?)^ *```", text, re.S | re.M) if word in b]
    return textwrap.dedent(block)


def load(code: str, name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the code would be, under this name."""
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_the_merge_method_of_the_checklist(tmp_path, monkeypatch) -> None:
    """DELLA, by its definition: the chance to stay by rank of magnitude, and a mean that stays."""
    from edgecal.adapters import LoraAdapter, LoraPair, Recipe, compile_recipe
    from edgecal.adapters.merge import find_method, registry
    from edgecal.errors import AdapterError, RecipeError

    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    della = load(example("@method"), "edgecal.adapters.merge.della", tmp_path / "della.py", monkeypatch)
    values = np.tile(np.arange(-50, 50, dtype=np.float32) + 0.5, (4000, 1))
    kept = della.thinned(values, 0.5, 0.2, "key")
    chance = 0.3 + 0.4 * (np.abs(values[0]) - 0.5) / 49.5
    assert np.abs((kept != 0).mean(axis=0) - chance).max() < 0.05
    assert np.abs(kept.mean(axis=0) / values[0] - 1).max() < 0.1

    entry = find_method("della_linear")
    assert [option.name for option in entry.options] == ["density", "epsilon", "seed"]
    rng = np.random.default_rng(0)
    pairs = {
        name: LoraPair(rng.normal(size=(4, 30)).astype(np.float32), rng.normal(size=(20, 4)).astype(np.float32))
        for name in "ab"
    }
    adapters = {name: LoraAdapter(name, {"m.q_proj": pair}) for name, pair in pairs.items()}

    def merged(*names: str, **options: float) -> np.ndarray:
        recipe = Recipe("della_linear", names, options=tuple(options.items()))
        compiled = compile_recipe(recipe, adapters, None, {"m.q_proj": (20, 30)}, {})
        assert compiled is not None
        return compiled.pairs["m.q_proj"].delta()

    np.testing.assert_allclose(merged("a", "b"), merged("b", "a"), atol=1e-5)
    assert (merged("a", "b", seed=1) != merged("a", "b")).any()
    with pytest.raises((RecipeError, AdapterError), match="lower epsilon"):
        merged("a", "b", epsilon=0.5)


def test_the_family_of_the_checklist(tmp_path, monkeypatch) -> None:
    from edgecal.architecture import expected_shapes
    from edgecal.config import ModelConfig
    from edgecal_weights.families import FAMILIES

    name = "edgecal_weights.families.gemma"
    gemma = load(example("= Family("), name, tmp_path / "gemma.py", monkeypatch).GEMMA
    monkeypatch.setitem(FAMILIES, gemma.model_type, gemma)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = ModelConfig.from_dict({"model_type": "gemma", "vocab_size": 64, **sizes, "num_key_value_heads": 1})
    assert config.options == {"embedding_scale", "gelu_tanh"}
    assert (config.head_dim, config.embedding_scale, config.norm_weight_offset) == (256, 8.0, 1.0)
    assert config.tie_word_embeddings and "lm_head.weight" not in expected_shapes(config)


def test_every_package_that_a_phone_may_be_asked_for_is_named() -> None:
    """docs/termux.md says how each comes to Android; what has to be compiled there is asked for by extras alone."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    served = [extra for extra in extras if extra in {"jit", "demo", "search", "plot", "eval", "app", "cluster"}]
    asked = [*project["dependencies"], *(line for extra in served for line in extras[extra])]
    page = (ROOT / "docs" / "termux.md").read_text()
    names = {Requirement(line).name for line in asked} - {"edgecal"}
    assert len(served) == 7 and sorted(name for name in names if not re.search(rf"\b{name}\b", page)) == []

    android = {"sys_platform": "android", "platform_machine": "aarch64", "platform_system": "Android"}
    wanted = map(Requirement, (*project["dependencies"], *extras["app"]))
    there = {one.name for one in wanted if one.marker is None or one.marker.evaluate(android)}
    assert there == {"numpy", "jinja2", "click", "rich", "pyyaml"} | {"starlette", "uvicorn", "segno"} | {
        "prometheus-client",
        "py3langid",
    }
