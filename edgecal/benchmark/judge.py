"""A language model as judge: does an answer do all parts of its task, yes or no?

Paper 1's appendix A has a binary verdict on each answer; the criteria here are in our own words (judge.yaml), one for
each part of the task, so that a compositional answer has to meet all of them. What a judge says counts when it is 1 or
0 and nothing else; any other answer is a failure of the judge, counted as 0 and told apart, never guessed at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.request import Request, urlopen

from edgecal_weights.files import parse_json

from ..adapters.recipe_file import read_recipe
from ..completion import Settings
from ..engine import Engine
from ..errors import BenchmarkError, EdgecalError
from .prompts import Message
from .results import ResultFolder
from .tasks import Task

KEY_ENV = "EDGECAL_JUDGE_KEY"
VERDICTS = "verdicts.jsonl"
_CHUNK = 16
_SECONDS, _LARGEST = 120.0, 1 << 20  # of one answer
Progress = Callable[[int, int, str], None]


def criteria(task: Task) -> list[str]:
    """One requirement for each part of the task."""
    words = _words()
    language = (task.language or "").capitalize()
    tone = "paraphrase" if task.tone == "paraphrase" else task.tone and "tone"
    keys = [task.main, tone, task.language and "translate"]
    return [words[key].format(tone=task.tone, language=language) for key in keys if key]


def question(task: Task, text: str, answer: str) -> list[Message]:
    """What a judge is asked about one answer."""
    numbered = "\n".join(f"{number}. {one}" for number, one in enumerate(criteria(task), 1))
    asked = f"Text:\n{text}\n\nAnswer:\n{answer}\n\nRequirements:\n{numbered}\n\nAre all requirements met? 1 or 0:"
    return [{"role": "system", "content": _words()["system"]}, {"role": "user", "content": asked}]


def verdict(said: str) -> int | None:
    """1 or 0; None for anything else."""
    return {"1": 1, "0": 0}.get(said.strip())


class Judge(Protocol):
    """`name` is written beside its verdicts."""

    name: str

    def ask(self, questions: Sequence[Sequence[Message]]) -> list[str]:
        """What it says to each, in order."""


class EngineJudge:
    """Any model of this engine, greedily."""

    def __init__(self, model: str, **options: Any) -> None:
        self.name = model
        self._engine = Engine.load(model, **options)

    def ask(self, questions: Sequence[Sequence[Message]]) -> list[str]:
        answers = self._engine.generate_batch(list(questions), settings=Settings(max_tokens=4))
        return [answer.text for answer in answers]


class EndpointJudge:
    """A model behind an OpenAI-compatible server: `url` ends in /v1, the key is in $EDGECAL_JUDGE_KEY."""

    def __init__(self, url: str, model: str) -> None:
        self.name, self._url, self._model = f"{model} at {url}", url.rstrip("/"), model

    def ask(self, questions: Sequence[Sequence[Message]]) -> list[str]:
        """BenchmarkError says what the server said."""
        return [self._ask_one(messages) for messages in questions]

    def _ask_one(self, messages: Sequence[Message]) -> str:
        key = os.environ.get(KEY_ENV)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        body = {"model": self._model, "messages": list(messages), "temperature": 0, "max_tokens": 4}
        request = Request(f"{self._url}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urlopen(request, timeout=_SECONDS) as response:
                values = parse_json(response.read(_LARGEST))
            return str(values["choices"][0]["message"]["content"])
        except (OSError, HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
            raise BenchmarkError(f"the judge at {self._url}: {type(error).__name__}: {error}") from error


def find_judge(spelled: str, **options: Any) -> Judge:
    """`MODEL`, or `NAME@URL` for a server. BenchmarkError, and what loading a model raises."""
    name, at, url = spelled.partition("@")
    if at and url.startswith(("http://", "https://")):
        if not name:
            raise BenchmarkError(f"judge {spelled!r}: expected NAME@URL, the name that the server knows the model by")
        return EndpointJudge(url, name)
    return EngineJudge(spelled, **options)


def judge_answers(folder: str | Path, judge: Judge, *, progress: Progress | None = None) -> None:
    """Ask about every answer of a folder of results that this judge has not judged; verdicts are appended as they
    come."""
    results = ResultFolder(folder)
    results.config()
    results.mend(VERDICTS)
    texts = {(line["task"], line["id"]): line["input"] for line in results.read("examples.jsonl")}
    done = {_key(line) for line in results.read(VERDICTS) if line["judge"] == judge.name}
    every = [line for line in results.answers() if "text" in line]
    left = [line for line in every if _key(line) not in done]
    for at in range(0, len(left), _CHUNK):
        chunk = left[at : at + _CHUNK]
        asked = [question(Task.parse(x["task"]), texts[x["task"], x["id"]], x["text"]) for x in chunk]
        said = _ask(judge, asked)
        results.append(
            VERDICTS,
            [
                {"judge": judge.name, "task": x["task"], "method": x["method"], "id": x["id"], "said": words[:200]}
                | {"verdict": verdict(words)}
                for x, words in zip(chunk, said, strict=True)
            ],
        )
        if progress is not None:
            progress(len(every) - len(left) + at + len(chunk), len(every), judge.name)


def _ask(judge: Judge, asked: Sequence[Sequence[Message]]) -> list[str]:
    """One by one where a question cannot be asked (it does not fit the judge's context): that one is no verdict."""
    try:
        return judge.ask(asked)
    except BenchmarkError:
        raise
    except EdgecalError:
        said = []
        for one in asked:
            try:
                said += judge.ask([one])
            except EdgecalError as error:
                said.append(f"not asked: {error}")
        return said


def _key(line: dict[str, Any]) -> tuple[str, str, str]:
    return line["task"], line["method"], line["id"]


def _words() -> dict[str, str]:
    values = read_recipe(Path(__file__).parent / "judge.yaml")
    return {key: str(value) for key, value in values.items()}


# ------------------------------------------------------------------------------------------------------- summary


@dataclass(frozen=True)
class Agreement:
    """Of two judges on the answers that both judged: share of equal verdicts, and Cohen's kappa (None where both say
    the same of all)."""

    first: str
    second: str
    n: int
    share: float
    kappa: float | None


def judged(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], list[int | None]]:
    """By (judge, task, method): its verdicts."""
    found: dict[tuple[str, str, str], list[int | None]] = {}
    for line in lines:
        found.setdefault((line["judge"], line["task"], line["method"]), []).append(line["verdict"])
    return found


def agreement(lines: Sequence[dict[str, Any]], first: str, second: str) -> Agreement:
    """No verdict counts as 0, as in the shares. BenchmarkError where they have judged nothing in common."""
    each = [{_key(x): int(x["verdict"] or 0) for x in lines if x["judge"] == name} for name in (first, second)]
    common = each[0].keys() & each[1].keys()
    if not common:
        raise BenchmarkError(f"{first} and {second} have judged no answer in common")
    n = len(common)
    share = sum(each[0][key] == each[1][key] for key in common) / n
    yes = [sum(one[key] for key in common) / n for one in each]
    chance = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    return Agreement(first, second, n, share, (share - chance) / (1 - chance) if chance < 1 else None)
