"""The two scripts of the export contract with PyTorch: what they write is read, and agrees with live PyTorch + PEFT.

Tolerances as `edgecal verify` states them: dW 1e-6 and module outputs 1e-5 relative, logits 2e-4, ids equal.
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from edgecal import Engine, Recipe
from edgecal.adapters import Calibration
from edgecal.errors import CalibrationError, FileFormatError, VerificationError
from edgecal.verification.live import SCRIPT, live_reference
from edgecal.verification.verify import recipe_of, verify
from edgecal_weights import calibration_file, reference_file
from edgecal_weights.reference_file import ReferenceFile
from tests.tiny import linear_shapes, model_config, write_tiny_adapter, write_tiny_hf

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning", "DeprecationWarning")
]

PAIR = ("summary", "formal")
ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "export.md").read_text("utf-8")
CALIBRATED = {
    "learnable_calibration": {"bias_mode": "columns", "calibration_scaling": 0.5},
    "learnable_calibration_pp": {"rank": 3},
    "projection_merge": {"rank": 2, "weights": [0.7, 0.2]},
    "dam": {},
    "learnable_calibration_only": {"bias_mode": "output"},
    "learnable_calibration_pp_only": {"rank": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a pair of adapters, and a calibration of each method, written by the script out of torch tensors."""
    root = tmp_path_factory.mktemp("export")
    write_tiny_hf(root / "model")
    for seed, name in enumerate(PAIR, 1):
        write_tiny_adapter(root / name, root / "model", seed=seed)
    for method, options in CALIBRATED.items():
        export(root, root / f"{method}.safetensors", method, **options)
    return root


def export(folder: Path, path: Path, method: str, **options: Any) -> None:
    write: Callable[..., None] = runpy.run_path(str(SCRIPT.parent / "export_calibration.py"))["export_calibration"]
    config = json.loads((folder / "model" / "config.json").read_text())
    adapters = {} if method.endswith("_only") else {name: folder / name for name in PAIR}
    tensors = trained(folder, method, options.get("rank", 1))
    write(path, method, tensors, adapters, SimpleNamespace(**config), base_name="tiny", **options)


def trained(folder: Path, method: str, rank: int) -> dict[str, torch.Tensor]:
    """What a training run might hold: parameters, one of them a view, in half precision."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.nn.Parameter(0.1 * torch.randn(shape, generator=generator).half())

    tensors: dict[str, torch.Tensor] = {}
    for module, (d, k) in linear_shapes(model_config(folder / "model")).items():
        component = module.rpartition(".")[2]
        if method == "dam":
            tensors |= {f"{module}.m1": normal(k), f"{module}.m2": 1 + normal(k)}
        elif method == "projection_merge":
            tensors |= {f"{k}x{d}.P1": normal(d, rank).T, f"{k}x{d}.P2": normal(d, rank)}
        elif "pp" in method:
            tensors |= {f"{component}.P1": normal(rank, k), f"{component}.P2": normal(d, rank)}
        else:
            tensors[f"{component}.p"] = normal(d)
    return tensors


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    paths = {name: folder / name for name in PAIR}
    return Engine.load(folder / "model", weights="fp32", cache_dtype="fp32", backend="numpy", adapters=paths)


def make_reference(folder: Path, out: Path, method: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> Path:
    """The script in this process, whose PyTorch is loaded already."""
    adapters = [] if method.endswith("_only") or method == "zero_shot" else list(PAIR)[: 1 if method == "single" else 2]
    given = [word for name in adapters for word in ("--adapter", f"{name}={folder / name}")]
    if method in CALIBRATED:
        given += ["--calibration", str(folder / f"{method}.safetensors")]
    words = ["--base", folder / "model", "--method", method, "--prompt", "Ten past nine.", "--out", out, *given, *more]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return out


@pytest.mark.parametrize("method", CALIBRATED)
def test_calibrations_of_the_script_are_read(folder, method):
    calibration = Calibration.load(folder / f"{method}.safetensors")
    content = calibration.content
    assert calibration.method == method
    assert calibration.adapter_names == (() if method.endswith("_only") else PAIR)
    wanted = trained(folder, method, CALIBRATED[method].get("rank", 1))
    assert calibration.n_parameters == sum(tensor.numel() for tensor in wanted.values())
    for name, tensor in wanted.items():
        group, _, short = name.rpartition(".")
        assert torch.equal(torch.from_numpy(content.groups[group][short].copy()), tensor.detach().float())


CASES = {
    "zero_shot": [],
    "single": [],
    "linear": ["--weights", "[0.3, -0.8]"],
    "concat": ["--thin", "3"],
    "lorahub": ["--weights", "[1.2, -0.4]"],
    "lm_cocktail": ["--options", '{"losses": [1.5, 2.5], "temperature": 5.0}'],
    "peft_linear": [],
    "ties": ["--options", '{"density": 0.4}'],
    "svd": ["--options", '{"svd_rank": 3}'],
    "slerp": ["--options", '{"t": 0.3}'],
    **{method: [] for method in CALIBRATED},
}


@pytest.mark.parametrize("method", CASES)
def test_verified_against_live_pytorch(folder, engine, tmp_path, monkeypatch, method):
    path = make_reference(folder, tmp_path / "r.safetensors", method, monkeypatch, *CASES[method])
    calibration = str(folder / f"{method}.safetensors") if method in CALIBRATED else None
    with ReferenceFile(path) as reference:
        report = verify(reference, engine, recipe_of(reference, engine.adapters, calibration))
    for row in report.comparisons:
        print(f"{row.tensor}: {row.max_abs:.1e} {row.max_rel:.1e}")
    assert report.passed, [row for row in report.comparisons if not row.passed]
    kinds = [row.kind for row in report.comparisons]
    assert kinds.count("output") == 7 and kinds.count("delta") == (0 if method == "zero_shot" else 7)
    assert report.made_with.startswith("torch 2")


@pytest.mark.parametrize("method", ["ties", "magnitude_prune"])
def test_equal_magnitudes_at_the_border(folder, tmp_path, monkeypatch, method):
    """Of a handful of different values, most of them shared: both sides keep the first of equals."""
    (tmp_path / "model").symlink_to(folder / "model")
    for name in PAIR:
        shutil.copytree(folder / name, tmp_path / name)
        weights = tmp_path / name / "adapter_model.safetensors"
        coarse = {key: (tensor * 20).round() / 20 for key, tensor in load_file(weights).items()}
        assert max(len(tensor.unique()) for tensor in coarse.values()) < 50
        save_file(coarse, weights)
    path = make_reference(tmp_path, tmp_path / "r.safetensors", method, monkeypatch, "--options", '{"density": 0.4}')
    paths = {name: tmp_path / name for name in PAIR}
    engine = Engine.load(folder / "model", weights="fp32", cache_dtype="fp32", backend="numpy", adapters=paths)
    with ReferenceFile(path) as reference:
        report = verify(reference, engine, recipe_of(reference, engine.adapters))
    assert report.passed, [row for row in report.comparisons if not row.passed]


def test_live_reference_in_a_process_of_its_own(folder, engine, tmp_path):
    """And an error of PyTorch's side arrives with its words."""
    saved = tmp_path / "live.safetensors"
    recipe = Recipe("concat", PAIR, (0.5, 2))
    live = live_reference(str(folder / "model"), recipe, engine.adapters, new_tokens=4, save=saved)
    with live as path, ReferenceFile(path) as reference:
        assert reference.metadata.weights == (0.5, 2) and len(reference.ids("greedy_ids/case_0")) <= 4
        assert verify(reference, engine, recipe).passed
    assert saved.exists()
    with pytest.raises(VerificationError, match="random masks"):
        live_reference(str(folder / "model"), Recipe("dare_ties", PAIR), engine.adapters).__enter__()


