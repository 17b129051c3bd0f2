"""Tasks and the words in which they are asked."""

from __future__ import annotations

import pytest
import yaml

from edgecal.benchmark.prompts import SETS, load_prompts
from edgecal.benchmark.tasks import GROUPS, SUB_TASKS, Task, parse_tasks
from edgecal.errors import BenchmarkError
from edgecal.text.tasks import TASKS, user_message


def test_the_papers_benchmark():
    """Paper 1: 4 compositional tasks; translation into 3 languages and 4 tones for each of 2 main tasks."""
    assert GROUPS == ("summarize+translate", "summarize+tone", "reply+translate", "reply+tone")
    assert len(SUB_TASKS) == len(set(SUB_TASKS)) == 14
    assert [sum(task.kind == kind for task in SUB_TASKS) for kind in GROUPS] == [3, 4, 3, 4]


@pytest.mark.parametrize("task", [*SUB_TASKS, Task("reply", "witty", "german"), Task("summarize"), Task(tone="casual")])
def test_names_go_both_ways(task):
    assert Task.parse(task.name) == task
    assert [step.name for step in task.steps] == task.name.split("+")


def test_a_group_stands_for_its_sub_tasks():
    assert parse_tasks(["all"]) == list(SUB_TASKS)
    assert [t.name for t in parse_tasks(["reply+translate", "reply+french", "summarize"])] == [
        "reply+spanish",
        "reply+french",
        "reply+german",
        "summarize",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("summarise", "'summarise' is unknown"),
        ("summarize+reply", "'reply' is a second main"),
        ("summarize+french+german", "'german' is a second language"),
        ("", "'' is unknown"),
        ("summarize+", "'' is unknown"),
    ],
)
def test_what_is_no_task(name, message):
    with pytest.raises(BenchmarkError, match=message):
        Task.parse(name)


@pytest.mark.parametrize("name", SETS)
def test_every_set_has_words_for_every_task(name):
    prompts = load_prompts(name)
    triple = [Task(main, "casual", "french") for main in ("summarize", "reply")]
    single = [step for task in SUB_TASKS for step in task.steps]
    said = [prompts.instruction(task) for task in (*SUB_TASKS, *triple, *single)]
    assert len(set(said)) == len(SUB_TASKS) + 2 + len(set(single))
    assert all(text[0].isupper() and "{" not in text for text in said)


def test_paper1_has_the_words_that_the_adapters_know():
    prompts = load_prompts("paper1")
    for kind, words in TASKS.items():
        assert prompts.templates[kind] == words
    assert prompts.instruction(Task("summarize", language="french")) == (
        "Summarize the following text and translate it from English to French"
    )
    words = prompts.instruction(Task("reply", "paraphrase"))
    assert words == "Suggest a reply for the following text and paraphrase it"


def test_layouts():
    task = Task("summarize", "professional")
    user, system = load_prompts("paper1"), load_prompts("paper2")
    words = user.instruction(task)
    assert user.messages(task, "x") == [{"role": "user", "content": user_message(words, "x")}]
    assert system.messages(task, "x") == [{"role": "system", "content": words}, {"role": "user", "content": "x"}]
    assert user.shot(task, "in", "out") == (user_message(words, "in"), "out")
    assert system.shot(task, "in", "out") == ("in", "out")


def test_a_set_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"summarize": "In short", "summarize+tone": "In short, {tone}"}))
    prompts = load_prompts(str(path))
    assert prompts.instruction(Task("summarize", "witty")) == "In short, witty"
    assert prompts.digest != load_prompts("paper1").digest
    with pytest.raises(BenchmarkError, match="no words for reply; it has: summarize, summarize"):
        prompts.instruction(Task("reply"))
    for values, message in [
        ({"layout": "both"}, "layout is 'both'"),
        ({"summarize": 3}, "summarize is 3, expected a text"),
        ({"summarize": "{text}"}, "has the field {text}; there are {tone} and {language}"),
        ({"summarize": "{tone.__class__}"}, "has the field"),
        ({"summarize": "{tone!r}"}, "has the field"),
        ({"summarize": "a } b"}, "write {{ for a brace"),
    ]:
        path.write_text(yaml.safe_dump(values))
        with pytest.raises(BenchmarkError, match=message):
            load_prompts(str(path))
    with pytest.raises(BenchmarkError, match="no prompt set 'paper3': expected a file, or one of colon, paper1"):
        load_prompts("paper3")
