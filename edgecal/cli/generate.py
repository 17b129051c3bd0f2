"""`edgecal generate`: one prompt, one answer, streamed as it comes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
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
    from ..engine import Pass, Piece

_LARGEST_PROMPT = 64 << 20


@click.command("generate")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("-f", "--file", "prompt_file", metavar="FILE", help="Read the prompt from a file; - is standard input.")
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
    """
    text = _prompt_text(prompt, options.pop("prompt_file"))
    question = _question(text, options)
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
    if recipe.steps and not isinstance(question, str):
        raise PromptError("--system does not go with a multi-step recipe, whose steps have prompts of their own")
    engine = load_engine(model, quiet=quiet or as_json, **options)
    passes: list[Pass] = []
    pieces: list[Piece] = []
    interrupted = False
    try:
        for piece in engine.stream(question, recipe=recipe, settings=settings, passes=passes):
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
        lines.append(
            f"[{which}{p.prompt_tokens} prompt tokens in {p.first_token_s:.2f} s ({p.prefill_rate:.0f}/s), "
            f"{p.new_tokens} new tokens at {p.decode_rate:.1f}/s]"
        )
    return "\n".join(lines)


def _print_json(pieces: list[Piece], passes: list[Pass], method: str, *, with_tokens: bool) -> None:
    from ..engine import Completion

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
        result["tokens"] = [{**asdict(p.token), "text": p.text} for p in pieces]
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


def _question(text: str, options: dict[str, Any]) -> str | list[dict[str, str]]:
    """The prompt with the task's instruction and the system message around it."""
    from ..tasks import instruction, user_message

    task, system = options.pop("task"), options.pop("system")
    fields = {name: value for name in ("tone", "language") if (value := options.pop(name)) is not None}
    if not text.strip():
        raise PromptError("the prompt is empty: give some text to answer")
    if task is not None:
        text = user_message(instruction(task, **fields), text)
    elif fields:
        raise PromptError(f"--{next(iter(fields))} belongs to a task: give --task summarize+tone or the like")
    if system is None:
        return text
    if options["raw"]:
        raise PromptError("--system needs the chat template, which --raw turns off")
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]
