"""From a request's fields to what the engine is asked: recipe and settings, which all routes have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ..adapters.recipe import Recipe
from ..completion import Settings
from ..decoding.sampler import SamplingOptions
from .errors import HttpError
from .fields import Fields
from .served import Served

MOST_CHOICES = 16
MOST_STOPS = 16
_SPELLINGS = {"repetition_penalty": ("repetition_penalty", "repeat_penalty")}
_PENALTIES = "penalties of occurrence are not served; repetition_penalty is"


@dataclass(frozen=True)
class Asked:
    """`n` answers, each by `recipe` and `settings`."""

    model: str
    recipe: Recipe | None
    settings: Settings
    n: int
    stream: bool
    include_usage: bool

    def settings_of(self, choice: int) -> Settings:
        """A seed of its own for each answer of several."""
        sampling = self.settings.sampling
        if not choice or sampling.seed is None:
            return self.settings
        return replace(self.settings, sampling=replace(sampling, seed=sampling.seed + choice))


def read(
    found: Fields, served: Served, *, max_tokens: Sequence[str], default: int, most: int, advised: bool = False
) -> Asked:
    """Take what all routes have in common. `max_tokens` are the spellings of that field, `default` and `most` its value
    and its limit; with `advised` a base alone samples as its generation_config.json says where nothing is asked."""
    model = found.text("model")
    recipe = _recipe(found, served, model)
    sampling = _sampling(found)
    if not sampling and advised and recipe is None and served.engine.advised_sampling is not None:
        options = served.engine.advised_sampling
    else:
        options = SamplingOptions(**sampling)
    n = found.whole("n", least=1, most=MOST_CHOICES) or 1
    best_of = found.whole("best_of", least=1, most=MOST_CHOICES)
    if best_of is not None and best_of != n:
        raise HttpError(400, f"best_of is {best_of}, and n {n}: all answers are given back")
    wanted = found.whole(*max_tokens)
    settings = Settings(
        max_tokens=min(default if wanted is None else wanted, most),
        sampling=options,
        stop=found.texts("stop", MOST_STOPS),
    )
    stream_options = Fields(found.any("stream_options") or {}, "stream_options")
    include_usage = stream_options.flag("include_usage")
    stream_options.only("include_obfuscation", (False, True), "")
    stream_options.finish()
    found.only("presence_penalty", (0, 0.0), _PENALTIES)
    found.only("frequency_penalty", (0, 0.0), _PENALTIES)
    found.only("logit_bias", ({},), "tokens cannot be favoured one by one")
    return Asked(model or served.name, recipe, settings, n, found.flag("stream"), include_usage)


def _recipe(found: Fields, served: Served, model: str | None) -> Recipe | None:
    """`recipe` before `lora` before `model`."""
    named = served.recipe_named(model) if model else served.recipe_named(served.name)
    recipe, scales = found.any("recipe"), found.any("lora")
    if recipe is not None and scales is not None:
        raise HttpError(400, "recipe and lora say the same thing in two ways: give one of them")
    if recipe is not None:
        return served.recipe_asked(recipe)
    return named if scales is None else served.recipe_of_scales(scales)


def _sampling(found: Fields) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for one in fields(SamplingOptions):
        spellings = _SPELLINGS.get(one.name, (one.name,))
        value = found.whole(*spellings) if one.name in ("top_k", "seed") else found.number(*spellings)
        if value is not None:
            values[one.name] = value
    return values


def messages(value: Any, where: str = "messages") -> list[dict[str, str]]:
    """A conversation of texts: `content` is one, or parts of type text. HttpError 400 for pictures, sound and tools."""
    if not isinstance(value, list) or not value:
        raise HttpError(400, f"{where} must be a list of at least one {{role, content}}")
    return [_message(one, f"{where}[{index}]") for index, one in enumerate(value)]


def _message(value: Any, where: str) -> dict[str, str]:
    found = Fields(value, where)
    role, content = found.text("role"), found.any("content")
    found.any("name", "type", "id", "status", "refusal", "annotations", "audio", "function_call")
    found.only("tool_calls", ([],), "tools are not served")
    found.finish()
    role = "system" if role == "developer" else role
    if role not in ("system", "user", "assistant"):
        raise HttpError(400, f"{where}.role is {role!r:.40}, expected system, developer, user or assistant")
    return {"role": role, "content": _content(content, where)}


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise HttpError(400, f"{where}.content must be a text or a list of parts of type text")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise HttpError(400, f"{where}.content holds a part of type {kind!r:.40}: only text is served")
        texts.append(text)
    return "".join(texts)


def check_text_only(found: Fields) -> None:
    """What asks for another form of answer than text is refused by name."""
    form = found.any("response_format", "text")
    kind = form.get("type", (form.get("format") or {}).get("type", "text")) if isinstance(form, Mapping) else "text"
    if kind != "text":
        raise HttpError(400, f"response_format {kind!r:.40} is not served: text only")
    found.only("modalities", (["text"],), "text only")
    for name in ("tools", "functions"):
        found.only(name, ([],), "tools are not served")
    found.only("tool_choice", ("none", "auto"), "tools are not served")
    found.only("function_call", ("none", "auto"), "tools are not served")
    found.only("reasoning_effort", ("none", "minimal"), "there is no reasoning to be set")
