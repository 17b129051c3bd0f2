"""Search for the weights of adapters on a few examples, without gradients: LoraHub and LM-Cocktail.

Both look at nothing but losses, so they need a forward pass and no training framework, and run where the model runs.

* LoraHub (arXiv 2307.13269) treats the weights as unknowns of a black box: it minimises mean loss + 0.05 * mean|w|,
  starting from 0 within +-1.5, 40 evaluations. The constants and the optimiser (nevergrad's NGOpt) are those of the
  authors' code. The result here is the best point that was evaluated.
* LM-Cocktail (arXiv 2311.13534) evaluates each adapter alone and weighs them by softmax(-loss / T), T = 5 in the
  authors' code.

This module knows no engine: it takes `loss(weights)`. `Candidates` is what makes such a function cheap: it holds the
factors of all adapters in memory (float32), and a candidate is then one weighted sum per module.

Up to 50 evaluations per adapter NGOpt is COBYLA, a linear trust region method that draws no random numbers. Beyond,
NGOpt takes surrogate models, which nevergrad 1.0.12 cannot run on NumPy 2.4; COBYLA goes on instead. So a search with a
larger budget begins with the very points of the smaller one, and resuming with more evaluations loses nothing.
"""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np

from ..adapters.compiled import CompiledAdapter, CompiledPair
from ..adapters.lora import LoraAdapter, LoraPair
from ..adapters.merge.context import PLAIN
from ..adapters.merge.lm_cocktail import weights_of_losses
from ..adapters.merge.registry import find_method
from ..adapters.recipe import Recipe
from ..errors import AdapterError, OptionError, RecipeError
from ..text.counted import counted
from .record import Evaluation, SearchRecord

LIMIT = 1.5  # of a LoraHub weight, both signs
L1 = 0.05
EVALUATIONS = 40
TEMPERATURE = 5.0
METHODS = ("lorahub", "lm_cocktail")
_SURROGATES_FROM = 50  # evaluations per weight up to which NGOpt is COBYLA
_WORST = 1e9  # what an optimiser is told of a loss that overflowed

Loss = Callable[[tuple[float, ...]], float]
"""Mean loss of the examples, in nats per token, with these weights."""


@dataclass(frozen=True)
class SearchProgress:
    """After an evaluation. `reused`: it came out of the record. `objective`s are what is minimised."""

    done: int
    total: int
    last: Evaluation
    best: Evaluation
    reused: bool
    objective: float
    best_objective: float


class Candidates:
    """The factors of some adapters in memory, to compile one choice of weights after the other.

    `compile(weights)` equals what `compile_recipe` makes of the method with these weights; an adapter of weight 0 takes
    no part. Raises AdapterError at once where the method cannot combine the adapters.
    """

    def __init__(self, method: str, adapters: Sequence[LoraAdapter]) -> None:
        self.method = method
        entry = find_method(method)
        merge = entry.merge_of(len(adapters))
        if merge is None or not entry.takes_weights:
            raise RecipeError(f"{method} has no weights to search for")
        self._merge = merge
        self._names = ", ".join(adapter.name for adapter in adapters)
        modules = dict.fromkeys(module for adapter in adapters for module in adapter.shapes)
        self._pairs: dict[str, list[tuple[int, LoraPair]]] = {
            module: [(i, a.pairs[module]) for i, a in enumerate(adapters) if module in a.shapes] for module in modules
        }
        self.compile((1.0,) * len(adapters))

    @property
    def nbytes(self) -> int:
        return sum(pair.a.nbytes + pair.b.nbytes for pairs in self._pairs.values() for _, pair in pairs)

    def compile(self, weights: Sequence[float]) -> CompiledAdapter | None:
        """None where all weights are 0: the bare base."""
        compiled: dict[str, CompiledPair] = {}
        for module, pairs in self._pairs.items():
            present = [(pair, weights[i]) for i, pair in pairs if weights[i]]
            if present:
                try:
                    compiled[module] = self._merge([pair for pair, _ in present], [w for _, w in present], PLAIN)
                except AdapterError as error:
                    raise AdapterError(f"{self.method} of {self._names} at {module}: {error}") from error
        return CompiledAdapter(self.method, compiled, "") if compiled else None


