"""A reference made now: `export_contract/reference.py`, run by a Python of its own.

edgecal never imports PyTorch, so that what it says owes nothing to it and its users need not have it. Where torch,
transformers and peft are installed beside edgecal, the script runs in a process of its own and leaves a reference file
like any other.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from edgecal_weights.opening import open_checkpoint

from ..adapters.lora import LoraAdapter
from ..adapters.recipe import Recipe
from ..errors import VerificationError

SCRIPT = Path(__file__).parents[1] / "export_contract" / "reference.py"
NEEDED = ("torch", "transformers", "peft")
PROMPT = "The meeting is on Monday at ten, not on Tuesday. Please tell everyone, and bring the list of open points."


@contextmanager
def live_reference(
    model: str,
    recipe: Recipe,
    adapters: Mapping[str, LoraAdapter],
    *,
    prompts: Sequence[str] = (),
    new_tokens: int = 16,
    save: str | Path | None = None,
) -> Iterator[Path]:
    """The path of a reference file for this recipe, computed by PyTorch; gone afterwards unless `save` names a place.

    VerificationError when PyTorch is not installed, does not know the method, or fails; its last words are quoted.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise VerificationError(
            f"a live reference needs {', '.join(NEEDED)}; not installed: {', '.join(missing)}. Install them with: "
            f"pip install {' '.join(missing)}"
        )
    if recipe.steps:
        raise VerificationError("multi_step is a pipeline of prompts; verify the method 'single' of each adapter")
    if recipe.shots:
        raise VerificationError("in_context changes the prompt and no weight; verify zero_shot with such a prompt")
    if recipe.method.startswith("dare_"):
        raise VerificationError(f"{recipe.method} draws random masks; PyTorch draws others, so there is no reference")
    arguments = ["--base", str(_files_of(model)), "--method", recipe.method, "--new-tokens", str(new_tokens)]
    for name in recipe.adapters:
        if name not in adapters or adapters[name].path is None:
            raise VerificationError(f"the adapter {name!r} of the recipe was not given with --adapter")
        if adapters[name].format != "PEFT":
            raise VerificationError(
                f"the adapter {name!r} is a file of {adapters[name].format}, which PEFT does not read; `edgecal merge` "
                "writes it as PEFT does"
            )
        arguments += ["--adapter", f"{name}={adapters[name].path}"]
    if recipe.weights is not None:
        arguments += ["--weights", json.dumps(recipe.weights)]
    if recipe.calibration is not None:
        arguments += ["--calibration", recipe.calibration]
    # The script knows no defaults, so that both sides mean the same ones
    given = dict(recipe.options)
    options = {o.name: value for o in recipe.entry.options if (value := o.of(given)) is not None}
    if options:
        arguments += ["--options", json.dumps(options)]
    for text in prompts or (PROMPT,):
        arguments.append(f"--prompt={text}")
    with tempfile.TemporaryDirectory(prefix="edgecal-") as folder:
        out = Path(save).expanduser() if save is not None else Path(folder) / "live.safetensors"
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *arguments, "--out", str(out)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise VerificationError(f"PyTorch gave no reference for {recipe.method}: {_reason(done)}")
        yield out


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The line that names the error; what follows it may be advice of several lines."""
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    return next((line for line in reversed(lines) if "rror" in line.partition(": ")[0] and line[0] != " "), lines[-1])


def _files_of(model: str) -> Path:
    """Where the files of the base are; a hub model is in the cache."""
    with open_checkpoint(model) as checkpoint:
        if checkpoint.kind == "packed":
            raise VerificationError(f"{model} is a packed model, which PyTorch cannot read; give what it was made of")
        return checkpoint.path
