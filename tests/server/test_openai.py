"""Through OpenAI's own client: what it parses is what the engine gives."""

from __future__ import annotations

import json

import numpy as np
import openai
import pytest
from openai import OpenAI

from edgecal import Recipe
from tests.server.conftest import ADAPTERS, STEPS, Running

HI = [{"role": "user", "content": "Say hi"}]


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_models(client, server):
    assert [one.id for one in client.models.list()] == ["tiny", *ADAPTERS, "both", "steps", "lcpp"]
    assert client.models.retrieve("both").id == "both"
    with pytest.raises(openai.NotFoundError, match="there is no model 'nobody'; there are tiny, summarize"):
        client.models.retrieve("nobody")


def recipes(folder):
    calibration = str(folder / "adapters" / "lcpp.safetensors")
    return {
        "tiny": None,
        "summarize": Recipe("single", ("summarize",)),
        "both": Recipe("linear", ADAPTERS[:2]),
        "lcpp": Recipe("learnable_calibration_pp", ADAPTERS[:2], calibration=calibration),
        "steps": STEPS,
    }


@pytest.mark.parametrize("model", ["tiny", "summarize", "both", "lcpp", "steps"])
@pytest.mark.parametrize("stream", [False, True])
def test_chat_says_what_the_engine_says(client, alone, folder, model, stream):
    recipe = recipes(folder)[model]
    wanted = alone.generate("Say hi" if recipe and recipe.steps else HI, recipe=recipe, max_tokens=20)
    if not stream:
        found = client.chat.completions.create(model=model, messages=HI, max_tokens=20)
        text, reason, usage = found.choices[0].message.content, found.choices[0].finish_reason, found.usage
    else:
        chunks = list(
            client.chat.completions.create(
                model=model, messages=HI, max_tokens=20, stream=True, stream_options={"include_usage": True}
            )
        )
        assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices == []
        assert all(chunk.id == chunks[0].id for chunk in chunks)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
        assert set(reasons[:-1]) == {None}
        reason, usage = reasons[-1], chunks[-1].usage
    assert text == wanted.text
    assert reason == {"repetition": "stop", "context": "length"}.get(wanted.finish_reason, wanted.finish_reason)
    assert usage.prompt_tokens == wanted.prompt_tokens
    assert usage.completion_tokens == sum(one.new_tokens for one in wanted.passes)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens


def test_several_choices_have_seeds_of_their_own(client, alone):
    found = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=8, n=3, seed=5, temperature=1.0, top_p=0.9
    )
    said = [choice.message.content for choice in found.choices]
    assert said == [
        alone.generate(HI, max_tokens=8, temperature=1.0, top_p=0.9, seed=5 + i).text for i in range(3)
    ]
    assert [choice.index for choice in found.choices] == [0, 1, 2] and len(set(said)) > 1
    chunks = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=8, n=3, seed=5, temperature=1.0, top_p=0.9, stream=True
    )
    streamed = ["", "", ""]
    for chunk in chunks:
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == said


def log_softmax(logits):
    wide = logits.astype(np.float64)
    return wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())


def scores_of(engine, ids):
    from edgecal import KVCache

    cache = KVCache(engine.model.config)
    return [log_softmax(row) for row in engine.model.forward(np.array(ids), cache, all_logits=True)]


def test_logprobs_of_chat(client, alone):
    found = client.chat.completions.create(model="tiny", messages=HI, max_tokens=6, logprobs=True, top_logprobs=3)
    answer = alone.generate(HI, max_tokens=6)
    prompt, said = alone.encode(HI), [token.id for token in answer.tokens]
    rows = scores_of(alone, prompt + said)[len(prompt) - 1 :]
    entries = found.choices[0].logprobs.content
    assert len(entries) == len(said)
    for entry, token, row in zip(entries, said, rows, strict=False):
        assert entry.logprob == pytest.approx(row[token], abs=1e-5)
        assert [one.logprob for one in entry.top_logprobs] == pytest.approx(sorted(row)[:-4:-1], abs=1e-5)
        assert bytes(entry.bytes).decode() == entry.token


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
@pytest.mark.parametrize("as_ids", [False, True])
def test_echo_with_logprobs_is_teacher_forcing(client, alone, max_tokens, as_ids):
    """As EleutherAI's harness asks, which reads `token_logprobs` behind the context's length."""
    text = "The cat sat on the mat and "
    ids = alone.tokenizer.encode(text, add_special_tokens=True)
    found = client.completions.create(
        model="tiny", prompt=ids if as_ids else text, max_tokens=max_tokens, echo=True, logprobs=2, temperature=0
    )
    choice = found.choices[0]
    kept = choice.logprobs
    said = [t.id for t in alone.generate(text, raw=True, max_tokens=max_tokens).tokens] if max_tokens else []
    rows = scores_of(alone, ids + said)
    assert kept.token_logprobs[0] is None and kept.top_logprobs[0] is None
    wanted = [row[token] for row, token in zip(rows, (ids + said)[1:], strict=False)]
    assert kept.token_logprobs[1:] == pytest.approx(wanted, abs=1e-5)
    assert len(kept.tokens) == len(ids) + len(said) == len(kept.text_offset)
    assert choice.text.startswith(text) and "".join(kept.tokens) == choice.text
    for value, top, row in zip(kept.token_logprobs[1:], kept.top_logprobs[1:], rows, strict=False):
        assert max(top.values()) == pytest.approx(row.max(), abs=1e-5) and value in top.values()
    assert found.usage.completion_tokens == len(said) and found.usage.prompt_tokens == len(ids)


