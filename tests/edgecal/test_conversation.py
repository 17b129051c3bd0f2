"""Conversations: what is said, what is kept when a turn breaks off, and that a reused cache changes nothing.

"The same" means the same greedy text as an engine that reads the whole conversation with a fresh fp32 cache.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgecal.serving
from edgecal import Engine, Piece, Recipe, SamplingOptions, Settings, Step
from edgecal.cache import KVCache
from edgecal.conversation import Conversation
from edgecal.errors import (
    ContextLengthError,
    EdgecalError,
    OptionError,
    PromptError,
    RecipeError,
    StorageError,
)
from tests.tiny import FAMILIES, write_tiny_adapter, write_tiny_calibration, write_tiny_hf

SHORT = Settings(max_tokens=12)
PAIR = ("a", "b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("conversation")
    for family in FAMILIES:
        write_tiny_hf(root / family, family)
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        write_tiny_adapter(root / name, root / "llama", seed=seed)
    write_tiny_calibration(root / "lcpp.safetensors", root / "llama", {name: root / name for name in PAIR})
    return root


@pytest.fixture
def engine(folder: Path) -> Engine:
    return load(folder)


def load(folder: Path, family: str = "llama", **options: str) -> Engine:
    adapters = {name: folder / name for name in PAIR} if family == "llama" else {}
    chosen = {"weights": "fp32", "backend": "numpy", "cache_dtype": "fp32", **options}
    return Engine.load(folder / family, adapters=adapters, prefix_cache=0, **chosen)


@pytest.fixture
def talk(engine: Engine) -> Conversation:
    return Conversation(engine, settings=SHORT)


def say(conversation: Conversation, text: str) -> str:
    return "".join(piece.text for piece in conversation.reply(text))


def say_checked(conversation: Conversation, text: str) -> str:
    """Say it, and compare with an engine that knows no cache."""
    messages = [*conversation.messages, {"role": "user", "content": text}]
    fresh = conversation.engine.generate(messages, recipe=conversation.recipe, settings=conversation.settings)
    answer = say(conversation, text)
    assert answer == fresh.text
    assert conversation.stats.last.prompt_tokens == fresh.prompt_tokens
    return answer


# -------------------------------------------------------------------------------------------------- the cache


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reused_cache_gives_the_answers_of_a_fresh_one(folder, family):
    conversation = Conversation(load(folder, family), settings=SHORT, system="Be brief.")
    for turn in range(4):
        say_checked(conversation, f"message {turn}: the cat and the hen")
        last = conversation.stats.last
        assert (last.reused_tokens > 0) == (turn > 0)
        assert last.reused_tokens < last.prompt_tokens
        assert last.new_tokens == SHORT.max_tokens


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_reuse_with_quantized_weights(folder, backend):
    conversation = Conversation(load(folder, weights="int8", backend=backend), settings=SHORT)
    for turn in range(3):
        say_checked(conversation, f"message {turn}")


def test_only_what_is_new_is_computed(talk, monkeypatch):
    say(talk, "a long first message that need not be read again")
    computed = count_tokens(talk.engine, monkeypatch)
    say(talk, "short")
    last = talk.stats.last
    assert sum(computed) == last.prompt_tokens - last.reused_tokens + last.new_tokens - 1
    frame = "<|im_end|>\n<|im_start|>user\nshort<|im_end|>\n<|im_start|>assistant\n"
    # the last token of the answer was never fed
    assert last.prompt_tokens - last.reused_tokens == 1 + len(talk.engine.tokenizer.encode(frame))


def test_an_answer_that_is_read_back_in_fewer_tokens(talk, monkeypatch):
    """The model says "t", "h"; the tokenizer reads "th" as one. The cache ends where the two part."""
    spelled = [talk.engine.tokenizer.backend.token_to_id(c) for c in "xthx"]
    seen: list[np.ndarray] = []

    class Scripted:
        logprobs = None

        def __init__(self, options: SamplingOptions, prompt_ids: object, n_logprobs: int | None = None) -> None:
            self.left = list(spelled)

        def __call__(self, logits: np.ndarray) -> int:
            seen.append(logits)
            return self.left.pop(0)

        def accept(self, index: int) -> None:
            pass

    monkeypatch.setattr(edgecal.serving, "Sampler", Scripted)
    talk.settings = Settings(max_tokens=4)
    assert say(talk, "one") == "xthx"
    first_prompt = talk.stats.last.prompt_tokens
    seen.clear()
    say(talk, "two")
    assert talk.stats.last.reused_tokens == first_prompt + 1  # "x"; then "t" is not "th"
    reused, seen[:] = seen[0], []
    talk.engine.generate([*talk.messages[:-2], {"role": "user", "content": "two"}], settings=talk.settings)
    np.testing.assert_allclose(reused, seen[0], rtol=0, atol=1e-5)


def test_another_recipe_reads_no_old_keys(talk, folder):
    say(talk, "hello")
    recipes = [
        Recipe("single", ("a",)),
        Recipe("linear", PAIR),
        Recipe("learnable_calibration_pp", PAIR, calibration=str(folder / "lcpp.safetensors")),
        Recipe("single", ("b",)),
        None,
    ]
    answers = set()
    for recipe in recipes:
        talk.set_recipe(recipe)
        answers.add(say_checked(talk, "what did I say?"))
        assert talk.stats.last.reused_tokens == 0
        say_checked(talk, "and now?")
        assert talk.stats.last.reused_tokens > 0
        talk.undo()
        talk.undo()
    assert len(answers) == len(recipes)


def test_the_bare_base_is_the_same_under_both_names(talk):
    say(talk, "hello")
    talk.set_recipe(Recipe("zero_shot"))
    say_checked(talk, "again")
    assert talk.stats.last.reused_tokens > 0


def test_a_replaced_adapter_reads_no_old_keys(talk, folder):
    talk.set_recipe(Recipe("single", ("a",)))
    before = say(talk, "hello")
    talk.engine.add_adapter(folder / "c", "a")
    say_checked(talk, "again")
    assert talk.stats.last.reused_tokens == 0
    talk.reset()
    assert say(talk, "hello") != before


def test_other_weights_read_no_old_keys(talk, folder):
    say(talk, "hello")
    other = Engine.load(write_tiny_hf(folder / "other", seed=5), weights="fp32", backend="numpy")
    talk.engine.runner.model = other.model
    say_checked(talk, "again")
    assert talk.stats.last.reused_tokens == 0


def test_a_removed_adapter_is_missed(talk):
    talk.set_recipe(Recipe("single", ("a",)))
    say(talk, "hello")
    before = talk.messages
    talk.engine.remove_adapter("a")
    with pytest.raises(RecipeError, match="no adapter 'a' is loaded"):
        talk.reply("again")
    assert talk.messages == before


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["say", "say", "say", "undo", "reset", "system", "recipe", "abandon", "break", "replace"]),
            st.sampled_from(["", "the", "a hen", "x" * 30]),
        ),
        max_size=8,
    )
)
def test_any_course_of_events_equals_fresh_caches(folder, steps):
    conversation = Conversation(load(folder), settings=Settings(max_tokens=6, prefill_chunk=16))
    recipes = [None, Recipe("single", ("b",)), Recipe("concat", PAIR)]
    for number, (step, text) in enumerate(steps):
        if step == "say":
            say_checked(conversation, f"{number} {text}")
        elif step == "undo" and conversation.messages:
            if conversation.messages[-1]["role"] == "assistant":
                conversation.undo()
        elif step == "reset":
            conversation.reset()
        elif step == "system":
            conversation.set_system(text)
        elif step == "recipe":
            conversation.set_recipe(recipes[len(text) % 3])
        elif step == "abandon":
            list(islice(conversation.reply("never mind " + text), 1 + len(text) % 4))
        elif step == "break":
            with pytest.MonkeyPatch.context() as patch:
                interrupt_at(conversation.engine, patch, call=1 + len(text) % 5)
                with pytest.raises(KeyboardInterrupt):
                    say(conversation, "broken " + "off " * 10)
        else:
            conversation.engine.add_adapter(folder / ("c" if len(text) % 2 else "b"), "b")
    say_checked(conversation, "the end")


# ------------------------------------------------------------------------------------------- turns that break off


def count_tokens(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []
    forward = engine.model.forward

    def counting(ids, *args, **kwargs):
        counts.append(len(ids))
        return forward(ids, *args, **kwargs)

    monkeypatch.setattr(engine.model, "forward", counting)
    return counts


def interrupt_at(engine: Engine, monkeypatch: pytest.MonkeyPatch, call: int, error: type = KeyboardInterrupt) -> None:
    """Ctrl-C in the `call`-th forward pass from now on, counted from 1, before it has computed anything."""
    forward, left = engine.model.forward, [call]

    def failing(*args, **kwargs):
        left[0] -= 1
        if left[0] <= 0:
            raise error
        return forward(*args, **kwargs)

    monkeypatch.setattr(engine.model, "forward", failing)


@pytest.mark.parametrize("error", [KeyboardInterrupt, EdgecalError])
def test_a_broken_answer_stays_as_far_as_it_came(talk, monkeypatch, error):
    say(talk, "hello")
    pieces: list[str] = []
    with monkeypatch.context() as patch:
        interrupt_at(talk.engine, patch, call=5, error=error)
        with pytest.raises(error):
            pieces += (piece.text for piece in talk.reply("go on"))
    assert [m["role"] for m in talk.messages] == ["user", "assistant"] * 2
    partial = talk.messages[-1]["content"]
    assert len(partial) >= 4
    assert talk.stats.last.finish_reason == "interrupted"
    assert talk.stats.last.new_tokens == 4
    say_checked(talk, "and then?")
    assert talk.stats.last.reused_tokens > 0
    assert talk.messages[3]["content"] == partial


def test_ctrl_c_while_the_message_is_read(talk, monkeypatch):
    """Nothing was said: the turn is taken back, what was read of it need not be read again."""
    talk.settings = Settings(max_tokens=12, prefill_chunk=8)
    say(talk, "hello")
    before = talk.messages
    message = "a message of several chunks " * 3
    with monkeypatch.context() as patch:
        interrupt_at(talk.engine, patch, call=4)
        with pytest.raises(KeyboardInterrupt):
            say(talk, message)
    assert talk.messages == before
    assert talk.stats.turns == 1
    held = talk.cached_tokens
    say_checked(talk, message)
    assert talk.stats.last.reused_tokens == held


@pytest.mark.parametrize("end", ["drop", "hold"])
def test_an_abandoned_answer_stays_as_far_as_it_was_read(talk, end):
    """Whether the generator is gone or still in somebody's hand when the conversation goes on."""
    pieces = talk.reply("hello")
    said = "".join(piece.text for piece in islice(pieces, 3))
    if end == "drop":
        del pieces
        gc.collect()
        assert talk.stats.turns == 1
    assert talk.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": said}]
    say_checked(talk, "go on")
    assert talk.stats.turns == 2
    if end == "hold":
        assert list(pieces) == []


