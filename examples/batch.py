"""Many texts at once: the answers of one by one, in the time of a few.

    python examples/batch.py [MODEL ADAPTER]
"""

from __future__ import annotations

import sys

import edgecal

TEXTS = ("The train is late.", "Ann: Lunch?\nBob: At one.", "The meeting moves to Monday.", "It rains.")


def main(model: str = "demo", adapter: str = "demo:summarize") -> None:
    engine = edgecal.Engine.load(model, adapters={"summarize": adapter})
    prompts = [edgecal.user_message(edgecal.instruction("summarize"), text) for text in TEXTS]
    recipe, settings = engine.find_recipe("summarize"), edgecal.Settings(max_tokens=24)
    answers = engine.generate_batch(prompts, recipes=recipe, settings=settings, batch_size=4)
    for text, answer in zip(TEXTS, answers, strict=True):
        print(f"{text!r}: {answer.text.strip()!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