def l1_term(weights: Sequence[float]) -> float:
    """LoraHub's regularisation, 0.05 * mean|w|."""
    return L1 * sum(map(abs, weights)) / len(weights)


def cocktail_weights(losses: Sequence[float], temperature: float = TEMPERATURE) -> tuple[float, ...]:
    """LM-Cocktail: softmax(-loss / T). RecipeError if no loss is finite."""
    if not any(map(math.isfinite, losses)):
        raise RecipeError("no adapter has a finite loss on these examples")
    return weights_of_losses({"losses": tuple(losses), "temperature": temperature}, len(losses))


class Search:
    """One search over the weights of `adapters` (names). `run` gives the recipe.

    Args:
        loss: evaluated where the record does not know the weights yet.
        evaluations: the most that are asked for, those out of the record included; None is 40 for LoraHub, and for
            LM-Cocktail one per adapter and one of their mix.
        minutes: none is started later than this, None for no limit.
        seed: of what the optimiser may draw.
        progress: called after each evaluation.

    After a KeyboardInterrupt out of `run`, `best` and `record` hold everything up to the last whole evaluation.
    """

    def __init__(
        self,
        method: str,
        adapters: Sequence[str],
        loss: Loss,
        *,
        evaluations: int | None = None,
        minutes: float | None = None,
        temperature: float = TEMPERATURE,
        seed: int = 42,
        record: SearchRecord | None = None,
        progress: Callable[[SearchProgress], None] | None = None,
    ) -> None:
        if method not in METHODS:
            raise OptionError(f"no search for {method!r}; methods: {', '.join(METHODS)}")
        if not adapters:
            raise RecipeError("a search needs adapters to weigh")
        least = 1 if method == "lorahub" else len(adapters)
        wanted = evaluations if evaluations is not None else EVALUATIONS if method == "lorahub" else least + 1
        if wanted < least:
            of, needs = counted(len(adapters), "adapter"), counted(least, "evaluation")
            raise OptionError(f"{method} of {of} needs {needs}, found {wanted}")
        if not 0 < temperature < math.inf:
            raise OptionError(f"the temperature must be above 0, found {temperature:g}")
        if minutes is not None and not minutes > 0:
            raise OptionError(f"the minutes must be above 0, found {minutes:g}")
        self.method, self.adapters, self.temperature, self.seed = method, tuple(adapters), temperature, seed
        self.record = SearchRecord() if record is None else record
        self.total = wanted if method == "lorahub" else min(wanted, least + 1)
        self.done = self.reused = 0
        self.best: Evaluation | None = None
        self.out_of_time = False
        self._loss, self._minutes, self._progress = loss, minutes, progress

    def objective(self, evaluation: Evaluation) -> float:
        """What is minimised: LoraHub's has the L1 term."""
        return evaluation.loss + (l1_term(evaluation.weights) if self.method == "lorahub" else 0.0)

    def run(self) -> Recipe:
        """The recipe that was found. RecipeError if the minutes ended before there was one."""
        self._deadline = math.inf if self._minutes is None else monotonic() + 60 * self._minutes
        return self._lorahub() if self.method == "lorahub" else self._lm_cocktail()

    def best_recipe(self) -> Recipe | None:
        """Of what is evaluated so far; None if that is nothing, or for LM-Cocktail not yet every adapter."""
        if self.method == "lorahub":
            weights = self.best.weights if self.best is not None else None
        else:
            alone = [self.record.find(unit) for unit in self._units()]
            losses = [evaluation.loss for evaluation in alone if evaluation is not None]
            weights = cocktail_weights(losses, self.temperature) if len(losses) == len(alone) else None
        return Recipe(self.method, self.adapters, weights) if weights is not None else None

    def _units(self) -> list[tuple[float, ...]]:
        """The weights of each adapter alone."""
        count = len(self.adapters)
        return [tuple(float(i == j) for j in range(count)) for i in range(count)]

    def _lorahub(self) -> Recipe:
        self.best = min(self.record.evaluations, key=self.objective, default=None)
        with _Optimizer(len(self.adapters), self.total, self.seed) as optimizer:
            while self.done < self.total:
                evaluation = self._evaluate(optimizer.proposal)
                if evaluation is None:
                    break
                if self.done < self.total:
                    value = self.objective(evaluation)
                    optimizer.tell(value if math.isfinite(value) else _WORST)
        recipe = self.best_recipe()
        if recipe is None:
            raise RecipeError("the time ended before the first evaluation")
        return recipe

    def _lm_cocktail(self) -> Recipe:
        for name, unit in zip(self.adapters, self._units(), strict=True):
            if self._evaluate(unit) is None:
                raise RecipeError(f"the time ended before {name} was evaluated; lm_cocktail needs every adapter's loss")
        recipe = self.best_recipe()
        assert recipe is not None and recipe.weights is not None
        if self.done < self.total:  # shows whether the mix was worth it; the recipe does not depend on it
            self._evaluate(recipe.weights)
        return recipe

    def _evaluate(self, weights: tuple[float, ...]) -> Evaluation | None:
        """None if it is too late for one that the record does not have."""
        evaluation = self.record.find(weights)
        reused = evaluation is not None
        if evaluation is None:
            began = monotonic()
            if began >= self._deadline:
                self.out_of_time = True
                return None
            loss = self._loss(weights)
            evaluation = Evaluation(weights, loss if math.isfinite(loss) else math.inf, monotonic() - began)
            self.record.add(evaluation)
        self.done += 1
        self.reused += reused
        objective = self.objective(evaluation)
        if self.best is None or objective < self.objective(self.best):
            self.best = evaluation
        if self._progress is not None:
            best = self.best, self.objective(self.best)
            self._progress(SearchProgress(self.done, self.total, evaluation, best[0], reused, objective, best[1]))
        return evaluation