def test_likelihood_through_the_server_is_the_engine_s(client, alone):
    pairs = [("The cat sat", " on the mat"), ("Another text", " and its end"), ("x", " y z")]
    wanted = alone.loglikelihood(pairs)
    prompts = [alone.tokenizer.encode(a + b) for a, b in pairs]
    found = client.completions.create(model="tiny", prompt=prompts, max_tokens=1, echo=True, logprobs=1, temperature=0)
    for choice, (context, _), score in zip(found.choices, pairs, wanted, strict=True):
        n_context = len(alone.tokenizer.encode(context))
        values = choice.logprobs.token_logprobs[n_context:-1]
        tops = choice.logprobs.top_logprobs[n_context:-1]
        assert sum(values) == pytest.approx(score.total, abs=1e-4)
        assert all(v == max(t.values()) for v, t in zip(values, tops, strict=True)) == score.greedy


def test_completions_of_several_prompts(client, alone):
    prompts = ["One thing", "Another", "A third one"]
    found = client.completions.create(model="both", prompt=prompts, max_tokens=9, stop=["zzz"])
    wanted = [alone.generate(p, raw=True, max_tokens=9, recipe=Recipe("linear", ADAPTERS[:2])).text for p in prompts]
    assert [choice.text for choice in found.choices] == wanted
    streamed = ["", "", ""]
    for chunk in client.completions.create(model="both", prompt=prompts, max_tokens=9, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == wanted


def test_responses(client, alone):
    wanted = alone.generate([{"role": "system", "content": "Be short"}, *HI], max_tokens=12)
    found = client.responses.create(model="tiny", input="Say hi", instructions="Be short", max_output_tokens=12)
    assert found.output_text == wanted.text and found.usage.input_tokens == wanted.prompt_tokens
    assert found.status == ("incomplete" if wanted.finish_reason == "length" else "completed")
    events = list(
        client.responses.create(
            model="tiny", input=[{"role": "user", "content": [{"type": "input_text", "text": "Say hi"}]}],
            instructions="Be short", max_output_tokens=12, stream=True,
        )
    )  # fmt: skip
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * deltas,
        "output_text.done", "content_part.done", "output_item.done", found.status,
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type.endswith("text.delta")) == wanted.text
    assert events[-1].response.output_text == wanted.text
    assert events[-1].response.usage.output_tokens == found.usage.output_tokens


def test_compositions_on_the_fly(client, alone):
    for body, recipe in (
        ({"recipe": {"method": "ties", "adapters": ["summarize", "french"], "options": {"density": 0.5}}},
         Recipe("ties", ("summarize", "french"), options={"density": 0.5})),
        ({"recipe": "concat"}, Recipe("concat", ADAPTERS)),
        ({"recipe": "zero_shot"}, None),
        ({"lora": [{"id": 0, "scale": 0.5}, {"id": 2, "scale": 1.5}]},
         Recipe("linear", ("summarize", "french"), (0.5, 1.5))),
        ({"lora": [{"id": 1, "scale": 1.0}]}, Recipe("single", ("professional",))),
        ({"lora": []}, None),
    ):  # fmt: skip
        found = client.chat.completions.create(model="summarize", messages=HI, max_tokens=15, extra_body=body)
        assert found.choices[0].message.content == alone.generate(HI, recipe=recipe, max_tokens=15).text, body


