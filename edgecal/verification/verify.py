"""Is edgecal right? Its dW, module outputs, logits and greedy tokens beside those that PyTorch wrote to a file.

    with ReferenceFile("linear.safetensors") as reference:
        recipe = recipe_of(reference, adapters)
        report = verify(reference, engine, recipe)
    report.passed, report.to_dict()

Every tensor of the file is compared; nothing is skipped. The tolerances are those that edgecal promises in fp32:
dW max |error| / max |reference| <= 1e-6, module outputs 1e-5 by the same measure, logits 2e-4 absolute, greedy ids
equal. dW is taken from the compiled factors block of rows by block of rows in float64, so that it is the compiled
recipe that is measured and not the rounding of a product that the engine never forms.

A reference for other adapters, another base or another recipe cannot be compared: VerificationError. A difference,
and a number that is not finite, is a comparison that failed: a row of the report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecal_weights.files import file_sha256
from edgecal_weights.reference_file import ReferenceFile

from ..adapters.calibration import BASE_FACTS
from ..adapters.compiled import CompiledAdapter, RunningAdapter
from ..adapters.gram import Factors
from ..adapters.lora import LoraAdapter, find_adapter
from ..adapters.merge import method_names
from ..adapters.recipe import Recipe
from ..cache import KVCache
from ..decoding.generate import check_prompt, decode, prefill
from ..engine import Engine
from ..errors import RecipeError, VerificationError
from ..text.tasks import user_message
from .comparison import Deviation, TensorComparison, compare_ids, failed

_BLOCK = 1 << 20  # numbers of a dW that are looked at together
_SHOWN = 12  # hex digits of a sha256 in a message


@dataclass(frozen=True)
class Tolerances:
    """`delta` and `output`: max |error| / max |reference|; `logits`: max |error|."""

    delta: float = 1e-6
    output: float = 1e-5
    logits: float = 2e-4


@dataclass(frozen=True)
class Verification:
    """All comparisons of one reference file; `passed` when every one did. `notes` is what a reader should know."""

    reference: str
    model: str
    method: str
    adapters: list[str]
    calibration: str | None
    made_with: str
    thin: int
    tolerances: Tolerances
    comparisons: list[TensorComparison]
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(comparison.passed for comparison in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: numbers that are not finite become null."""
        values: dict[str, Any] = {"passed": self.passed, **asdict(self)}
        values["comparisons"] = [
            {key: None if type(value) is float and not math.isfinite(value) else value for key, value in row.items()}
            for row in values["comparisons"]
        ]
        return values


# ---------------------------------------------------------------------------------------- what is compared at all


def recipe_of(
    reference: ReferenceFile, adapters: Mapping[str, LoraAdapter], calibration: str | None = None
) -> Recipe:
    """The recipe that the file was made with, in the names of the given adapters, which are found by their sha256.

    VerificationError when one is not among them or the calibration is missing; RecipeError as for any recipe.
    """
    metadata = reference.metadata
    by_hash = {adapter.sha256: name for name, adapter in adapters.items()}
    names = []
    for i, entry in enumerate(metadata.adapters, 1):
        if entry.sha256 not in by_hash:
            given = ", ".join(f"{n} ({a.sha256[:_SHOWN]}...)" for n, a in adapters.items()) or "none"
            raise VerificationError(
                f"{reference.path} was made with other weights: its adapter {i} is {entry.name!r} with sha256 "
                f"{entry.sha256[:_SHOWN]}...; given: {given}. Give the very file with --adapter"
            )
        names.append(by_hash[entry.sha256])
    if metadata.calibration and calibration is None:
        raise VerificationError(
            f"{reference.path} was made with the calibration {metadata.calibration}; give it with --calibration"
        )
    try:
        return Recipe(
            method_of(reference),
            tuple(names),
            metadata.weights,
            calibration,
            options=tuple(metadata.options.items()),
        )
    except RecipeError as error:
        raise RecipeError(f"{reference.path}: {error}") from error