class _Optimizer:
    """nevergrad's, set up as LoraHub's authors do. `proposal` is the next point; `tell` its value.

    nevergrad runs COBYLA in a thread of its own, which keeps the process alive until the optimiser is collected: use
    it in a `with`.
    """

    def __init__(self, n_weights: int, evaluations: int, seed: int) -> None:
        try:
            import nevergrad
        except ImportError as error:
            raise OptionError(
                "the search for lorahub needs nevergrad, which is not installed: pip install 'edgecal[search]'"
            ) from error
        bounds = {"lower": [-LIMIT] * n_weights, "upper": [LIMIT] * n_weights}
        point = nevergrad.p.Array(init=[0.0] * n_weights, **bounds)
        point.random_state = np.random.RandomState(seed)
        name = "NGOpt" if evaluations <= _SURROGATES_FROM * n_weights else "Cobyla"
        self._optimizer: Any = nevergrad.optimizers.registry[name](parametrization=point, budget=evaluations)
        self._asked: Any = None
        self._ask(None)

    @property
    def proposal(self) -> tuple[float, ...]:
        return tuple(float(w) for w in self._asked.value)

    def tell(self, value: float) -> None:
        """The objective of the proposal; the next one takes its place."""
        self._ask(value)

    def _ask(self, value: float | None) -> None:
        # COBYLA warns that it corrects settings that nevergrad chose; the thread runs between tell and the end of ask
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if value is not None:
                self._optimizer.tell(self._asked, value)
            self._asked = self._optimizer.ask()

    def __enter__(self) -> _Optimizer:
        return self

    def __exit__(self, *_: object) -> None:
        self._optimizer = self._asked = None
        gc.collect()