def test_an_answer_that_was_never_begun_leaves_nothing(talk):
    pieces = talk.reply("hello")
    assert talk.messages == []
    say_checked(talk, "something else")
    assert list(pieces) == []
    assert len(talk.messages) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda talk: talk.reset(),
        lambda talk: talk.set_system("other"),
        lambda talk: talk.set_recipe(Recipe("single", ("a",))),
        lambda talk: talk.undo(),
        lambda talk: talk.set_messages([]),
    ],
)
def test_every_change_ends_a_running_answer(talk, change: Callable[[Conversation], object]):
    pieces = talk.reply("hello")
    next(pieces)
    change(talk)
    assert list(pieces) == []
    say_checked(talk, "next")


def test_a_cache_torn_while_growing_is_mended(talk, monkeypatch):
    say(talk, "hello")

    def torn(cache: KVCache, n_positions: int) -> None:
        cache.cached = cache.cached.copy(cache.capacity + 256, cache.length)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "reserve", torn)
        with pytest.raises(KeyboardInterrupt):
            say(talk, "go on")
    say_checked(talk, "again " * 60)


# --------------------------------------------------------------------------------------------------- the words


def test_messages_and_system(talk):
    assert talk.messages == []
    answer = say(talk, "hello")
    talk.set_system("Be brief.")
    assert talk.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": answer},
    ]
    talk.messages.clear()  # a copy
    assert len(talk.messages) == 3
    say_checked(talk, "again")
    talk.set_system("")
    assert talk.system is None


