"""A judge's verdicts: what it is asked, what counts as one, that none is lost, and how far two agree."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from edgecal.benchmark import SUB_TASKS, Evaluation, Task
from edgecal.benchmark.judge import (
    VERDICTS,
    EndpointJudge,
    EngineJudge,
    agreement,
    criteria,
    find_judge,
    judge_answers,
    judged,
    question,
    verdict,
)
from edgecal.benchmark.results import ResultFolder
from edgecal.errors import BenchmarkError, ContextLengthError

TASKS = (*SUB_TASKS, Task("summarize", "witty", "german"), Task("reply"))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_requirement_for_each_part(task):
    said = criteria(task)
    assert len(said) == len(task.steps) and not any("{" in one for one in said)
    system, user = question(task, "the text", "the answer")
    assert "1 if" in system["content"] and all(one in user["content"] for one in said)
    assert user["content"].index("the text") < user["content"].index("the answer")


@pytest.mark.parametrize(
    ("said", "expected"),
    [("1", 1), (" 0\n", 0), ("1.", None), ("yes", None), ("", None), ("10", None), ("0 because", None), ("１", None)],
)
def test_only_a_one_or_a_zero_is_a_verdict(said, expected):
    assert verdict(said) is expected


class Scripted:
    """Says what it is told to, by the text of the answer."""

    def __init__(self, name, say, fails=()):
        self.name, self._say, self._fails, self.asked = name, say, fails, 0

    def ask(self, questions):
        found = []
        for _, user in questions:
            answer = user["content"].partition("Answer:\n")[2].partition("\n\nRequirements")[0]
            if answer in self._fails:
                raise ContextLengthError("too long")
            self.asked += 1
            found.append(self._say(answer))
        return found


@pytest.fixture(scope="module")
def results(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("judged") / "out"
    Evaluation(config, out).run()
    return out


@pytest.fixture
def out(results, tmp_path):
    return shutil.copytree(results, tmp_path / "out")


def test_every_answer_is_judged_once_and_nothing_is_guessed(out):
    judge = Scripted("first", lambda text: "1" if len(text) % 2 else "maybe")
    judge_answers(out, judge)
    lines, answers = list(ResultFolder(out).read(VERDICTS)), list(ResultFolder(out).answers())
    assert [(x["task"], x["method"], x["id"]) for x in lines] == [(x["task"], x["method"], x["id"]) for x in answers]
    expected = [1 if len(x["text"]) % 2 else None for x in answers]
    assert [x["verdict"] for x in lines] == expected and {x["said"] for x in lines} == {"1", "maybe"}
    asked = judge.asked
    judge_answers(out, judge)
    assert judge.asked == asked == len(answers), "what is judged is not asked again"
    whole = (out / VERDICTS).read_bytes()
    (out / VERDICTS).write_bytes(whole[:-30])
    judge_answers(out, judge)
    assert judge.asked == asked + 1 and (out / VERDICTS).read_bytes() == whole
    rows = judged(lines)
    assert sum(len(said) for said in rows.values()) == len(answers)


def test_a_question_that_does_not_fit_is_no_verdict(out):
    answers = list(ResultFolder(out).answers())
    long = answers[3]["text"]
    judge_answers(out, Scripted("small", lambda text: "0", fails=(long,)))
    lines = list(ResultFolder(out).read(VERDICTS))
    assert len(lines) == len(answers)
    assert all((x["verdict"] is None) == (a["text"] == long) for x, a in zip(lines, answers, strict=True))
    assert "not asked: too long" in {x["said"] for x in lines}


def test_agreement_by_hand():
    """Of four answers 1 1 0 0 and 1 0 0 none: three agree; by chance 0.5 * 0.25 + 0.5 * 0.75 = 0.5, kappa 0.5."""
    lines = [
        {"judge": judge, "task": "t", "method": "m", "id": i, "verdict": value}
        for judge, values in (("a", (1, 1, 0, 0)), ("b", (1, 0, 0, None)))
        for i, value in enumerate(values)
    ]
    found = agreement(lines, "a", "b")
    assert (found.n, found.share, found.kappa) == (4, 0.75, pytest.approx(0.5))
    assert agreement(lines[4:], "b", "b").kappa == 1
    with pytest.raises(BenchmarkError, match="have judged no answer in common"):
        agreement(lines, "a", "c")


class Server(BaseHTTPRequestHandler):
    bodies: list[dict] = []  # noqa: RUF012 - of one test at a time
    keys: list[str | None] = []  # noqa: RUF012
    answer: tuple[int, object] = (200, {"choices": [{"message": {"content": "1"}}]})

    def log_message(self, *args):
        """Silence."""

    def do_POST(self):
        Server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        Server.keys.append(self.headers.get("Authorization"))
        code, content = Server.answer
        raw = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(Server, "bodies", [])
    monkeypatch.setattr(Server, "keys", [])
    made = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}/v1"
    made.shutdown()
    thread.join()
    made.server_close()


def test_a_judge_behind_a_server(server, monkeypatch):
    monkeypatch.setenv("EDGECAL_JUDGE_KEY", "secret")
    judge = find_judge(f"some/model@{server}")
    assert isinstance(judge, EndpointJudge) and "secret" not in judge.name
    asked = question(Task("reply"), "x", "y")
    assert judge.ask([asked, asked]) == ["1", "1"]
    body = Server.bodies[0]
    assert (body["model"], body["temperature"], body["messages"]) == ("some/model", 0, asked)
    assert Server.keys == ["Bearer secret"] * 2
    wrong = {"HTTP Error 401": (401, {"error": "no"}), "IndexError": (200, {"choices": []}), "TypeError": (200, 3)}
    for message, answer in wrong.items():
        monkeypatch.setattr(Server, "answer", answer)
        with pytest.raises(BenchmarkError, match=f"the judge at {server}: .*{message}") as caught:
            judge.ask([asked])
        assert "secret" not in str(caught.value)
    with pytest.raises(BenchmarkError, match="the judge at http://127.0.0.1:9/v1: URLError"):
        find_judge("m@http://127.0.0.1:9/v1").ask([asked])


def test_a_model_of_this_engine_as_judge(config, out):
    judge = find_judge(config.model)
    assert isinstance(judge, EngineJudge)
    judge_answers(out, judge)
    lines = list(ResultFolder(out).read(VERDICTS))
    assert len(lines) == len(list(ResultFolder(out).answers())) and {x["judge"] for x in lines} == {config.model}
