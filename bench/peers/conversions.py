"""The models of the engines that read a form of their own, made from the float weights (`--hf`) by the engines' tools.

OpenVINO: `optimum-cli` of optimum-intel with nncf, which wants its own version of transformers, so its own environment
(`--optimum-cli FILE`). int4 is symmetric in groups of 32 with the embedding in int8, as optimum does it; int8 is one
scale per output channel. ONNX Runtime: the builder of onnxruntime-genai, in this environment (onnx-ir, torch,
transformers, and peft for the adapter); groups of 32, symmetric, int8 activations. What cannot be made says why in its
row, and the others are measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from edgecal_kernels.cpu import ISA_ENV

from .models import Row

PACKAGES = {"openvino": "openvino_genai", "onnxruntime": "onnxruntime_genai"}
NO_WEIGHTS = "needs the float weights: --hf DIR (python -m tests.golden.make_hf_base FILE.gguf DIR writes them)"
NO_OPTIMUM = (
    "no model for it: pip install optimum-intel nncf in an environment of its own, and name its optimum-cli "
    "with --optimum-cli"
)
FREE = f"chooses its instructions by itself, so it is not measured under {ISA_ENV}"


def make_models(
    rows: list[Row], hf: Path | None, adapter: str, optimum_cli: str | None, say: Callable[[str], None]
) -> None:
    """The files that these rows' models name, where they are not there yet; `Row.missing` says why one cannot be.

    `adapter` is a PEFT folder. A row whose package is not installed is left alone: its process says how to get it."""
    for row in rows:
        if row.engine not in PACKAGES or find_spec(PACKAGES[row.engine]) is None:
            continue
        if os.environ.get(ISA_ENV):
            row.missing = FREE
            continue
        for key, folder in row.model.items():
            if not Path(folder).exists():
                say(f"making {Path(folder).name}")
                row.missing = _make(key, hf, Path(folder), row.format, adapter, optimum_cli)
            if row.missing:
                break


def _make(key: str, hf: Path | None, out: Path, format: str, adapter: str, optimum_cli: str | None) -> str:
    """"" or why there is no such model."""
    if hf is None:
        return NO_WEIGHTS
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    partial = out.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if key == "ir":
        tool = shutil.which(optimum_cli or "optimum-cli")
        if tool is None:
            return NO_OPTIMUM
        environment.pop("PYTHONPATH", None)  # it has an environment of its own
        command = openvino_command(tool, hf, partial, format)
    else:
        command = onnx_command(hf, partial, format, adapter if key == "onnx_lora" else None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        return f"{' '.join(command[:3])} ended with {done.returncode}: {words}"
    partial.replace(out)
    return ""


def openvino_command(tool: str, hf: Path, out: Path, format: str) -> list[str]:
    command = [tool, "export", "openvino", "--model", str(hf), "--task", "text-generation-with-past"]
    grouped = ["--sym", "--group-size", "32", "--ratio", "1.0"] if format == "int4" else []
    return [*command, "--weight-format", format, *grouped, str(out)]


def onnx_command(hf: Path, out: Path, format: str, adapter: str | None) -> list[str]:
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(hf), "-o", str(out)]
    options = ["block_size=32", "accuracy_level=4", *([f"adapter_path={adapter}"] if adapter else [])]
    return [*command, "-p", format, "-e", "cpu", "-c", str(out.parent / "cache"), "--extra_options", *options]
