"""`edgecal verify`: edgecal's numbers beside PyTorch's. Exit code 0 when all pass, 1 when one does not."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError, VerificationError
from .options import adapter_paths, json_option, load_engine, model_options, recipe_of_file, recipe_options

if TYPE_CHECKING:
    from ..adapters.lora import LoraAdapter
    from ..adapters.recipe import Recipe
    from ..verification.verify import Verification

# recipe options that a reference file settles itself
_SETTLED = {"adapter_weights": "--adapter-weights", "method_options": "--option", "steps": "--step"}


@click.command("verify", context_settings={"default_map": {"weights": "fp32", "cache_dtype": "fp32"}})
@click.argument("reference", required=False, type=click.Path())
@click.option("--model", required=True, help="The base: a directory, a GGUF file, a hub id, or demo.")
@click.option("--live", is_flag=True, help="Compute the reference now, with PyTorch, transformers and PEFT.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="With --live: a user message; repeatable.")
@click.option("--new-tokens", type=click.IntRange(min=1), default=16, show_default=True, help="With --live.")
@click.option("--save", type=click.Path(), metavar="FILE", help="With --live: keep the reference file.")
@click.option("--tolerance-delta", type=click.FloatRange(min=0), default=1e-6, show_default=True, help="dW, relative.")
@click.option(
    "--tolerance-output", type=click.FloatRange(min=0), default=1e-5, show_default=True, help="Modules, relative."
)
@click.option(
    "--tolerance-logits", type=click.FloatRange(min=0), default=2e-4, show_default=True, help="Logits, absolute."
)
@recipe_options
@model_options
@json_option
def command(reference: str | None, model: str, as_json: bool, **options: Any) -> int:
    """Compare edgecal with REFERENCE, a file that PyTorch wrote (docs/export.md), or with PyTorch itself (--live).

    \b
    edgecal verify linear.safetensors --model demo --adapter demo:summarize --adapter demo:professional
    edgecal verify --live --model base/ --adapter a=adapters/a --adapter b=adapters/b --method concat

    The method, the adapters' order and weights are those of the file; adapters are found by their sha256.
    Weights are fp32 unless asked otherwise. Exit code 0: everything within the tolerances; 1: not.
    """
    from rich.console import Console

    from edgecal_weights.reference_file import ReferenceFile

    from ..adapters.lora import LoraAdapter
    from ..demo import find
    from ..verification.verify import Tolerances, verify

    if (reference is None) != options["live"]:
        raise click.UsageError("give a REFERENCE file, or --live to compute one")
    if not options["live"] and (options["prompts"] or options["save"]):
        raise click.UsageError("--prompt and --save go with --live")
    tolerances = Tolerances(options["tolerance_delta"], options["tolerance_output"], options["tolerance_logits"])
    named = adapter_paths(options["adapters"], options["recipe_file"])
    adapters = {name: LoraAdapter.load(path, name) for name, path in named.items()}
    quiet = as_json
    status = Console(stderr=True, quiet=quiet)

    def compare(path: str, recipe: Recipe | None) -> Verification:
        with ReferenceFile(path) as opened:
            if recipe is None:
                recipe = _recipe(opened, adapters, options)
            _refuse_other_method(recipe, options["method"])
            engine = load_engine(model, quiet=quiet, **options)
            with status.status("comparing") as line:
                return verify(
                    opened,
                    engine,
                    recipe,
                    tolerances,
                    model=model,
                    progress=lambda tensor: line.update(f"comparing {tensor}"),
                )

    if options["live"]:
        from ..verification.live import live_reference
        from .options import make_recipe

        recipe = make_recipe(
            options["adapters"],
            options["method"],
            options["calibration"],
            options["adapter_weights"],
            options["steps"],
            options["recipe_file"],
            options["method_options"],
        )
        with ExitStack() as stack:
            with status.status("computing the reference with PyTorch"):
                path = stack.enter_context(
                    live_reference(
                        find(model),
                        recipe,
                        adapters,
                        prompts=options["prompts"],
                        new_tokens=options["new_tokens"],
                        save=options["save"],
                    )
                )
            report = compare(str(path), recipe)
            if options["save"] is None:
                report = replace(report, reference="computed live")
    else:
        assert reference is not None
        report = compare(reference, None)
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        from ._verify_table import show

        show(report, Console(markup=False, emoji=False, highlight=False))
    return 0 if report.passed else 1


def _recipe(opened: Any, adapters: dict[str, LoraAdapter], options: dict[str, Any]) -> Recipe:
    from ..demo import find
    from ..verification.verify import recipe_of

    for key, option in _SETTLED.items():
        if options[key]:
            raise OptionError(f"{option} does not go with a reference file, which has the recipe it was made by")
    if options["recipe_file"]:
        return recipe_of_file(options["recipe_file"])
    calibration = find(options["calibration"]) if options["calibration"] else None
    return recipe_of(opened, adapters, calibration)


def _refuse_other_method(recipe: Recipe, method: str | None) -> None:
    if method is not None and method != recipe.method:
        raise VerificationError(f"the reference is about {recipe.method}; --method asks for {method}")
