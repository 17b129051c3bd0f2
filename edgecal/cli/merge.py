"""`edgecal merge`: compile a recipe and write it as a PEFT adapter; `--list`: every method there is."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import AdapterError, RecipeError
from ..text.counted import counted
from ._completion import complete_model
from ._output import echo_json, screen, tell
from ._progress import progress
from .options import ModelOptions, RecipeOptions, json_option, open_model, recipe_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..adapters.compiled import CompiledAdapter
    from ..adapters.lora import LoraAdapter
    from ..adapters.merge import Method
    from ..adapters.recipe import Recipe


@click.command("merge")
@click.argument("recipe_path", metavar="[RECIPE]", required=False)
@click.option("--out", metavar="DIR", help="Where the adapter goes.")
@recipe_options
@click.option(
    "--base",
    metavar="MODEL",
    shell_complete=complete_model,
    help="Check against this model; the recipe's base_model if that is a path.",
)
@click.option("--dtype", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True, help="Of the file.")
@click.option("--force", is_flag=True, help="Replace the adapter in DIR.")
@click.option("--list", "as_list", is_flag=True, help="Show all methods and their options.")
@json_option
def command(
    recipe_path: str | None,
    out: str | None,
    base: str | None,
    dtype: str,
    force: bool,
    as_list: bool,
    as_json: bool,
    chosen: RecipeOptions,
) -> None:
    """Merge adapters by RECIPE (a YAML or JSON file) or by options, and write the result as a PEFT adapter.

    \b
    edgecal merge recipe.yaml --out merged/
    edgecal merge --adapter a/ --adapter b/ --method ties --option density=0.3 --out merged/
    edgecal merge --list

    One low-rank pair per module is written, with scaling 1, just as edgecal runs it. Without a base, shapes come from
    the adapters.
    """
    if as_list:
        _list(as_json)
        return
    if out is None:
        raise click.UsageError("give --out DIR, the directory to write")
    if recipe_path is not None:
        if chosen.recipe_file is not None:
            raise click.UsageError("give the recipe as an argument or with --recipe, not both")
        chosen = replace(chosen, recipe_file=recipe_path)
    with progress("merging"):
        result = _merge(chosen.recipe(), chosen.paths(), base, Path(out), dtype, force)
    if as_json:
        echo_json(result)
    else:
        tell(
            f"{result['path']}: {result['method']}, {counted(result['n_modules'], 'module')}, rank {result['rank']}, "
            f"{result['parameters']:,} parameters in {dtype}"
        )


def _merge(
    recipe: Recipe, paths: Mapping[str, str], base: str | None, out: Path, dtype: Any, force: bool
) -> dict[str, Any]:
    from ..adapters.calibration import Calibration
    from ..adapters.export import write_peft
    from ..adapters.lora import LoraAdapter
    from ..adapters.merge_kernels import ready_kernels
    from ..adapters.recipe import compile_recipe

    if recipe.steps or recipe.entry.merge is None:
        raise RecipeError(f"{recipe.method} does not merge: there is no adapter that does the same")
    adapters = {name: LoraAdapter.load(path, name) for name, path in paths.items()}
    calibration = Calibration.load(recipe.calibration) if recipe.calibration else None
    shapes, facts = _base_shapes(base, recipe)
    if shapes is None and not recipe.adapters:
        raise RecipeError(f"{recipe.method} has no adapters to take shapes from: give the model with --base")
    used = [adapters[name] for name in recipe.adapters]
    shapes_of_all = shapes or common_shapes(used)
    compiled = compile_recipe(recipe, adapters, calibration, shapes_of_all, facts, ready_kernels())
    assert compiled is not None
    write_peft(
        compiled,
        out,
        base_model_name=_base_name(recipe, used, base),
        shapes=shapes,
        dtype=dtype,
        force=force,
        metadata={"edgecal_recipe": json.dumps(_portable(recipe))},
    )
    return _report(compiled, recipe, out, dtype)


def common_shapes(adapters: list[LoraAdapter]) -> dict[str, tuple[int, int]]:
    """(d, k) of every module that one of them changes; AdapterError names the first on which they differ."""
    first: dict[str, tuple[str, tuple[int, int]]] = {}
    for adapter in adapters:
        for module, (d, k, _rank) in adapter.shapes.items():
            name, shape = first.setdefault(module, (adapter.name, (d, k)))
            if shape != (d, k):
                raise AdapterError(
                    f"the adapters are for different bases: {module} is {(d, k)} in {adapter.name!r} and {shape} in "
                    f"{name!r}; give those of one base"
                )
    return {module: shape for module, (_, shape) in first.items()}


def _base_shapes(base: str | None, recipe: Recipe) -> tuple[dict[str, tuple[int, int]] | None, dict[str, Any] | None]:
    """Shapes and facts of the model, or nothing when there is none at hand."""
    if base is None and recipe.base_model is not None and Path(recipe.base_model).exists():
        base = recipe.base_model
    if base is None:
        return None, None
    from ..architecture import Architecture

    with open_model(base, ModelOptions()) as checkpoint:
        architecture = Architecture.of(checkpoint)
    return architecture.shapes, architecture.facts


def _base_name(recipe: Recipe, adapters: list[LoraAdapter], base: str | None) -> str | None:
    names = {adapter.base_model_name for adapter in adapters}
    agreed = names.pop() if len(names) == 1 else None
    return recipe.base_model or agreed or base


def _portable(recipe: Recipe) -> dict[str, Any]:
    """The recipe without where its files lay on this machine."""
    values = recipe.to_dict()
    values["adapters"] = list(recipe.adapters)
    if recipe.calibration is not None:
        values["calibration"] = Path(recipe.calibration).name
    values.pop("base_model", None)
    return values


def _report(compiled: CompiledAdapter, recipe: Recipe, out: Path, dtype: str) -> dict[str, Any]:
    parameters = sum(pair.a.size + pair.b.size for pair in compiled.pairs.values())
    return {
        "path": str(out),
        "method": recipe.method,
        "adapters": list(recipe.adapters),
        "weights": list(recipe.merge_weights) if recipe.entry.takes_weights else None,
        "options": dict(recipe.options),
        "n_modules": len(compiled.pairs),
        "rank": compiled.rank,
        "parameters": parameters,
        "dtype": dtype,
        "recipe_key": recipe.key,
    }


def _list(as_json: bool) -> None:
    from ..adapters.merge import methods

    if as_json:
        echo_json([_facts(entry) for entry in methods()])
        return

    # Not a table: four columns of words have no room where terminals are 80 columns wide
    console = screen()

    def show(title: str, *lines: str) -> None:
        console.print(title, style="bold")
        for line in lines:
            wrapped = textwrap.fill(line, console.width, initial_indent="  ", subsequent_indent="    ")
            console.print(wrapped, soft_wrap=True)

    options: dict[str, str] = {}
    for entry in methods():
        facts = _facts(entry)
        options |= {o["name"]: f"{o['help']}: {o['values']}" for o in facts["options"]}
        named = ", ".join(o["name"] + _default(o["default"]) for o in facts["options"])
        takes = "takes " + ", ".join(facts["needs"])
        show(entry.name, entry.title, facts["paper"], takes, *([f"options: {named}"] if named else []))
    console.print("\nOptions, with --option NAME=VALUE, or under options: in a recipe file", style="bold")
    for name, text in sorted(options.items()):
        show(name, text)


def _default(value: Any) -> str:
    return "" if value is None else f"={value:g}" if isinstance(value, (int, float)) else f"={value}"


def _facts(entry: Method) -> dict[str, Any]:
    """A method as JSON-ready data."""
    count = {0: "no adapters", 1: "one adapter", None: "adapters"}[entry.max_adapters]
    needs = ["steps"] if entry.passes > 1 else [count]
    needs += ["equal ranks"] if entry.equal_ranks else []
    needs += ["weights"] if entry.needs_weights else []
    needs += ["a calibration"] if entry.needs_calibration else []
    return {
        "name": entry.name,
        "title": entry.title,
        "paper": entry.paper + (f", {entry.equation}" if entry.equation else ""),
        "needs": needs,
        "takes_weights": entry.takes_weights,
        "options": [{"name": o.name, "values": o.values, "default": o.default, "help": o.help} for o in entry.options],
    }