def method_of(reference: ReferenceFile) -> str:
    """edgecal's name of the method. Files about one adapter may be called after it."""
    method, adapters = reference.metadata.method, reference.metadata.adapters
    if method in method_names():
        return method
    if len(adapters) == 1 and adapters[0].name == method:
        return "single"
    raise VerificationError(
        f"{reference.path} is about the method {method[:80]!r}, which edgecal does not have; it has "
        f"{', '.join(method_names())}"
    )


def check_recipe(reference: ReferenceFile, recipe: Recipe, adapters: Mapping[str, LoraAdapter]) -> list[str]:
    """Notes; VerificationError unless the recipe is the one that the file was made with, as far as the file says."""
    metadata = reference.metadata
    if recipe.method != method_of(reference):
        raise VerificationError(f"{reference.path} is about {metadata.method}; the recipe's method is {recipe.method}")
    wanted = recipe_of(reference, adapters, recipe.calibration)
    for name in recipe.adapters:
        find_adapter(name, adapters)
    if [adapters[name].sha256 for name in recipe.adapters] != [entry.sha256 for entry in metadata.adapters]:
        raise VerificationError(
            f"{reference.path} was made with the adapters {', '.join(wanted.adapters) or 'none'} in this order; the "
            f"recipe has {', '.join(recipe.adapters) or 'none'}"
        )
    if recipe.merge_weights != wanted.merge_weights:
        raise VerificationError(
            f"{reference.path} was made with the weights {list(wanted.merge_weights)}; the recipe has "
            f"{list(recipe.merge_weights)}"
        )
    for option in recipe.entry.options:
        ours, theirs = option.of(dict(recipe.options)), option.of(dict(wanted.options))
        if ours != theirs:
            raise VerificationError(f"{reference.path} was made with {option.name} = {theirs}; the recipe has {ours}")
    notes = []
    if recipe.calibration is not None and metadata.calibration_sha256 is not None:
        if file_sha256(recipe.calibration) != metadata.calibration_sha256:
            raise VerificationError(
                f"{reference.path} was made with another calibration than {recipe.calibration}: {metadata.calibration} "
                f"with sha256 {metadata.calibration_sha256[:_SHOWN]}..."
            )
    elif recipe.calibration is not None and Path(recipe.calibration).name != metadata.calibration:
        notes.append(
            f"the reference names the calibration {metadata.calibration or 'none'} without its sha256; given is "
            f"{Path(recipe.calibration).name}"
        )
    return notes


def _check_base(reference: ReferenceFile, facts: Mapping[str, Any]) -> None:
    wanted = reference.metadata.base_model
    for fact in BASE_FACTS:
        if facts[fact] != getattr(wanted, fact):
            raise VerificationError(
                f"{reference.path} was made on {wanted.name}, whose {fact} is {getattr(wanted, fact)!r}; this model "
                f"has {facts[fact]!r}. Give the reference's base with --model"
            )


def _open_answers(reference: ReferenceFile, engine: Engine) -> list[str]:
    """A note on the answers of which nobody can say whether the file holds all of them."""
    cases = [
        case
        for case in reference.of("greedy_ids")
        if reference.metadata.answer_length(case) is None
        and reference.ids(f"greedy_ids/{case}")[-1] not in engine.tokenizer.eos_ids
    ]
    if not cases:
        return []
    return [
        f"the answer of {', '.join(cases)} has no closing token, and the metadata no n_new_tokens: whether it was cut "
        "short cannot be told"
    ]


# ------------------------------------------------------------------------------------------------- the comparisons


