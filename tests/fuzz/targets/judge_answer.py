"""What a server says that judges answers: read, kept as a verdict, and read again."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from unittest import mock

from edgecal.benchmark import judge
from edgecal.benchmark.results import ResultFolder

from ..mutate import json_text
from ..target import Target


def prepare(folder: Path) -> list[bytes]:
    (folder / "results").mkdir()
    message = {"role": "assistant", "content": "1"}
    answer = {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {"total": 9}}
    return [json.dumps(answer).encode()]


def run(data: bytes, folder: Path) -> None:
    results = ResultFolder(folder / "results")
    (results.path / judge.VERDICTS).unlink(missing_ok=True)
    with mock.patch.object(judge, "urlopen", lambda request, timeout: BytesIO(data)):
        [said] = judge.EndpointJudge("http://127.0.0.1:9/v1", "m").ask([[{"role": "user", "content": "?"}]])
    line = {"judge": "m", "task": "summarize", "method": "linear", "id": "e1", "said": said[:200]}
    results.append(judge.VERDICTS, [line | {"verdict": judge.verdict(said)}])
    judge.judged(results.read(judge.VERDICTS))


TARGET = Target(run, prepare, json_text)
