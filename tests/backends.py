"""Small tokenizers of the two kinds that the served models have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from edgecal.text.tokenizer import Tokenizer
from tests.texts import TEXTS

SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level_backend() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        min_frequency=1,
        initial_alphabet=alphabet,
        special_tokens=SPECIALS,
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS.values(), trainer)
    backend.add_tokens(["<tool>", "snow ☃ man"])
    return backend


def sentencepiece_backend(strip: bool = True) -> Backend:
    vocab = ["<unk>", *SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "é", "世", "▁a"]
    backend = Backend(
        models.BPE(vocab={t: i for i, t in enumerate(vocab)}, merges=[("▁", "a")], byte_fallback=True, fuse_unk=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if strip else "never", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    backend.add_special_tokens(["<unk>", *SPECIALS])
    return backend


BACKENDS: dict[str, Callable[[], Backend]] = {
    "byte-level": byte_level_backend,
    "sentencepiece": sentencepiece_backend,
    "sentencepiece without prefix": lambda: sentencepiece_backend(strip=False),
}


def from_directory(directory: Path) -> Tokenizer:
    def read(name: str) -> dict[str, Any]:
        return json.loads((directory / name).read_text())

    checkpoint = SimpleNamespace(
        path=directory,
        tokenizer=lambda: Backend.from_file(str(directory / "tokenizer.json")),
        tokenizer_config=lambda: {
            **read("tokenizer_config.json"),
            "chat_template": (directory / "chat_template.jinja").read_text(),
        },
        config=read("config.json"),
        generation_config=read("generation_config.json"),
    )
    return Tokenizer.from_checkpoint(checkpoint)  # type: ignore[arg-type]
