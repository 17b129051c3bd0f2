"""`edgecal figure`: the weight changes of a recipe beside plain linear merging, as a picture and as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecal_weights.files import write_json, write_text

from ._model_argument import model_argument
from ._output import echo, echo_json, note
from ._progress import progress
from .options import ModelOptions, RecipeOptions, hub_options, json_option, open_model, recipe_options

if TYPE_CHECKING:
    from ..inspection.figure import Measurement

_PICTURES = (".png", ".svg", ".pdf")
_ENDINGS = (*_PICTURES, ".json", ".csv")


@click.command("figure")
@model_argument
@click.option(
    "--out",
    "files",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="By its ending a picture (.png, .svg, .pdf; needs the extra edgecal[plot]) or the numbers (.json, .csv).",
)
@hub_options
@recipe_options
@json_option
def command(model: str, files: tuple[str, ...], loading: ModelOptions, chosen: RecipeOptions, as_json: bool) -> None:
    """Draw how a recipe's changes of the weights of MODEL are spread, and their norms by layer, beside linear merging.

    \b
    edgecal figure demo --adapter demo:summarize --adapter demo:professional \\
        --calibration demo:learnable_calibration_pp --out figure.png --out numbers.csv

    What Figure 5 of paper 1 shows, for any recipe. The weights of the base are not read.
    """
    from ..adapters.lora import LoraAdapter
    from ..architecture import Architecture
    from ..inspection.figure import measure
    from ..inspection.figure_picture import require_matplotlib

    if not files and not as_json:
        raise click.UsageError("say what to write: --out FILE.png (.svg, .pdf, .csv, .json), or --json")
    for name in files:
        if Path(name).suffix.lower() not in _ENDINGS:
            raise click.UsageError(f"--out {name}: expected a name that ends with {', '.join(_ENDINGS)}")
    if any(Path(name).suffix.lower() in _PICTURES for name in files):
        require_matplotlib()
    recipe = chosen.recipe()
    adapters = {name: LoraAdapter.load(path, name) for name, path in chosen.paths().items()}
    with open_model(model, loading) as checkpoint:
        architecture = Architecture.of(checkpoint)
    with progress("measuring the changes"):
        measurement = measure(recipe, adapters, architecture, model=model)
    for name in files:
        _write(Path(name), measurement)
    if as_json:
        echo_json(measurement.to_dict())
        return
    for text in measurement.notes:
        note(text)
    for name in files:
        echo(name)


def _write(path: Path, measurement: Measurement) -> None:
    """In the form that the ending names, whole or not at all."""
    ending = path.suffix.lower()
    if ending in _PICTURES:
        from ..inspection.figure_picture import save_picture

        save_picture(measurement, path)
    elif ending == ".json":
        write_json(path, measurement.to_dict())
    else:
        write_text(path, measurement.to_csv())
