"""What drafts, batches and reused prefixes gain on real text, and what choosing a token costs.

    python -m bench.decoding --data dialogues.jsonl [--json bench/results/decoding.json]

The model is the demo's (`edgecal pull demo`), the texts are the `dialogue` fields of the file's lines. Every comparison
is made in one process, the settings in turn, round by round; a time is the median of its rounds, a ratio one of sums of
such medians over all texts. Each run with drafts or in a batch is checked against the plain one: the same ids.

Drafts: decoding alone (what comes after the first token), for tasks that copy a lot, a little and hardly at all; "worst
text" is the smallest ratio of a single text. Batches: whole answers, prompts read included, against one by one without
drafts. Prefixes: time to the first token of a second request that shares all but its question with the first. Sampler:
ms per token for 151,936 logits, a peaked distribution.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from edgecal import Engine, Recipe, SamplingOptions, Settings, demo, instruction, user_message
from edgecal.decoding.sampler import Sampler

from .machine import facts

VOCABULARY = 151_936
SAMPLERS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature 0.8": {"temperature": 0.8},
    "top-k 40": {"temperature": 0.8, "top_k": 40},
    "top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "top-p 0.95, nearly flat": {"temperature": 20.0, "top_p": 0.95},
    "min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "greedy, repetition penalty": {"repetition_penalty": 1.1},
}
Job = tuple[Recipe | None, str]


def tasks(texts: list[str]) -> dict[str, list[Job]]:
    composed = demo.recipes()["learnable_calibration_pp"]
    single = Recipe("single", ("summarize",))
    rewrite = "Correct the spelling mistakes in this text and repeat it completely:\n\n"
    story = "Write a short story about the sea, without using a name. It begins with: "
    return {
        "summary, professional (LC++)": [(composed, demo.prompt(composed, text)) for text in texts],
        "summary (one adapter)": [(single, user_message(instruction("summarize"), text)) for text in texts],
        "reply": [(None, user_message(instruction("reply"), text)) for text in texts],
        "rewrite": [(None, rewrite + text) for text in texts],
        "story": [(None, story + text[10:40]) for text in texts],
    }


def drafts(engine: Engine, jobs: list[Job], rounds: int, max_tokens: int) -> dict[str, float]:
    seconds: dict[str, list[list[float]]] = {"off": [[] for _ in jobs], "auto": [[] for _ in jobs]}
    drafted = accepted = tokens = 0
    for turn in range(rounds):
        for number, (recipe, prompt) in enumerate(jobs):
            ids = {}
            for speculate in ("off", "auto") if turn % 2 else ("auto", "off"):
                settings = Settings(max_tokens=max_tokens, speculate=speculate)  # type: ignore[arg-type]
                answer = engine.generate(prompt, recipe=recipe, settings=settings)
                seconds[speculate][number].append(answer.total_s - answer.first_token_s)
                ids[speculate] = [token.id for token in answer.tokens]
                drafted, accepted = drafted + answer.drafted_tokens, accepted + answer.accepted_tokens
            assert ids["off"] == ids["auto"], "a draft changed the text"
            tokens += len(ids["off"]) if turn == 0 else 0
    plain, fast = ([median(each) for each in seconds[name]] for name in ("off", "auto"))
    return {
        "tokens": tokens,
        "speed_up": sum(plain) / sum(fast),
        "worst_text": min(a / b for a, b in zip(plain, fast, strict=True) if b),
        "drafted": drafted / rounds,
        "accepted": accepted / rounds,
        "acceptance_rate": accepted / max(drafted, 1),
    }


def batches(engine: Engine, jobs: list[Job], rounds: int, max_tokens: int) -> dict[str, float]:
    """Tokens per second of all jobs together; the key is the batch size, "alone" one by one."""
    recipes, prompts = [recipe for recipe, _ in jobs], [prompt for _, prompt in jobs]
    settings = Settings(max_tokens=max_tokens, speculate="off")
    names = ["alone", *(str(n) for n in (1, 2, 4, 8, 16) if n <= len(jobs))]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    counts = {}
    for _ in range(rounds):
        for name in names:
            began = perf_counter()
            if name == "alone":
                answers = [engine.generate(p, recipe=r, settings=settings) for r, p in jobs]
                wanted = [[token.id for token in answer.tokens] for answer in answers]
            else:
                answers = engine.generate_batch(prompts, recipes=recipes, settings=settings, batch_size=int(name))
            seconds[name].append(perf_counter() - began)
            assert [[token.id for token in answer.tokens] for answer in answers] == wanted, "company changed a text"
            counts[name] = sum(len(answer.tokens) for answer in answers)
    return {name: counts[name] / median(seconds[name]) for name in names}


def prefixes(engine: Engine, texts: list[str], rounds: int) -> dict[str, float]:
    """Seconds to the first token of a second question about a text, medians over texts and rounds."""
    found: dict[str, list[float]] = {"read_again": [], "reused": []}
    share = []
    for _ in range(rounds):
        for text in texts:
            for name, budget in (("read_again", 0), ("reused", 64 << 20)):
                engine.prefixes.clear()
                engine.prefixes.max_bytes = budget
                for question in ("How many people speak?", "What is it about?"):
                    answer = engine.generate(f"{text}\n\n{question}", settings=Settings(max_tokens=1))
                found[name].append(answer.first_token_s)
            share.append(answer.reused_tokens / answer.prompt_tokens)
    engine.prefixes.max_bytes = 0
    engine.prefixes.clear()
    return {name: median(values) for name, values in found.items()} | {"reused_share": median(share)}


def samplers(rounds: int) -> dict[str, float]:
    """ms per token."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((8, VOCABULARY)) * 3.5).astype(np.float32)
    for row in rows:
        row[rng.integers(VOCABULARY, size=5)] += 20
    result = {}
    for name, options in SAMPLERS.items():
        sampler, seconds = Sampler(SamplingOptions(seed=1, **options), range(500)), []
        for i in range(20 * rounds):
            began = perf_counter()
            sampler(rows[i % len(rows)])
            seconds.append(perf_counter() - began)
        result[name] = 1e3 * median(seconds)
    return result


