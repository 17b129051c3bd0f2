"""One run of `edgecal profile`: what is done in which order, so that the figures can be compared with each other.

First every method alone: it is compiled as often as there are repeats, then it reads and writes at the longest context
while nothing else is kept, for its peak of memory. That was the warm-up. Then rounds: within a round every measurement
goes through all methods before the next one begins, odd rounds backwards, so that what slows the machine down for a
minute hits all of them. Each is taken twice, without the kernels' clock (these are the figures) and with it (that is
the split), in changing order; a token's time with by the same token's time without is what the clock costs. The plain
read of memory stands beside the decoding that it is held against.

Interrupt it at any time: `report` has what was measured so far.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from datetime import datetime, timezone
from time import perf_counter

import numpy as np

from edgecal_kernels import cpu

from .. import __version__, machine
from ..adapters.recipe import Recipe
from ..cache import KVCache
from ..decoding.generate import prefill
from ..decoding.sampler import Sampler
from ..engine import Engine
from ..errors import ContextLengthError, OptionError
from ..memory import peak_resident, release_free, reset_peak
from ..threads import choose_threads
from .footprint import memory_now, model_facts, weights_resident
from .loops import read_prompt, write_tokens
from .plan import Plan
from .results import Memory, ProfileReport
from .roofline import PlainRead, peak_operations
from .split import marked, split_of
from .statistics import median
from .subject import Subject
from .trace import Span

_WARM = (32, 4)  # tokens read and written before anything is timed


class ProfileRun:
    """Measures `recipes` ({name: recipe, None for the bare base}) on a loaded engine as `plan` says.

    `progress(done, total, what)` is told about every step. Raises ContextLengthError, OptionError, BackendError, and
    what compiling a recipe raises, before anything is timed.
    """

    def __init__(
        self,
        engine: Engine,
        recipes: Mapping[str, Recipe | None],
        plan: Plan | None = None,
        *,
        source: str = "",
        load_s: float = 0.0,
        kernels_s: float | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self.engine, self.plan = engine, plan or Plan()
        self.plan.check(engine.model.config)
        if not recipes:
            raise OptionError("no recipe to profile; give at least one (None is the bare base)")
        self.subjects = [Subject(name, recipe, engine) for name, recipe in recipes.items()]
        self._shots = max(subject.shot_tokens for subject in self.subjects)
        self._check_context()
        for n in self.plan.threads:
            choose_threads(engine.model.ops.NAME, n)
        self.threads = self.plan.threads or (engine.threads.decode or cpu.usable_cores(),)
        self._threads_before = engine.threads
        rng = np.random.default_rng(self.plan.seed)
        self.ids = [int(i) for i in rng.integers(0, engine.model.config.vocab_size, self._longest())]
        self._fill = self.ids[: max(self.plan.depths) + self._shots]
        self.spans: list[Span] = []
        self._progress, self._done = progress, 0
        release_free()
        idle, idle_weights = memory_now(engine.model)
        self.report = ProfileReport(
            model=model_facts(engine, source),
            machine=machine.facts(),
            settings={**asdict(self.plan), "threads": list(self.threads), "methods": list(recipes)},
            load_s=load_s,
            kernels_s=kernels_s,
            idle_bytes=idle,
            idle_weights=idle_weights,
            methods=[subject.result for subject in self.subjects],
            when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            version=__version__,
        )

    def _check_context(self) -> None:
        limit = self.engine.model.config.max_position_embeddings
        for subject in self.subjects:
            if subject.shot_tokens and self.plan.longest + subject.shot_tokens > limit:
                raise ContextLengthError(
                    f"{subject.name} has {subject.shot_tokens} tokens of examples before each prompt, "
                    f"{self.plan.longest + subject.shot_tokens} in all; the model's context has {limit}: take a "
                    "smaller -p, -n or -d"
                )
            if subject.result.n_passes == 1 or not self.plan.prompt_lengths:
                continue
            if not self.plan.new_lengths:
                raise OptionError(f"{subject.name}: an earlier pass writes what the next one reads: give -n")
            needed = max(self.plan.depths) + max(self.plan.prompt_lengths) + self.plan.new_lengths[0]
            if needed > limit:
                raise ContextLengthError(
                    f"{subject.name} reads a prompt and writes behind it, {needed} tokens with the depth; the model's "
                    f"context has {limit}: take a smaller -p, -n or -d"
                )

    def _longest(self) -> int:
        return self.plan.longest + sum(self.plan.new_lengths[:1]) + self._shots

    def _use(self, threads: int) -> None:
        """For reading and writing. Where the plan says nothing, the engine's own numbers stay."""
        if self.plan.threads:
            self.engine.set_threads(threads)

    def _tell(self, what: str, done: int = 1) -> None:
        self._done += done
        if self._progress is not None:
            cases = len(list(self.plan.cases())) * len(self.threads)
            total = len(self.subjects) * (1 + cases * self.plan.repeats)
            self._progress(min(self._done, total), total, what)

    # ------------------------------------------------------------------------------------------------- the run

    def run(self) -> ProfileReport:
        """Everything; the report is `self.report` as well, also when this was interrupted."""
        report, watch = self.report, machine.Watch()
        try:
            for subject in self.subjects:  # a recipe that does not fit is refused before minutes are spent
                self.engine.compile(subject.recipe)
            for subject in self.subjects:
                self._tell(subject.name, 0)
                self.spans.append(subject.compile(self.plan.repeats))
                self._memory(subject)
                self._tell(subject.name)
            plain = PlainRead()
            for n in self.threads:
                self._use(n)
                report.peak_operations[str(n)] = peak_operations(self.engine.model.ops, self.engine.threads.decode)
                for subject in self.subjects:
                    self._warm(subject)
            for index in range(self.plan.repeats):
                self._round(index, plain)
        except KeyboardInterrupt:
            report.interrupted = True
            raise
        finally:
            before = self._threads_before
            self.engine.set_threads(before.decode, before.prefill)
            report.disturbance = watch.report()
            report.notes = self._notes()
        return report

    def _memory(self, subject: Subject) -> None:
        """Fill the longest context with nothing else in memory; see `Memory`."""
        model, context = self.engine.model, self.plan.longest + subject.shot_tokens
        release_free()
        exact = reset_peak()
        cache = KVCache(model.config, self.engine.cache_dtype)
        sampler = Sampler(self.plan.sampling)
        n_written = min(_WARM[1], context - 1)
        adapter = subject.compiled[-1]
        if context - n_written:
            prefill(model, self.ids[: context - n_written], cache, adapter)
        write_tokens(model, self.ids[context - n_written : context], cache, adapter, sampler)
        subject.result.memory = Memory(
            context=context,
            peak=peak_resident(),
            weights=weights_resident(model),
            adapters=subject.held_bytes,
            kv_cache=cache.nbytes,
            peak_is_exact=exact,
        )

    def _warm(self, subject: Subject) -> None:
        model, n_read, n_written = self.engine.model, min(_WARM[0], len(self.ids)), min(_WARM[1], len(self.ids))
        with marked(model):
            for adapter in subject.compiled:
                cache = KVCache(model.config, self.engine.cache_dtype)
                read_prompt(model, self.ids[:n_read], cache, adapter, Sampler(self.plan.sampling))
                cache.truncate(0)
                write_tokens(model, self.ids[:n_written], cache, adapter, Sampler(self.plan.sampling))

    def _round(self, index: int, plain: PlainRead) -> None:
        subjects = self.subjects[::-1] if index % 2 else self.subjects
        for threads in self.threads:
            self._use(threads)
            for kind, length, depth in self.plan.cases():
                if kind == "decode" or not self.plan.new_lengths:
                    self.report.reads.append(plain(threads))
                for subject in subjects:
                    order = (False, True) if index % 2 == 0 else (True, False)
                    if kind == "prompt":
                        for clocked in order:
                            self._prompt(subject, threads, length, depth, clocked)
                    else:
                        steps = {clocked: self._decode(subject, threads, length, depth, clocked) for clocked in order}
                        ratios = subject.ratios.setdefault((threads, length, depth), [])
                        ratios += [a / b for a, b in zip(steps[True], steps[False], strict=True) if b > 0]
                        subject.result.decode_case(threads, length, depth).clock_cost = median(ratios)
                    self._tell(f"{subject.name}, {'read' if kind == 'prompt' else 'write'} {length} @ {depth}")

    # -------------------------------------------------------------------------------------------- one measurement

    def _prompt(self, subject: Subject, threads: int, length: int, depth: int, clocked: bool) -> None:
        case = subject.result.prompt_case(threads, length, depth, self._read_in_all(subject, length))
        model, last = self.engine.model, len(subject.compiled) - 1
        caches = [subject.cache(i, depth, self._fill) for i in range(last + 1)]
        between = self.plan.new_lengths[0] if last else 0
        seconds = 0.0
        gc.collect()
        with marked(model) if clocked else nullcontext() as marks:
            started = perf_counter()
            for i, adapter in enumerate(subject.compiled):
                sampler, cache = Sampler(self.plan.sampling), caches[i]
                n = length + subject.shot_tokens if i == 0 else between
                seconds += read_prompt(model, self.ids[depth : depth + n], cache, adapter, sampler, marks)[0]
                if i < last:
                    write_tokens(model, self.ids[depth + n : depth + n + between], cache, adapter, sampler, marks)
            whole = perf_counter() - started
        if marks is None:
            case.read_s.append(seconds)
            case.first_token_s.append(whole)
        else:
            case.split = case.split.plus(split_of(marks.steps, whole, 1))
            self._keep(Span(case.label, started, whole, subject.name, {"threads": threads}, marks.steps))

    def _decode(self, subject: Subject, threads: int, length: int, depth: int, clocked: bool) -> list[float]:
        case = subject.result.decode_case(threads, length, depth)
        model, adapter = self.engine.model, subject.compiled[-1]
        depth += subject.shot_tokens
        cache = subject.cache(len(subject.compiled) - 1, depth, self._fill)
        ids, sampler = self.ids[depth : depth + length], Sampler(self.plan.sampling)
        gc.collect()
        if not clocked:
            started = perf_counter()
            steps = write_tokens(model, ids, cache, adapter, sampler)
            case.write_s.append(perf_counter() - started)
            case.runs.append(steps)
            return steps
        with marked(model) as marks:
            started = marks.ended = perf_counter()
            steps = write_tokens(model, ids, cache, adapter, sampler, marks)
            whole = perf_counter() - started
        case.split = case.split.plus(split_of(marks.steps, whole, length))
        self._keep(Span(case.label, started, whole, subject.name, {"threads": threads}, marks.steps))
        return steps

    def _keep(self, span: Span) -> None:
        """The last one of a kind: a trace of every repeat would be long and say the same."""
        same = (span.name, span.track, span.args)
        self.spans = [old for old in self.spans if (old.name, old.track, old.args) != same]
        self.spans.append(span)

    def _read_in_all(self, subject: Subject, length: int) -> int:
        """Tokens that all passes read: examples before the prompt, and what an earlier pass of a pipeline wrote."""
        return length + subject.shot_tokens + (subject.result.n_passes - 1) * sum(self.plan.new_lengths[:1])

    def _notes(self) -> list[str]:
        report, notes = self.report, []
        if any(s.result.n_passes > 1 for s in self.subjects):
            notes.append(
                "a method of several passes: its first token comes after the earlier passes wrote their "
                f"{sum(self.plan.new_lengths[:1])} tokens; its decoding is the last pass's"
            )
        notes += [
            f"{s.name}: {s.shot_tokens} tokens of examples stand before every prompt, are read with it and lie behind "
            "every token that is written; an engine keeps them for its next request"
            for s in self.subjects
            if s.shot_tokens
        ]
        memories = [s.result.memory for s in self.subjects if s.result.memory is not None]
        if len(memories) > 1:
            notes.append(
                "all methods ran in one process: memory that earlier ones left with the allocator is in the rest of "
                "later ones; profile one alone for its own peak"
            )
        if any(not memory.peak_is_exact for memory in memories):
            notes.append("this system cannot start a new peak of memory: a method's peak includes what came before it")
        if max(self.threads) > (report.machine.get("cores") or max(self.threads)):
            notes.append(f"more threads ({max(self.threads)}) than cores: threads wait for each other")
        closures = [c.split.closure for s in self.subjects for c in s.result.decodes if c.split.steps]
        if any(abs(closure - 1) > 0.03 for closure in closures):
            notes.append("the parts of the split do not add up to the whole within 3 %: do not believe them")
        return notes + machine.warnings(report.disturbance, report.machine)


def measure(engine: Engine, recipes: Mapping[str, Recipe | None], plan: Plan | None = None) -> ProfileReport:
    """Profile recipes on a loaded engine; see `ProfileRun`."""
    return ProfileRun(engine, recipes, plan, source=engine.tokenizer.origin).run()