def test_live_reference_without_pytorch(folder, engine, monkeypatch):
    monkeypatch.setattr("edgecal.verification.live.find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(VerificationError, match="not installed: peft. Install them with: pip install peft"):
        live_reference(str(folder / "model"), Recipe("zero_shot"), engine.adapters).__enter__()


def test_a_wrong_export_does_not_pass(folder, engine, tmp_path, monkeypatch):
    """An adapter whose scaling the exporter forgot: every dW differs, and so does what follows from it."""
    path = make_reference(folder, tmp_path / "r.safetensors", "concat", monkeypatch)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file({n: t / 2 if n.startswith("delta/") else t for n, t in tensors.items()}, path, metadata)
    with ReferenceFile(path) as reference:
        report = verify(reference, engine, recipe_of(reference, engine.adapters))
    failed = [row for row in report.comparisons if not row.passed]
    assert {row.kind for row in failed} == {"delta"} and len(failed) == 7
    assert all(row.max_rel == pytest.approx(1) and row.cosine == pytest.approx(1) for row in failed)


# -------------------------------------------------------------------------------------- foreign and old calibrations


def test_old_and_foreign_metadata_is_explained(folder, tmp_path):
    source = folder / "learnable_calibration_pp.safetensors"
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    tensors, path = load_file(source), tmp_path / "c.safetensors"
    for changes, message in (
        ({"version": "0"}, "metadata key 'version': expected 1; .*found '0'"),
        ({"version": "2"}, "a later version needs a later edgecal; found '2'"),
        ({"format": None}, "metadata key 'format': expected edgecal-calibration.*there is none"),
        ({"format": "pt"}, "metadata key 'format': expected edgecal-calibration.*found 'pt'"),
        ({"learning_rate": "1e-4"}, "unknown metadata key 'learning_rate'"),
        ({"rank": "4"}, r"has shape \(3, \d+\), expected \(4, "),
        ({"base_model": "SmolLM2"}, "metadata key 'base_model': expected a JSON object"),
    ):
        changed = {key: value for key, value in {**metadata, **changes}.items() if value is not None}
        save_file(tensors, path, changed)
        with pytest.raises(CalibrationError, match=message) as error:
            Calibration.load(path)
        assert str(path) in str(error.value)
    with pytest.raises(CalibrationError, match="metadata key 'format': expected edgecal-calibration"):
        Calibration.load(folder / "summary" / "adapter_model.safetensors")
    torch.save(tensors, tmp_path / "c.pt")
    with pytest.raises(FileFormatError, match=r"c\.pt"):
        Calibration.load(tmp_path / "c.pt")


def test_a_reference_or_a_pickle_of_torch_is_named(folder, tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "r.pt")
    with pytest.raises(FileFormatError, match="a pickle. Loading a pickle runs whatever code is in it"):
        ReferenceFile(tmp_path / "r.pt")
    with pytest.raises(FileFormatError, match="this is a calibration"):
        ReferenceFile(folder / "dam.safetensors")


# ---------------------------------------------------------------------------------------------------------- the page


@pytest.mark.parametrize(
    "words",
    [
        calibration_file._KEYS,
        calibration_file.METHODS,
        reference_file._REQUIRED,
        reference_file._OPTIONAL,
        reference_file.KINDS,
    ],
)
def test_the_page_names_every_key(words):
    for word in words:
        assert f"`{word}`" in DOCS or f"`{word}/" in DOCS, word


def test_the_page_links_to_files_that_exist():
    for file in ("export_calibration.py", "reference.py"):
        assert f"(../edgecal/export_contract/{file})" in DOCS and (SCRIPT.parent / file).exists()
