"""The instructions that the adapters were trained with, and the shape of a prompt.

An adapter answers best when it is asked in the words it was trained on, so these are constants and not
advice: the export of the demo adapters used exactly them (prompts.json of edgecal-demo-data), and so do the reference
outputs. Those of three tasks at once are put together in the same way.
"""

from __future__ import annotations

import string

from edgecal_weights.nearest import did_you_mean

from ..errors import PromptError

TASKS = {
    "summarize": "Summarize the following text",
    "translate": "Translate the following text from English to {language}",
    "summarize+translate": "Summarize the following text and translate it from English to {language}",
    "tone": "Change the tone of the following text to {tone}",
    "summarize+tone": "Summarize the following text and change its tone to {tone}",
    "reply": "Suggest a reply for the following text",
    "reply+translate": "Suggest a reply for the following text and translate it from English to {language}",
    "reply+tone": "Suggest a reply for the following text and change its tone to {tone}",
    "summarize+tone+translate": (
        "Summarize the following text, change its tone to {tone} and translate it from English to {language}"
    ),
    "reply+tone+translate": (
        "Suggest a reply for the following text, change its tone to {tone} and translate it from English to {language}"
    ),
}


def instruction(task: str, **fields: str) -> str:
    """A task's instruction with its fields filled in: `instruction("summarize+tone", tone="professional")`.

    PromptError for an unknown task, and for a field that is missing or that the task does not have.
    """
    if task not in TASKS:
        raise PromptError(f"unknown task {task!r}{did_you_mean(task, TASKS)}; known tasks: {', '.join(TASKS)}")
    template = TASKS[task]
    wanted = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    if wanted != set(fields):
        raise PromptError(
            f"task {task!r} takes {', '.join(sorted(wanted)) or 'no fields'}; given: "
            f"{', '.join(sorted(fields)) or 'none'} (--tone, --language)"
        )
    return template.format(**fields)


def user_message(instruction: str, text: str) -> str:
    """The one user message of a prompt: the instruction, an empty line, the text."""
    return f"{instruction}\n\n{text}"
