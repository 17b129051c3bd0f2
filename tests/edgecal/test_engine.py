"""The engine on a tiny model: what a request does, and what is refused before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import edgecal
from edgecal import Engine, KVCache, Recipe, SamplingOptions, Settings, Shot, Step
from edgecal.completion import Pass
from edgecal.errors import (
    AdapterError,
    CalibrationError,
    ContextLengthError,
    FileFormatError,
    OptionError,
    PromptError,
    RecipeError,
    UnsupportedModelError,
)
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf

PAIR = ("summary", "formal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("engine")
    write_tiny_hf(root / "model")
    for seed, name in enumerate(PAIR):
        write_tiny_adapter(root / name, root / "model", seed=seed)
    for method in ("learnable_calibration", "learnable_calibration_pp", "projection_merge"):
        pair = {name: root / name for name in PAIR}
        write_tiny_calibration(root / f"{method}.safetensors", root / "model", pair, method)
    return root


@pytest.fixture(scope="module")
def engine(folder) -> Engine:
    return Engine.load(folder / "model", weights="int8", adapters={name: folder / name for name in PAIR})


def all_recipes(folder: Path) -> list[Recipe | None]:
    calibrated = [
        Recipe(method, PAIR, calibration=str(folder / f"{method}.safetensors"))
        for method in ("learnable_calibration", "learnable_calibration_pp", "projection_merge")
    ]
    steps = (Step("summary", "Shorten"), Step(None, "Polish"))
    plain = [Recipe("single", PAIR[:1]), Recipe("linear", PAIR), Recipe("concat", PAIR)]
    return [None, Recipe("zero_shot"), *plain, Recipe("multi_step", steps=steps), *calibrated]


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4", "int4_f16", "int4_affine"])
def test_every_method_in_every_format(folder, weights):
    engine = Engine.load(folder / "model", weights=weights, adapters={name: folder / name for name in PAIR})
    answers = {}
    for recipe in all_recipes(folder):
        answer = engine.generate("Some text", recipe=recipe, settings=Settings(max_tokens=12))
        assert answer.finish_reason in ("length", "stop") and len(answer.passes) == (recipe.passes if recipe else 1)
        answers[recipe.key if recipe else None] = answer.text
    assert answers[None] == answers[Recipe("zero_shot").key]
    assert len(set(answers.values())) == len(answers) - 1, "every method says something else"


def test_the_base_is_untouched(engine, folder):
    before = engine.generate("Some text", settings=Settings(max_tokens=16)).text
    weight = engine.model.linears["model.layers.0.self_attn.q_proj"].weight
    codes = weight.codes.copy()
    for recipe in all_recipes(folder):
        engine.generate("Some text", recipe=recipe, settings=Settings(max_tokens=4))
    np.testing.assert_array_equal(weight.codes, codes)
    assert engine.generate("Some text", settings=Settings(max_tokens=16)).text == before


def test_a_recipe_is_compiled_once(engine):
    recipe = Recipe("linear", PAIR)
    assert engine.compile(recipe)[0] is engine.compile(Recipe("linear", list(PAIR)))[0]


def test_adapters_come_and_go(folder):
    engine = Engine.load(folder / "model")
    recipe = Recipe("single", ("summary",))
    with pytest.raises(RecipeError, match="no adapter 'summary' is loaded; loaded: none"):
        engine.generate("x", recipe=recipe)
    engine.add_adapter(folder / "summary")
    first = engine.generate("Some text", recipe=recipe, settings=Settings(max_tokens=8)).text
    engine.add_adapter(folder / "formal", "summary")  # another adapter under the same name: nothing stale may answer
    assert engine.generate("Some text", recipe=recipe, settings=Settings(max_tokens=8)).text != first
    engine.remove_adapter("summary")
    with pytest.raises(RecipeError, match="no adapter 'summary'"):
        engine.generate("x", recipe=recipe)


def test_stream_is_the_answer_in_pieces(engine):
    settings = Settings(max_tokens=20)
    whole = engine.generate("Some text", settings=settings)
    pieces = list(engine.stream("Some text", settings=settings))
    assert "".join(p.text for p in pieces) == whole.text
    assert [p.token.id for p in pieces] == [t.id for t in whole.tokens]
    assert all(p.finish_reason is None for p in pieces[:-1]) and pieces[-1].finish_reason == "length"
    times = [p.token.at_s for p in pieces]
    assert times == sorted(times) and all(p.token.model_s > 0 and p.token.sample_s >= 0 for p in pieces)
    assert whole.total_s >= whole.first_token_s > 0 and whole.decode_rate > 0
    json.dumps(whole.to_dict())


def test_stop_strings_cut_the_answer(engine):
    text = engine.generate("Some text", settings=Settings(max_tokens=40)).text
    stop = text[10:13]
    answer = engine.generate("Some text", settings=Settings(max_tokens=40, stop=(stop,)))
    assert answer.text == text[: text.index(stop)] and answer.finish_reason == "stop"


def test_a_seed_repeats_and_seeds_differ(engine):
    def sample(seed: int) -> str:
        sampling = SamplingOptions(temperature=1.5, seed=seed)
        return engine.generate("Some text", settings=Settings(max_tokens=24, sampling=sampling)).text

    assert sample(1) == sample(1) != sample(2)


def test_chunks_and_backends_agree(folder):
    answers = set()
    for backend in ("numpy", "numba"):
        engine = Engine.load(folder / "model", weights="fp32", backend=backend)
        for chunk in (1, 7, 256):
            settings = Settings(max_tokens=24, prefill_chunk=chunk)
            answers.add(engine.generate("A longer text to be read in pieces", settings=settings).text)
    assert len(answers) == 1


def test_the_context_ends_the_answer(folder, tmp_path):
    engine = Engine.load(write_tiny_hf(tmp_path / "short", max_position_embeddings=48))
    answer = engine.generate("x" * 30, settings=Settings(max_tokens=100, raw=True))
    assert answer.finish_reason == "context" and answer.prompt_tokens + len(answer.tokens) == 48 + 1
    with pytest.raises(ContextLengthError, match=r"60 tokens and the model's context 48: shorten it by 13"):
        engine.generate("x" * 60, settings=Settings(raw=True))


@pytest.mark.parametrize("prompt", ["", "  \n", [], [{"role": "user", "content": ""}]])
def test_empty_prompts_are_refused(engine, prompt):
    with pytest.raises(PromptError, match="empty"):
        engine.stream(prompt)


def test_refusals_come_before_the_first_piece(engine, folder):
    with pytest.raises(PromptError, match="raw prompt is one string"):
        engine.stream([{"role": "user", "content": "x"}], settings=Settings(raw=True))
    with pytest.raises(OptionError, match="max_tokens"):
        engine.stream("x", settings=Settings(max_tokens=0))
    with pytest.raises(RecipeError, match="unknown method 'liner'.*did you mean 'linear'"):
        Recipe("liner", PAIR)
    with pytest.raises(RecipeError, match="multi_step"):
        engine.stream_ids([1, 2], recipe=Recipe("multi_step", steps=(Step(None, "Go"),)))
    with pytest.raises(OptionError, match="temperature"):
        SamplingOptions(temperature=-1)
    with pytest.raises(OptionError, match="fp32"):
        KVCache(engine.model.config, "fp8")
    with pytest.raises(OptionError, match="int4_affine"):
        Engine.load(folder / "model", weights="int3")


def test_a_calibration_for_other_adapters_is_refused(engine, folder, tmp_path):
    swapped = Recipe(
        "learnable_calibration_pp", PAIR[::-1], calibration=str(folder / "learnable_calibration_pp.safetensors")
    )
    with pytest.raises(CalibrationError, match="order"):
        engine.generate("x", recipe=swapped)
    other = {name: write_tiny_adapter(tmp_path / name, folder / "model", seed=50) for name in PAIR}
    path = tmp_path / "other.safetensors"
    write_tiny_calibration(path, folder / "model", other, "learnable_calibration_pp")
    with pytest.raises(CalibrationError, match="summary"):
        engine.generate("x", recipe=Recipe("learnable_calibration_pp", PAIR, calibration=str(path)))


def test_a_calibration_for_another_base_is_refused(engine, folder, tmp_path):
    base = write_tiny_hf(tmp_path / "base", hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
    pair = {name: folder / name for name in PAIR}
    path = tmp_path / "calibration.safetensors"
    write_tiny_calibration(path, base, pair, "projection_merge")
    with pytest.raises(CalibrationError, match="hidden_size"):
        engine.generate("x", recipe=Recipe("projection_merge", PAIR, calibration=str(path)))


def test_adapters_that_do_not_fit_are_refused(engine, folder, tmp_path):
    wide = write_tiny_hf(tmp_path / "wide", hidden_size=128)
    with pytest.raises(AdapterError, match=r"down_proj is \(64, 96\) in this model and \(128, 96\)"):
        engine.add_adapter(write_tiny_adapter(tmp_path / "a", wide))
    deep = write_tiny_hf(tmp_path / "deep", num_hidden_layers=3)
    with pytest.raises(AdapterError, match="7 of its 21 modules"):
        engine.add_adapter(write_tiny_adapter(tmp_path / "b", deep))
    broken = write_tiny_adapter(tmp_path / "c", folder / "model")
    tensors = load_file(broken / "adapter_model.safetensors")
    name = min(tensors)
    tensors[name][0, 0] = np.nan
    save_file(tensors, broken / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="nan"):
        engine.add_adapter(broken)


def test_broken_models_are_refused(tmp_path):
    model = write_tiny_hf(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())

    def write(changed_tensors: dict, **changed_config) -> Path:
        save_file(changed_tensors, model / "model.safetensors")
        (model / "config.json").write_text(json.dumps(config | changed_config))
        return model

    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(FileFormatError, match="up_proj.weight is missing"):
        Engine.load(write({k: v for k, v in tensors.items() if k != name}))
    with pytest.raises(FileFormatError, match=r"up_proj.weight has shape \(96, 32\), its config asks for \(96, 64\)"):
        Engine.load(write(tensors | {name: np.zeros((96, 32), np.float32)}))
    with pytest.raises(FileFormatError, match="o_proj.bias has no place"):
        Engine.load(write(tensors | {"model.layers.0.self_attn.o_proj.bias": np.zeros(64, np.float32)}))
    for weights in ("fp32", "int4"):
        with pytest.raises(FileFormatError, match=r"up_proj.weight.*\[3, 5\]"):
            bad = tensors[name].copy()
            bad[3, 5] = np.inf
            Engine.load(write(tensors | {name: bad}), weights=weights)
    with pytest.raises(UnsupportedModelError, match="mamba.*known architectures: llama, qwen2, qwen3"):
        Engine.load(write(tensors, model_type="mamba"))
    with pytest.raises(UnsupportedModelError, match=r"/model: config.json: sliding_window 8 is not served for llama"):
        Engine.load(write(tensors, sliding_window=8))
    with pytest.raises(UnsupportedModelError, match="yarn"):
        Engine.load(write(tensors, rope_scaling={"rope_type": "yarn", "factor": 4.0}))
    with pytest.raises(FileFormatError, match="num_attention_heads"):
        Engine.load(write(tensors, num_attention_heads=-4))


def test_readme_example_is_what_it_says(engine, folder):
    """The shortest use from Python: under ten lines."""
    recipe = edgecal.Recipe(
        "learnable_calibration_pp", PAIR, calibration=str(folder / "learnable_calibration_pp.safetensors")
    )
    message = edgecal.user_message(edgecal.instruction("summarize+tone", tone="professional"), "A: hi\nB: hello")
    assert engine.generate(message, recipe=recipe).text


def test_a_request_in_a_line(engine):
    """Options by their names, a recipe by the name of its method or of its adapter."""
    whole = Settings(max_tokens=5, sampling=SamplingOptions(temperature=0.7, seed=3))
    short = engine.generate("hi", max_tokens=5, temperature=0.7, seed=3, recipe="linear")
    assert short.text == engine.generate("hi", settings=whole, recipe=Recipe("linear", PAIR)).text
    assert short.method == "linear" and len(short.tokens) <= 5
    alone = engine.generate("hi", recipe="formal", max_tokens=4)
    assert alone.text == engine.generate("hi", recipe=Recipe("single", ("formal",)), max_tokens=4).text
    assert "".join(piece.text for piece in engine.stream("hi", recipe="formal", max_tokens=4)) == alone.text
    with pytest.raises(OptionError, match="no option 'max_new_tokens'; options: .*max_tokens"):
        engine.generate("hi", max_new_tokens=5)
    with pytest.raises(RecipeError, match="lineer"):
        engine.generate("hi", recipe="lineer")


def test_what_the_model_advises_is_known_and_not_done(tmp_path, engine):
    assert engine.advised_sampling is None
    model = write_tiny_hf(tmp_path / "model")
    advice = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "eos_token_id": 2}
    (model / "generation_config.json").write_text(json.dumps(advice))
    advised = Engine.load(model, weights="int8")
    assert advised.advised_sampling == SamplingOptions(temperature=0.8, top_k=50, top_p=0.9)
    assert advised.generate("hi", max_tokens=8).text == engine.generate("hi", max_tokens=8).text, "greedy"
    (model / "generation_config.json").write_text(json.dumps({**advice, "top_p": 7}))
    with pytest.raises(FileFormatError, match=r"generation_config.json: top_p must be above 0 and at most 1.*found 7"):
        Engine.load(model)


def test_the_first_use_of_kernels_is_not_reading(engine, monkeypatch):
    """What loading them took is told apart, and is no part of the rate."""
    clock = iter([0.5, 0.75, 0.875])  # when the pass begins, at its first token, at its end
    monkeypatch.setattr(engine.model.ops, "preparing_seconds", lambda: next(clock))
    (cost,) = engine.generate("hi", max_tokens=3).passes
    assert (cost.kernels_s, cost.decode_kernels_s) == (0.25, 0.125)
    slow = Pass(10, 6, first_token_s=0.35, total_s=0.6, text="", kernels_s=0.25, decode_kernels_s=0.15)
    assert slow.prefill_rate == pytest.approx(100) and slow.decode_rate == pytest.approx(50)
    assert (slow.to_dict()["kernels_s"], slow.to_dict()["decode_kernels_s"]) == (0.25, 0.15)


def test_kernels_know_what_their_loading_took():
    from edgecal_kernels.jit import kernel, preparing_seconds

    before = preparing_seconds()
    assert kernel(lambda x: x + 1)(1) == 2
    assert preparing_seconds() > before


SHOTS = (Shot("Say a", "a"), Shot("Say b", "b"))


def test_examples_in_context_are_turns_before_the_question(engine):
    recipe = Recipe("in_context", shots=SHOTS)
    turns = [
        {"role": "user", "content": "Say a"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "Say b"},
        {"role": "assistant", "content": "b"},
    ]
    question = {"role": "user", "content": "Say c"}
    engine.prefixes.clear()
    shown = engine.generate("Say c", recipe=recipe, max_tokens=6)
    assert shown.text == engine.generate([*turns, question], max_tokens=6).text and shown.method == "in_context"
    again = engine.generate("Say d", recipe=recipe, max_tokens=6)
    assert again.reused_tokens > len(engine.encode(turns)) - 8, "their tokens are counted, and read once"
    assert again.prompt_tokens > len(engine.encode("Say d"))
    system = {"role": "system", "content": "Be short"}
    with_system = engine.prepare([system, question], recipe=recipe)
    assert with_system.ids == engine.encode([system, *turns, question])
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    batch = engine.generate_batch(["Say c", "Say d"], recipes=recipe, settings=Settings(max_tokens=6))
    assert [one.text for one in batch] == [shown.text, again.text]


def test_where_examples_cannot_stand(engine):
    recipe = Recipe("in_context", shots=SHOTS)
    with pytest.raises(PromptError, match="needs the chat template"):
        engine.generate("x", recipe=recipe, raw=True)
    with pytest.raises(RecipeError, match="in_context makes prompts of its own"):
        engine.stream_ids([1, 2], recipe=recipe)
    with pytest.raises(RecipeError, match="in front of one question"):
        edgecal.Conversation(engine, recipe)
    with pytest.raises(RecipeError, match="in_context needs 'shots', a list of {input, output}"):
        Recipe("in_context")
    with pytest.raises(RecipeError, match="'shots' belong to in_context, not to linear"):
        Recipe("linear", PAIR, shots=SHOTS)
    for wrong in ([{"input": "a"}], [("a", "")], [3], "ab"):
        with pytest.raises(RecipeError, match="'shots'"):
            Recipe("in_context", shots=wrong)
