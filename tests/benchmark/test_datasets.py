"""Data files become examples; what cannot is named by file and line, and the rest goes on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from edgecal.benchmark import SUB_TASKS, Task, load_examples
from edgecal.benchmark.datasets import DATASETS
from edgecal.benchmark.datasets.records import LONGEST_ROW
from edgecal.errors import BenchmarkError
from tests.cli.shell import SOURCES
from tests.weights.fake_hub import Repo, fake_hub

SUMMARY = Task("summarize")


def lines(path, *rows):
    path.write_bytes(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in rows))
    return path


@pytest.mark.parametrize("task", [*SUB_TASKS, SUMMARY, Task("reply")], ids=lambda task: task.name)
def test_mini_has_references_for_every_sub_task(task):
    found = load_examples("mini", task)
    assert len(found.examples) == 30 and not found.left_out
    assert all(len(e.references) == 1 and re.match(r"[^:\n]{1,20}: ", e.text) for e in found.examples)
    assert len({e.references[0] for e in found.examples}) == 30


def test_mini_differs_between_tasks():
    each = [load_examples("mini", task).examples[0].references[0] for task in SUB_TASKS]
    assert len(set(each)) == 14


def test_each_set_from_its_files(tmp_path):
    """One row of each, in the columns of the published files."""
    dialogue, speech = "#Person1#: Hi.\n#Person2#: Hello.", "User 1: Hi.\nUser 2: Hello.\n\nUser 1: Bye."
    lines(tmp_path / "test.jsonl", {"fname": "t1", "dialogue": dialogue, "summary1": "a", "summary2": "b"})
    assert load_examples(f"dialogsum:{tmp_path}", SUMMARY).examples[0].references == ("a", "b")
    lines(tmp_path / "train.jsonl", {"fname": "t1", "dialogue": dialogue, "summary": "a", "topic": "x"})
    assert load_examples(f"dialogsum:{tmp_path}", SUMMARY, "train").examples[0].id == "t1"
    (tmp_path / "test.json").write_text(json.dumps([{"id": "9", "dialogue": dialogue, "summary": "a"}]))
    assert load_examples(f"samsum:{tmp_path}", SUMMARY).examples[0].id == "9"
    text = f'user 1 personas,user 2 personas,Best Generated Conversation\r\n"a","b","{speech}"\r\n'
    (tmp_path / "Synthetic-Persona-Chat_test.csv").write_text(text)
    turns = load_examples(f"persona_chat:{tmp_path}", Task("reply")).examples
    assert [(e.text, e.references) for e in turns] == [("Hi.", ("Hello.",))], "an empty turn has no reply"
    (tmp_path / "en-fr.tsv").write_text('He said "no".\tIl a dit "non".\n')
    assert load_examples(f"parallel:{tmp_path}", Task(language="french")).examples[0].references == ('Il a dit "non".',)
    pairs = lines(tmp_path / "ted.jsonl", {"translation": {"en": "Thank you.", "fr": "Merci."}})
    assert load_examples(f"parallel:{pairs}", Task(language="french")).examples[0].references == ("Merci.",)
    (tmp_path / "paraphrase_tone.json").write_text(json.dumps([{"original": "x", "witty": "y"}]))
    assert load_examples(f"tones:{tmp_path}", Task(tone="witty")).examples[0].references == ("y",)
    lines(tmp_path / "x.jsonl", {"fname": "t1", "en_dialogue": dialogue, "en_summary": "a", "fr_summary": "b"})
    french = Task("summarize", language="french")
    assert load_examples(f"dialogsumx:{tmp_path}/x.jsonl", french).examples[0].references == ("b",)


def test_pairs_are_drawn_by_a_seed(tmp_path):
    rows = "".join(f'a,b,"User 1: q{i}\nUser 2: r{i}"\n' for i in range(1200))
    path = tmp_path / "Synthetic-Persona-Chat_test.csv"
    path.write_text(f"user 1 personas,user 2 personas,Best Generated Conversation\n{rows}")
    first, again, other = (load_examples(f"persona_chat:{tmp_path}", Task("reply"), seed=s).examples for s in (1, 1, 2))
    assert len(first) == 1000 == len({e.id for e in first}) and first == again != other


def test_rows_of_ones_own(tmp_path):
    path = lines(
        tmp_path / "mine.jsonl",
        {"id": "a", "input": "x", "references": ["1", "2"]},
        {"text": "y", "target": "3", "tone": "witty"},
        {"dialogue": "z", "reference": "4", "language": "French", "tone": None},
        {"input": "w", "output": "5", "task": "summarize+witty"},
    )
    witty, french = (load_examples(str(path), Task.parse(f"summarize+{word}")).examples for word in ("witty", "french"))
    assert [(e.id, e.text, e.references) for e in witty] == [
        ("a", "x", ("1", "2")),
        ("2", "y", ("3",)),
        ("4", "w", ("5",)),
    ]
    assert [e.text for e in french] == ["x", "z"]
    assert len(load_examples(str(path), SUMMARY, limit=1).examples) == 1


def test_what_cannot_be_used_is_named_and_the_rest_goes_on(tmp_path):
    path = lines(
        tmp_path / "rows.jsonl",
        b"\xef\xbb\xbf",
        {"input": "fine", "reference": "ok"},
        b"{not json\n",
        b'{"input": "caf\xe9", "reference": "x"}\n',
        b"[1, 2]\n",
        {"reference": "no text"},
        {"input": "x"},
        {"input": "x", "references": []},
        {"input": "x", "references": ["a", 3]},
        {"input": "x", "reference": "  "},
        {"input": "x", "reference": "y", "language": "Klingon"},
        {"input": "x", "reference": "y", "tone": "rude"},
        {"id": "2", "input": "twice", "reference": "z"},
        {"id": "2", "input": "twice", "reference": "z"},
        b'{"input": "' + b"x" * LONGEST_ROW + b'", "reference": "y"}\n',
        b"\n",
        {"input": "fine too", "reference": "ok"},
    )
    found = load_examples(str(path), SUMMARY)
    assert [e.text for e in found.examples] == ["fine", "twice", "fine too"]
    reasons = {int(x.place.rsplit(" ", 1)[1]): x.reason for x in found.left_out}
    expected = {
        2: "not valid JSON",
        3: "not valid JSON in UTF-8",
        4: "a list, expected an object",
        5: "no column 'input' or 'text'",
        6: "no column 'reference' or 'target'",
        7: "not an empty one",
        8: "a number, expected a text",
        9: "column 'reference' is empty",
        10: "unknown language 'Klingon'",
        11: "unknown tone 'rude'",
        13: "a second example with the id '2'",
        14: "bytes in a line, at most",
    }
    assert {number: expected[number] in reasons[number] for number in expected} == dict.fromkeys(expected, True)
    assert len(reasons) == len(expected) and all(str(path) in x.place for x in found.left_out)


@pytest.mark.parametrize(
    ("source", "task", "message"),
    [
        ("nowhere.jsonl", SUMMARY, "no data set or file 'nowhere.jsonl'; sets: mini, dialogsum"),
        ("dialogsum", SUMMARY, "dialogsum needs a place: dialogsum:FOLDER or dialogsum:hub:ORG/NAME"),
        ("dialogsum:FOLDER", SUMMARY, "no such file; dialogsum expects a folder with test.jsonl"),
        ("mini", Task("summarize", "casual", "french"), r"mini has no references for summarize\+casual\+french"),
        ("samsum:FOLDER", Task("reply"), "samsum has no references for reply"),
        ("own:FOLDER", SUMMARY, "own has no split 'test'"),
        ("FOLDER/empty.jsonl", SUMMARY, "has no example for summarize: 0 rows were left out"),
        ("FOLDER/bad.jsonl", SUMMARY, r"1 rows were left out; the first: .*bad.jsonl, line 1: not valid JSON"),
        ("persona_chat:FOLDER/latin.csv", Task("reply"), r"latin.csv, line 2: not UTF-8"),
        ("FOLDER/broken.json", SUMMARY, "broken.json is not valid JSON"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, source, task, message):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "broken.json").write_text('[{"input": 1},')
    (tmp_path / "latin.csv").write_bytes(b"Best Generated Conversation\n\xe9\n")
    with pytest.raises(BenchmarkError, match=message):
        load_examples(source.replace("FOLDER", str(tmp_path)), task)


def test_a_table_with_rows_of_other_lengths(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b,Best Generated Conversation\n1,2\n1,2,User 1: a,4\n")
    with pytest.raises(BenchmarkError, match="2 rows were left out; the first: .*line 2: fewer columns than"):
        load_examples(f"persona_chat:{path}", Task("reply"))


FETCH = """
import sys
from edgecal.benchmark import Task, load_examples
from edgecal.errors import EdgecalError
for source in sys.argv[1:]:
    try:
        print(load_examples(source, Task("summarize")).examples[0].id)
    except EdgecalError as error:
        print("refused:", error)
"""


def test_a_set_of_the_hub(tmp_path):
    """In a process of its own: the library reads its settings when it is imported."""
    row = json.dumps({"fname": "test_9", "dialogue": "#Person1#: Hi.", "summary": "a"}).encode()
    sources = ("dialogsum:hub:org/talk", "dialogsum:hub:org/talk@v1", "dialogsum:hub:org/other", "samsum:hub:org/talk")
    with fake_hub({"org/talk": Repo({"test.jsonl": row})}) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "PYTHONPATH": SOURCES}
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", FETCH, *sources]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    first, pinned, other, missing = done.stdout.splitlines()
    assert first == pinned == "test_9" and hub.fetched() == {"test.jsonl"}
    assert other.startswith("refused: test.jsonl of the data set org/other could not be fetched: 401")
    assert missing.startswith("refused: test.json of the data set org/talk could not be fetched: 404")


def test_every_set_says_its_licence():
    assert all(d.licence and d.about for d in DATASETS.values() if d.name != "own")
