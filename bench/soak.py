"""A long run: thousands of short answers with another recipe each time, and memory that must not grow.

    python -m bench.soak [--generations 2000] [--json bench/results/soak.json]

The model is the demo's. First through the Python API, in a process of its own: eight prompts by six recipes in turn
(the base alone, an adapter, two merges, a calibration, two passes), each answered over and over; every hundredth time
the compiled recipes are forgotten and an adapter is loaded anew. Then the same through the server (`edgecal serve`),
from four clients at a time, and every hundredth time an adapter's default scale is switched there and back.

Every answer must be the one that was given first, and the server's those of the API. Resident memory is read
throughout, without the pages of the model's file, which the system drops and reads again as it likes; what counts is
the median of the last tenth by that of the second tenth, when everything was used once and the prefix cache is full.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from edgecal import Engine, Recipe, Step, demo

from .machine import facts
from .serving import MODEL, PAIR, Client, resident, server

TOKENS = 8
CLIENTS = 4
EVERY = 100
OWN = "RssAnon"
_TEXTS = ("The meeting is on Monday.", "Ann: Are you there?\nBob: In five minutes.", "It rains.", "The train was late.")
PROMPTS = [f"{number}. Shorten this: {text}" for number, text in enumerate(_TEXTS * 2)]


def recipes() -> dict[str, dict[str, Any] | None]:
    """By name, as a request has them."""
    steps = [Step(PAIR[0], "Summarize this.")._asdict(), Step(PAIR[1], "Make it professional.")._asdict()]
    return {
        "base": None,
        "single": {"method": "single", "adapters": [PAIR[0]]},
        "linear": {"method": "linear", "adapters": list(PAIR)},
        "ties": {"method": "ties", "adapters": list(PAIR), "options": {"density": 0.5}},
        MODEL: {"method": MODEL, "adapters": list(PAIR), "calibration": MODEL},
        "steps": {"method": "multi_step", "steps": steps},
    }


def work(number: int) -> tuple[str, str]:
    """(recipe, prompt) of the nth answer: every pair of them comes, and no two neighbours have one recipe."""
    names = list(recipes())
    return names[number % len(names)], PROMPTS[number // len(names) % len(PROMPTS)]


class Memory:
    """Samples of resident memory over a run of `total` answers."""

    def __init__(self, total: int, read: Callable[[], int]) -> None:
        self._total, self._read = total, read
        self.samples: list[int] = []
        self.places: list[int] = []

    def look(self, done: int) -> None:
        if done % max(self._total // 200, 1) == 0:
            self.samples.append(self._read())
            self.places.append(done)

    def found(self) -> dict[str, Any]:
        def part(low: float, high: float) -> float:
            return median(s for s, at in zip(self.samples, self.places, strict=True) if low <= at / self._total <= high)

        early, late = part(0.1, 0.2), part(0.9, 1.0)
        return {"early_bytes": early, "late_bytes": late, "growth": late / early - 1}


def through_the_api(total: int) -> dict[str, Any]:
    """The figures, and `answers`: the text of every pair of recipe and prompt."""
    engine = Engine.load("demo", adapters={name: demo.find(f"demo:{name}") for name in PAIR})
    made = {name: _recipe(values) for name, values in recipes().items()}
    memory, answers, wrong = Memory(total, lambda: resident(os.getpid(), OWN)), dict[str, str](), 0
    began = perf_counter()
    for number in range(total):
        if number % EVERY == EVERY - 1:
            engine.forget_compiled()
            engine.add_adapter(demo.find(f"demo:{PAIR[number // EVERY % 2]}"), PAIR[number // EVERY % 2])
        name, prompt = work(number)
        text = engine.generate(prompt, recipe=made[name], max_tokens=TOKENS).text
        wrong += answers.setdefault(f"{name}\n{prompt}", text) != text
        memory.look(number)
    seconds = perf_counter() - began
    return {"generations": total, "wrong": wrong, "seconds": seconds, **memory.found(), "answers": answers}


def _recipe(values: dict[str, Any] | None) -> Recipe | None:
    if values is None:
        return None
    place = {"calibration": demo.find(f"demo:{values['calibration']}")} if "calibration" in values else {}
    return Recipe.from_dict(values | place)


async def through_the_server(total: int, wanted: dict[str, str]) -> dict[str, Any]:
    async with server() as (client, pid):
        memory, begun, done, wrong = Memory(total, lambda: resident(pid, OWN)), 0, 0, 0

        async def one() -> None:
            nonlocal begun, done, wrong
            while begun < total:
                number, begun = begun, begun + 1
                name, prompt = work(number)
                asked = {"messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS}
                asked["recipe"] = recipes()[name] or "zero_shot"
                said = await ask(client, "/v1/chat/completions", asked)
                text = said["choices"][0]["message"]["content"]
                wrong += text != wanted.get(f"{name}\n{prompt}", text)
                if number % EVERY == EVERY - 1:
                    for scale in (1.0, 0.0):
                        await ask(client, "/lora-adapters", [{"id": 0, "scale": scale}])
                done += 1
                memory.look(done)

        began = perf_counter()
        await asyncio.gather(*(one() for _ in range(CLIENTS)))
        return {"generations": total, "wrong": wrong, "seconds": perf_counter() - began, **memory.found()}


async def ask(client: Client, path: str, value: Any) -> Any:
    body = json.dumps(value).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(head.encode() + body)
    status, _, content = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b" 200 " in status.split(b"\r\n")[0], content[:600]
    return json.loads(content)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--api", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.api:
        print(json.dumps(through_the_api(arguments.generations)))
        return
    command = [sys.executable, "-m", "bench.soak", "--api", "--generations", str(arguments.generations)]
    api = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    answers = api.pop("answers")
    print("API    ", json.dumps(api), flush=True)
    served = asyncio.run(through_the_server(arguments.generations, answers))
    print("server ", json.dumps(served), flush=True)
    if arguments.json:
        found = {"machine": facts(), "api": api, "server": served}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(bool(api["wrong"] or served["wrong"] or max(api["growth"], served["growth"]) > 0.01))


if __name__ == "__main__":
    main()
