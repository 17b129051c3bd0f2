"""Options that several commands share, and how they become an Engine, a Recipe and Settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgecal_kernels.cached import TYPES
from edgecal_kernels.dispatch import BACKENDS
from edgecal_kernels.quant import FORMATS, GROUP_SIZES

from ..errors import RecipeError

if TYPE_CHECKING:
    from ..adapters.recipe import Recipe
    from ..engine import Engine, Settings

Function = TypeVar("Function", bound=Callable[..., Any])


def _all(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    def wrap(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return wrap


model_options = _all(
    click.option(
        "--weights",
        type=click.Choice(["auto", "fp32", *FORMATS]),
        default="auto",
        show_default=True,
        help="Number format; auto keeps a quantized file's own and rounds floats to int4.",
    ),
    click.option(
        "--group-size", type=click.Choice([str(g) for g in GROUP_SIZES]), default="32", help="Columns per scale."
    ),
    click.option("--backend", type=click.Choice(BACKENDS), help="Kernels; numba where it can be imported."),
    click.option("--threads", type=click.IntRange(min=1), help="Threads; the physical (big) cores unless given."),
    click.option(
        "--threads-prefill",
        "prefill_threads",
        type=click.IntRange(min=1),
        help="Threads that read prompts; as many as --threads unless given.",
    ),
    click.option(
        "--cache-dtype", type=click.Choice(list(TYPES)), default="fp16", show_default=True, help="Of the KV cache."
    ),
    click.option("--revision", help="Branch, tag or commit of a hub model."),
    click.option("--offline", is_flag=True, default=None, help="Use the hub's cache only."),
)

recipe_options = _all(
    click.option(
        "--adapter",
        "adapters",
        multiple=True,
        metavar="[NAME=]PATH",
        help="A directory of PEFT or mlx-lm, a GGUF, demo:NAME; repeat for several, in the order of the calibration.",
    ),
    click.option("--method", help="How to combine; `edgecal merge --list` has all methods."),
    click.option(
        "--option", "method_options", multiple=True, metavar="NAME=VALUE", help="Of the method: density=0.5; repeat."
    ),
    click.option("--calibration", metavar="FILE", help="The method's calibration file, or demo:NAME."),
    click.option("--adapter-weights", metavar="W,W,...", help="One number per adapter (default 1/N each)."),
    click.option(
        "--step", "steps", multiple=True, metavar="NAME:INSTRUCTION", help="One pass of multi_step; repeat in order."
    ),
    click.option("--recipe", "recipe_file", type=click.Path(), help="A recipe file (YAML or JSON) instead of these."),
)


def _speculate(context: click.Context, parameter: click.Parameter, value: str) -> str | int:
    from ..decoding.speculation import check_speculate

    number = int(value) if value.isdecimal() and value.isascii() else value
    check_speculate(number)
    return number


sampling_options = _all(
    click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True),
    click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy."),
    click.option("--top-k", type=int, default=0, show_default=True, help="0 is off."),
    click.option("--top-p", type=float, default=1.0, show_default=True, help="1 is off."),
    click.option("--min-p", type=float, default=0.0, show_default=True, help="0 is off."),
    click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="1 is off."),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; repeatable."),
    click.option(
        "--speculate",
        callback=_speculate,
        default="auto",
        show_default=True,
        metavar="auto|off|N",
        help="Guess tokens ahead from the text so far: where it pays, never, or N at a time. The answer is the same.",
    ),
)

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


def split_adapter(text: str) -> tuple[str, str]:
    """(name, path) of NAME=PATH or PATH; the name defaults to the last part of the path."""
    from ..demo import find

    name, separator, path = text.partition("=")
    if not separator or "/" in name:
        name, path = "", text
    if not path:
        raise RecipeError(f"--adapter {text!r}: expected [NAME=]PATH")
    default = path.removeprefix("demo:") if path.startswith("demo:") else Path(path).expanduser().absolute().name
    default = default.removesuffix(".gguf")
    return name or default, find(path)


def adapter_paths(adapters: tuple[str, ...], recipe_file: str | None = None) -> dict[str, str]:
    """{name: path} of the --adapter options and of the recipe file, if that says where its adapters are."""
    from ..adapters.recipe import Recipe
    from ..demo import find

    named: dict[str, str] = {}
    for text in adapters:
        name, path = split_adapter(text)
        if name in named:
            raise RecipeError(f"two adapters are called {name!r}; name them apart with --adapter NAME=PATH")
        named[name] = path
    if recipe_file is not None:
        for name, path in Recipe.from_file(recipe_file).paths:
            if name in named:
                raise RecipeError(f"{recipe_file} says where {name!r} is, and so does --adapter; give one of the two")
            named[name] = find(path)
    return named


def load_engine(
    model: str,
    adapters: tuple[str, ...] = (),
    *,
    quiet: bool = False,
    recipe_file: str | None = None,
    prefix_cache: int | None = None,
    **options: Any,
) -> Engine:
    """The engine for `model` ("demo", a path or a hub id) with these adapters, with progress on stderr.

    `options` are those of `model_options`; `prefix_cache` is as for Engine.load.
    """
    from rich.console import Console

    from edgecal_kernels.dispatch import backend

    from ..demo import find

    console = Console(stderr=True, quiet=quiet)
    model = find(model)
    if backend(options["backend"]).NAME == "numba":
        from edgecal_kernels.warmup import is_warm, warm_up

        if not is_warm():
            with console.status("compiling kernels for this machine (once, under a minute)"):
                warm_up()
    from ..engine import Engine

    named = adapter_paths(adapters, recipe_file)
    with console.status(f"loading {model}") as status:

        def progress(done: int, total: int, name: str) -> None:
            status.update(f"loading {model}: {100 * done // max(total, 1)} % {name}")

        return Engine.load(
            model,
            weights=options["weights"],
            group_size=int(options["group_size"]),
            adapters=named,
            backend=options["backend"],
            cache_dtype=options["cache_dtype"],
            prefix_cache=prefix_cache,
            threads=options["threads"],
            prefill_threads=options["prefill_threads"],
            revision=options["revision"],
            offline=options["offline"],
            progress=progress,
        )


def noted(recipe: Recipe) -> Recipe:
    """The recipe, its notes on stderr: what was read otherwise than it is spelled, what has no effect."""
    for note in recipe.notes:
        click.echo(f"note: {note}", err=True)
    return recipe


def recipe_of_file(path: str | Path) -> Recipe:
    """The recipe of a file, with its notes on stderr and the place of a demo:NAME calibration."""
    from ..adapters.recipe import Recipe
    from ..demo import find

    recipe = Recipe.from_file(path)
    return noted(replace(recipe, calibration=find(recipe.calibration)) if recipe.calibration else recipe)


def make_recipe(
    adapters: tuple[str, ...],
    method: str | None,
    calibration: str | None,
    adapter_weights: str | None,
    steps: tuple[str, ...],
    recipe_file: str | None,
    method_options: tuple[str, ...] = (),
) -> Recipe:
    """The recipe of the options. Without --method: zero_shot, single or linear by the number of adapters,
    the calibration's own method, or multi_step when there are steps."""
    from ..adapters.calibration import Calibration
    from ..adapters.merge import find_method
    from ..adapters.recipe import Recipe, Step
    from ..demo import find

    if recipe_file is not None:
        if method or calibration or adapter_weights or steps or method_options:
            raise RecipeError(
                "a recipe file says everything: give it without --method, --option, --calibration, --step or weights"
            )
        return recipe_of_file(recipe_file)
    names = tuple(split_adapter(text)[0] for text in adapters)
    calibration = find(calibration) if calibration else None
    if method is None:
        if steps:
            method = "multi_step"
        elif calibration:
            method = Calibration.load(calibration).method
        else:
            method = "linear" if len(names) > 1 else "single" if names else "zero_shot"
    pairs = []
    for step in steps:
        name, separator, instruction = step.partition(":")
        if not separator or not instruction.strip():
            raise RecipeError(f"--step {step!r}: expected NAME:INSTRUCTION (an empty NAME is the bare base)")
        pairs.append(Step(name.strip() or None, instruction.strip()))
    weights = None
    if adapter_weights is not None:
        try:
            weights = tuple(float(w) for w in adapter_weights.split(","))
        except ValueError:
            raise RecipeError(f"--adapter-weights {adapter_weights!r}: expected numbers between commas") from None
    entry = find_method(method)
    used = () if entry.max_adapters == 0 else names
    values = {}
    for text in method_options:
        name, separator, value = text.partition("=")
        if not separator:
            raise RecipeError(f"--option {text!r}: expected NAME=VALUE")
        if name in values:
            raise RecipeError(f"--option {name} is given twice")
        values[name] = entry.option(name).parse(value)
    return noted(Recipe(method, used, weights, calibration, tuple(pairs), tuple(values.items())))


def make_settings(options: dict[str, Any], *, raw: bool = False) -> Settings:
    """Settings from the values of `sampling_options`."""
    from ..decoding.sampler import SamplingOptions
    from ..engine import Settings

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    sampling = SamplingOptions(**{name: options[name] for name in names})
    return Settings(
        max_tokens=options["max_tokens"],
        sampling=sampling,
        stop=tuple(options["stop"]),
        raw=raw,
        speculate=options["speculate"],
    )
