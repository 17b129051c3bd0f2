"""Rounds over processes: who is asked what, in which order, and what is kept.

A row (engine x file) has one process that lives for the whole run. Within a round every measure goes through all rows
before the next measure begins, so the figures that are divided by each other are taken seconds apart; odd rounds go
through the rows backwards. A ratio is formed within its round and the median is taken of the ratios: what slows the
whole machine down for a minute then hits both sides.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from edgecal_kernels.cpu import detect_isa

from .engines.worker import BASE, LCPP, LORA
from .models import Material, Row

PREFILLS, DEPTHS, DECODED, CONTEXT = (128, 512, 2048), (0, 1024), 64, 1024
SETTLE = 0.05  # seconds between two engines: thread pools that spin for a moment have stopped
LIMIT = 1800.0  # seconds after which an engine that does not answer is given up


class PeerError(Exception):
    """What an engine answered instead of a figure."""


@dataclass(frozen=True)
class Measure:
    """`call` with `arguments` gives seconds; `tokens` makes a rate of them (0: the seconds are the figure)."""

    name: str
    call: str
    arguments: tuple[tuple[str, int], ...] = ()
    tokens: int = 0
    variants: tuple[str, ...] = (BASE, LORA, LCPP)


def measures() -> list[Measure]:
    fast = [Measure(f"decode_{depth}", "decode", (("n", DECODED), ("depth", depth)), DECODED) for depth in DEPTHS]
    first = Measure("first_token", "first_token", variants=(BASE, LORA))
    long = [Measure(f"prefill_{n}", "prefill", (("n", n),), n) for n in PREFILLS]
    return [*fast, first, *long]


class Peer:
    """The process of one row."""

    def __init__(self, row: Row, material: Material, threads: int, torch_dtype: str) -> None:
        self.log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 (lives as long as the process)
        self.idle_cpu = self.idle = 0.0
        command = [sys.executable, "-m", "bench.peers.workers"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment(threads),
            cwd=Path(__file__).parents[2],
            text=True,
        )
        self._job: dict[str, Any] | None = {
            "engine": row.engine,
            "model": row.model,
            "threads": threads,
            "ids": material.ids,
            "adapters": material.adapters,
            "torch_dtype": torch_dtype,
        }

    def ask(self, call: str, **arguments: Any) -> dict[str, Any]:
        """PeerError with the engine's own words when it fails."""
        if self._job is not None:
            job, self._job = self._job, None
            self._send(**job)
            self.idle_cpu = self.idle = 0.0  # importing Python is not waiting
        return self._send(call=call, **arguments)

    def _send(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(f"process ended: {self._last_words()}") from None
        if not select.select([self.process.stdout], [], [], LIMIT)[0]:
            self.process.kill()  # a late answer would be taken for the next one's
            raise PeerError(f"no answer within {LIMIT:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise PeerError(f"process ended with {self.process.wait()}: {self._last_words()}")
        result: dict[str, Any] = json.loads(line)
        self.idle_cpu += result.pop("idle_cpu")
        self.idle += result.pop("idle")
        if "error" in result:
            raise PeerError(result["error"])
        return result

    def _last_words(self) -> str:
        self.log.seek(0)
        return (self.log.read().strip().splitlines() or ["no message"])[-1]

    def close(self) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


def environment(threads: int) -> dict[str, str]:
    """Of the workers: the same number of threads by whichever name, offline, and no setting of ours that slows one."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "OMP_", "GOMP_", "MKL_"))}
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    settings = {name: str(threads) for name in names}
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    return {**keep, **settings, **offline}


def other_instructions(system_info: str | None, isa: str) -> str | None:
    """What to say of an engine that was built for other instructions than edgecal runs (`isa`). `system_info` is the
    line in which llama.cpp and ik_llama.cpp list theirs; None for engines that have no such line."""
    if system_info is None or ("AVX512_VNNI = 1" in system_info) == (isa == "avx512vnni"):
        return None
    built = "for" if isa != "avx512vnni" else "without"
    return f"built {built} AVX-512 VNNI, while edgecal runs {isa}: these figures do not belong in one table"


@dataclass
class Figures:
    """Everything of one run. `samples[label, variant][measure][round]`: seconds, or None where not taken."""

    remarks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    memory: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    probes: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    samples: dict[tuple[str, str], dict[str, list[float | None]]] = field(default_factory=dict)
    reads: dict[str, list[float | None]] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)


class Run:
    """One comparison. `say` gets a line per step."""

    def __init__(
        self,
        material: Material,
        *,
        threads: int,
        rounds: int,
        skip: set[str],
        budget: float,
        torch_dtype: str,
        say: Callable[[str], None],
    ) -> None:
        self.material, self.threads, self.rounds, self.skip = material, threads, rounds, skip
        self.budget, self.torch_dtype, self.say = budget, torch_dtype, say
        self.figures = Figures()
        self.peers: dict[str, Peer] = {}
        self.variants: dict[str, list[str]] = {}

    def run(self) -> Figures:
        rows = [row for row in self.material.rows if row.engine not in self.skip]
        try:
            for row in rows:
                self.say(f"warm-up: {row.label}")
                self._warm_up(row)
            for index in range(self.rounds):
                self._round(index, [row for row in rows if row.label in self.peers])
            for label, peer in self.peers.items():
                self.figures.idle[label] = peer.idle_cpu / peer.idle if peer.idle else 0.0
        finally:
            for peer in self.peers.values():
                peer.close()
        return self.figures

    def _peer(self, row: Row) -> Peer:
        return Peer(row, self.material, self.threads, self.torch_dtype)

    # ------------------------------------------------------------------------------------------------ warm-up

    def _warm_up(self, row: Row) -> None:
        """Load, fill a context of 1,024 tokens for the peak of memory, run everything a little; times are dropped."""
        figures, label = self.figures, row.label
        if row.missing:
            figures.remarks[label].append(row.missing)
            return
        peer = self._peer(row)
        try:
            loaded = peer.ask("load")
        except PeerError as error:
            figures.remarks[label].append(str(error))
            peer.close()
            return
        self.peers[label] = peer
        self.variants[label] = []
        memory = {"imported": loaded["imported"], "loaded": loaded["loaded"]}
        for variant in loaded["variants"]:
            if variant in self.skip:
                continue
            try:
                peer.ask("prefill", variant=variant, n=CONTEXT)
                peer.ask("decode", variant=variant, n=8, depth=0)
                figures.memory[label, variant] = {**memory, **peer.ask("memory", variant=variant)}
                if (logits := peer.ask("probe", variant=variant)["value"]) is not None:
                    figures.probes[label, variant] = logits
                for depth in DEPTHS[1:]:
                    peer.ask("decode", variant=variant, n=8, depth=depth)
            except PeerError as error:
                figures.remarks[label].append(f"{variant}: {error}")
                continue
            self.variants[label].append(variant)
            figures.samples[label, variant] = defaultdict(list)
        if len(loaded["variants"]) == 1:
            figures.remarks[label].append("without LoRA only (not measured)")
        try:
            figures.facts[label] = facts = peer.ask("facts")
            if other := other_instructions(facts.get("system_info"), detect_isa()):
                figures.remarks[label].append(other)
        except PeerError as error:
            figures.remarks[label].append(f"facts: {error}")

    # ------------------------------------------------------------------------------------------------- rounds

    def _round(self, index: int, rows: list[Row]) -> None:
        rows = rows[::-1] if index % 2 else rows
        for measure in measures():
            if self.skip & {measure.name, measure.call}:
                continue
            for variant in measure.variants:
                for row in rows:
                    if variant in self.variants[row.label]:
                        self._sample(index, row, variant, measure)
                        # Beside the decode that it is compared with: bandwidth changes within a round as well
                        if (row.engine, variant, measure.name) == ("edgecal", BASE, "decode_0"):
                            self._read(row)
        if "start" not in self.skip:
            for row in rows:
                if BASE in self.variants[row.label]:
                    self._start(index, row)
        self.say(f"round {index + 1} of {self.rounds}: " + ", ".join(self._summary(index, rows)))

    def _summary(self, index: int, rows: list[Row]) -> Iterator[str]:
        for row in rows:
            seconds = self.figures.samples.get((row.label, BASE), {}).get("decode_0", [])
            if len(seconds) > index and (value := seconds[index]):
                yield f"{row.label} {DECODED / value:.1f}"

    def _sample(self, index: int, row: Row, variant: str, measure: Measure) -> None:
        samples = self.figures.samples[row.label, variant][measure.name]
        value: float | None = None
        # What takes minutes is measured once; a repeat would say nothing new and cost everyone else's quiet
        if not any(sample is not None and sample > self.budget for sample in samples):
            arguments: dict[str, Any] = dict(measure.arguments)
            if measure.call == "first_token":
                arguments["text"] = self.material.texts[index % len(self.material.texts)]
            sleep(SETTLE)
            try:
                value = self.peers[row.label].ask(measure.call, variant=variant, **arguments)["value"]
            except PeerError as error:
                self.figures.remarks[row.label].append(f"{measure.name}: {error}")
        samples.append(value)

    def _start(self, index: int, row: Row) -> None:
        """A second process from nothing to the first token of a prompt of 128 tokens; file pages are in memory."""
        samples = self.figures.samples[row.label, BASE]
        total: float | None = None
        load: float | None = None
        if not any(sample is not None and sample > self.budget for sample in samples["start"]):
            sleep(SETTLE)
            started = perf_counter()
            try:
                peer = self._peer(row)
                try:
                    load = peer.ask("load")["seconds"]
                    peer.ask("first_token", text=self.material.texts[index % len(self.material.texts)])
                    total = perf_counter() - started
                finally:
                    peer.close()
            except PeerError as error:
                self.figures.remarks[row.label].append(f"start: {error}")
        samples["start"].append(total)
        samples["load"].append(load)

    def _read(self, row: Row) -> None:
        if "read" in self.skip:
            return
        rates = self.figures.reads.setdefault(row.label, [])
        sleep(SETTLE)
        try:
            read = self.peers[row.label].ask("read_weights", passes=DECODED)
            rates.append(read["bytes"] / read["seconds"])
        except PeerError as error:
            self.figures.remarks[row.label].append(f"read: {error}")
            rates.append(None)
