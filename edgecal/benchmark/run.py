"""From a configuration to a folder of answers: what is there already is not asked again.

The order is fixed (task by task, method by method, examples as they stand in the file), answers are greedy, and a text
does not depend on what else is in its batch: so a run that was killed and taken up again leaves the same lines as one
that was not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adapters.recipe import Shot
from ..errors import BenchmarkError
from .config import EvalConfig
from .datasets import Examples, load_examples
from .inventory import fingerprint, load_engine, load_inventory, model_size
from .methods import Inventory, rows_for
from .prompts import PromptSet, load_prompts
from .results import ResultFolder
from .tasks import Task
from .work import Chunk, answer_chunk

Progress = Callable[[int, int, str], None]
_CHUNK = 2  # batches in a chunk: so much is lost when the process is killed


@dataclass
class Plan:
    """All that is to be answered. `lacking`: by task and method, what is missing for a row."""

    chunks: list[Chunk] = field(default_factory=list)
    examples: dict[str, Examples] = field(default_factory=dict)
    lacking: dict[str, dict[str, str]] = field(default_factory=dict)
    total: int = 0
    done: int = 0


class Evaluation:
    """`run` answers what is missing in `out`. Raises BenchmarkError and what loading raises."""

    def __init__(self, config: EvalConfig, out: str | Path) -> None:
        self.config, self.folder = config, ResultFolder(out)
        self.prompts: PromptSet = load_prompts(config.prompts)
        self._check_words()

    def _check_words(self) -> None:
        for task in self.config.tasks:
            for asked in (task, *task.steps):
                self.prompts.instruction(asked)

    def run(
        self,
        *,
        threads: int | None = None,
        memory_limit: int | None = None,
        progress: Progress | None = None,
        loading: Progress | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        """In this process. `progress(done, total, what)` counts answers, `loading` bytes of the model; `note` is told
        what `Engine.load` found worth knowing, such as a context that memory shortens."""
        inventory = load_inventory(self.config)
        plan = self.begin(inventory)
        if not plan.chunks:
            return
        engine = load_engine(self.config, threads=threads, memory_limit=memory_limit, progress=loading)
        if engine.note and note is not None:
            note(engine.note)
        row = None
        for chunk in plan.chunks:
            if progress is not None:
                progress(plan.done, plan.total, f"{chunk.task.name}: {chunk.row.name}")
            if row is not None and chunk.row is not row:  # what is kept of another method is none of this one's memory
                engine.forget_compiled()
                engine.prefixes.clear()
            row = chunk.row
            self.keep(plan, *answer_chunk(engine, inventory, self.config, self.prompts, chunk))
        if progress is not None:
            progress(plan.done, plan.total, "")

    def begin(self, inventory: Inventory) -> Plan:
        """What is left to do, with the folder made ready for it."""
        self.fingerprint = fingerprint(self.config, inventory)
        self.folder.begin(self.config.to_dict(), self.fingerprint)
        plan, done = Plan(), {(line["task"], line["method"], line["id"]) for line in self.folder.answers()}
        known = {(line["task"], line["id"]) for line in self.folder.read("examples.jsonl")}
        for task in self.config.tasks:
            rows, lacking = rows_for(self.config.methods, task, inventory, self.prompts)
            shots, examples = self._examples(task, max((row.n_shots for row in rows), default=0))
            plan.examples[task.name], plan.lacking[task.name] = examples, lacking
            self.folder.append(
                "examples.jsonl",
                (
                    {"task": task.name, "id": e.id, "input": e.text, "references": list(e.references)}
                    for e in examples.examples
                    if (task.name, e.id) not in known
                ),
            )
            for row in [row.with_shots(shots) for row in rows]:
                left = [e for e in examples.examples if (task.name, row.name, e.id) not in done]
                plan.total += len(examples.examples)
                plan.done += len(examples.examples) - len(left)
                size = _CHUNK * self.config.batch
                plan.chunks += [
                    Chunk(task, row, tuple(left[i : i + size])) for i in range(0, len(left), size)
                ]
        if not any(plan.examples[task.name].examples for task in self.config.tasks) or not plan.total:
            reasons = "; ".join(f"{t}: {m}: {why}" for t, found in plan.lacking.items() for m, why in found.items())
            raise BenchmarkError(f"there is nothing to run: {reasons or 'no examples'}")
        self.folder.keep_notes(self._notes(plan))
        return plan

    def _examples(self, task: Task, n_shots: int) -> tuple[tuple[Shot, ...], Examples]:
        """In-context examples by the seed, and what is evaluated. Where no source for training is named, they come out
        of the same file, and are left out of the evaluation for every method."""
        config, rng = self.config, random.Random(f"{self.config.seed} {task.name}")
        source, train = config.data_of(task), config.train_of(task)
        if not n_shots:
            return (), load_examples(source, task, config.split, seed=config.seed, limit=config.limit)
        if train is not None:
            pool = load_examples(train, task, "train", seed=config.seed)
            found = load_examples(source, task, config.split, seed=config.seed, limit=config.limit)
            drawn = rng.sample(list(pool.examples), min(n_shots, len(pool.examples)))
        else:
            found = load_examples(source, task, config.split, seed=config.seed)
            usable = [e for e in found.examples if e.references]
            drawn = rng.sample(usable, min(n_shots, max(0, len(usable) - 1)))
            rest = [e for e in found.examples if e not in drawn][: config.limit]
            found = Examples(found.source, rest, found.left_out)
        return tuple(self.prompts.shot(task, e.text, e.references[0]) for e in drawn if e.references), found

    def keep(self, plan: Plan, lines: list[dict[str, Any]], cost: dict[str, Any]) -> None:
        """A chunk's answers, whole or not at all as far as one write is."""
        for line in lines:
            line["fingerprint"] = self.fingerprint
        self.folder.append("answers.jsonl", lines)
        self.folder.append("costs.jsonl", [cost])
        plan.done += len(lines)

    def _notes(self, plan: Plan) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "n_parameters": model_size(self.config),
            "left_out": {
                name: [{"place": x.place, "reason": x.reason} for x in found.left_out[:100]]
                for name, found in plan.examples.items()
                if found.left_out
            },
            "n_left_out": {name: len(found.left_out) for name, found in plan.examples.items() if found.left_out},
            "lacking": {name: found for name, found in plan.lacking.items() if found},
        }
