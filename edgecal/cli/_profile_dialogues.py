"""`edgecal profile --dialogues`: paper 2's system analysis, on dialogues of a file."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, PromptError
from ..text.json_lines import each_object, one_key, read_input, text_at
from ._output import echo_json, screen
from ._progress import progress
from ._prompt_text import read_text
from .options import load_engine

if TYPE_CHECKING:
    from ._tasks import TaskOptions
    from .options import ModelOptions, RecipeOptions

_ANSWER = 80  # tokens at most of an answer to a dialogue


def analyse(
    model: str,
    words: tuple[str, ...],
    file: str,
    limit: int | None,
    asked: TaskOptions,
    new: str | None,
    threads: str | None,
    repeats: int,
    loading: ModelOptions,
    chosen: RecipeOptions,
    *,
    as_json: bool,
) -> int:
    """Run every recipe on every dialogue and print inference time and memory; 0, the exit code."""
    from ..profile.plan import parse_lengths
    from ..profile.system import SystemAnalysis
    from ._profile_recipes import gather_or_demo

    answers = parse_lengths(new, "-n", least=1) if new else (_ANSWER,)
    numbers = parse_lengths(threads, "-t", least=1) if threads else (None,)
    if len(answers) > 1 or len(numbers) > 1:
        raise OptionError("--dialogues takes one length of answer (-n) and one number of threads (-t)")
    texts = read_dialogues(file, limit)
    if asked.task == "summarize+tone" and asked.tone is None and asked.language is None:
        asked = replace(asked, tone="professional")
    instruction = asked.instruction()
    assert instruction is not None
    recipes, paths = gather_or_demo(model, words, chosen)
    engine = load_engine(model, replace(loading, threads=numbers[0]), paths)
    with progress("measuring", still=True) as report:
        analysis = SystemAnalysis(
            engine, dict(recipes), texts, instruction, repeats=repeats, max_tokens=answers[0], progress=report
        )
        with suppress(KeyboardInterrupt):  # said below, behind what there is
            analysis.run()
    if as_json:
        echo_json(analysis.to_dict())
    else:
        from ._profile_table import show_system

        show_system(analysis, screen())
    if analysis.interrupted:
        raise KeyboardInterrupt
    return 0


def read_dialogues(name: str, limit: int | None) -> list[str]:
    """One text per line of a JSONL file ("dialogue" or "text"), a whole text file, or the demo's dialogue."""
    from .. import demo

    if name == "demo" and not Path(name).exists():
        return [demo.dialogue()]
    if Path(name).suffix in (".jsonl", ".json"):
        found = each_object(read_input(name)[1], name, _dialogue, limit)
    else:
        found = [text] if (text := read_text(name).strip()) else []
    if not found:
        raise PromptError(f"{name} has no dialogue")
    return found


def _dialogue(number: int, values: dict[str, Any]) -> str:
    key = "dialogue" if "dialogue" in values else one_key(values, ("dialogue", "text"))
    return text_at(values, key).strip()
