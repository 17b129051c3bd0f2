"""The folder of an evaluation: what is made of its lines, as tables, pages and comparisons."""

from __future__ import annotations

import json
from pathlib import Path

from edgecal.benchmark import between_methods, between_runs, read_report, trend
from edgecal.benchmark.judge import judged
from edgecal.benchmark.page import to_html
from edgecal.benchmark.results import ResultFolder
from edgecal.benchmark.tables import rows, to_csv, to_latex, to_markdown
from edgecal.errors import BenchmarkError

from ..mutate import lines
from ..target import Target

_FILES = ("config.json", "answers.jsonl", "costs.jsonl", "examples.jsonl", "verdicts.jsonl", "notes.json")
"""An input is these, one behind the other, each under a line `#NAME`."""


def prepare(folder: Path) -> list[bytes]:
    (folder / "results").mkdir()
    config = {"model": "demo", "tasks": ["summarize"], "data": {"": "mini"}, "about": {"size": 3.0}}
    config["methods"] = [{"name": "linear", "method": "linear", "shots": 1}]
    scores = {"language": "en", "rouge1": 0.5, "rouge2": 0.25, "rougeL": 0.4, "weighted_rouge": 0.4}
    scores |= {"copy_rate": 0.1, "failure": ""}
    answer = {"task": "summarize", "method": "linear", "id": "e1", "text": "A greeting.", "finish_reason": "stop"}
    answer |= {"scores": scores, "prompt_tokens": 9, "reused_tokens": 0, "new_tokens": 4, "first_token_s": 0.2}
    answer |= {"total_s": 0.5, "fingerprint": "0" * 16}
    failed = {"task": "summarize", "method": "multi_step", "id": "e1", "error": "too long", "fingerprint": "0" * 16}
    cost = {"task": "summarize", "method": "linear", "n_passes": 1, "adapter_parameters": 10, "adapter_bytes": 40}
    cost |= {"extra_parameters": 0, "extra_bytes": 0, "answered": 1, "total_s": 1.5, "peak_bytes": 5, "threads": 2}
    example = {"task": "summarize", "id": "e1", "input": "Ann: hi", "references": ["A greeting."]}
    verdict = {"judge": "demo", "task": "summarize", "method": "linear", "id": "e1", "verdict": 1, "said": "yes"}
    notes = {"n_left_out": {"summarize": 1}, "lacking": {"summarize": {"dam": "no calibration"}}}
    parts = dict(zip(_FILES, (config, answer, cost, example, verdict, notes), strict=True))
    text = "".join(f"#{name}\n{json.dumps(value)}\n" for name, value in parts.items())
    return [text.encode(), text.replace("#costs", json.dumps(failed) + "\n#costs").encode()]


def run(data: bytes, folder: Path) -> None:
    results = folder / "results"
    for name in _FILES:
        _, _, rest = data.partition(f"#{name}\n".encode())
        (results / name).write_bytes(rest.partition(b"#")[0])
    report = read_report(str(results))
    rows(report)
    between_methods(report, "linear")
    for write in (to_markdown, to_csv, to_latex):
        write(report)
    to_html(report, results)
    judged(ResultFolder(results).read("verdicts.jsonl"))
    try:
        trend({"a": report, "b": report}, "size")
    except BenchmarkError as error:  # they differ in nothing
        str(error)
    between_runs(report, report)


TARGET = Target(run, prepare, lines)
