"""What text to ids costs: the tokenizers library beside plain Python, which serves where it is missing.

    python -m bench.tokenizing --text FILE TOKENIZER.json|MODEL.gguf ...

The prompt is the beginning of the text, cut at the given number of tokens. Each figure is the median of several runs;
plain Python remembers pieces that it has seen, so "first" is a fresh tokenizer and "again" the same text once more.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from tokenizers import Tokenizer as Library

from edgecal_weights.gguf_file import GGUFFile
from edgecal_weights.gguf_tokenizer import build_tokenizer
from edgecal_weights.plain_tokenizer.tokenizer import Tokenizer as Plain

from .machine import facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = [_measure(path, given.text.read_text("utf-8"), given.tokens, given.runs) for path in given.models]
    for row in rows:
        print(f"{row['model']}: {row['tokens']} tokens; {_told(row, 'library')}; {_told(row, 'plain')}")
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": facts("tokenizers"), "rows": rows}))


def _told(row: dict[str, Any], kind: str) -> str:
    return f"{kind}: load {row[f'{kind}_load_s']:.2f} s, " + ", ".join(
        f"{when} {1e3 * row[f'{kind}_{when}_s']:.1f} ms" for when in ("first", "again")
    )


def _measure(path: Path, text: str, tokens: int, runs: int) -> dict[str, Any]:
    if path.suffix == ".gguf":
        with GGUFFile(path) as file:
            content = build_tokenizer(file.metadata, path).to_str().encode()
    else:
        content = path.read_bytes()
    library = Library.from_buffer(content)
    prompt = library.decode(library.encode(text[: 20 * tokens], add_special_tokens=False).ids[:tokens])
    ids = library.encode(prompt).ids
    if Plain.from_bytes(content, path).encode(prompt).ids != ids:
        raise SystemExit(f"{path}: the ids differ")
    row: dict[str, Any] = {"model": path.name, "tokens": len(ids), "characters": len(prompt)}
    kinds: dict[str, Callable[[], Any]] = {
        "library": lambda: Library.from_buffer(content),
        "plain": lambda: Plain.from_bytes(content, path),
    }
    for kind, load in kinds.items():
        taken: dict[str, list[float]] = {"load": [], "first": [], "again": []}
        for _ in range(runs):
            start = perf_counter()
            tokenizer = load()
            loaded = perf_counter()
            tokenizer.encode(prompt)
            first = perf_counter()
            tokenizer.encode(prompt)
            again = perf_counter()
            for when, seconds in zip(taken, (loaded - start, first - loaded, again - first), strict=True):
                taken[when].append(seconds)
        row |= {f"{kind}_{when}_s": statistics.median(seconds) for when, seconds in taken.items()}
    return row


if __name__ == "__main__":
    main()