def test_stop_strings_and_sampling_settings_hold_for_the_next_turn(talk):
    answer = say(talk, "hello")
    talk.undo()
    talk.settings = Settings(max_tokens=12, stop=(answer[4:6],))
    assert say(talk, "hello") == answer[:4]
    assert talk.stats.last.finish_reason == "stop"
    assert talk.messages[-1]["content"] == answer[:4]
    say_checked(talk, "go on")
    talk.settings = Settings(max_tokens=12, sampling=SamplingOptions(temperature=5.0, seed=3))
    assert say_checked(talk, "more") != answer


def test_undo_gives_the_message_back(talk):
    say(talk, "one")
    say(talk, "two")
    assert talk.undo() == "two"
    assert talk.messages[0]["content"] == "one"
    say_checked(talk, "three")
    talk.undo()
    talk.undo()
    with pytest.raises(PromptError, match="no turn"):
        talk.undo()


def test_reset_gives_the_memory_back_and_keeps_the_rest(talk):
    talk.set_system("Be brief.")
    say(talk, "one")
    assert talk.cache_bytes > 0
    talk.reset()
    assert talk.cache_bytes == talk.cached_tokens == 0
    assert talk.messages == [{"role": "system", "content": "Be brief."}]
    assert talk.stats.turns == 1
    say_checked(talk, "two")


