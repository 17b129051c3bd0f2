"""The promises of the architecture that code can check: who imports whom, and what the public names are."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import edgecal
from edgecal import errors

ROOT = Path(__file__).parent.parent
PACKAGES = {"edgecal": ROOT / "edgecal", "edgecal_kernels": ROOT / "kernels/edgecal_kernels"}
PACKAGES["edgecal_weights"] = ROOT / "weights/edgecal_weights"
ALLOWED = {
    "edgecal_kernels": {"numpy", "numba", "llvmlite"},
    "edgecal_weights": {"edgecal_kernels", "numpy", "tokenizers", "huggingface_hub", "httpx"},
    "edgecal": {"edgecal_kernels", "edgecal_weights", "numpy", "tokenizers"}
    | {"jinja2", "yaml", "click", "rich"},
}
# extras, imported when a picture, a search, an evaluation or a server is asked for
ALLOWED["edgecal"] |= {"matplotlib", "nevergrad", "rouge_score", "py3langid", "huggingface_hub", "dask"}
ALLOWED["edgecal"] |= {"starlette", "anyio", "uvicorn", "segno", "prometheus_client"}
# Stand-alone PyTorch scripts for the training side and for `edgecal verify --live`, which runs one in a process of its
# own. They ship with the package and no module of it may import them.
NOT_IMPORTED = ROOT / "edgecal" / "export_contract"
# edgecal_weights sees the formats, the errors and the cache folder of the kernels, and none of the arithmetic
KERNEL_MODULES_FOR_WEIGHTS = {"quant", "errors", "paths"}
# Inside edgecal: a module may import from those on its left, never from those on its right
LAYERS = [
    {"errors", "memory", "machine", "pages"},
    {"config", "text"},
    {"architecture"},
    {"adapters"},
    {"linear", "builder", "cache", "threads", "observer"},
    {"model"},
    {"loading", "decoding", "tuned"},
    {"fitting"},
    {"completion"},
    {"serving", "scoring"},
    {"scheduler"},
    {"engine", "demo"},
    {"async_engine"},
    {"conversation", "environment", "inspection", "perplexity", "search", "tuning", "verification"},
    {"profile", "benchmark", "quantization"},
    {"server"},
    {"cli"},
    {"__main__"},
]


def imports(file: Path, package: str, root: Path) -> list[str]:
    """Absolute names of everything that `file` imports, relative imports resolved."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [package, *file.relative_to(root).with_suffix("").parts]
                parent = here[: len(here) - node.level]
                base = ".".join([*parent, base] if base else parent)
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package):
    root = PACKAGES[package]
    for file in root.rglob("*.py"):
        if NOT_IMPORTED in file.parents:
            continue
        for name in imports(file, package, root):
            assert "export_contract" not in name, f"{file.relative_to(ROOT)} imports {name}"
            top = name.split(".")[0]
            if top == package or top in sys.stdlib_module_names:
                continue
            assert top in ALLOWED[package], f"{file.relative_to(ROOT)} imports {name}"
            if package == "edgecal_weights" and top == "edgecal_kernels":
                assert name.split(".")[1] in KERNEL_MODULES_FOR_WEIGHTS, f"{file.relative_to(ROOT)} imports {name}"


def test_modules_of_edgecal_import_one_way():
    rank = {module: i for i, layer in enumerate(LAYERS) for module in layer}
    for file in PACKAGES["edgecal"].rglob("*.py"):
        parts = file.relative_to(PACKAGES["edgecal"]).with_suffix("").parts
        if parts[0] == "__init__" or NOT_IMPORTED in file.parents:
            continue
        assert parts[0] in rank, f"{parts[0]} has no place in LAYERS"
        for name in imports(file, "edgecal", PACKAGES["edgecal"]):
            words = name.split(".")
            if words[0] != "edgecal" or len(words) < 2 or words[1] not in rank or words[1] == parts[0]:
                continue
            assert rank[words[1]] <= rank[parts[0]], f"{file.relative_to(ROOT)} imports {name}"


def test_modules_import_in_no_circle():
    """Imports inside functions and for type checkers count: whoever reads one module needs the others all the same."""
    modules = {}
    for package, root in PACKAGES.items():
        for file in root.rglob("*.py"):
            path = [package, *file.relative_to(root).with_suffix("").parts]
            modules[".".join(path).removesuffix(".__init__")] = imports(file, package, root)
    graph = {}
    for module, names in modules.items():
        found = {name if name in modules else name.rpartition(".")[0] for name in names} & set(modules)
        graph[module] = found - {module}
    assert list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the modules of a circle


def test_public_names():
    assert sorted(edgecal.__all__) == list(edgecal.__all__)
    for name in edgecal.__all__:
        assert getattr(edgecal, name) is not None
    assert dir(edgecal) == sorted(edgecal.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = edgecal.nonsense


def test_importing_edgecal_is_light():
    code = "import sys, edgecal; print(sorted({'numba', 'numpy', 'tokenizers', 'click', 'jinja2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_error_is_exported_and_drawn():
    modules = ("edgecal_kernels.errors", "edgecal_weights.errors", "edgecal.errors")
    family = {
        name
        for module in modules
        for name, value in inspect.getmembers(importlib.import_module(module), inspect.isclass)
        if issubclass(value, errors.EdgecalError)
    }
    assert family == set(errors.__all__)
    assert all(name in (errors.__doc__ or "") for name in family)


def test_modules_have_docstrings_and_stay_short():
    for root in PACKAGES.values():
        for file in root.rglob("*.py"):
            text = file.read_text()
            assert ast.get_docstring(ast.parse(text)), f"{file.relative_to(ROOT)} has no docstring"
            assert text.count("\n") <= 500, f"{file.relative_to(ROOT)} has become two things"
