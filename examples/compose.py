"""Two adapters in one pass: a dialogue, summarized and rewritten in a professional tone, by three recipes.

    python examples/compose.py [MODEL SUMMARIZE PROFESSIONAL CALIBRATION]

Without arguments it takes the demo's (`edgecal pull demo`).
"""

from __future__ import annotations

import sys

import edgecal

DIALOGUE = "Ann: Is the heating in room 412 repaired?\nBob: Not yet. The technician comes at four.\nAnn: Then I wait."


def main(
    model: str = "demo",
    summarize: str = "demo:summarize",
    professional: str = "demo:professional",
    calibration: str = "demo:learnable_calibration_pp",
) -> None:
    adapters = ("summarize", "professional")
    engine = edgecal.Engine.load(model, adapters=dict(zip(adapters, (summarize, professional), strict=True)))
    recipes = {
        "one adapter": edgecal.Recipe("single", adapters[:1]),
        "merged": edgecal.Recipe("linear", adapters),
        "calibrated": edgecal.Recipe("learnable_calibration_pp", adapters, calibration=calibration),
    }
    prompt = edgecal.user_message(edgecal.instruction("summarize+tone", tone="professional"), DIALOGUE)
    for name, recipe in recipes.items():
        answer = engine.generate(prompt, recipe=recipe, max_tokens=48)
        print(f"{name}: {answer.text.strip()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