def test_timings_are_llama_cpp_s(client):
    asked = [{"role": "user", "content": "Time this"}]
    found = client.chat.completions.create(model="tiny", messages=asked, max_tokens=9)
    timings = json.loads(found.model_dump_json())["timings"]
    assert set(timings) == {
        "cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second", "predicted_n", "predicted_ms",
        "predicted_per_token_ms", "predicted_per_second", "draft_n", "draft_n_accepted",
    }  # fmt: skip
    assert timings["predicted_n"] == found.usage.completion_tokens
    assert timings["cache_n"] + timings["prompt_n"] == found.usage.prompt_tokens


REFUSED = [
    ({"messages": []}, "messages must be a list of at least one"),
    ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\].role is 'tool'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text is served"),
    ({"tools": [{"type": "function"}]}, "tools are not served"),
    ({"response_format": {"type": "json_object"}}, "response_format 'json_object' is not served: text only"),
    ({"top_logprobs": 3}, "top_logprobs needs logprobs: true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be a whole number from 0 to 20"),
    ({"presence_penalty": 0.5}, "repetition_penalty is"),
    ({"logit_bias": {"3": 1}}, "tokens cannot be favoured"),
    ({"temperature": "hot"}, "temperature must be a number"),
    ({"temperature": -1}, "temperature must be at least 0"),
    ({"top_p": 0}, "top_p must be above 0"),
    ({"n": 17}, "n must be a whole number from 1 to 16"),
    ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ({"stop": ["a"] * 17}, "stop must be a text or a list of at most 16"),
    ({"stop": [""]}, "a stop string must be a text of at least one character"),
    ({"warmth": 3}, "there is no field 'warmth' here"),
    ({"recipe": "mery"}, "unknown method 'mery'"),
    ({"recipe": {"method": "linear", "adapters": ["nobody", "summarize"]}}, "no adapter 'nobody' is loaded"),
    ({"recipe": {"method": "projection_merge", "adapters": ["summarize"], "calibration": "/etc/passwd"}},
     "no calibration '/etc/passwd' is loaded; loaded: lcpp"),
    ({"recipe": {"method": "linear", "adapters": [{"name": "a", "path": "/etc"}]}}, "without paths"),
    ({"recipe": "both", "lora": []}, "recipe and lora say the same thing"),
    ({"lora": [{"id": 9}]}, "no adapter has the id 9; there are 4, from 0"),
    ({"lora": [{"id": 0, "scale": 1e9}]}, "the scale of 0 must be a number up to 100"),
    ({"messages": [{"role": "user", "content": "z" * 2000}]}, "the prompt has .* tokens and the model's context 512"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "text"), REFUSED)
def test_refusals_name_the_field(client, body, text):
    values = {"messages": HI, "model": "tiny", **body}
    with pytest.raises(openai.BadRequestError, match=text):
        client.post("/chat/completions", body=values, cast_to=object)


def test_too_long_a_prompt_has_both_numbers(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="z " * 600)
    error = caught.value.body
    assert error["type"] == "exceed_context_size_error" and error["n_ctx"] == 512 and error["n_prompt_tokens"] >= 600


def test_unknown_models_are_not_found(client):
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'"):
        client.chat.completions.create(model="gpt-9", messages=HI)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"prompt": None}, "the prompt is missing"),
        ({"prompt": [1, 2, 100000]}, "prompt 1 holds an id that is not from 0 to"),
        ({"prompt": ["a", 3]}, "prompt 2 must be a text or a list of token ids"),
        ({"prompt": ["a"] * 257}, "257 prompts are more than the 256"),
        ({"prompt": "a", "max_tokens": 0}, "that needs echo"),
        ({"prompt": "a", "suffix": "b"}, "text cannot be put in between"),
        ({"prompt": "a", "logprobs": 21}, "logprobs must be a whole number from 0 to 20"),
        ({"prompt": "a", "best_of": 3}, "best_of is 3, and n 1"),
        ({"prompt": "a", "model": "steps"}, "multi_step makes prompts of its own"),
    ],
)
def test_refusals_of_completions(client, body, text):
    with pytest.raises(openai.BadRequestError, match=text):
        client.post("/completions", body={"model": "tiny", **body}, cast_to=object)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"input": []}, "input must be a list of at least one"),
        ({"input": [{"type": "function_call_output"}]}, r"input\[0\] is a 'function_call_output'"),
        ({"previous_response_id": "resp_1"}, "earlier responses are not kept"),
        ({"text": {"format": {"type": "json_schema"}}}, "text only"),
    ],
)
def test_refusals_of_responses(client, body, text):
    with pytest.raises(openai.BadRequestError, match=text):
        client.post("/responses", body={"model": "tiny", "input": "x", **body}, cast_to=object)
