"""Tokenizers in plain Python beside the tokenizers library: the same ids and the same text."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library
from tokenizers.decoders import DecodeStream as LibraryStream

from edgecal.text.tokenizer import Tokenizer
from edgecal_weights.errors import FileFormatError, UnsupportedModelError
from edgecal_weights.gguf_tokenizer import build_tokenizer
from edgecal_weights.hf_tokenizer import read_tokenizer
from edgecal_weights.plain_tokenizer.decode_stream import DecodeStream
from edgecal_weights.plain_tokenizer.expressions import KNOWN, cutter
from edgecal_weights.plain_tokenizer.tokenizer import Tokenizer as Plain
from tests.text.test_tokenization_parity import KINDS, texts
from tests.texts import DECOMPOSED, TEXTS, UNSEEN, real_lines
from tests.vocabularies import CHATML, write_gguf

PATH = Path("folder/tokenizer.json")


def plain(library: Library) -> Plain:
    return Plain.from_bytes(library.to_str().encode(), PATH)


def check(ours: Plain, theirs: Library, some: list[str]) -> None:
    for text in some:
        for special in (False, True):
            ids = theirs.encode(text, add_special_tokens=special).ids
            assert ours.encode(text, special).ids == ids, text
        for skip in (False, True):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), text


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_vocabulary(kind: str, tmp_path: Path) -> None:
    vocabulary = KINDS[kind]()
    content = (vocabulary.directory(tmp_path / "hf") / "tokenizer.json").read_bytes()
    theirs, ours = Library.from_buffer(content), Plain.from_bytes(content, PATH)
    check(ours, theirs, texts(vocabulary.marks)[:: 3 if ours.get_vocab_size() > 100_000 else 1])
    assert ours.get_vocab() == theirs.get_vocab() and ours.get_vocab_size() == theirs.get_vocab_size()
    theirs.add_tokens([AddedToken("fresh"), AddedToken("newer", special=True), AddedToken(vocabulary.marks[0])])
    ours.add_tokens(theirs.get_added_tokens_decoder().values())
    assert ours.get_vocab() == theirs.get_vocab()
    check(ours, theirs, ["a fresh one, newer" + vocabulary.marks[0]])


def unigram(**options: Any) -> Library:
    characters = dict.fromkeys("".join(TEXTS.values()).replace(" ", "▁").replace("z", ""))
    words = {f"▁{w}": -5.0 - i / 8 for i, w in enumerate(dict.fromkeys(" ".join(TEXTS.values()).split()))}
    halves = {word[: len(word) // 2]: score + 1 for word, score in words.items() if len(word) > 3}
    bytes_ = {f"<0x{byte:02X}>": -20.0 for byte in range(256)} if options.get("byte_fallback") else {}
    scores = {"<unk>": 0.0, **dict.fromkeys(characters, -9.0), **words, **halves, **bytes_}
    library = Library(models.Unigram([*scores.items()], unk_id=0, **options))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return library


def metaspace(scheme: str, split: bool) -> Library:
    pieces = ["<unk>", "▁", *"abc é", "▁a", "ab", "▁ab", "▁▁"]
    merges = [("▁", "a"), ("▁a", "b"), ("a", "b"), ("▁", "▁")]
    library = Library(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    library.decoder = decoders.Metaspace(prepend_scheme=scheme)
    library.add_special_tokens([AddedToken("<s>", lstrip=True), AddedToken("</s>", rstrip=True)])
    return library


def gemma_like() -> Library:
    pieces = ["<unk>", "▁", *"abcé", "▁a", "a▁", "▁▁"]
    merges = [("a", "▁"), ("▁", "▁"), ("▁", "a")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    library = Library(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    library.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_previous")
    library.add_tokens([AddedToken("<Tool>", normalized=True), AddedToken("c c", single_word=True, normalized=False)])
    library.post_processor = processors.TemplateProcessing(
        single="<Tool> $A <Tool>", special_tokens=[("<Tool>", library.token_to_id("<Tool>"))]
    )
    return library


def byte_level(prefix: bool, digits: bool) -> Library:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE({c: i for i, c in enumerate([*alphabet, "Ġa", "ab", "'s"])}, [("Ġ", "a"), ("'", "s")]))
    steps = [pre_tokenizers.Digits(individual_digits=digits), pre_tokenizers.ByteLevel(add_prefix_space=prefix)]
    library.pre_tokenizer = pre_tokenizers.Sequence(steps)
    library.decoder = decoders.ByteLevel()
    library.normalizer = normalizers.NFKD()
    library.add_tokens(["a b", AddedToken("1a", single_word=True), AddedToken("b", rstrip=True, normalized=False)])
    return library


SCHEMES = [(scheme, split) for scheme in ("first", "always", "never") for split in (False, True)]
MADE = {
    "unigram": unigram(),
    "unigram with bytes": unigram(byte_fallback=True),
    **{f"{scheme} {split}": metaspace(scheme, split) for scheme, split in SCHEMES},
    "gemma-like": gemma_like(),
    "byte level": byte_level(False, True),
    "byte level with a space": byte_level(True, False),
}
PARTS = [" ", "  ", "\n", "\t", "a", "ab", "c c", "c", "1a", "12", "٣", "▁", "é", "e\u0301", "'s", "'S", "'ſ", "z"]
PARTS += ["世", "<s>", "</s>", "<Tool>", "<tool>", "<unk>", "\u00a0", "\x1c", "\u2028", "_", "ǅ"]
PARTS += ["ʰ", "\u0300", "\u200d"]


@pytest.mark.parametrize("kind", MADE)
def test_parts_that_a_tokenizer_may_have(kind: str) -> None:
    theirs = MADE[kind]
    check(plain(theirs), theirs, [*TEXTS.values(), *UNSEEN.values(), DECOMPOSED, *real_lines(40)])


def is_old(character: str) -> bool:
    """Whether it was a character in 2002: then every table has it."""
    return unicodedata.ucd_3_2_0.category(character) not in ("Cs", "Cn")


ANY = st.text(st.characters(exclude_categories=["Cs", "Cn"]).filter(is_old), max_size=3)


@pytest.mark.parametrize("kind", MADE)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text(kind: str, data: st.DataObject) -> None:
    theirs = MADE[kind]
    ours = plain(theirs)
    text = "".join(data.draw(st.lists(st.one_of(st.sampled_from(PARTS), ANY), max_size=12)))
    check(ours, theirs, [text])
    ids = data.draw(st.lists(st.integers(0, ours.get_vocab_size() + 2), max_size=12))
    assert ours.decode(ids) == theirs.decode(ids)
    streams = ((DecodeStream(), ours), (LibraryStream(skip_special_tokens=False), theirs))
    told = ["".join(stream.step(of, i) or "" for i in theirs.encode(text).ids) for stream, of in streams]
    assert told[0] == told[1]


@pytest.mark.parametrize("kind", [*MADE])
def test_what_is_written_is_read_by_the_library(kind: str) -> None:
    theirs = MADE[kind]
    ours = plain(theirs)
    written = Library.from_str(ours.to_str())
    assert json.loads(written.to_str()) == json.loads(theirs.to_str())


WITHOUT = """
import json, sys
for name in ("tokenizers", "safetensors", "numba", "llvmlite", "huggingface_hub"):
    sys.modules[name] = None