def verify(
    reference: ReferenceFile,
    engine: Engine,
    recipe: Recipe,
    tolerances: Tolerances | None = None,
    *,
    model: str = "",
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Compare every tensor of `reference` with what `engine` computes under `recipe`.

    `progress` gets the name of each tensor before it is computed. Raises VerificationError when the two cannot be
    compared, and whatever compiling the recipe raises.
    """
    tolerances = tolerances or Tolerances()
    notes = check_recipe(reference, recipe, engine.adapters) + _open_answers(reference, engine)
    _check_base(reference, engine.base)
    (merged,), (adapter,) = engine.merge(recipe), engine.compile(recipe)
    comparisons = []
    for tensor, compare in _plan(reference, engine, merged, adapter, tolerances):
        if progress is not None:
            progress(tensor)
        comparisons.append(compare())
    return Verification(
        reference=str(reference.path),
        model=model,
        method=recipe.method,
        adapters=list(recipe.adapters),
        calibration=recipe.calibration,
        made_with=reference.metadata.made_with,
        thin=reference.metadata.thin,
        tolerances=tolerances,
        comparisons=comparisons,
        notes=notes,
    )


def _plan(
    reference: ReferenceFile,
    engine: Engine,
    merged: CompiledAdapter | None,
    adapter: RunningAdapter | None,
    tolerances: Tolerances,
) -> Iterator[tuple[str, Callable[[], TensorComparison]]]:
    for module in reference.of("delta"):
        yield f"delta/{module}", partial(_delta, reference, engine, merged, module, tolerances.delta)
    for name in reference.of("output"):
        yield f"output/{name}", partial(_output, reference, engine, adapter, name, tolerances.output)
    for case in reference.of("input_ids"):
        answer = _Answer(reference, engine, adapter, case)
        yield f"input_ids/{case}", answer.prompt
        if case in reference.of("logits_last4"):
            yield f"logits_last4/{case}", partial(answer.logits, tolerances.logits)
        if case in reference.of("greedy_ids"):
            yield f"greedy_ids/{case}", answer.greedy


def _delta(
    reference: ReferenceFile, engine: Engine, adapter: CompiledAdapter | None, module: str, limit: float
) -> TensorComparison:
    name, thin = f"delta/{module}", reference.metadata.thin
    shape = reference.shape(name)
    if module not in engine.model.adaptable_shapes:
        return failed(name, shape, "relative", limit, "the model has no such module")
    d, k = engine.model.adaptable_shapes[module]
    if shape != (-(-d // thin), k):
        return failed(name, shape, "relative", limit, f"expected {(-(-d // thin), k)} for a {(d, k)} module")
    pair = adapter.pairs.get(module) if adapter is not None else None
    factors = Factors.of(pair) if pair is not None else None
    deviation = Deviation()
    for start in range(0, shape[0], max(1, _BLOCK // k)):
        wanted = reference.read_rows(name, start, min(shape[0], start + max(1, _BLOCK // k)))
        stop = start + len(wanted)
        found = np.zeros(wanted.shape) if factors is None else factors.rows(start * thin, stop * thin, thin)
        deviation.add(found, wanted, start)
    note = "" if factors is not None else "the recipe leaves this module alone"
    return deviation.result(name, shape, "relative", limit, (thin, 1), note)


def _output(
    reference: ReferenceFile, engine: Engine, adapter: RunningAdapter | None, place: str, limit: float
) -> TensorComparison:
    name, thin = f"output/{place}", reference.metadata.thin
    shape, given = reference.shape(name), reference.shape(f"input/{place}")
    linear = engine.model.linears.get(place.partition("/")[0])
    if linear is None:
        return failed(name, shape, "relative", limit, "the model has no such module")
    d, k = linear.shape
    if len(given) != 2 or given[1] != k or shape != (given[0], -(-d // thin)):
        return failed(name, shape, "relative", limit, f"input {given} and output {shape} of a {(d, k)} module")
    deviation = Deviation()
    x = reference.read(f"input/{place}")
    deviation.add(linear(engine.model.ops.Activations(x), adapter)[:, ::thin], reference.read(name), 0)
    return deviation.result(name, shape, "relative", limit, (1, thin))


class _Answer:
    """One case: its prompt, the logits at the end of it and the greedy answer, in one pass over the prompt."""

    def __init__(self, reference: ReferenceFile, engine: Engine, adapter: RunningAdapter | None, case: str) -> None:
        self.reference, self.engine, self.adapter, self.case = reference, engine, adapter, case
        self.ids = reference.ids(f"input_ids/{case}")
        self._state: tuple[NDArray[np.float32], KVCache] | None = None
        vocabulary = engine.model.config.vocab_size
        for name in ("input_ids", "greedy_ids"):
            if case in reference.of(name) and not all(0 <= i < vocabulary for i in reference.ids(f"{name}/{case}")):
                raise VerificationError(
                    f"{reference.path}: {name}/{case} has ids outside the model's vocabulary of {vocabulary}"
                )
        check_prompt(engine.model, len(self.ids), 1)

    def prompt(self) -> TensorComparison:
        """The ids that edgecal makes of the case's text, where the file has the text."""
        name, shape = f"input_ids/{self.case}", (len(self.ids),)
        case = self.reference.metadata.cases[self.case]
        text, instruction = case.get("text"), case.get("instruction")
        if not isinstance(text, str):
            return TensorComparison(name, shape, "equal", 0, True, note="no text to encode: the ids as they are")
        if case.get("raw"):
            found = self.engine.encode(text, raw=True)
        else:
            found = self.engine.encode(user_message(instruction, text) if isinstance(instruction, str) else text)
        return compare_ids(name, found, self.ids, "the prompt's ids")

    def logits(self, limit: float) -> TensorComparison:
        name, thin = f"logits_last4/{self.case}", self.reference.metadata.thin
        shape, vocabulary = self.reference.shape(name), self.engine.model.config.vocab_size
        wanted_shape = (min(4, len(self.ids)), -(-vocabulary // thin))
        if shape != wanted_shape:
            return failed(name, shape, "absolute", limit, f"expected {wanted_shape}")
        deviation = Deviation()
        deviation.add(self._last_logits()[0][:, ::thin], self.reference.read(name), 0)
        return deviation.result(name, shape, "absolute", limit, (1, thin))

    def greedy(self) -> TensorComparison:
        """The argmax after every token of the reference's answer, up to the first difference."""
        wanted = self.reference.ids(f"greedy_ids/{self.case}")
        name, shape = f"greedy_ids/{self.case}", (len(wanted),)
        length = self.reference.metadata.answer_length(self.case)
        if length is not None and length != len(wanted):
            note = f"the answer has {len(wanted)} ids in the file, whose case says {length}: it was cut short"
            return failed(name, shape, "equal", 0, note)
        last, cache = self._last_logits()
        logits = last[-1]
        room = self.engine.model.config.max_position_embeddings - len(self.ids)
        if len(wanted) > room:
            return failed(name, shape, "equal", 0, f"the answer has {len(wanted)} tokens, the context room for {room}")
        for i, token in enumerate(wanted):
            if not np.isfinite(logits).all():
                return failed(name, shape, "equal", 0, f"edgecal's logits before token {i} are not finite")
            found = int(logits.argmax())
            if found != token:
                gap = float(logits[found] - logits[token])
                return TensorComparison(
                    name,
                    shape,
                    "equal",
                    0,
                    False,
                    worst=(i,),
                    found=found,
                    wanted=token,
                    note=f"token {i} is {found} here and {token} there; their logits differ by {gap:.1e}",
                )
            if i + 1 < len(wanted):
                logits = decode(self.engine.model, token, cache, self.adapter)
        return TensorComparison(name, shape, "equal", 0, True)

    def _last_logits(self) -> tuple[NDArray[np.float32], KVCache]:
        """Logits at the last positions of the prompt and the cache that holds it; computed once."""
        if self._state is not None:
            return self._state
        cache = KVCache(self.engine.model.config, self.engine.cache_dtype)
        last = min(4, len(self.ids))
        if len(self.ids) > last:
            prefill(self.engine.model, self.ids[:-last], cache, self.adapter)
        logits = self.engine.model.forward(np.array(self.ids[-last:]), cache, self.adapter, all_logits=True)
        self._state = logits, cache
        return self._state
