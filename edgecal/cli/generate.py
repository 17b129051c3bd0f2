"""`edgecal generate`: one prompt, one answer, streamed as it comes; or a file of prompts, answered in batches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import PromptError
from .options import (
    json_option,
    load_engine,
    make_recipe,
    make_settings,
    model_options,
    recipe_options,
    sampling_options,
)

if TYPE_CHECKING:
    from ..completion import Pass, Piece

_LARGEST_PROMPT = 64 << 20


@click.command("generate")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("-f", "--file", "prompt_file", metavar="FILE", help="Read the prompt from a file; - is standard input.")
@click.option(
    "--prompts",
    "prompts_file",
    metavar="FILE",
    help="Many prompts: JSON lines in (- is standard input), JSON lines out.",
)
@click.option(
    "--batch", "batch_size", type=click.IntRange(1, 256), help="With --prompts: how many at once.  [default: 8]"
)
@click.option(
    "--prefix-cache",
    type=click.IntRange(min=0),
    metavar="MIB",
    help="With --prompts: keys and values kept for prompts that begin alike; 0 is off.  [default: 32]",
)
@click.option("--task", help="Put a task's instruction in front: summarize, reply, translate, summarize+tone, ...")
@click.option("--tone", help="For tasks with a tone: professional, casual, witty ...")
@click.option("--language", help="For tasks that translate: Spanish, French, German ...")
@click.option("--system", help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Give the prompt to the model as it stands, without its chat template.")
@model_options
@recipe_options
@sampling_options
@click.option("-q", "--quiet", is_flag=True, help="The answer alone: no progress, no timings.")
@click.option("--tokens", is_flag=True, help="With --json: a record per token, with its timings.")
@json_option
def command(model: str, prompt: str | None, as_json: bool, quiet: bool, tokens: bool, **options: Any) -> None:
    """Answer PROMPT with MODEL: a directory, a GGUF file, a hub id (org/name), or demo.

    \b
    edgecal generate demo "Why is the sky blue?"
    edgecal generate demo -f chat.txt --task summarize+tone --tone professional \\
        --adapter demo:summarize --adapter demo:professional --calibration demo:learnable_calibration_pp
    edgecal generate demo --prompts chats.jsonl --task summarize --adapter demo:summarize > summaries.jsonl
    """
    prompts_file, batch_size, mib = (options.pop(name) for name in ("prompts_file", "batch_size", "prefix_cache"))
    prompt_file = options.pop("prompt_file")
    question = _questions(options)
    if prompts_file is None:
        if batch_size is not None or mib is not None:
            raise click.UsageError("--batch and --prefix-cache belong to --prompts")
        asked = question(_prompt_text(prompt, prompt_file))
    elif prompt is not None or prompt_file is not None:
        raise click.UsageError("give one prompt, or a file of them with --prompts, not both")
    else:
        from ._prompts import answer_all, read_lines

        lines = read_lines(prompts_file)
    recipe = make_recipe(
        options["adapters"],
        options["method"],
        options["calibration"],
        options["adapter_weights"],
        options["steps"],
        options["recipe_file"],
        options["method_options"],
    )
    settings = make_settings(options, raw=options["raw"])
    if recipe.steps and options["system"] is not None:
        raise PromptError("--system does not go with a multi-step recipe, whose steps have prompts of their own")
    engine = load_engine(model, quiet=quiet or as_json, prefix_cache=None if mib is None else mib << 20, **options)
    if prompts_file is not None:
        answer_all(
            engine,
            lines,
            question,
            recipe,
            settings,
            batch_size=batch_size or 8,
            quiet=quiet or as_json,
            with_tokens=tokens,
        )
        return
    passes: list[Pass] = []
    pieces: list[Piece] = []
    interrupted = False
    try:
        for piece in engine.stream(asked, recipe=recipe, settings=settings, passes=passes):
            pieces.append(piece)
            if not as_json:
                click.echo(piece.text, nl=False)
                sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
    if as_json:
        _print_json(pieces, passes, recipe.method, with_tokens=tokens)
    else:
        click.echo()
        if not quiet and passes:
            click.echo(timings(passes), err=True)
    if interrupted:
        raise KeyboardInterrupt


def timings(passes: list[Pass]) -> str:
    """One line per pass: what it read and wrote, and how fast."""
    lines = []
    for i, p in enumerate(passes, 1):
        which = f"pass {i}: " if len(passes) > 1 else ""
        reused = f", {p.reused_tokens} of them from the cache," if p.reused_tokens else ""
        drafts = f"; {p.accepted_tokens} of {p.drafted_tokens} drafted tokens accepted" if p.drafted_tokens else ""
        lines.append(
            f"[{which}{p.prompt_tokens} prompt tokens{reused} in {p.first_token_s:.2f} s ({p.prefill_rate:.0f}/s), "
            f"{p.new_tokens} new tokens at {p.decode_rate:.1f}/s{drafts}]"
        )
    return "\n".join(lines)


def _print_json(pieces: list[Piece], passes: list[Pass], method: str, *, with_tokens: bool) -> None:
    from ..completion import Completion, token_dicts

    reason = pieces[-1].finish_reason if pieces else None
    if reason is None:  # interrupted: what there is, and that it is not all
        result: dict[str, Any] = {
            "text": "".join(p.text for p in pieces),
            "finish_reason": "interrupted",
            "method": method,
            "new_tokens": len(pieces),
        }
    else:
        completion = Completion(passes[-1].text, reason, [p.token for p in pieces], passes, method)
        result = completion.to_dict()
    if with_tokens:
        result["tokens"] = token_dicts(pieces)
    click.echo(json.dumps(result, ensure_ascii=False))


def _prompt_text(prompt: str | None, prompt_file: str | None) -> str:
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("give the prompt as an argument or with --file, not both")
    if prompt_file is None and prompt is None and sys.stdin.isatty():
        raise click.UsageError("no prompt: give it as an argument, with --file, or on standard input")
    if prompt is not None and prompt != "-":
        return prompt
    if prompt_file in (None, "-"):
        raw, name = sys.stdin.buffer.read(_LARGEST_PROMPT + 1), "standard input"
    else:
        name = str(prompt_file)
        try:
            with Path(name).expanduser().open("rb") as file:
                raw = file.read(_LARGEST_PROMPT + 1)
        except OSError as error:
            raise PromptError(f"{name} cannot be read: {error.strerror}") from error
    if len(raw) > _LARGEST_PROMPT:
        raise PromptError(f"{name} is larger than {_LARGEST_PROMPT >> 20} MiB: no model's context holds that")
    try:
        return raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not UTF-8 text: {error}") from error


def _questions(options: dict[str, Any]) -> Callable[[str], str | list[dict[str, str]]]:
    """Puts the task's instruction and the system message around a text."""
    from ..text.tasks import instruction, user_message

    task, system = options["task"], options["system"]
    fields = {name: value for name in ("tone", "language") if (value := options[name]) is not None}
    if task is None and fields:
        raise PromptError(f"--{next(iter(fields))} belongs to a task: give --task summarize+tone or the like")
    if system is not None and options["raw"]:
        raise PromptError("--system needs the chat template, which --raw turns off")
    asked = None if task is None else instruction(task, **fields)

    def question(text: str) -> str | list[dict[str, str]]:
        if not text.strip():
            raise PromptError("the prompt is empty: give some text to answer")
        if asked is not None:
            text = user_message(asked, text)
        if system is None:
            return text
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]

    return question