def test_stats(talk):
    turns = []
    for text in ("one", "two", "three"):
        say(talk, text)
        turns.append(talk.stats.last)
    stats = talk.stats
    assert stats.turns == 3
    assert stats.prompt_tokens == sum(t.prompt_tokens for t in turns)
    assert stats.reused_tokens == sum(t.reused_tokens for t in turns) > 0
    assert stats.new_tokens == 36
    assert stats.total_s == pytest.approx(sum(t.total_s for t in turns))
    assert 0 < turns[0].first_token_s < turns[0].total_s
    assert turns[0].decode_rate == pytest.approx(11 / (turns[0].total_s - turns[0].first_token_s))
    assert min(t.decode_rate for t in turns) <= stats.decode_rate <= max(t.decode_rate for t in turns)
    assert json.loads(json.dumps(stats.to_dict()))["last"]["new_tokens"] == 12
    assert talk.cached_tokens == turns[-1].prompt_tokens + 11
    assert Conversation(talk.engine).stats.to_dict()["last"] is None


def test_progress_counts_new_prompt_tokens(talk):
    talk.settings = Settings(max_tokens=2, prefill_chunk=8)
    read: list[int] = []
    for _ in talk.reply("a message of some length", progress=read.append):
        pass
    assert read == sorted(read)
    assert read[-1] == talk.stats.last.prompt_tokens


# ----------------------------------------------------------------------------------------------------- refusals


def test_a_conversation_that_outgrows_the_context(folder):
    engine = Engine.load(
        write_tiny_hf(folder / "small", max_position_embeddings=96), weights="fp32", backend="numpy", cache_dtype="fp32"
    )
    talk = Conversation(engine, settings=Settings(max_tokens=200))
    with pytest.raises(ContextLengthError, match="context is 96: shorten it"):
        talk.reply("x" * 200)
    say_checked(talk, "hello")
    assert talk.stats.last.finish_reason == "context"
    before = talk.messages
    with pytest.raises(ContextLengthError, match=r"/reset.*/undo"):
        talk.reply("one more")
    assert talk.messages == before
    talk.reset()
    say_checked(talk, "hello")


def test_refusals_change_nothing(talk):
    say(talk, "hello")
    before, recipe = talk.messages, talk.recipe
    for text in ("", "  \n"):
        with pytest.raises(PromptError, match="empty"):
            talk.reply(text)
    with pytest.raises(PromptError, match="Unicode"):
        talk.reply("half a pair \ud800")
    with pytest.raises(RecipeError, match="no adapter 'nobody'"):
        talk.set_recipe(Recipe("single", ("nobody",)))
    with pytest.raises(RecipeError, match="multi_step"):
        talk.set_recipe(Recipe("multi_step", steps=(Step("a", "Do"), Step("b", "that"))))
    talk.settings = Settings(raw=True)
    with pytest.raises(PromptError, match="raw"):
        talk.reply("hello")
    talk.settings = Settings(max_tokens=0)
    with pytest.raises(OptionError, match="max_tokens"):
        talk.reply("hello")
    talk.settings = SHORT
    assert (talk.messages, talk.recipe) == (before, recipe)
    say_checked(talk, "go on")


