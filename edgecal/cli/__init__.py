"""The command line: one thin module per command, imported when it is called.

Exit codes: 0 done, 1 refused (one line on stderr says why), 2 wrong usage, 130 interrupted, 141 the reader of a pipe
has gone. docs/json.md has what --json prints.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from importlib import import_module
from typing import Any

import click

from edgecal_kernels.errors import EdgecalError
from edgecal_weights.errors import EdgecalWarning
from edgecal_weights.nearest import nearest

from ._output import echo, echo_json, leave_broken_pipe, prepare_streams, tell

# name -> one line of help, so that `edgecal --help` imports no command
COMMANDS = {
    "demo": "Run the main job on a small real model: a dialogue, summarized in a professional tone, in one pass.",
    "generate": "Answer one prompt, with any adapters and any method.",
    "chat": "Talk with a model; switch method and adapters on the way.",
    "serve": "Serve a model to OpenAI's clients, with a page for the browser.",
    "quantize": "Convert a model to edgecal's packed form.",
    "merge": "Write what a recipe compiles to as a PEFT adapter; --list shows all methods.",
    "search": "Find weights for adapters on a few examples, without gradients.",
    "inspect": "Say what a file is: model, GGUF, adapter or calibration.",
    "verify": "Compare with PyTorch, tensor by tensor, against stated tolerances.",
    "doctor": "Say what adapters do to a model, and what in them has no effect.",
    "figure": "Draw the weight changes of a recipe beside plain linear merging.",
    "eval": "Say how well every method does its job, on the papers' tasks or on your own.",
    "perplexity": "Say how well a model predicts a text, alone or beside another.",
    "profile": "Say where every millisecond and every byte of a token goes, per method.",
    "pull": "Fetch the demo model, or a model of the hub, into the cache.",
    "list": "Show the models on this machine.",
    "rm": "Remove models from this machine.",
    "cache": "Show what is kept on this machine, with sizes; --clean removes old kernels.",
    "env": "Say what this machine has, what is used of it, and what would be faster.",
    "warmup": "Compile the kernels for this machine, once.",
    "tune": "Find the numbers of threads that are fastest here, and keep them.",
}


# What people type who come from another tool
OTHER_NAMES = {"run": "generate", "convert": "quantize", "show": "inspect", "bench": "profile", "ls": "list"}


class _LazyGroup(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return [*COMMANDS]  # the module `list` of this package hides the built-in one, once it is imported

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"{__name__}.{name}").command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            near = OTHER_NAMES.get(args[0]) or nearest(args[0], COMMANDS)
            hint = f"did you mean {near!r}? commands" if near else "commands"
            context.fail(f"no command {args[0]!r}; {hint}: {', '.join(COMMANDS)}")
        return super().resolve_command(context, args)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:
            leave_broken_pipe()


def _version(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        from edgecal import __version__

        echo(f"edgecal {__version__}")
        context.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def group() -> None:
    """Compositional multi-tasking language models on small CPUs.

    Shell completion: eval "$(_EDGECAL_COMPLETE=bash_source edgecal)" (or zsh_source, fish_source).
    """


def main() -> None:
    """Run the command line; every refusal of the EdgecalError family becomes one line and exit code 1."""
    warnings.formatwarning = _format_warning
    if "_EDGECAL_COMPLETE" in os.environ:
        from ._bash import use

        use()
    prepare_streams()
    try:
        code = group(standalone_mode=False, prog_name="edgecal")
        sys.stdout.flush()
    except EdgecalError as error:
        _fail(str(error), type(error).__name__)
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        tell(said.getvalue().rstrip("\n"), err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        echo("\ninterrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        leave_broken_pipe()
    except MemoryError:
        advice = "a shorter context, an int8 cache or a smaller format take less"
        _fail(f"there is not enough memory; {advice}", "MemoryError")
    except OSError as error:  # a path that no command expected: no permission, a name too long, a folder for a file
        _fail(f"{error.filename or 'input/output'}: {error.strerror or error}", type(error).__name__)
    sys.exit(code if isinstance(code, int) else 0)


_format_foreign_warning = warnings.formatwarning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings are for the person at the terminal: one line, without the place in the code."""
    if issubclass(category, EdgecalWarning):
        return f"edgecal: warning: {message}\n"
    return _format_foreign_warning(message, category, filename, lineno, line)


def _fail(message: str, kind: str) -> None:
    """With --json anywhere, programs read the refusal as JSON too; people read one line."""
    if "--json" in sys.argv:
        echo_json({"error": {"type": kind, "message": message}}, err=True)
    else:
        tell(f"edgecal: error: {message}", err=True)
    sys.exit(1)
