"""What ships with edgecal to try it: three adapters and three calibrations for SmolLM2-135M-Instruct, and a dialogue.

`demo_data/README.md` says how they were made and under which licences they are. `find` lets every command name them:
"demo" is the model that `edgecal pull demo` fetched, "demo:summarize" an adapter, "demo:projection_merge" a
calibration.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from edgecal_weights.demo_model import demo_model_path

from .adapters.recipe import Recipe, Step
from .errors import ModelNotFoundError
from .text.tasks import instruction, user_message

DATA = Path(__file__).parent / "demo_data"
ADAPTERS = ("summarize", "professional", "translate_fr")
CALIBRATIONS = ("learnable_calibration", "learnable_calibration_pp", "projection_merge")
PAIR = ("summarize", "professional")
TASK = instruction("summarize+tone", tone="professional")


def find(name: str) -> str:
    """A path for a name that starts with "demo"; anything else, and whatever exists as a file, as it is.

    Raises ModelNotFoundError when the demo model was not fetched yet, or for an unknown name behind "demo:".
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
        return str(DATA / part)
    if part in CALIBRATIONS:
        return str(DATA / f"{part}.safetensors")
    near = get_close_matches(part.lower(), (*ADAPTERS, *CALIBRATIONS), n=1, cutoff=0.6)
    hint = f" (did you mean 'demo:{near[0]}'?)" if near else ""
    raise ModelNotFoundError(
        f"{name!r} is not part of the demo{hint}; adapters: {', '.join(ADAPTERS)}; calibrations: "
        f"{', '.join(CALIBRATIONS)}"
    )


def dialogue() -> str:
    return (DATA / "dialogue.txt").read_text("utf-8").strip()


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
        named[method] = Recipe(method, PAIR, calibration=str(DATA / f"{method}.safetensors"))
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
