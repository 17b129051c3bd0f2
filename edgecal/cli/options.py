"""Options that several commands share. A group of them reaches a command as one object that knows what to do:
`ModelOptions` load an Engine, `RecipeOptions` make a Recipe and say where its adapters are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgecal_kernels.cached import TYPES
from edgecal_kernels.dispatch import BACKENDS
from edgecal_kernels.quant import FORMATS, GROUP_SIZES
from edgecal_weights.nearest import did_you_mean

from ..errors import RecipeError
from ._completion import adapters, calibrations, complete_paths, complete_words, methods
from ._format_choice import FormatChoice
from ._names import adapter_path, calibration_path, model_named
from ._output import note
from ._progress import progress

if TYPE_CHECKING:
    from edgecal_weights.checkpoint import Checkpoint

    from ..adapters.recipe import Recipe, Step
    from ..engine import Engine

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]


def group_of(keyword: str, make: Callable[..., Any], *options: Decorator[Any]) -> Decorator[Any]:
    """A decorator that gives a command these options, and their values as `keyword=make(name=value, ...)`."""

    def wrap(function: Function) -> Any:
        @functools.wraps(function)
        def with_object(*arguments: Any, **values: Any) -> Any:
            own = {name: values.pop(name) for name in names}
            return function(*arguments, **values, **{keyword: make(**own)})

        before = len(getattr(function, "__click_params__", ()))
        for option in reversed(options):
            with_object = option(with_object)
        names = [parameter.name for parameter in with_object.__click_params__[before:]]  # type: ignore[attr-defined]
        return with_object

    return wrap


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")

# ------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded; the fields are arguments of Engine.load."""

    weights: str = "auto"
    group_size: int = 32
    backend: str | None = None
    cache_dtype: str = "fp16"
    revision: str | None = None
    offline: bool | None = None
    threads: int | None = None
    prefill_threads: int | None = None
    context: int | None = None
    memory_limit: int | None = None


