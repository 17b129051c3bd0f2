"""llama.cpp's routes, adapters that come and go at run time, and what the page asks."""

from __future__ import annotations

import json

import httpx
import pytest

from edgecal import Recipe
from edgecal.benchmark.datasets import load_examples
from edgecal.benchmark.tasks import Task
from tests.server.conftest import ADAPTERS, Running

HI = [{"role": "user", "content": "Say hi"}]


@pytest.fixture
def http(server: Running) -> httpx.Client:
    with server.client() as client:
        yield client


def said(http: httpx.Client, **body) -> str:
    found = http.post("/v1/chat/completions", json={"messages": HI, "max_tokens": 15, **body})
    assert found.status_code == 200, found.text
    return found.json()["choices"][0]["message"]["content"]


def test_state(http, server, alone):
    assert http.get("/health").json() == {"status": "ok"}
    props = http.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 512 and props["total_slots"] == 8
    slots = http.get("/slots").json()
    assert len(slots) == 8 and not any(slot["is_processing"] for slot in slots)
    assert http.get("/v1/models").json()["data"][0]["meta"] == {
        "kind": "base", "n_ctx": 512, "n_vocab": alone.model.config.vocab_size,
    }  # fmt: skip


def test_metrics_count(http):
    def values() -> dict[str, float]:
        lines = [line for line in http.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    before = values()
    usage = http.post("/v1/chat/completions", json={"messages": HI, "max_tokens": 7}).json()["usage"]
    after = values()
    gained = {name: after[name] - before[name] for name in after if name in before}
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert gained["llamacpp:prompt_tokens_total"] == usage["prompt_tokens"] - cached
    assert gained["llamacpp:tokens_predicted_total"] == usage["completion_tokens"]
    assert gained["edgecal:cached_tokens_total"] == cached and gained["edgecal:requests_total"] == 1
    assert after["llamacpp:requests_processing"] == after["llamacpp:requests_deferred"] == 0


def test_tokens_and_templates(http, alone):
    text = "the cat: naïve 🙂"
    ids = alone.tokenizer.encode(text)
    assert http.post("/tokenize", json={"content": text}).json() == {"tokens": ids}
    pieces = http.post("/tokenize", json={"content": text, "with_pieces": True}).json()["tokens"]
    assert [piece["id"] for piece in pieces] == ids
    assert http.post("/detokenize", json={"tokens": ids}).json() == {"content": text}
    prompt = http.post("/apply-template", json={"messages": HI}).json()["prompt"]
    assert prompt == alone.tokenizer.apply_chat_template(HI)
    for path, body in (("/detokenize", {"tokens": [10**9]}), ("/tokenize", {}), ("/tokenize", {"content": "\ud800"})):
        assert http.post(path, content=json.dumps(body)).status_code == 400


def test_scales_of_adapters(http, alone):
    listed = http.get("/lora-adapters").json()
    assert [(one["id"], one["name"], one["scale"]) for one in listed] == [(i, n, 0.0) for i, n in enumerate(ADAPTERS)]
    base = said(http)
    assert http.post("/lora-adapters", json=[{"id": 0, "scale": 1.0}]).json() == {"success": True}
    try:
        assert said(http) == alone.generate(HI, recipe="summarize", max_tokens=15).text != base
        assert said(http, model="french") == alone.generate(HI, recipe="french", max_tokens=15).text
        assert said(http, lora=[]) == base
    finally:
        http.post("/lora-adapters", json=[])
    assert said(http) == base
    assert http.post("/lora-adapters", json=[{"id": 7}]).status_code == 400


def test_adapters_come_and_go(http, server, folder):
    assert http.post("/v1/load_lora_adapter", json={"lora_name": "more", "lora_path": "more"}).status_code == 200
    assert "more" in [one["id"] for one in http.get("/v1/models").json()["data"]]
    first = said(http, model="more")
    replaced = {"lora_name": "more", "lora_path": "french"}
    assert http.post("/v1/load_lora_adapter", json=replaced).status_code == 200
    assert said(http, model="more") == said(http, model="french") != first
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "more"}).status_code == 200
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "more"}).status_code == 404
    found = http.post("/v1/unload_lora_adapter", json={"lora_name": "summarize"})
    assert found.status_code == 400 and "is part of the recipe 'both'" in found.json()["error"]["message"]


def test_calibrations_come_and_go(http):
    again = {"calibration_name": "again", "calibration_path": "lcpp.safetensors"}
    assert http.post("/v1/load_calibration", json=again).status_code == 200
    recipe = {"method": "learnable_calibration_pp", "adapters": list(ADAPTERS[:2]), "calibration": "again"}
    assert said(http, recipe=recipe) == said(http, model="again") == said(http, model="lcpp")
    assert http.post("/v1/unload_calibration", json={"calibration_name": "again"}).status_code == 200
    assert "again" not in [one["id"] for one in http.get("/v1/models").json()["data"]]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("../model", 403),
        ("/etc/passwd", 403),
        ("link", 403),
        ("link/../../model", 403),
        (".", 403),
        ("nothing", 404),
        ("a\0b", 400),
        ("x" * 5000, 400),
        ("lcpp.safetensors", 400),
    ],
)
def test_only_the_folder_is_loaded_from(http, path, status):
    found = http.post("/v1/load_lora_adapter", json={"lora_name": "new", "lora_path": path})
    assert found.status_code == status, found.text
    assert "new" not in [one["id"] for one in http.get("/v1/models").json()["data"]]


