"""`edgecal verify`: edgecal's numbers beside PyTorch's. Exit code 0 when all pass, 1 when one does not."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from edgecal_weights.reference_file import ReferenceFile

from ..errors import OptionError, VerificationError
from ._model_argument import MODEL, NAMED, model_and_words
from ._names import calibration_path
from ._output import echo_json, note, screen
from ._progress import progress
from .options import (
    ModelOptions,
    RecipeOptions,
    json_option,
    load_engine,
    model_options,
    open_model,
    recipe_of_file,
    recipe_options,
)

if TYPE_CHECKING:
    from ..adapters.lora import LoraAdapter
    from ..adapters.recipe import Recipe
    from ..verification.verify import Tolerances, Verification

# recipe options that a reference file settles itself
_SETTLED = ("--adapter-weights", "--option", "--step")


@click.command("verify", context_settings={"default_map": {"weights": "fp32", "cache_dtype": "fp32"}})
@MODEL
@NAMED
@click.argument("reference", required=False, type=click.Path())
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
def command(
    model: str | None,
    named: str | None,
    reference: str | None,
    live: bool,
    prompts: tuple[str, ...],
    new_tokens: int,
    save: str | None,
    tolerance_delta: float,
    tolerance_output: float,
    tolerance_logits: float,
    chosen: RecipeOptions,
    loading: ModelOptions,
    as_json: bool,
) -> int:
    """Compare MODEL with REFERENCE, a file that PyTorch wrote (docs/export.md), or with PyTorch itself (--live).

    \b
    edgecal verify base/ linear.safetensors --adapter adapters/a --adapter adapters/b
    edgecal verify base/ --live --adapter a=adapters/a --adapter b=adapters/b --method concat

    The method, the adapters' order and weights are those of the file; adapters are found by their sha256.
    MODEL has to be the base that the reference was made from, and not one rounded to 4 bits like demo. Weights are fp32
    unless asked otherwise. Exit code 0: everything within the tolerances; 1: not.
    """
    from ..adapters.lora import LoraAdapter
    from ..verification.verify import Tolerances

    base, words = model_and_words(named, (model, reference))
    if base is None or len(words) > 1:
        raise click.UsageError("say which model, once: edgecal verify MODEL REFERENCE, or -m MODEL")
    reference = words[0] if words else None
    if (reference is None) != live:
        raise click.UsageError("give a REFERENCE file, or --live to compute one, not both")
    if not live and (prompts or save):
        raise click.UsageError("--prompt and --save go with --live")
    paths = chosen.paths()
    adapters = {name: LoraAdapter.load(path, name) for name, path in paths.items()}
    subject = _Subject(base, paths, loading, Tolerances(tolerance_delta, tolerance_output, tolerance_logits))
    if reference is None:
        report = _verify_live(subject, chosen.recipe(), adapters, prompts, new_tokens, save)
    else:
        with ReferenceFile(reference) as opened:
            recipe = _recipe(opened, adapters, chosen)
            if chosen.method not in (None, recipe.method):
                raise VerificationError(f"the reference is about {recipe.method}; --method asks for {chosen.method}")
            report = subject.compare(opened, recipe)
    if as_json:
        echo_json(report.to_dict())
    else:
        from ._verify_table import show

        show(report, screen())
    return 0 if report.passed else 1


@dataclass(frozen=True)
class _Subject:
    """The model with its adapters that references are held against, and how near it must come."""

    model: str
    paths: dict[str, str]
    loading: ModelOptions
    tolerances: Tolerances

    def compare(self, reference: ReferenceFile, recipe: Recipe) -> Verification:
        from ..verification.verify import verify

        with open_model(self.model, self.loading) as checkpoint:
            rounded = [name for name in checkpoint.names() if checkpoint.counterpart(name) is not None]
            stored = checkpoint.stored_type(rounded[0]) if rounded else ""
        if rounded:
            note(f"{self.model} holds rounded weights ({stored}): a reference of unrounded ones will not agree with it")
        engine = load_engine(self.model, self.loading, self.paths)
        with progress("comparing") as report:
            return verify(
                reference,
                engine,
                recipe,
                self.tolerances,
                model=self.model,
                progress=lambda tensor: report(note=tensor),
            )


def _verify_live(
    subject: _Subject,
    recipe: Recipe,
    adapters: dict[str, LoraAdapter],
    prompts: tuple[str, ...],
    new_tokens: int,
    save: str | None,
) -> Verification:
    """Compute the reference now, and hold edgecal against it."""
    from ..architecture import Architecture
    from ..demo import find
    from ..verification.live import live_reference

    with open_model(subject.model, subject.loading) as checkpoint:
        shapes = Architecture.of(checkpoint).shapes
    for adapter in adapters.values():  # before PyTorch is started for it
        adapter.check_against(shapes)
    live = live_reference(find(subject.model), recipe, adapters, prompts=prompts, new_tokens=new_tokens, save=save)
    with ExitStack() as stack:
        with progress("computing the reference with PyTorch"):
            path = stack.enter_context(live)
        report = subject.compare(stack.enter_context(ReferenceFile(path)), recipe)
    return report if save is not None else replace(report, reference="computed live")


def _recipe(reference: ReferenceFile, adapters: dict[str, LoraAdapter], chosen: RecipeOptions) -> Recipe:
    """The recipe that the file was made by, under the names of these adapters."""
    from ..verification.verify import recipe_of

    for option in _SETTLED:
        if option in chosen.given():
            raise OptionError(f"{option} does not go with a reference file, which has the recipe it was made by")
    if chosen.recipe_file:
        return recipe_of_file(chosen.recipe_file)
    return recipe_of(reference, adapters, calibration_path(chosen.calibration) if chosen.calibration else None)