def table(title: str, rows: dict[str, Any], form: Callable[[Any], str]) -> None:
    print(f"\n{title}")
    for name, row in rows.items():
        print(f"  {name:30s} {form(row)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    dialogues = dict.fromkeys(json.loads(x)["dialogue"] for x in arguments.data.read_text("utf-8").splitlines())
    texts = list(dialogues)[: arguments.texts]
    adapters = {name: demo.DATA / name for name in demo.ADAPTERS}
    engine = Engine.load(demo.find("demo"), adapters=adapters, prefix_cache=0, threads=arguments.threads)
    threads = engine.threads.decode
    jobs = tasks(texts)
    for each in jobs.values():  # everything loaded and compiled before a time counts
        engine.generate(each[0][1], recipe=each[0][0], settings=Settings(max_tokens=24, speculate=3))
    result: dict[str, Any] = {"machine": facts(), "threads": threads, "texts": len(texts), "rounds": arguments.rounds}
    result["sampler_ms"] = samplers(arguments.rounds)
    table(f"choosing from {VOCABULARY:,} logits", result["sampler_ms"], lambda ms: f"{ms:.3f} ms")
    result["prefixes_s"] = prefixes(engine, texts, arguments.rounds)
    table("second question about a text", result["prefixes_s"], lambda value: f"{value:.3f}")
    result["drafts"] = {}
    print("\ndrafts: decoding with speculate auto against off")
    for name, each in jobs.items():
        row = result["drafts"][name] = drafts(engine, each, arguments.rounds, arguments.max_tokens)
        print(
            f"  {name:30s} {row['speed_up']:.2f}x (worst text {row['worst_text']:.2f}x), accepted "
            f"{row['accepted']:.0f} of {row['drafted']:.0f} drafted ({100 * row['acceptance_rate']:.0f} %) "
            f"in {row['tokens']:.0f} tokens",
            flush=True,
        )
    mixed = [job for each in zip(*list(jobs.values())[:3], strict=True) for job in each][:16]
    result["batches_tokens_per_s"] = batches(engine, mixed, arguments.rounds, 48)
    table(
        f"{len(mixed)} answers with three recipes, by batch size",
        result["batches_tokens_per_s"],
        lambda r: f"{r:.1f}/s",
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