def _read_memory_limit(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    from edgecal_weights.sizes import read_size

    size = read_size(value)
    if size is None:
        raise click.BadParameter(f"{value!r} is no size such as 800M or 1.5G", context, parameter)
    return size


_HUB = (
    click.option("--revision", help="Branch, tag or commit of a hub model."),
    click.option("--offline", is_flag=True, default=None, help="Use the hub's cache only."),
)
memory_limit_option = click.option(
    "--memory-limit",
    metavar="SIZE",
    callback=_read_memory_limit,
    help="Refuse what would take more in all (800M, 1.5G); what is free unless given, 0: no check.",
)
_LOADING = (
    click.option(
        "--weights",
        type=FormatChoice(["auto", "fp32", *FORMATS]),
        default="auto",
        show_default=True,
        help="Number format; auto keeps a quantized file's own and rounds floats to int4.",
    ),
    click.option(
        "--group-size",
        type=click.Choice([str(g) for g in GROUP_SIZES]),
        default="32",
        callback=lambda context, parameter, value: int(value),
        help="Columns per scale.",
    ),
    click.option("--backend", type=click.Choice(BACKENDS), help="Kernels; the first of these that serves here."),
    click.option(
        "--cache-dtype", type=click.Choice(list(TYPES)), default="fp16", show_default=True, help="Of the KV cache."
    ),
    memory_limit_option,
    *_HUB,
)
threads_option = click.option(
    "-t", "--threads", type=click.IntRange(min=1), help="Threads; those of tune, else the physical (big) cores."
)
_prefill_threads_option = click.option(
    "-tb",
    "--threads-prefill",
    "prefill_threads",
    type=click.IntRange(min=1),
    help="Threads that read prompts; as many as --threads unless given.",
)
_context_option = click.option(
    "-c",
    "--context",
    type=click.IntRange(min=2),
    metavar="N",
    help="Tokens of prompt and answer together, and so of the KV cache, at most; the model's own limit unless given.",
)
hub_options = group_of("loading", ModelOptions, *_HUB)
model_options = group_of("loading", ModelOptions, *_LOADING, threads_option, _prefill_threads_option)
answering_options = group_of(
    "loading", ModelOptions, *_LOADING, threads_option, _prefill_threads_option, _context_option
)
model_options_but_threads = group_of("loading", ModelOptions, *_LOADING)


def load_engine(
    model: str,
    loading: ModelOptions,
    adapters: Mapping[str, str] | None = None,
    *,
    prefix_cache: int | None = None,
) -> Engine:
    """The engine for `model` ("demo", a path or a hub id) with these adapters, {name: path}."""
    compile_kernels(loading.backend)
    note_stand_ins(loading.backend)
    from ..engine import Engine

    with model_named(model) as path, progress(f"loading {Path(model).name}", unit="bytes") as report:
        engine = Engine.load(
            path, adapters=adapters, prefix_cache=prefix_cache, progress=report, **vars(loading)
        )
    if engine.note:
        note(f"{Path(model).name}: {engine.note}")
    return engine


def note_stand_ins(name: str | None = None) -> None:
    """Say what serves in the place of something faster that is not here."""
    from edgecal_kernels.dispatch import asked, backend, serving
    from edgecal_weights.tokenizer_backend import PLAIN

    if backend(name).NAME == "numpy" and not asked(name):
        note(f"slow kernels serve: {serving()}")
    if PLAIN:
        note("without the package tokenizers plain Python turns text into tokens: the same ones, more slowly")


@contextmanager
def open_model(name: str, loading: ModelOptions) -> Iterator[Checkpoint]:
    """Its files, for commands that read no weights or read them themselves."""
    from edgecal_weights.opening import open_checkpoint

    with model_named(name) as path, progress(f"opening {Path(path).name}", unit="bytes") as report:
        checkpoint = open_checkpoint(path, revision=loading.revision, offline=loading.offline, progress=report)
    with checkpoint:
        yield checkpoint


def compile_kernels(backend: str | None = None) -> float:
    """Make sure that this machine's kernels are compiled, on disk where that is possible; seconds that it took.

    Nothing where the back end, the one that serves unless named, needs no compiling.
    """
    from edgecal_kernels.dispatch import backend as find_backend

    if find_backend(backend).NAME != "numba":
        return 0.0
    from edgecal_kernels.jit import can_keep, kernel_cache
    from edgecal_kernels.paths import cache_directory
    from edgecal_kernels.warmup import compile_all, is_warm, warm_up

    if can_keep() and not kernel_cache().is_relative_to(cache_directory()):
        note(f"{cache_directory()} cannot be written: compiled kernels are in {kernel_cache()}")
    if is_warm():
        return 0.0
    if not can_keep():
        with progress("compiling the kernels for this run alone: no folder can be written", patience=0):
            return compile_all()
    with progress("compiling the kernels for this machine, once", patience=0):
        return warm_up()


# ------------------------------------------------------------------------------------------------ the recipe


@dataclass(frozen=True)
class RecipeOptions:
    """What --adapter, --method and the others of `recipe_options` say."""

    adapters: tuple[str, ...] = ()
    method: str | None = None
    method_options: tuple[str, ...] = ()
    calibration: str | None = None
    adapter_weights: str | None = None
    steps: tuple[str, ...] = ()
    recipe_file: str | None = None

    def given(self) -> list[str]:
        """The options that make a recipe, as they are spelled; --adapter alone makes none."""
        spelled = {
            "--method": self.method,
            "--option": self.method_options,
            "--calibration": self.calibration,
            "--adapter-weights": self.adapter_weights,
            "--step": self.steps,
            "--recipe": self.recipe_file,
        }
        return [option for option, value in spelled.items() if value]

    def paths(self) -> dict[str, str]:
        """{name: path} of the --adapter options and of the recipe file, if that says where its adapters are."""
        from ..adapters.recipe import Recipe

        named: dict[str, str] = {}
        for text in self.adapters:
            name, path = split_adapter(text)
            if name in named:
                raise RecipeError(f"two adapters are called {name!r}; name them apart with --adapter NAME=PATH")
            named[name] = path
        if self.recipe_file is not None:
            for name, path in Recipe.from_file(self.recipe_file).paths:
                path = adapter_path(path)
                if Path(named.setdefault(name, path)).absolute() != Path(path).absolute():
                    raise RecipeError(
                        f"{self.recipe_file} has {name!r} at {path}, and --adapter at {named[name]}; give one of the "
                        "two"
                    )
        return named

    def recipe(self) -> Recipe:
        """The recipe of the options. Without --method: zero_shot, single or linear by the number of adapters,
        the calibration's own method, or multi_step when there are steps."""
        from ..adapters.merge import find_method
        from ..adapters.recipe import Recipe

        if self.recipe_file is not None:
            if self.given() != ["--recipe"]:
                raise RecipeError(
                    "a recipe file says everything: give it without --method, --option, --calibration, --step or "
                    "weights"
                )
            recipe = recipe_of_file(self.recipe_file)
            check_places(recipe, self.paths())
            return recipe
        names = tuple(split_adapter(text)[0] for text in self.adapters)
        calibration = calibration_path(self.calibration) if self.calibration else None
        method = self.method or self._usual_method(len(names), calibration)
        steps, weights = self._steps(), self._weights()
        used = () if find_method(method).max_adapters == 0 else names
        recipe = Recipe(method, used, weights, calibration, steps, self._method_options(method))
        check_places(recipe, self.paths())
        return noted(recipe)


    def _usual_method(self, n_adapters: int, calibration: str | None) -> str:
        if self.steps:
            return "multi_step"
        if calibration:
            from ..adapters.calibration import Calibration

            return Calibration.load(calibration).method
        return ("zero_shot", "single")[n_adapters] if n_adapters < 2 else "linear"

    def _steps(self) -> tuple[Step, ...]:
        from ..adapters.recipe import Step

        steps = []
        for step in self.steps:
            name, separator, instruction = step.partition(":")
            if not separator or not instruction.strip():
                raise RecipeError(f"--step {step!r}: expected NAME:INSTRUCTION (an empty NAME is the bare base)")
            steps.append(Step(name.strip() or None, instruction.strip()))
        return tuple(steps)

    def _weights(self) -> tuple[float, ...] | None:
        if self.adapter_weights is None:
            return None
        try:
            return tuple(float(w) for w in self.adapter_weights.split(","))
        except ValueError:
            raise RecipeError(f"--adapter-weights {self.adapter_weights!r}: expected numbers between commas") from None

    def _method_options(self, method: str) -> tuple[tuple[str, Any], ...]:
        from ..adapters.merge import find_method

        entry = find_method(method)
        values: dict[str, Any] = {}
        for text in self.method_options:
            name, separator, value = text.partition("=")
            if not separator:
                raise RecipeError(f"--option {text!r}: expected NAME=VALUE")
            if name in values:
                raise RecipeError(f"--option {name} is given twice")
            values[name] = entry.option(name).parse(value)
        return tuple(values.items())


def check_places(recipe: Recipe, paths: Mapping[str, str]) -> None:
    """RecipeError for an adapter that nothing says the path of, before a model is loaded for it."""
    for name in recipe.adapter_names:
        if name not in paths:
            hint = did_you_mean(name, paths)
            raise RecipeError(
                f"the recipe does not say where its adapter {name!r} is{hint}: give --adapter {name}=PATH"
            )


def noted(recipe: Recipe) -> Recipe:
    """The recipe, its notes on stderr: what was read otherwise than it is spelled, what has no effect."""
    for text in recipe.notes:
        note(text)
    return recipe


def recipe_of_file(path: str | Path) -> Recipe:
    """The recipe of a file, with its notes on stderr and the place of a demo:NAME calibration."""
    from ..adapters.recipe import Recipe

    recipe = Recipe.from_file(path)
    if recipe.calibration:
        recipe = replace(recipe, calibration=calibration_path(recipe.calibration))
    return noted(recipe)


_ADAPTER = click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[NAME=]PATH",
    shell_complete=complete_paths(adapters, named=True),
    help="A directory of PEFT or mlx-lm, a GGUF, demo:NAME; repeat for several, in the order of the calibration.",
)
_CALIBRATION = click.option(
    "--calibration",
    metavar="FILE",
    shell_complete=complete_paths(calibrations),
    help="The method's calibration file, or demo:NAME.",
)
adapter_options = group_of("chosen", RecipeOptions, _ADAPTER)
calibration_options = group_of("chosen", RecipeOptions, _ADAPTER, _CALIBRATION)
recipe_options = group_of(
    "chosen",
    RecipeOptions,
    _ADAPTER,
    click.option(
        "--method",
        shell_complete=complete_words(methods),
        help="How to combine; `edgecal merge --list` has all methods.",
    ),
    click.option(
        "--option", "method_options", multiple=True, metavar="NAME=VALUE", help="Of the method: density=0.5; repeat."
    ),
    _CALIBRATION,
    click.option("--adapter-weights", metavar="W,W,...", help="One number per adapter (default 1/N each)."),
    click.option(
        "--step", "steps", multiple=True, metavar="NAME:INSTRUCTION", help="One pass of multi_step; repeat in order."
    ),
    click.option("--recipe", "recipe_file", type=click.Path(), help="A recipe file (YAML or JSON) instead of these."),
)


def split_adapter(text: str) -> tuple[str, str]:
    """(name, path) of NAME=PATH or PATH; the name defaults to the last part of the path."""
    name, separator, path = text.partition("=")
    if not separator or "/" in name:
        name, path = "", text
    if not path:
        raise RecipeError(f"--adapter {text!r}: expected [NAME=]PATH")
    default = path.removeprefix("demo:") if path.startswith("demo:") else Path(path).expanduser().absolute().name
    default = default.removesuffix(".gguf")
    return name or default, adapter_path(path)
