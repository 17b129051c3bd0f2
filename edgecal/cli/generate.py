"""`edgecal generate`: one prompt, one answer, streamed as it comes; or a file of prompts, answered in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ..errors import PromptError
from ..machine import Watch, crowded
from ._answer import AnswerWriter
from ._model_argument import MODEL, NAMED, model_and_words
from ._output import echo_json, tell
from ._progress import while_reading
from ._prompt_text import prompt_text
from ._sampling import SettingsOptions, sampling_options
from ._tasks import TaskOptions, task_options
from .options import ModelOptions, RecipeOptions, answering_options, json_option, load_engine, recipe_options

if TYPE_CHECKING:
    from ..adapters.recipe import Recipe
    from ..completion import Pass, Piece, Settings
    from ..engine import Engine
    from ..text.prompts import Prompt

FILE = click.Path(allow_dash=True)  # as any other text, and shells complete it


@click.command("generate")
@MODEL
@NAMED
@click.argument("prompt", metavar="[PROMPT]", nargs=-1)
@click.option("-p", "--prompt", "asked_for", metavar="TEXT", help="The same as PROMPT.")
@click.option(
    "-f",
    "--file",
    "prompt_file",
    type=FILE,
    metavar="FILE",
    help="Read the prompt from a file; - is standard input, demo:dialogue the demo's.",
)
@click.option(
    "--prompts",
    "prompts_file",
    type=FILE,
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
@task_options
@click.option("--system", help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Give the prompt to the model as it stands, without its chat template.")
@answering_options
@recipe_options
@sampling_options
@click.option("-q", "--quiet", is_flag=True, help="The answer alone: no progress, no timings.")
@click.option("--tokens", is_flag=True, help="With --json: a record per token, with its timings.")
@json_option
def command(
    model: str | None,
    named: str | None,
    prompt: tuple[str, ...],
    asked_for: str | None,
    prompt_file: str | None,
    prompts_file: str | None,
    batch_size: int | None,
    prefix_cache: int | None,
    asked: TaskOptions,
    system: str | None,
    raw: bool,
    loading: ModelOptions,
    chosen: RecipeOptions,
    answering: SettingsOptions,
    quiet: bool,
    tokens: bool,
    as_json: bool,
) -> None:
    """Answer PROMPT with MODEL: a directory, a GGUF file, a hub id (org/name), or demo.

    \b
    edgecal generate demo "Why is the sky blue?"
    edgecal generate demo -f demo:dialogue --task summarize+tone --tone professional \\
        --adapter demo:summarize --adapter demo:professional --calibration demo:learnable_calibration_pp
    edgecal generate demo --prompts chats.jsonl --task summarize --adapter demo:summarize > summaries.jsonl
    """
    if tokens and not (as_json or prompts_file):
        raise click.UsageError("--tokens goes with --json or --prompts")
    model, asked_text = _model_and_prompt(model, named, prompt, asked_for)
    question = _questions(asked, system, raw)
    if prompts_file is None:
        if batch_size is not None or prefix_cache is not None:
            raise click.UsageError("--batch and --prefix-cache belong to --prompts")
        text = question(prompt_text(asked_text, prompt_file, raw=raw))
    elif asked_text is not None or prompt_file is not None:
        raise click.UsageError("give one prompt, or a file of them with --prompts, not both")
    else:
        from ._prompts import read_lines

        lines = read_lines(prompts_file)
    recipe = chosen.recipe()
    answering.settings(None)  # what cannot be is refused before the model is loaded
    if recipe.steps and system is not None:
        raise PromptError("--system does not go with a multi-step recipe, whose steps have prompts of their own")
    kept = None if prefix_cache is None else prefix_cache << 20
    engine = load_engine(model, loading, chosen.paths(), prefix_cache=kept)
    a_task = bool(recipe.adapter_names) or asked.task is not None
    settings = replace(answering.settings(None if a_task else engine.advised_sampling), raw=raw)
    if prompts_file is None:
        _answer(engine, text, recipe, settings, quiet=quiet, as_json=as_json, with_tokens=tokens)
        return
    from ._prompts import answer_all

    run = answer_all(engine, lines, question, recipe, settings, batch_size=batch_size or 8, with_tokens=tokens)
    if not (quiet or as_json):
        tell(run.summary(), err=True)
    if run.refused:
        raise PromptError(f"{run.refused} of {len(lines)} prompts were refused; their lines of the output say why")


def _model_and_prompt(
    model: str | None, named: str | None, prompt: Sequence[str], asked_for: str | None
) -> tuple[str, str | None]:
    """Of the arguments and the two options that may take their places."""
    named, words = model_and_words(named, (model, *prompt))
    if named is None:
        raise click.UsageError("say which model is to answer: edgecal generate MODEL PROMPT")
    if asked_for is not None:
        words.append(asked_for)
    if len(words) > 1:
        raise click.UsageError(
            f"the model is {named!r}, and there is more than one prompt: {words[0]!r}, {words[1]!r}; words of one "
            "prompt go between quotes"
        )
    return named, words[0] if words else None


def _answer(
    engine: Engine,
    prompt: Prompt,
    recipe: Recipe,
    settings: Settings,
    *,
    quiet: bool,
    as_json: bool,
    with_tokens: bool,
) -> None:
    """Stream the answer; what was said before Ctrl-C stays."""
    passes: list[Pass] = []
    pieces: list[Piece] = []
    interrupted, writer, watch = False, AnswerWriter(), Watch()
    try:
        for piece in while_reading(
            lambda read: engine.stream(prompt, recipe=recipe, settings=settings, passes=passes, progress=read)
        ):
            pieces.append(piece)
            if not as_json:
                writer.write(piece.text)
    except KeyboardInterrupt:
        interrupted = True
    if as_json:
        _print_json(pieces, passes, recipe.method, with_tokens=with_tokens)
    else:
        writer.end()
        if not quiet and passes:
            tell(timings(passes), err=True)
            if (said := crowded(watch.report(), engine.threads.decode)) is not None:
                tell(f"[{said}]", err=True)
            if pieces[-1].finish_reason == "repetition":
                tell("[ended: it had begun to repeat itself; --no-stop-at-repetition lets it go on]", err=True)
            elif pieces[-1].finish_reason == "length":
                tell(f"[cut after {settings.max_tokens} tokens; -n allows more]", err=True)
            elif pieces[-1].finish_reason == "context":
                tell("[cut: the model's context is full]", err=True)
    if interrupted:
        raise KeyboardInterrupt


def timings(passes: list[Pass]) -> str:
    """One line per pass: what it read and wrote, and how fast."""
    lines = []
    for i, p in enumerate(passes, 1):
        which = f"pass {i}: " if len(passes) > 1 else ""
        reused = f", {p.reused_tokens} of them from the cache," if p.reused_tokens else ""
        drafts = f"; {p.accepted_tokens} of {p.drafted_tokens} drafted tokens accepted" if p.drafted_tokens else ""
        kernels_s = p.kernels_s + p.decode_kernels_s
        loading = f" and {kernels_s:.2f} s of loading kernels" if kernels_s >= 0.005 else ""
        read_s = p.first_token_s - p.kernels_s
        lines.append(
            f"[{which}{p.prompt_tokens} prompt tokens{reused} in {read_s:.2f} s ({p.prefill_rate:.0f}/s){loading}, "
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
    echo_json(result)


def _questions(asked: TaskOptions, system: str | None, raw: bool) -> Callable[[str], Prompt]:
    """Puts the task's instruction and the system message around a text."""
    from ..text.tasks import user_message

    instruction = asked.instruction()
    if system is not None and raw:
        raise PromptError("--system needs the chat template, which --raw turns off")

    def question(text: str) -> Prompt:
        if not (text if raw else text.strip()):
            raise PromptError("the prompt is empty: give some text to answer")
        if instruction is not None:
            text = user_message(instruction, text)
        if system is None:
            return text
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]

    return question
