"""What the server costs, and what it bears.

    python -m bench.serving [--seconds 120] [--rounds 5] [--json bench/results/serving.json]

The model is the demo's, the server a process of its own (`edgecal serve demo --batch 16`), the engine beside it in this
process; while one of them works the other waits. Three questions:

* one client: time to the first token and decoding speed of the same requests, through the server and from the engine,
  turn and turn about. Ratios are medians over requests; the first token has the server's own work in it, the speed is
  what the client's clock says.
* sixteen clients: the same answers as `Engine.generate_batch` with a batch of 16, in tokens per second of the whole.
* sixteen clients for `--seconds`: every answer is compared with the engine's own, one by one; nobody may wait for his
  first token longer than twice the mean of an answer; the server's memory after a quarter of the time and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from edgecal import Engine, Recipe, Settings, demo, user_message
from edgecal.benchmark.datasets import load_examples
from edgecal.benchmark.tasks import Task

from .machine import facts

CLIENTS = 16
PAIR = ("summarize", "professional")
MODEL = "learnable_calibration_pp"


class Client(NamedTuple):
    """Where the server is."""

    host: str
    port: int


def prompts(n: int) -> list[str]:
    """No two begin alike, so that nothing can be reused but the system message."""
    texts = [example.text for example in load_examples("mini", Task("summarize")).examples]
    return [user_message(f"{number}. {demo.TASK}", texts[number % len(texts)]) for number in range(n)]


def load() -> tuple[Engine, Recipe]:
    adapters = {name: demo.find(f"demo:{name}") for name in PAIR}
    engine = Engine.load("demo", adapters=adapters)
    recipe = Recipe(MODEL, PAIR, calibration=demo.find(f"demo:{MODEL}"))
    engine.compile(recipe)
    return engine, recipe


@asynccontextmanager
async def server() -> AsyncIterator[tuple[Client, int]]:
    command = [sys.executable, "-c", "from edgecal.cli import main; main()", "serve", "demo", "--port", "0", "--json"]
    process = subprocess.Popen([*command, "--batch", str(CLIENTS)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        host, _, port = url.removeprefix("http://").rstrip("/").partition(":")
        yield Client(host, int(port)), process.pid
    finally:
        process.terminate()
        process.wait(30)


async def answer(client: Client, prompt: str, max_tokens: int) -> tuple[str, list[float]]:
    """Its text, and when its pieces came. Written by hand: a client's library would take as long as the server, and of
    the same cores."""
    asked = {
        "model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "stream": True,
    }  # fmt: skip
    body = json.dumps(asked).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    began, events, times = perf_counter(), [], []
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(head.encode() + body)
    while b"[DONE]" not in (block := await reader.readuntil(b"\n\n")):
        if b"data: " in block:  # else a sign of life
            events.append(block)
            times.append(perf_counter() - began)
    writer.close()
    deltas = [json.loads(one[one.index(b"data: ") + 6 :])["choices"][0]["delta"] for one in events]
    assert deltas[0].get("role") == "assistant", events[0]
    return "".join(delta.get("content", "") for delta in deltas[1:]), times[1:]


async def one_client(client: Client, engine: Engine, recipe: Recipe, rounds: int) -> dict[str, float]:
    first, decode = [], []
    for number, prompt in enumerate(prompts(4 * rounds + 2)):
        took: dict[str, tuple[str, list[float]]] = {}
        for kind in ("server", "engine") if number % 2 else ("engine", "server"):
            if kind == "server":
                took[kind] = await answer(client, prompt, 64)
            else:
                began, text, times = perf_counter(), "", []
                for piece in engine.stream(prompt, recipe=recipe, settings=Settings(max_tokens=64)):
                    text += piece.text
                    times.append(perf_counter() - began)
                took[kind] = text, times
            await asyncio.sleep(0.1)
        assert took["server"][0] == took["engine"][0]
        if number >= 2:  # the first load kernels
            (_, a), (_, b) = took["server"], took["engine"]
            first.append(a[0] / b[0])
            decode.append((b[-1] - b[0]) / (a[-1] - a[0]))
    return {"first_token_ratio": median(first), "decode_ratio": median(decode), "requests": len(first)}


async def together(client: Client, engine: Engine, recipe: Recipe, rounds: int) -> dict[str, float]:
    asked, ratios, rates = prompts(2 * CLIENTS), [], []
    for number in range(rounds + 1):
        seconds: dict[str, float] = {}
        tokens = 0
        for kind in ("server", "engine") if number % 2 else ("engine", "server"):
            began = perf_counter()
            fresh = [f"Round {number}. {prompt}" for prompt in asked]
            if kind == "server":
                places = asyncio.Semaphore(CLIENTS)

                async def one(prompt: str, places: asyncio.Semaphore = places) -> str:
                    async with places:
                        return (await answer(client, prompt, 64))[0]

                said = await asyncio.gather(*(one(prompt) for prompt in fresh))
            else:
                answers = engine.generate_batch(
                    fresh, recipes=recipe, settings=Settings(max_tokens=64), batch_size=CLIENTS
                )
                wanted, tokens = [one.text for one in answers], sum(len(one.tokens) for one in answers)
            seconds[kind] = perf_counter() - began
        assert said == wanted, "the answers differ"
        if number:
            ratios.append(seconds["engine"] / seconds["server"])
            rates.append(tokens / seconds["server"])
    return {"throughput_ratio": median(ratios), "tokens_per_s": median(rates), "rounds": rounds}


def resident(pid: int, kind: str = "VmRSS") -> int:
    """Bytes, of the kind that Linux calls by this name: RssAnon leaves out the pages of files."""
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith(kind))
    return int(line.split()[1]) * 1024


async def soak(
    client: Client, pid: int, wanted: list[str], asked: list[str], seconds: float
) -> dict[str, Any]:
    waits: list[float] = []
    lengths: list[float] = []
    memory: list[tuple[float, int]] = []
    began, wrong = perf_counter(), 0

    async def one(number: int) -> None:
        nonlocal wrong
        while perf_counter() - began < seconds:
            text, times = await answer(client, asked[number % len(asked)], 48)
            wrong += text != wanted[number % len(asked)]
            waits.append(times[0])
            lengths.append(times[-1])
            number += CLIENTS + 1

    async def watch() -> None:
        while True:
            memory.append((perf_counter() - began, resident(pid)))
            await asyncio.sleep(1)

    watching = asyncio.ensure_future(watch())
    await asyncio.gather(*(one(number) for number in range(CLIENTS)))
    watching.cancel()
    early = [size for at, size in memory if seconds / 4 <= at <= seconds / 4 + 10]
    late = [size for at, size in memory if at >= seconds - 10]
    return {
        "answers": len(waits),
        "wrong_answers": wrong,
        "longest_wait_by_mean_answer": max(waits) / (sum(lengths) / len(lengths)),
        "longest_answer_by_mean": max(lengths) / (sum(lengths) / len(lengths)),
        "mean_answer_s": sum(lengths) / len(lengths),
        "memory_growth": median(late) / median(early) - 1,
        "memory_bytes": median(late),
    }


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    engine, recipe = load()
    asked = prompts(2 * CLIENTS)
    async with server() as (client, pid):
        found: dict[str, Any] = {"one_client": await one_client(client, engine, recipe, arguments.rounds)}
        print(json.dumps(found["one_client"]), flush=True)
        found["together"] = await together(client, engine, recipe, arguments.rounds)
        print(json.dumps(found["together"]), flush=True)
        wanted = [engine.generate(one, recipe=recipe, max_tokens=48).text for one in asked]
        found["soak"] = await soak(client, pid, wanted, asked, arguments.seconds)
        print(json.dumps(found["soak"]), flush=True)
    return {"machine": facts(), "seconds": arguments.seconds, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
