"""What is asked of a model: one message, or the messages of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Message = Mapping[str, str]
Prompt = str | Sequence[Message]


def messages(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as a conversation: a string is one message of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(one) for one in prompt]


def after_examples(examples: Sequence[tuple[str, str]], prompt: Prompt) -> list[dict[str, str]]:
    """The prompt behind examples (what is asked, what is answered), which are turns after its system message."""
    asked = messages(prompt)
    n_system = next((i for i, message in enumerate(asked) if message.get("role") != "system"), len(asked))
    turns = [
        {"role": role, "content": content}
        for question, answer in examples
        for role, content in (("user", question), ("assistant", answer))
    ]
    return [*asked[:n_system], *turns, *asked[n_system:]]
