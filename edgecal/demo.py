"""What there is to try edgecal: three adapters and three calibrations for SmolLM2-135M-Instruct, and a dialogue.

They are a package of their own, edgecal-demo-data, which lies in a checkout too; its README.md says how they were made
and under which licences they are. `find` lets every command name them:
"demo" is the model that `edgecal pull demo` fetched, "demo:summarize" an adapter, "demo:projection_merge" a
calibration, "demo:dialogue" the text.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from edgecal_weights.demo_model import demo_model_path
from edgecal_weights.nearest import nearest

from .adapters.recipe import Recipe, Step
from .errors import ModelNotFoundError
from .text.tasks import instruction, user_message

PACKAGE = "edgecal_demo_data"
ADAPTERS = ("summarize", "professional", "translate_fr")
CALIBRATIONS = ("learnable_calibration", "learnable_calibration_pp", "projection_merge")
TEXTS = ("dialogue",)
PAIR = ("summarize", "professional")
TASK = instruction("summarize+tone", tone="professional")


def _data() -> Path:
    """Where they are; or would be."""
    beside = Path(__file__).parents[1] / "demo_data" / PACKAGE  # in a checkout
    installed = None if beside.is_dir() else find_spec(PACKAGE)
    folders = installed.submodule_search_locations if installed is not None else None
    return Path(folders[0]) if folders else beside


DATA = _data()


def _part(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        raise ModelNotFoundError(
            "the demo's adapters are not here; `pip install edgecal-demo-data` fetches them (29 MB; some of them may "
            "not be used commercially), from a checkout `pip install ./demo_data`"
        )
    return path


def find(name: str) -> str:
    """A path for a name that starts with "demo"; anything else, and whatever exists as a file, as it is.

    Raises ModelNotFoundError when the demo model was not fetched yet, when the package with the adapters is not
    there, or for an unknown name behind "demo:".
    """
    if (name != "demo" and not name.startswith("demo:")) or Path(name).exists():
        return name
    if name == "demo":
        model = demo_model_path()
        if model is None:
            raise ModelNotFoundError("the demo model is not here yet; fetch it (98 MB) with: edgecal pull demo")
        return str(model)
    part = name.removeprefix("demo:")
    if part in ADAPTERS:
        return str(_part(part))
    if part in CALIBRATIONS:
        return str(_part(f"{part}.safetensors"))
    if part in TEXTS:
        return str(_part(f"{part}.txt"))
    near = nearest(part, (*ADAPTERS, *CALIBRATIONS, *TEXTS))
    hint = f" (did you mean 'demo:{near}'?)" if near else ""
    raise ModelNotFoundError(
        f"{name!r} is not part of the demo{hint}; adapters: {', '.join(ADAPTERS)}; calibrations: "
        f"{', '.join(CALIBRATIONS)}; text: {', '.join(TEXTS)}"
    )


def dialogue() -> str:
    return Path(find("demo:dialogue")).read_text("utf-8").strip()


def recipes() -> dict[str, Recipe]:
    """Every way to summarize in a professional tone that the demo data allows, by method (single twice, by adapter)."""
    named = {
        "zero_shot": Recipe("zero_shot"),
        "single (summarize)": Recipe("single", ("summarize",)),
        "single (professional)": Recipe("single", ("professional",)),
        "linear": Recipe("linear", PAIR),
        "concat": Recipe("concat", PAIR),
    }
    for method in CALIBRATIONS:
        named[method] = Recipe(method, PAIR, calibration=find(f"demo:{method}"))
    named["multi_step"] = Recipe(
        "multi_step",
        steps=(
            Step("summarize", instruction("summarize")),
            Step("professional", instruction("tone", tone="professional")),
        ),
    )
    return named


def prompt(recipe: Recipe, text: str) -> str:
    """What to ask with this recipe: the compositional task on `text`, or `text` itself for a pipeline."""
    return text if recipe.steps else user_message(TASK, text)