@pytest.mark.parametrize("name", ["", "tiny", "both", "a/b", "x" * 101, "a\nb"])
def test_names_that_are_taken_or_none(http, name):
    assert http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": "more"}).status_code == 400


# -------------------------------------------------------------------------------------------------- the page


def test_what_the_page_can_do_is_what_is_loaded(http):
    tasks = http.get("/app/state").json()["tasks"]
    assert len(tasks) == 2 + 14
    both = tasks["summarize+professional"]
    names = [one["name"] for one in both["methods"]]
    assert {"zero_shot", "linear", "concat", "learnable_calibration_pp", "multi_step"} <= set(names)
    assert both["lacking"]["projection_merge"].startswith("no projection_merge file")
    assert tasks["reply+french"]["lacking"]["linear"] == "no adapter for 'reply'"


def events(found: httpx.Response) -> list[tuple[str, dict]]:
    blocks = [block.split("\n") for block in found.text.strip().split("\n\n")]
    return [(head.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for head, data in blocks]


def test_an_answer_with_all_that_it_cost(http, server, alone, folder, monkeypatch):
    monkeypatch.setattr(server.served, "idle_bytes", 1 << 50)  # as if memory of the loading had gone back since
    example = load_examples("mini", Task("summarize", tone="professional")).examples[0]
    text = example.text[:200]
    body = {"text": text, "task": "summarize+professional", "max_tokens": 12, "references": list(example.references)}
    for method, recipe in (
        ("linear", Recipe("linear", ADAPTERS[:2])),
        ("learnable_calibration_pp",
         Recipe("learnable_calibration_pp", ADAPTERS[:2], calibration=str(folder / "adapters/lcpp.safetensors"))),
    ):  # fmt: skip
        found = events(http.post("/app/answer", json={**body, "method": method}))
        prompt = f"Summarize the following text and change its tone to professional\n\n{text}"
        wanted = alone.generate(prompt, recipe=recipe, max_tokens=12)
        assert "".join(data["text"] for kind, data in found if kind == "piece") == wanted.text
        kind, done = found[-1]
        assert kind == "done" and done["text"] == wanted.text and done["n_passes"] == 1
        assert done["scores"]["rouge1"] >= 0 and done["peak_bytes"] >= done["idle_bytes"] > 0
        assert (done["extra_parameters"] > 0) == (method != "linear")
    steps = events(http.post("/app/answer", json={**body, "method": "multi_step"}))[-1][1]
    assert steps["n_passes"] == 2 and len(steps["passes"]) == 2


def test_back_into_english(http):
    found = events(http.post("/app/back", json={"text": "Bonjour le monde", "language": "french"}))
    assert found[-1][0] == "done"
    assert http.post("/app/back", json={"text": "x", "language": "klingon"}).status_code == 400


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"text": " ", "task": "summarize"}, "there is no text to work on"),
        ({"text": "x", "task": "french"}, "'french' has no main task"),
        ({"text": "x", "task": "summarize+klingon"}, "'klingon' is unknown"),
        ({"text": "x", "task": 3}, "task must be a name"),
        ({"text": "x", "task": "reply+french", "method": "ties"}, "cannot do reply.french here: no adapter"),
        ({"text": "x", "task": "summarize", "method": "magic"}, "there is no such method"),
        ({"text": "x" * 5000, "task": "summarize", "method": "zero_shot"}, "the model's context"),
    ],
)  # fmt: skip
def test_refusals_of_the_page_s_routes(http, body, text):
    import re

    found = http.post("/app/answer", json=body)
    assert found.status_code == 400 and re.search(text, found.json()["error"]["message"]), found.text


def test_threads_of_the_page(http, server):
    before = server.engine.threads.decode
    assert http.post("/app/settings", json={"threads": 1}).json() == {"threads": 1}
    assert server.engine.threads.decode == 1
    assert http.post("/app/settings", json={"threads": 0}).status_code == 400
    http.post("/app/settings", json={"threads": before})


def test_files_of_the_page(http):
    page = http.get("/")
    assert page.status_code == 200 and "script-src 'self'" in page.headers["content-security-policy"]
    sizes = {name: len(http.get(f"/{name}").content) for name in ("", "app.js", "style.css", "icon.svg", "icon.png")}
    assert all(sizes.values()) and sum(sizes.values()) < 200_000
    for path in ("/nothing", "/../pyproject.toml", "/page/app.js", "/%2e%2e/app.py"):
        assert http.get(path).status_code == 404
    assert http.get("/v1/chat/completions").status_code == 405