def test_a_template_that_refuses_a_role(talk, monkeypatch):
    def refuse(messages, *args, **kwargs):
        raise PromptError("the template refuses: System role not supported")

    monkeypatch.setattr(talk.engine.tokenizer, "encode_chat", refuse)
    with pytest.raises(PromptError, match="System role"):
        talk.reply("hello")
    assert talk.messages == []


def test_what_cannot_be_a_conversation(engine, folder):
    with pytest.raises(RecipeError, match="multi_step"):
        Conversation(engine, Recipe("multi_step", steps=(Step("a", "Do"), Step("b", "that"))))
    bare = Engine.load(
        write_tiny_hf(folder / "bare", chat_template=False), weights="fp32", backend="numpy", cache_dtype="fp32"
    )
    with pytest.raises(PromptError, match="no chat template"):
        Conversation(bare)


# -------------------------------------------------------------------------------------------------------- files


def test_save_and_load(talk, tmp_path):
    talk.set_system("Bé brief.")
    say(talk, "hello")
    talk.save(tmp_path / "talk.json")
    values = json.loads((tmp_path / "talk.json").read_text())
    assert values == {"messages": talk.messages, "recipe": None}
    other = Conversation(talk.engine, settings=SHORT)
    say(other, "something else")
    other.load(tmp_path / "talk.json")
    assert other.messages == talk.messages
    assert say_checked(other, "go on") == say_checked(talk, "go on")
    (tmp_path / "bare.json").write_text(json.dumps(talk.messages))
    other.load(tmp_path / "bare.json")
    assert other.messages == talk.messages
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare.json", "talk.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("3", "holds no conversation"),
        ('{"messages": {}}', "holds no conversation"),
        ('["hello"]', "message 1"),
        ('[{"role": "user", "content": 3}]', "message 1"),
        ('[{"role": "user", "content": "a", "name": "x"}]', "message 1"),
        ('[{"role": "user", "content": "a"}]', "in turn"),
        ('[{"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}]', "in turn"),
        ("[" * 100000, "not valid JSON"),
        ("\ud800", "not UTF-8"),
    ],
)
def test_files_that_are_no_conversation(talk, tmp_path, content, message):
    say(talk, "hello")
    before = talk.messages
    path = tmp_path / "talk.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(PromptError, match=message) as caught:
        talk.load(path)
    assert str(path) in str(caught.value)
    assert talk.messages == before


def test_files_that_cannot_be_read_or_written(talk, tmp_path, monkeypatch):
    with pytest.raises(PromptError, match="cannot be read"):
        talk.load(tmp_path / "nowhere.json")
    with pytest.raises(PromptError, match="cannot be read"):
        talk.load(tmp_path)
    with pytest.raises(PromptError, match="cannot be read"):
        talk.load("~nobody-of-this-name/talk.json")
    with pytest.raises(PromptError, match="not a regular file"):
        talk.load("/dev/zero")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(PromptError, match="larger than 64 MiB"):
        talk.load(tmp_path / "huge.json")
    (tmp_path / "huge.json").unlink()
    say(talk, "hello")
    nowhere = [tmp_path / "no" / "where.json", tmp_path, "/dev/null/x", tmp_path / "x\0y", tmp_path / ("n" * 300)]
    for path in (*nowhere, "", "~nobody-of-this-name/talk.json"):
        with pytest.raises(StorageError, match="could not be written"):
            talk.save(path)
    target = tmp_path / "talk.json"
    target.write_text("the old one")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StorageError, match="No space left"):
        talk.save(target)
    assert [p.name for p in tmp_path.iterdir()] == ["talk.json"]
    assert target.read_text() == "the old one"


def test_reply_is_a_generator_of_pieces(talk):
    pieces: Iterator[Piece] = talk.reply("hello")
    first = next(pieces)
    assert first.token.index == 0
    assert [p.finish_reason for p in pieces][-1] == "length"
