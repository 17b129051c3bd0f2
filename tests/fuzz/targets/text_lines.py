"""JSON lines, JSON arrays and tables: examples of an evaluation, of a search, documents of a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edgecal.benchmark.datasets import load_examples
from edgecal.benchmark.tasks import parse_tasks
from edgecal.cli._prompts import read_lines
from edgecal.search.losses import read_examples
from edgecal.text.corpus import read_documents

from ..mutate import lines
from ..target import Target, all_of

_TASKS = parse_tasks(["summarize", "summarize+professional", "reply+french"])
_SETS = ("", "dialogsum:", "samsum:", "dialogsumx:", "persona_chat:", "tones:")


def prepare(folder: Path) -> list[bytes]:
    own = {"id": "e1", "input": "Ann: hi", "reference": "A greeting.", "tone": "professional"}
    many = [own, {"text": "x", "references": ["a", "b"], "language": "french"}, {"prompt": "p", "target": "t"}]
    many += [{"fname": "t1", "dialogue": "d", "summary": "s"}, {"dialogue": ["a", "b"], "summary1": "s", "id": 3}]
    as_lines, as_table = "\n".join(map(json.dumps, many)), 'id,input,reference\n1,a,b\n2,"c\nd",e\n'
    return [text.encode() for text in (as_lines, json.dumps(many), as_table, "a\tb\n")]


def run(data: bytes, folder: Path) -> None:
    reads: list[Callable[[], object]] = []
    for ending in (".jsonl", ".csv", ".tsv"):
        path = folder / f"lines{ending}"
        path.write_bytes(data)
        reads += [partial(load_examples, f"{kind}{path}", task) for task in _TASKS for kind in _SETS]
        reads += [partial(read_examples, path, "Shorten"), partial(read_documents, path)]
        reads.append(partial(read_lines, str(path)))
    all_of(reads)


TARGET = Target(run, prepare, lines)