from edgecal.text.tokenizer import Tokenizer
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.gguf_tokenizer import build_tokenizer
from edgecal_weights.gguf_file import GGUFFile
from edgecal_weights.hf_tokenizer import read_tokenizer
from pathlib import Path
asked = json.load(sys.stdin)
answers = []
for path in asked["paths"]:
    path = Path(path)
    if path.is_dir():
        tokenizer = Tokenizer(read_tokenizer(path, None, ""))
    else:
        with GGUFFile(path) as file:
            tokenizer = Tokenizer(build_tokenizer(file.metadata, path))
    ids = [tokenizer.encode(text, True) for text in asked["texts"]]
    streams = [tokenizer.stream() for _ in ids]
    told = ["".join(map(stream.push, each)) + stream.flush() for stream, each in zip(streams, ids)]
    answers.append([ids, [tokenizer.decode(each) for each in ids], told])
print(json.dumps(answers))
"""


def test_without_the_library(tmp_path: Path) -> None:
    """From directories and GGUFs, in a process that cannot import it."""
    some = [*TEXTS.values(), "".join(f"{mark} user\n" for mark in CHATML)]
    paths, expected = [], []
    for kind in ("tinyllama", "gemma", "smollm", "tekken"):
        vocabulary = KINDS[kind]()
        directory = vocabulary.directory(tmp_path / kind)
        file = write_gguf(tmp_path / f"{kind}.gguf", "llama", vocabulary.metadata)
        paths += [str(directory), str(file)]
        expected += [read_tokenizer(directory, None, ""), build_tokenizer(vocabulary.metadata, file)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        input=json.dumps({"paths": paths, "texts": some}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for (ids, decoded, told), tokenizer in zip(json.loads(done.stdout), map(Tokenizer, expected), strict=True):
        assert ids == [tokenizer.encode(text, True) for text in some]
        assert decoded == told == [tokenizer.decode(each) for each in ids]


def fields(**changes: Any) -> dict[str, Any]:
    found = json.loads(metaspace("first", True).to_str())
    for key, value in changes.items():
        if isinstance(value, dict) and key == "model":
            value = found["model"] | value
        found[key] = value
    return found


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"type": "WordPiece"}}, "model WordPiece"),
        ({"model": {"dropout": 0.1}}, "model BPE with dropout"),
        ({"model": {"continuing_subword_prefix": "##"}}, "model BPE with continuing_subword_prefix"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "normalizer Precompiled"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "BertNormalizer"}]}},
            "normalizer BertNormalizer",
        ),
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": ""}},
            "normalizer Replace of a regular expression",
        ),
        (
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated"}},
            r"pre_tokenizer Split by '\(a\+\)\+b'",
        ),
        (
            {"pre_tokenizer": {"type": "Split", "pattern": {"String": "a"}, "behavior": "Removed"}},
            "pre_tokenizer Split by",
        ),
        ({"pre_tokenizer": {"type": "UnicodeScripts"}}, "pre_tokenizer UnicodeScripts"),
        ({"post_processor": {"type": "BertProcessing"}}, "post_processor BertProcessing"),
        ({"decoder": {"type": "CTC"}}, "decoder CTC"),
    ],
)
def test_what_needs_the_library_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"tokenizer.json: the {named}.* needs the package tokenizers"):
        Plain(fields(**changes), PATH)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"model": {"vocab": []}},
        {"model": {"vocab": {"a": -1}}},
        {"model": {"vocab": {"a": True}}},
        {"model": {"vocab": {"a": 1 << 40}}},
        {"model": {"merges": [["a", "missing"]]}},
        {"model": {"merges": ["a b c"]}},
        {"model": {"merges": [1]}},
        {"model": {"merges": None}},
        {"model": {"unk_token": "missing"}},
        {"model": {"type": "Unigram", "vocab": [["a"]]}},
        {"model": {"type": "Unigram", "vocab": [["a" * 513, 1.0]]}},
        {"model": {"type": "Unigram", "vocab": [["a", 1.0]], "unk_id": 1}},
        {"added_tokens": {}},
        {"added_tokens": ["<s>"]},
        {"added_tokens": [{"content": 1}]},
        {"added_tokens": [{"content": "\ud800"}]},
        {"added_tokens": [{"content": "a", "special": 1}]},
        {"normalizer": []},
        {"normalizer": {"type": "Prepend"}},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 65}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 65}},
        {"decoder": {"type": "Metaspace", "replacement": "a" * 65}},
        {"added_tokens": [{"content": "a" * 513}]},
        {"decoder": {"type": "Sequence", "decoders": [3]}},
        {"decoder": {"type": "Strip", "content": " ", "start": True}},
        {"post_processor": {"type": "TemplateProcessing", "single": []}},
        {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}]}},
    ],
)
def test_malformed_files(changes: dict[str, Any]) -> None:
    with pytest.raises(FileFormatError, match=r"tokenizer\.json"):
        Plain(fields(**changes), PATH)


def test_no_file_makes_much_of_a_short_text() -> None:
    """Eight replacements of a character by 64 would be 281 TB; sequences of sequences are refused."""
    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 64}
    tokenizer = Plain(fields(normalizer={"type": "Sequence", "normalizers": [grow] * 8}), PATH)
    with pytest.raises(FileFormatError, match=r"normalizer Sequence: its steps make more than 4,224 char.* 2$"):
        tokenizer.encode("aa")
    many = [{**grow, "pattern": {"String": x}, "content": y * 64} for x, y in ("▁a", "ab", "bc", "cd")]
    tokenizer = Plain(fields(decoder={"type": "Sequence", "decoders": many}), PATH)
    with pytest.raises(FileFormatError, match="decoder Sequence: its steps make more than"):
        tokenizer.decode([1])
    nested: dict[str, Any] = grow
    for _ in range(300):
        nested = {"type": "Sequence", "normalizers": [nested]}
    with pytest.raises(UnsupportedModelError, match="the normalizer Sequence needs the package tokenizers"):
        Plain(fields(normalizer=nested), PATH)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"null"])
def test_no_json(content: bytes) -> None:
    with pytest.raises(FileFormatError, match=r"tokenizer\.json"):
        Plain.from_bytes(content, PATH)


def test_expressions_are_those_of_the_library() -> None:
    """Each known expression, on every assigned character, alone and between letters, digits and spaces."""
    characters = [chr(code) for code in range(0x32400) if is_old(chr(code))]
    shapes = ["".join(characters), " ".join(characters[:20_000])]
    shapes += ["a".join(characters[::7]), "1\n".join(characters[::9])]
    for expression in KNOWN:
        theirs = pre_tokenizers.Split(Regex(expression), "isolated")
        for text in shapes:
            assert cutter(expression)(text) == [piece for piece, _ in theirs.pre_tokenize_str(text)]


def test_a_long_text_without_a_cut() -> None:
    """SentencePiece hands a whole prompt to the merges."""
    theirs = build_tokenizer(KINDS["tinyllama"]().metadata, PATH)
    ours = plain(theirs)
    text = " ".join([*TEXTS.values()] * 9)
    assert len(text) > 10_000 and ours.encode(text).ids == theirs.encode(text).ids
