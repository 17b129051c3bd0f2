"""`edgecal figure`: the weight changes of a recipe beside plain linear merging, as a picture and as numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from ..errors import StorageError
from ._output import echo
from ._progress import progress
from .options import ModelOptions, RecipeOptions, hub_options, recipe_options


@click.command("figure")
@click.option("--model", required=True, help="The base: a directory, a GGUF file, a hub id, or demo.")
@click.option("--out", type=click.Path(), metavar="FILE.png", help="The picture (needs the extra edgecal[plot]).")
@click.option("--json", "json_file", type=click.Path(), metavar="FILE", help="The numbers, as JSON.")
@click.option("--csv", "csv_file", type=click.Path(), metavar="FILE", help="The numbers, a row per module and series.")
@hub_options
@recipe_options
def command(
    model: str,
    out: str | None,
    json_file: str | None,
    csv_file: str | None,
    loading: ModelOptions,
    chosen: RecipeOptions,
) -> None:
    """Draw how the weight changes of a recipe are spread, and their norms by layer, beside plain linear merging.

    \b
    edgecal figure --model demo --adapter demo:summarize --adapter demo:professional \\
        --calibration demo:learnable_calibration_pp --out figure.png --json numbers.json

    What Figure 5 of paper 1 shows, for any recipe. The weights of the base are not read.
    """
    from edgecal_weights.checkpoint import open_checkpoint

    from ..adapters.lora import LoraAdapter
    from ..architecture import Architecture
    from ..demo import find
    from ..inspection.figure import measure

    if not (out or json_file or csv_file):
        raise click.UsageError("say what to write: --out FILE.png, --json FILE or --csv FILE")
    recipe = chosen.recipe()
    adapters = {name: LoraAdapter.load(path, name) for name, path in chosen.paths().items()}
    with open_checkpoint(find(model), revision=loading.revision, offline=loading.offline) as checkpoint:
        architecture = Architecture.of(checkpoint)
    with progress("measuring the changes"):
        measurement = measure(recipe, adapters, architecture, model=model)
    for note in measurement.notes:
        echo(f"note: {note}", err=True)
    if json_file:
        _write(json_file, json.dumps(measurement.to_dict()))
    if csv_file:
        _write(csv_file, measurement.to_csv())
    if out:
        from ..inspection.figure_png import save_png

        save_png(measurement, out)
        echo(out)


def _write(name: str, text: str) -> None:
    path = Path(name).expanduser()
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(text, "utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    echo(name)
