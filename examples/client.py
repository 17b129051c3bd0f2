"""A client of `edgecal serve` with nothing but Python's own library: one dialogue, and a recipe by name.

    python examples/client.py [URL [MODEL]]
"""

from __future__ import annotations

import json
import sys
import urllib.request

DIALOGUE = "Ann: Is the heating in room 412 repaired?\nBob: Not yet. The technician comes at four.\nAnn: Then I wait."


def main(url: str = "http://127.0.0.1:8080", model: str = "learnable_calibration_pp") -> None:
    task = "Summarize the following text and change its tone to professional"
    asked = {"model": model, "messages": [{"role": "user", "content": f"{task}\n\n{DIALOGUE}"}], "max_tokens": 48}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        print(json.load(answer)["choices"][0]["message"]["content"].strip())


if __name__ == "__main__":
    main(*sys.argv[1:])
